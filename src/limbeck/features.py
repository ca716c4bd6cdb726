"""Read any layer of any network by name, without changing the network.

A layer's *address* is ``name`` (the module's output), ``name:input`` (its first input) or
``name#2`` (the second call of a module that one forward pass uses more than once); the two can
be joined, ``name:input#2``. By meaning, as ``stage2`` or ``penultimate``, a layer resolves to
such an address.

B batch, C channels, H W spatial, K classes, D features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.core.errors import ModelError, TapError, UnknownNameError
from limbeck.core.normalization import Normalization, Normalize
from limbeck.core.types import Classifier, Outputs

__all__ = [
    "FeatureTap",
    "LayerAddress",
    "ObservedNetwork",
    "TapReading",
    "find_classifier",
    "layer_names",
    "resolve_layer",
]

_ADDRESS = re.compile(r"(?P<module>[^:#]+)(?P<input>:input)?(?:#(?P<call>[1-9]\d*))?")


class LayerAddress(NamedTuple):
    """Which tensor of a forward pass is meant.

    Attributes:
        module: the module's name, as ``named_modules`` gives it.
        takes_input: its first input instead of its output.
        call: the how-manieth call of the module, from 1; None where there is only one.
    """

    module: str
    takes_input: bool = False
    call: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name``, ``name:input``, ``name#2`` or ``name:input#2``.

        Raises:
            TapError: if the text is none of these.

        Example:
            >>> LayerAddress.parse("relu:input#2")
            LayerAddress(module='relu', takes_input=True, call=2)
        """
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise TapError(
                f"a layer reads 'name', 'name:input' or 'name#2' (its second call); got {text!r}"
            )
        call = match["call"]
        return cls(match["module"], match["input"] is not None, None if call is None else int(call))


class TapReading(NamedTuple):
    """What one forward pass gave."""

    output: Any  # the network's own; None after a stop
    features: dict[str, Tensor]  # by the name that was asked for
    stopped: bool


def layer_names(network: nn.Module) -> list[str]:
    """Every name a layer of ``network`` can be asked by: its modules, then its meanings."""
    names = [name for name, _ in network.named_modules() if name]
    return names + [name for name in _aliases(network) if name not in names]


def resolve_layer(network: nn.Module, asked: str) -> str:
    """The exact address of a layer asked for by address or by meaning.

    Meanings come from the network's own ``layer_aliases`` (a mapping of names to addresses);
    ``penultimate`` is otherwise the input of the last ``nn.Linear``.

    Raises:
        UnknownNameError: with the nearest names, if there is no such layer.
        TapError: if the address cannot be read.
    """
    aliases = _aliases(network)
    if asked in aliases:
        return aliases[asked]
    modules = dict(network.named_modules())
    if asked == "penultimate" and asked not in modules:
        return f"{_classifier_name(network)}:input"
    if LayerAddress.parse(asked).module not in modules:
        raise UnknownNameError(
            "layer",
            asked,
            layer_names(network),
            hint="`limbeck inspect MODEL` lists a network's layers.",
        )
    return asked


def find_classifier(network: nn.Module) -> Classifier:
    """The live weight and bias of the last ``nn.Linear``.

    Raises:
        ModelError: if there is none.
    """
    module = network.get_submodule(_classifier_name(network))
    assert isinstance(module, nn.Linear)
    return Classifier(module.weight, module.bias)


def _aliases(network: nn.Module) -> Mapping[str, str]:
    return getattr(network, "layer_aliases", {})


def _classifier_name(network: nn.Module) -> str:
    linear: list[str] = [
        name for name, module in network.named_modules() if isinstance(module, nn.Linear)
    ]
    if not linear or not linear[-1]:
        raise ModelError(
            f"{type(network).__name__} has no nn.Linear as its classifier; name the layer that is "
            "meant by its own name (`limbeck inspect MODEL` lists them)"
        )
    return linear[-1]


class _StopForward(Exception):  # noqa: N818  (a signal, never seen outside)
    """Raised by the last tap of a stopped forward pass."""


class _Store:
    """What the hooks of one tap write and the tap reads.

    A copy starts empty and inactive, so that the hooks of a network that was copied alone do
    nothing and keep no tensor alive; copying the tap itself activates it.
    """

    def __init__(self, asked: Sequence[str], *, stop: bool) -> None:
        self.asked = tuple(asked)
        self.stop = stop
        self.active = True
        # Per layer: must it be cloned, because something later writes over it in place?
        # Unknown until one forward pass has been seen.
        self.overwritten: dict[str, bool] = {}
        self.clear()

    def clear(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.counts: dict[str, int] = dict.fromkeys(self.asked, 0)
        self.watched: dict[str, tuple[Tensor, int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Store:
        copied = _Store(self.asked, stop=self.stop)
        copied.overwritten = dict(self.overwritten)
        copied.active = False
        memo[id(self)] = copied
        return copied


class _Hook:
    """Writes one layer's tensor into the store: an output hook or a pre-hook by its arguments."""

    def __init__(self, store: _Store, asked: str, address: LayerAddress) -> None:
        self.store = store
        self.asked = asked
        self.address = address

    def __call__(self, module: nn.Module, *values: Any) -> None:  # noqa: ANN401
        store = self.store
        if not store.active:
            return
        del module
        store.counts[self.asked] += 1
        if store.counts[self.asked] != (self.address.call or 1):
            return
        value = values[-1]
        if self.address.takes_input and isinstance(value, tuple) and value:
            value = value[0]
        if not isinstance(value, Tensor):
            raise TapError(
                f"layer {self.asked!r} gives a {type(value).__name__}, and a tap needs a tensor; "
                "tap a layer inside it, or the input of the layer that follows"
            )
        # Until one pass was seen, every tensor is cloned; after that only those that need it.
        store.values[self.asked] = (
            value.clone() if store.overwritten.get(self.asked, True) else value
        )
        if not torch.compiler.is_compiling():
            store.watched[self.asked] = (value, value._version)
        if store.stop and len(store.values) == len(store.asked):
            raise _StopForward


class FeatureTap:
    """The tensors of named layers, read while the network runs as always.

    The hooks stay until :meth:`close` (or the end of a ``with`` block) and are gone afterwards.
    A tensor that is overwritten in place after it was tapped is returned as it was. A copy of
    the network alone has dead hooks; a copy of the tap and its network together works.

    Args:
        network: any module; it is not changed.
        layers: addresses or meanings; :attr:`TapReading.features` answers to the same names.
        stop: end the forward pass once every layer has been read.

    Raises:
        UnknownNameError: with the nearest names, for a misspelt layer.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
        >>> with FeatureTap(network, ["0", "penultimate"]) as tap:
        ...     reading = tap(torch.zeros(4, 2))
        >>> tuple(reading.features["penultimate"].shape)
        (4, 3)
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str] = (), *, stop: bool = False
    ) -> None:
        self.network = network
        self.addresses = {asked: resolve_layer(network, asked) for asked in layers}
        self._store = _Store(list(self.addresses), stop=stop and bool(layers))
        self._handles: list[RemovableHandle] = []
        modules = dict(network.named_modules())
        for asked, text in self.addresses.items():
            address = LayerAddress.parse(text)
            hook = _Hook(self._store, asked, address)
            module = modules[address.module]
            self._handles.append(
                module.register_forward_pre_hook(hook)
                if address.takes_input
                else module.register_forward_hook(hook)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureTap:
        from copy import deepcopy

        copied = object.__new__(FeatureTap)
        memo[id(self)] = copied
        copied.network = deepcopy(self.network, memo)
        copied.addresses = dict(self.addresses)
        copied._store = deepcopy(self._store, memo)
        copied._store.active = True
        copied._handles = deepcopy(self._handles, memo)
        return copied

    def close(self) -> None:
        """Remove every hook; harmless when done twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._store.active = False
        self._store.clear()

    def __call__(self, image: Tensor) -> TapReading:
        """Run the network on ``image`` and read the layers.

        Raises:
            TapError: if a layer did not run, ran more than once where once was meant, gave no
                tensor, or is overwritten in place in this pass and was not in the first one.
        """
        store = self._store
        store.clear()
        stopped = False
        try:
            output = self.network(image)
        except _StopForward:
            output, stopped = None, True
        features = store.values
        try:
            self._check()
        finally:
            store.clear()
        return TapReading(output, features, stopped)

    def _check(self) -> None:
        store = self._store
        for asked, address in self.addresses.items():
            wanted, count = LayerAddress.parse(address).call, store.counts[asked]
            if asked not in store.values:
                ran = f"ran {count} times" if count else "did not run"
                raise TapError(
                    f"layer {asked!r} ({address}) {ran} in this forward pass; tap a layer that "
                    "the network uses (`limbeck inspect MODEL` lists those that run). Under "
                    "torch.compile, hooks set after the first compiled call stay silent"
                )
            if wanted is None and count > 1:
                raise TapError(
                    f"layer {asked!r} ran {count} times in one forward pass; say which call is "
                    f"meant: {address}#1 ... {address}#{count}"
                )
        for asked, (value, version) in store.watched.items():
            moved = value._version != version
            known = store.overwritten.setdefault(asked, moved)
            if moved and not known:
                store.overwritten[asked] = True
                raise TapError(
                    f"layer {asked!r} was overwritten in place in this forward pass and not in "
                    "the first one; run one forward pass in this mode before reading it"
                )


class ObservedNetwork(nn.Module):
    """A network with its own normalisation and its taps: images in [0, 1] in, Outputs out.

    Args:
        network: images to logits ``(B, K)``.
        normalization: the network's own.
        layers: what :attr:`Outputs.features` holds.
        classifier: whether :attr:`Outputs.classifier` is filled.
        stop: end the forward pass after the last tapped layer; there are no logits then.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        normalization: Normalization | None = None,
        layers: Sequence[str] = (),
        classifier: bool = False,
        stop: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(normalization or Normalization())
        self.tap = FeatureTap(network, layers, stop=stop)
        self.with_classifier = classifier

    def forward(self, image: Tensor, views: Mapping[str, Tensor] | None = None) -> Outputs:
        """Outputs for ``(B, C, H, W)`` images and for each of their further views."""
        reading = self.tap(self.normalize(image))
        missing = ""
        if reading.stopped:
            last = list(reading.features)[-1]
            missing = f"the forward pass was stopped after layer {last!r}"
        elif not isinstance(reading.output, Tensor) or reading.output.ndim != 2:
            shape = getattr(reading.output, "shape", type(reading.output).__name__)
            raise ModelError(
                f"{type(self.network).__name__} must give logits of shape (batch, classes); "
                f"got {shape}"
            )
        return Outputs(
            reading.output,
            features=reading.features,
            classifier=find_classifier(self.network) if self.with_classifier else None,
            views={name: self(view) for name, view in (views or {}).items()},
            missing=missing,
        )
