"""Which layer is meant by ``stage2``, ``last`` or ``penultimate``, in a network that does not say.

Meanings, and where they come from, first answer first:

- ``stage1`` ... ``stageN``: the network's own ``layer_aliases``; timm's ``feature_info``; else one
  dry forward pass, in which a stage is what lies between two changes of the maps' size, and its
  layer the outermost module that ends it. Networks of equal blocks (transformers, mixers) have
  four stages, the blocks at a quarter, half, three quarters and the whole of their depth.
- ``stem``: what comes before ``stage1``, where that is something.
- ``last``: the last map or the last tokens before they are pooled.
- ``penultimate``: the input of the classifier.
- ``pre_activation:NAME``: what the activation that ends NAME is given.
- ``stage*`` and ``pre_activation:stage*``: every stage, however many there are, each by its own
  name; a stage that no activation module ends is its own ``pre_activation``.

An answer from the structure of a dry pass is a rule applied and not knowledge: it carries a reason,
which is shown to the user.

B batch, C channels, H W spatial, N tokens, D features, K classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import ModelError, TapError, UnknownNameError

__all__ = [
    "Meaning",
    "classifier_name",
    "classifier_names",
    "find_meaning",
    "find_meanings",
    "is_meaning",
    "known_meaning",
    "known_meanings",
    "list_meanings",
    "own_meanings",
]

_MEANING = re.compile(r"stage(?:[1-9]\d*|\*)|stem|last|penultimate|pre_activation:.+")
_EVERY_STAGE = "stage*"
_PRE = "pre_activation:"
_PARTS = 4  # stages of a network of equal blocks
_DRY_SIDE = 224  # pixels: the maps of small images soon have a side of 1, where stages look alike

# By class name, since timm and others bring their own: modules that only pool, reshape or drop.
_PASSIVE = re.compile(r"Pool|Flatten|Dropout|DropPath|Identity|Permute")
# The same for activations: what does not change the shape, has no weights and bends.
_ACTIVATION = re.compile(
    r"ReLU|ELU|SiLU|[Ss]wish|Mish|[Tt]anh|[Ss]igmoid|Soft(?:plus|sign)|Threshold|Act\b"
)


@dataclass(frozen=True)
class Meaning:
    """A layer asked for by meaning.

    Attributes:
        address: as :class:`~limbeck.features.LayerAddress` writes it.
        reason: how it was found, where that is a rule and not the network's own word; else empty.
    """

    address: str
    reason: str = ""


def is_meaning(asked: str) -> bool:
    """Whether a name stands for a meaning and not for a module.

    Example:
        >>> is_meaning("stage2"), is_meaning("layer2")
        (True, False)
    """
    return _MEANING.fullmatch(asked) is not None


def own_meanings(network: nn.Module) -> Mapping[str, str]:
    """What the network itself says: its ``layer_aliases``, meanings to addresses."""
    found: Mapping[str, str] = getattr(network, "layer_aliases", {})
    return found


def known_meanings(network: nn.Module) -> dict[str, str]:
    """Meanings that need no dry pass: the network's own word, or timm's."""
    found = dict(own_meanings(network))
    if not any(name.startswith("stage") for name in found):
        found |= _timm_stages(network)
    heads = _timm_heads(network)
    if "penultimate" not in found and len(heads) == 1:
        found["penultimate"] = f"{heads[0]}:input"
    return found


def known_meaning(network: nn.Module, asked: str) -> str | None:
    """The address of one meaning, if no dry pass is needed to tell.

    Raises:
        UnknownNameError: if the network says what its stages are, and has none of that name.
        ModelError: if the classifier is asked for and there are several.
    """
    found = known_meanings(network)
    if asked in found:
        return found[asked]
    if asked == "penultimate" and len(_timm_heads(network)) > 1:
        raise _several_heads(network)
    if re.fullmatch(r"stage\d+|stem", asked) and any(name.startswith("stage") for name in found):
        raise _unknown(network, asked, found)
    return None


def find_meaning(network: nn.Module, asked: str, image: Tensor) -> Meaning:
    """The address of one meaning, by a dry pass where the network does not say.

    Args:
        network: state, mode, gradients and random streams stay as they are.
        asked: a meaning, see the module.
        image: ``(B, C, H, W)`` as the network takes it; two images are used.

    Raises:
        UnknownNameError: if there is no such layer; the message lists those there are.
        ModelError: if there is no classifier, or no single one.
        TapError: if no activation ends the layer whose ``pre_activation`` is asked for.
    """
    known = known_meaning(network, asked)
    if known is not None:
        return Meaning(known)
    if asked == "penultimate":
        return _before_classifier(network, image)
    if asked.startswith(_PRE):
        return _pre_activation(network, asked.removeprefix(_PRE), image)
    stages = _structure(network, image)
    if asked not in stages:
        raise _unknown(network, asked, {**known_meanings(network), **stages})
    return Meaning(stages[asked], _why(stages))


def find_meanings(network: nn.Module, asked: str, image: Tensor) -> dict[str, Meaning]:
    """All that one meaning stands for, by name: itself, or every stage for ``stage*``.

    Args:
        network: stays as it is.
        asked: a meaning; ``stage*`` and ``pre_activation:stage*`` are given in order of depth.
        image: ``(B, C, H, W)`` as the network takes it.

    Raises:
        UnknownNameError: if there is no such layer, or no stage.
        ModelError: as for :func:`find_meaning`.
        TapError: as for :func:`find_meaning`, for a single name.
    """
    prefix, every, rest = asked.rpartition(_EVERY_STAGE)
    if not every or rest or prefix not in ("", _PRE):
        return {asked: find_meaning(network, asked, image)}
    found = {name: Meaning(address) for name, address in known_meanings(network).items()}
    if not any(name.startswith("stage") for name in found):
        structure = _structure(network, image)
        found = {name: Meaning(address, _why(structure)) for name, address in structure.items()}
    names = sorted(
        (name for name in found if re.fullmatch(r"stage\d+", name)),
        key=lambda name: int(name.removeprefix("stage")),
    )
    if not names:
        raise _unknown(network, asked, {name: meaning.address for name, meaning in found.items()})
    if not prefix:
        return {name: found[name] for name in names}
    before: dict[str, Meaning] = {}
    for name in names:
        try:
            before[prefix + name] = find_meaning(network, prefix + name, image)
        except TapError:
            reason = f"no activation module ends {name}, which is taken as it is"
            before[prefix + name] = Meaning(found[name].address, reason)
    return before


def list_meanings(network: nn.Module, image: Tensor) -> dict[str, Meaning]:
    """Every meaning that the network has but for ``pre_activation`` of single layers.

    Args:
        network: stays as it is.
        image: ``(B, C, H, W)`` as the network takes it.
    """
    found = {name: Meaning(address) for name, address in known_meanings(network).items()}
    named = any(name.startswith("stage") for name in found)
    stages = {} if named and "last" in found else _structure(network, image)
    for name, address in stages.items():
        if name not in found and (name == "last" or not named):
            found[name] = Meaning(address, _why(stages))
    if "penultimate" not in found:
        # Without one there is nothing to list: several classifiers, or none.
        with suppress(ModelError):
            found["penultimate"] = find_meaning(network, "penultimate", image)
    ends = [name for name in ("last", "penultimate") if name in found]
    return {name: found[name] for name in [*(n for n in found if n not in ends), *ends]}


def classifier_name(network: nn.Module, image: Tensor | None = None) -> str:
    """The name of the linear layer that gives the logits.

    Args:
        network: stays as it is.
        image: as the network takes it. With it, the layer whose output is the logits; without it,
            what the network or timm says, else the last ``nn.Linear``.

    Raises:
        ModelError: naming the layer that gives the logits, if that is no ``nn.Linear`` or if
            there are several.
    """
    name = _named_classifier(network)
    if name is None and image is not None:
        name = _classifier_that_ran(network, image)
    if name is None:
        linear = [n for n, module in network.named_modules() if isinstance(module, nn.Linear)]
        name = linear[-1] if linear and linear[-1] else None
    if name is None:
        raise ModelError(
            f"{type(network).__name__} has no nn.Linear as its classifier; name the layer that is "
            "meant by its own name (`limbeck inspect MODEL` lists them)"
        )
    module = network.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise ModelError(
            f"the classifier of {type(network).__name__}, {name!r}, is a "
            f"{type(module).__name__} and no nn.Linear; this method needs the weights of a linear "
            "classifier: choose another method, or a network that ends in one"
        )
    return name


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """The names of all linear classifiers: one as a rule, several of a distilled transformer.

    Raises:
        ModelError: if there is none.
    """
    heads = _timm_heads(network)
    return heads if len(heads) > 1 else (classifier_name(network),)


def _named_classifier(network: nn.Module) -> str | None:
    """What the network or timm calls its classifier."""
    own = own_meanings(network).get("penultimate", "")
    if own.endswith(":input"):
        return own.removesuffix(":input")
    heads = _timm_heads(network)
    if len(heads) > 1:
        raise _several_heads(network)
    return heads[0] if heads else None


# -- what timm says ----------------------------------------------------------------------------


def _timm_heads(network: nn.Module) -> tuple[str, ...]:
    """Names of the classifiers of a timm network; () for any other."""
    config = getattr(network, "pretrained_cfg", None)
    named = config.get("classifier") if isinstance(config, Mapping) else None
    names = (named,) if isinstance(named, str) else tuple(named or ())
    modules = dict(network.named_modules())
    # A distilled variant's configuration may stand on a network without the second head.
    there = tuple(n for n in names if n in modules and not isinstance(modules[n], nn.Identity))
    return there if all(isinstance(modules[n], nn.Linear | nn.Conv2d) for n in there) else ()


def _timm_stages(network: nn.Module) -> dict[str, str]:
    """``stem`` and stages by timm's ``feature_info``; empty for any other network."""
    found = getattr(network, "feature_info", None)
    rows = list(getattr(found, "info", found) or ())
    modules = dict(network.named_modules())
    if not all(isinstance(row, Mapping) and row.get("module") in modules for row in rows):
        return {}
    names = [str(row["module"]) for row in rows]
    if len(names) < 2 or len(set(names)) < len(names):
        return {}  # several branches: which of them is meant, nobody says
    addresses = [
        f"{name}:input" if row.get("hook_type") == "forward_pre" else name
        for name, row in zip(names, rows, strict=True)
    ]
    if len({row.get("reduction") for row in rows}) == 1:
        return _numbered(_quarters(addresses))
    # "act1" before "layer1", "stem.conv3" before "stages.0".
    first, second = (re.sub(r"\d+", "", name) for name in names[:2])
    if first == second and "stem" not in first:
        return _numbered(addresses)
    return {"stem": addresses[0], **_numbered(addresses[1:])}


def _numbered(addresses: Sequence[str]) -> dict[str, str]:
    return {f"stage{k}": address for k, address in enumerate(addresses, start=1)}


def _quarters(blocks: Sequence[str]) -> list[str]:
    """The blocks at a quarter, half, three quarters and the whole of the depth; all of a few."""
    parts = min(_PARTS, len(blocks))
    return [blocks[math.ceil(len(blocks) * k / parts) - 1] for k in range(1, parts + 1)]


# -- one dry pass ------------------------------------------------------------------------------


class _Call(NamedTuple):
    """One module's call in a dry pass, in the order of completion."""

    name: str
    nth: int  # which call of this module, from 1
    module: nn.Module
    given: Tensor | None
    output: Tensor
    version: int  # of the output, at that time

    @property
    def overwritten(self) -> bool:
        """Whether something that followed, an activation as a rule, wrote on the output."""
        return self.output._version != self.version


@dataclass
class _Pass:
    """What a dry pass showed."""

    calls: list[_Call] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    output: Any = None
    batch: int = 0
    size: tuple[int, ...] = ()  # of the images

    def address(self, call: _Call) -> str:
        """The call's address; numbered where the module runs more than once."""
        return f"{call.name}#{call.nth}" if self.totals[call.name] > 1 else call.name


@contextmanager
def _at_rest(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradient, and everything as before afterwards."""
    modes = [(part, part.training) for part in network.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network.eval()
            yield
    finally:
        for part, training in modes:
            part.training = training


def _run(network: nn.Module, image: Tensor) -> _Pass:
    """Run two images and write down every call."""
    seen = _Pass(batch=len(image), size=tuple(image.shape[2:]))

    def record(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        seen.totals[name] = seen.totals.get(name, 0) + 1
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor):
            given = next((arg for arg in args if isinstance(arg, Tensor)), None)
            call = _Call(name, seen.totals[name], module, given, first, first._version)
            seen.calls.append(call)

    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: record(name, module, args, output)
        )
        for name, module in network.named_modules()
        if name
    ]
    try:
        with _at_rest(network):
            seen.output = network(image)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _run_large(network: nn.Module, image: Tensor) -> _Pass:
    """The same with images of some size, if the network takes them."""
    scale = _DRY_SIDE / min(image.shape[2:]) if image.ndim == 4 else 1.0
    if scale > 1:
        size = [round(side * scale) for side in image.shape[2:]]
        try:
            return _run(network, F.interpolate(image[:2], size))
        except Exception:  # noqa: BLE001  (made for one size: it says so in its own way)
            return _run(network, image[:2])
    return _run(network, image[:2])


# -- classifier --------------------------------------------------------------------------------


def _last_weighted(network: nn.Module, seen: _Pass) -> tuple[_Call, bool]:
    """The layer with weights that gave the logits, and True; else the last that ran, and False."""
    output = _first_tensor(seen.output)
    weighted = [call for call in seen.calls if _has_weights(call.module)]
    if not weighted:
        raise ModelError(
            f"{type(network).__name__} has no layer with weights as its classifier, as nn.Linear "
            "is one; build it of such layers, name another layer (`limbeck inspect MODEL` lists "
            "them), or choose a method that reads outputs alone"
        )
    for call in reversed(weighted):
        if output is None or call.overwritten:
            continue
        if _same_values(call.output, output):
            return call, True
    return weighted[-1], False


def _before_classifier(network: nn.Module, image: Tensor) -> Meaning:
    seen = _run(network, image[:2])
    call, gives_logits = _last_weighted(network, seen)
    end = _end_without_classifier(seen)
    if not gives_logits and end is not None:
        return Meaning(f"{seen.address(end)}:input", "the network ends without a classifier")
    address = f"{call.name}:input"
    if seen.totals[call.name] > 1:
        address += f"#{call.nth}"
    reason = "the last layer with weights, though something follows it"
    return Meaning(address, "" if gives_logits else reason)


def _end_without_classifier(seen: _Pass) -> _Call | None:
    """The ``nn.Identity`` that gave the output, where one stands in a classifier's place."""
    output = _first_tensor(seen.output)
    for call in reversed(seen.calls):
        same = output is not None and _same_values(call.output, output)
        if isinstance(call.module, nn.Identity) and call.given is not None and same:
            return call
    return None


def _classifier_that_ran(network: nn.Module, image: Tensor) -> str:
    call, gives_logits = _last_weighted(network, _run(network, image[:2]))
    if not gives_logits:
        raise ModelError(
            f"no layer of {type(network).__name__} gives its logits as they are: the last with "
            f"weights is {call.name!r} ({type(call.module).__name__}), and something follows it; "
            "choose a method that needs no classifier, or a network that ends in an nn.Linear"
        )
    return call.name


def _first_tensor(output: Any) -> Tensor | None:  # noqa: ANN401  (whatever a network gives)
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list):
        output = next((v for v in output if isinstance(v, Tensor) and v.ndim == 2), None)
    return output if isinstance(output, Tensor) else None


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers, whatever their shape."""
    return one.numel() == other.numel() and torch.equal(one.reshape(-1), other.reshape(-1))


def _has_weights(module: nn.Module) -> bool:
    """Whether it multiplies by a matrix or kernel of its own."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim >= 2


def _several_heads(network: nn.Module) -> ModelError:
    names = " and ".join(map(repr, _timm_heads(network)))
    return ModelError(
        f"{type(network).__name__} has several classifiers ({names}), and this method needs one; "
        "name a layer by its own name (`limbeck inspect MODEL` lists them), choose a method that "
        "needs no classifier, or the network's variant with one head"
    )


# -- stages ------------------------------------------------------------------------------------


def _structure(network: nn.Module, image: Tensor) -> dict[str, str]:
    """``stem``, stages and ``last`` by the sizes of the maps, or by the depth of equal blocks."""
    seen = _run_large(network, image)
    stages = _stages_by_size(seen)
    if len([name for name in stages if name.startswith("stage")]) < 2:
        stages = _stages_by_depth(seen) or stages
    return stages


def _stages_by_size(seen: _Pass) -> dict[str, str]:
    units = [unit for unit in _units(seen, "") if not _is_passive(unit)]
    levelled = [(unit, level) for unit in units if (level := _level(unit.output, seen)) is not None]
    # A map that is followed by a larger one lies on a branch.
    trunk: list[tuple[_Call, int]] = []
    for unit, level in reversed(levelled):
        if not trunk or level <= trunk[-1][1]:
            trunk.append((unit, level))
    groups = [
        ([unit for unit, _ in group], level)
        for level, group in groupby(reversed(trunk), key=lambda pair: pair[1])
    ]
    groups = [(group, level) for group, level in groups if _num_weighted(group, seen)]
    if not groups:
        return {}
    ends = [seen.address(group[-1]) for group, _ in groups]
    first, level = groups[0]
    # What halves the image once, or is called so, before anything else.
    single = _num_weighted(first, seen) == 1 or "stem" in first[-1].name
    if len(groups) > 1 and level > 0 and single:
        return {"stem": ends[0], **_numbered(ends[1:]), "last": ends[-1]}
    return {**_numbered(ends), "last": ends[-1]}


def _units(seen: _Pass, outer: str) -> Iterator[_Call]:
    """The network as a row of modules none of which halves its map more than once, if it can be."""
    prefix = f"{outer}." if outer else ""
    inner = [call for call in seen.calls if call.name.startswith(prefix)]
    called = {call.name for call in inner}
    for call in inner:
        parts = call.name.removeprefix(prefix).split(".")
        above = (prefix + ".".join(parts[:depth]) for depth in range(1, len(parts)))
        if any(name in called for name in above):
            continue  # part of a module that was called itself
        before = None if call.given is None else _level(call.given, seen)
        after = _level(call.output, seen)
        parts_halve = before is None or after is None or after - before > 1
        within = list(_units(seen, call.name)) if parts_halve else []
        if any(_level(part.output, seen) is not None for part in within):
            yield from within
        else:
            yield call


def _level(value: Tensor, seen: _Pass) -> int | None:
    """How often the image's sides were halved; None for what is no map of the images."""
    if value.ndim != 4 or len(seen.size) != 2 or len(value) != seen.batch:
        return None
    shape = value.shape
    for height, width in ((shape[2], shape[3]), (shape[1], shape[2])):  # channels first, last
        if height * width > 1:
            halvings = [
                round(math.log2(before / after))
                for before, after in zip(seen.size, (height, width), strict=True)
            ]
            if halvings[0] == halvings[1] >= 0:
                return halvings[0]
    return None


def _num_weighted(units: Sequence[_Call], seen: _Pass) -> int:
    """Layers with weights in these modules."""
    names = tuple(unit.name for unit in units)
    inside = tuple(f"{name}." for name in names)
    return len(
        {
            call.name
            for call in seen.calls
            if _has_weights(call.module) and (call.name in names or call.name.startswith(inside))
        }
    )


def _is_passive(call: _Call) -> bool:
    return _PASSIVE.search(type(call.module).__name__) is not None


def _outermost_last(calls: Sequence[_Call]) -> _Call:
    """The last call among the modules that lie nearest to the surface."""
    return min(reversed(calls), key=lambda call: call.name.count("."))


def _stages_by_depth(seen: _Pass) -> dict[str, str]:
    """Quarters of the longest series of equal blocks: one parent, class and output shape."""
    active = [call for call in seen.calls if not _is_passive(call)]
    series: dict[tuple[str, type, torch.Size], list[str]] = {}
    for call in active:
        if seen.totals[call.name] == 1 and call.output.ndim >= 3 and len(call.output[0]) > 1:
            parent, _, _ = call.name.rpartition(".")
            key = (parent, type(call.module), call.output.shape)
            series.setdefault(key, []).append(call.name)
    blocks = max(series.values(), key=len, default=[])
    if len(blocks) < 2:
        return {}
    shape = next(call.output.shape for call in active if call.name == blocks[-1])
    after = [call for call in active if call.output.shape == shape]
    return {
        **_numbered(_quarters(blocks)),
        "last": seen.address(_outermost_last(after[_position(after, blocks[-1]) :])),
    }


def _position(calls: Sequence[_Call], name: str) -> int:
    return next(k for k, call in enumerate(calls) if call.name == name)


def _why(stages: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name} {address}" for name, address in stages.items())
    return f"by the network's structure: {listed}"


def _unknown(network: nn.Module, asked: str, found: Mapping[str, str]) -> UnknownNameError:
    names = [name for name, _ in network.named_modules() if name]
    listed = ", ".join(f"{name} ({address})" for name, address in found.items()) or "none"
    return UnknownNameError(
        "layer",
        asked,
        [*found, *names],
        hint=f"By meaning {type(network).__name__} has: {listed}. `limbeck inspect MODEL` lists "
        "its layers.",
    )


# -- before the activation ---------------------------------------------------------------------


def _pre_activation(network: nn.Module, inner: str, image: Tensor) -> Meaning:
    modules = dict(network.named_modules())
    found = Meaning(inner) if inner in modules else find_meaning(network, inner, image)
    name, _, count = found.address.partition("#")
    if name not in modules:
        raise TapError(
            f"'pre_activation:{inner}' needs the output of a module, and {inner!r} is "
            f"{found.address!r}; name a module"
        )
    seen = _run(network, image[:2])
    whole = [call for call in seen.calls if call.name == name]
    if not whole:
        raise TapError(f"layer {name!r} did not run, or gives no tensor; name another")
    end = whole[int(count or 1) - 1]
    for call in reversed(seen.calls):
        inside = call.name == name or call.name.startswith(f"{name}.")
        if inside and _bends(call.module) and call.output is end.output:
            address = f"{call.name}:input"
            if seen.totals[call.name] > 1:
                address += f"#{call.nth}"
            return Meaning(address, found.reason)
    if end.overwritten or bool(
        (end.output < 0).any()
    ):  # no ReLU has cut it: it is what an activation would be given
        reason = f"no activation module ends {name}, which is taken as it is"
        return Meaning(found.address, "; ".join(filter(None, (found.reason, reason))))
    raise TapError(
        f"no activation module ends layer {name!r}, though its output is never negative: the "
        "network calls a function there, which cannot be tapped. Name the layer before it instead "
        "of 'pre_activation:'"
    )


def _bends(module: nn.Module) -> bool:
    # timm's ConvNormAct is called so too: of its parts, only the last bends.
    whole = any(True for _ in module.children()) or _has_weights(module)
    return _ACTIVATION.search(type(module).__name__) is not None and not whole
