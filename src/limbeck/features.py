"""Read any layer of any network by name, without changing the network.

A layer's *address* is ``name`` (the module's output), ``name:input`` (its first input) or
``name#2`` (the second call of a module that one forward pass uses more than once); the two can
be joined, ``name:input#2``. By meaning, as ``stage2`` or ``penultimate``, a layer resolves to
such an address; see :mod:`limbeck.layers`.

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
from limbeck.layers import (
    classifier_name,
    find_meaning,
    find_meanings,
    is_meaning,
    known_meaning,
    known_meanings,
    own_meanings,
)

__all__ = [
    "FeatureTap",
    "LayerAddress",
    "LogitNetwork",
    "ObservedNetwork",
    "TapReading",
    "find_classifier",
    "layer_names",
    "read_logits",
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
    names = list(_modules(network))
    return names + [name for name in known_meanings(network) if name not in names]


def resolve_layer(network: nn.Module, asked: str, image: Tensor | None = None) -> str:
    """The exact address of a layer asked for by address or by meaning.

    Args:
        network: stays as it is.
        asked: an address, or a meaning such as ``stage2`` or ``penultimate``.
        image: ``(B, C, H, W)`` as the network takes it; needed for a meaning that only a forward
            pass can tell (see :mod:`limbeck.layers`). Without it ``penultimate`` is the input of
            the last ``nn.Linear``.

    Raises:
        UnknownNameError: with the nearest names, if there is no such layer.
        TapError: if the address cannot be read, or the image is needed.
        ModelError: if there is no classifier before which to read.
    """
    address = _known_address(network, asked)
    if address is not None:
        return address
    if image is not None:
        return find_meaning(network, asked, image).address
    if asked == "penultimate":
        return f"{classifier_name(network)}:input"
    raise TapError(
        f"what {asked!r} means in {type(network).__name__} shows when it runs; pass an image as "
        "well, or name the layer by its own name"
    )


def find_classifier(network: nn.Module, image: Tensor | None = None) -> Classifier:
    """The live weight and bias of the linear layer that gives the logits.

    Args:
        network: stays as it is.
        image: ``(B, C, H, W)`` as the network takes it: with it, the layer whose output the
            logits are; without it, the one that the network or timm names, or the last one.

    Raises:
        ModelError: if the logits come from no ``nn.Linear``, or from several.
    """
    return _classifier(network, classifier_name(network, image))


def _classifier(network: nn.Module, name: str) -> Classifier:
    module = network.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return Classifier(module.weight, module.bias)


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    """By every name, also where one module has several."""
    return {name: part for name, part in network.named_modules(remove_duplicate=False) if name}


def _known_address(network: nn.Module, asked: str) -> str | None:
    """The address, if it can be told before the network runs.

    Raises:
        UnknownNameError: with the nearest names, if there is no such layer.
        TapError: if the address cannot be read.
    """
    if asked in own_meanings(network):
        return own_meanings(network)[asked]
    modules = _modules(network)
    if asked not in modules and is_meaning(asked):
        return known_meaning(network, asked)
    if LayerAddress.parse(asked).module not in modules:
        raise UnknownNameError(
            "layer",
            asked,
            layer_names(network),
            hint="`limbeck inspect MODEL` lists a network's layers.",
        )
    return asked


def read_logits(network: nn.Module, output: Any) -> Tensor:  # noqa: ANN401  (as networks give it)
    """The logits in what a network gave: ``(B, K)``.

    A tensor is taken as it is. Of a mapping or an object, ``logits``. Of a tuple or list, its
    tensors with two axes: the only one, or the first where the others have another width, or
    belong to auxiliary classifiers (Inception's and GoogLeNet's: the network has an ``aux...``
    part); the mean of the two of a distilled transformer in training, as it gives itself
    otherwise (Touvron et al. 2021, https://arxiv.org/abs/2012.12877, section 4).

    Raises:
        ModelError: if no logits can be told from it; the message says what came.
    """
    kind = type(network).__name__
    found: Any = output
    if isinstance(output, Mapping):
        if "logits" not in output:
            raise ModelError(
                f"{kind} gives a mapping of {', '.join(map(repr, output))}; let it hold the class "
                "scores (batch, classes) as 'logits'"
            )
        found = output["logits"]
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list):
        found = _main_head(network, output)
    if not isinstance(found, Tensor):
        raise ModelError(
            f"{kind} must give logits of shape (batch, classes); got {type(found).__name__}. "
            "Return a tensor, a mapping with 'logits', or an object with .logits"
        )
    if found.ndim == 4 and found.shape[2:] == (1, 1):
        raise ModelError(
            f"{kind} gives logits of shape {tuple(found.shape)} and must give (batch, classes); "
            "flatten them: nn.Sequential(network, nn.Flatten())"
        )
    if found.ndim != 2:
        raise ModelError(
            f"{kind} must give logits of shape (batch, classes); got {tuple(found.shape)}. "
            "Pool and flatten what it gives, or make it with a classifier (num_classes)"
        )
    return found


def _main_head(network: nn.Module, output: Sequence[Any]) -> Tensor:
    """The logits among several outputs."""
    kind = type(network).__name__
    heads = [(k, v) for k, v in enumerate(output) if isinstance(v, Tensor) and v.ndim == 2]
    if not heads:
        forms = ", ".join(
            str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in output
        )
        raise ModelError(
            f"{kind} gives ({forms}), and none of these is logits of shape (batch, classes); "
            "return them first"
        )
    _, first = heads[0]
    if len(heads) == 2 and getattr(network, "distilled_training", False):
        return (first + heads[1][1]) / 2
    equal = [k for k, value in heads if value.shape == first.shape]
    auxiliary = any(name.casefold().startswith("aux") for name, _ in network.named_children())
    if len(equal) > 1 and not auxiliary:
        raise ModelError(
            f"{kind} gives {len(equal)} outputs of shape {tuple(first.shape)} (numbers "
            f"{', '.join(map(str, equal))}), and which are its logits it does not say; return the "
            "one that counts, or a mapping with 'logits'"
        )
    return first


class _StopForward(Exception):  # noqa: N818  (a signal, never seen outside)
    """Raised by the last tap of a stopped forward pass."""


class _Store:
    """What the hooks of one tap write and the tap reads.

    A copy starts empty and inactive, so that the hooks of a network that was copied alone do
    nothing and keep no tensor alive; copying the tap itself activates it.
    """

    def __init__(self, asked: Sequence[str], *, stop: bool) -> None:
        self.stop = stop
        self.active = True
        # Per layer: must it be cloned, because something later writes over it in place?
        # Unknown until one forward pass has been seen.
        self.overwritten: dict[str, bool] = {}
        self.ask(asked)

    def ask(self, names: Sequence[str]) -> None:
        """Wait for these layers from now on."""
        self.asked = tuple(dict.fromkeys(names))
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

    A meaning that only a run can tell is settled by a dry pass at the first call.

    Args:
        network: any module; it is not changed.
        layers: addresses or meanings; :attr:`TapReading.features` answers to the same names, and
            for ``stage*`` to ``stage1``, ``stage2`` ...
        stop: end the forward pass once every layer has been read.

    Attributes:
        addresses: what was asked for to its exact address; all of them from the first call on.
        reasons: for those that a rule had to find, why there; empty for all others.

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
        known = {asked: _known_address(network, asked) for asked in layers}
        self.addresses: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self._asked = tuple(known)
        self._unsettled = [asked for asked, address in known.items() if address is None]
        self._store = _Store(self._asked, stop=stop and bool(layers))
        self._handles: list[RemovableHandle] = []
        for asked, address in known.items():
            if address is not None:
                self._hook(asked, address)

    def _hook(self, asked: str, text: str) -> None:
        self.addresses[asked] = text
        address = LayerAddress.parse(text)
        hook = _Hook(self._store, asked, address)
        module = self.network.get_submodule(address.module)
        self._handles.append(
            module.register_forward_pre_hook(hook)
            if address.takes_input
            else module.register_forward_hook(hook)
        )

    def settle(self, image: Tensor) -> None:
        """Find the layers that only a run can tell; the first call does it by itself.

        Args:
            image: ``(B, C, H, W)`` as the network takes it.
        """
        active, self._store.active = self._store.active, False
        try:
            found = {asked: find_meanings(self.network, asked, image) for asked in self._unsettled}
        finally:
            self._store.active = active
        for meanings in found.values():
            for name, meaning in meanings.items():
                if name in self.addresses:  # asked for by itself as well
                    continue
                self._hook(name, meaning.address)
                if meaning.reason:
                    self.reasons[name] = meaning.reason
        self._store.ask([name for asked in self._asked for name in found.get(asked, [asked])])
        self._unsettled = []

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
        copied.reasons = dict(self.reasons)
        copied._asked = self._asked
        copied._unsettled = list(self._unsettled)
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
            UnknownNameError: at the first call, if there is no layer of the meaning asked for.
        """
        if self._unsettled:
            self.settle(image)
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
        network: images to logits ``(B, K)``, in any form that :func:`read_logits` reads.
        normalization: the network's own; also its size and channels.
        layers: what :attr:`Outputs.features` holds.
        classifier: whether :attr:`Outputs.classifier` is filled.
        stop: end the forward pass after the last tapped layer; there are no logits then.
        classes: which of the network's classes are the data's, in the data's order; None where
            they are the same. Logits and classifier hold these alone.
        scores: whether what the network gives are class scores; where not, there are no logits,
            and it may give anything.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        normalization: Normalization | None = None,
        layers: Sequence[str] = (),
        classifier: bool = False,
        stop: bool = False,
        classes: Sequence[int] | None = None,
        scores: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.scores = scores
        self.normalize = Normalize(normalization or Normalization())
        self.tap = FeatureTap(network, layers, stop=stop)
        self.with_classifier = classifier
        self.classes = _Classes(classes)
        self._classifier_name: str | None = None

    @property
    def classifier_name(self) -> str | None:
        """The name of the layer that :attr:`Outputs.classifier` is of; None before the first."""
        return self._classifier_name

    def forward(self, image: Tensor, views: Mapping[str, Tensor] | None = None) -> Outputs:
        """Outputs for ``(B, C, H, W)`` images and for each of their further views."""
        image = self.normalize(image)
        reading = self.tap(image)
        logits, missing = None, ""
        if reading.stopped:
            last = list(reading.features)[-1]
            missing = f"the forward pass was stopped after layer {last!r}"
        elif self.scores:
            logits = self.classes(read_logits(self.network, reading.output))
        else:
            missing = "this network's class scores were not asked for"
        return Outputs(
            logits,
            features=reading.features,
            classifier=self._classifier(image) if self.with_classifier else None,
            views={name: self(view) for name, view in (views or {}).items()},
            missing=missing,
        )

    def _classifier(self, image: Tensor) -> Classifier:
        if self._classifier_name is None:
            self._classifier_name = classifier_name(self.network, image)
        found = _classifier(self.network, self._classifier_name)
        bias = None if found.bias is None else self.classes(found.bias, dim=0)
        return Classifier(self.classes(found.weight, dim=0), bias)


class LogitNetwork(nn.Module):
    """The same network for its answers alone: images in [0, 1] to logits ``(B, K)``.

    Args:
        network: as for :class:`ObservedNetwork`.
        normalization: the network's own.
        classes: which of its classes are the data's; None for all.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
        >>> LogitNetwork(network, classes=[4, 0])(torch.rand(3, 1, 2, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        normalization: Normalization | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(normalization or Normalization())
        self.classes = _Classes(classes)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` in [0, 1] to ``(B, K)``."""
        logits = read_logits(self.network, self.network(self.normalize(image)))
        chosen: Tensor = self.classes(logits)
        return chosen


class _Classes(nn.Module):
    """Chosen rows or columns; the choice follows the device and is no state."""

    index: Tensor

    def __init__(self, classes: Sequence[int] | None) -> None:
        super().__init__()
        self.highest = -1 if classes is None else max(classes)
        self.register_buffer("index", torch.tensor(list(classes or ())), persistent=False)

    def forward(self, values: Tensor, dim: int = 1) -> Tensor:
        if self.highest < 0:
            return values
        if self.highest >= values.shape[dim]:
            raise ModelError(
                f"the class map asks for class {self.highest}, and the network has the "
                f"{values.shape[dim]} classes 0 to {values.shape[dim] - 1}; mend the class map"
            )
        return values.index_select(dim, self.index)
