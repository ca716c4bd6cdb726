"""A network's layers: shapes, parameters, multiply-adds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import ModelError

__all__ = ["LayerSummary", "ModelSummary", "count_macs", "summarise"]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED = (*_CONV, *_TRANSPOSED, nn.Linear, nn.MultiheadAttention)


@dataclass(frozen=True)
class LayerSummary:
    """One layer.

    Attributes:
        name: its address within the network; empty for a network that is a single layer.
        kind: its class.
        output_shape: for one image, the batch left out, of its last call; None where it was not
            called or gives no tensor.
        num_parameters: its own.
        num_macs: multiply-adds for one image, all its calls together.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    num_parameters: int
    num_macs: int


@dataclass(frozen=True)
class ModelSummary:
    """A whole network.

    Attributes:
        rows: its layers, in the order of definition.
        num_parameters: all of them, shared ones once; also those that no layer of ``rows`` holds.
        num_macs: multiply-adds for one image.
    """

    rows: tuple[LayerSummary, ...]
    num_parameters: int
    num_macs: int


def summarise(network: nn.Module, image_shape: tuple[int, int, int]) -> ModelSummary:
    """Shapes, parameters and multiply-adds, from one image through a copy of the network.

    Counted are the multiplications of convolutions, linear layers and ``nn.MultiheadAttention``
    (its projections and its two matrix products), one for each pair of a weight and the value it
    meets, padding included. Biases, batch-norm, activations and pooling are not counted, nor is
    arithmetic outside these layers, such as a matrix product in a network's own ``forward``.

    Args:
        network: stays as it is: state, mode and hooks.
        image_shape: ``(C, H, W)``.

    Raises:
        ModelError: if it does not take such an image.

    Example:
        >>> found = summarise(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 4, 4))
        >>> found.rows[0].output_shape, found.num_parameters, found.num_macs
        ((8, 4, 4), 216, 3456)
    """
    copied = copy.deepcopy(network).eval()
    layers = _layers(copied)
    shapes: dict[nn.Module, tuple[int, ...] | None] = {}
    macs = dict.fromkeys(layers.values(), 0)

    def count(
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,  # noqa: ANN401
    ) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        shapes[module] = tuple(first.shape[1:]) if isinstance(first, Tensor) else None
        if isinstance(first, Tensor):
            macs[module] += _macs(module, args, kwargs, first)

    for module in layers.values():
        module.register_forward_hook(count, with_kwargs=True)
    own = next((p for p in copied.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.zeros(1, *image_shape, dtype=own.dtype, device=own.device)
    try:
        with torch.no_grad():
            copied(image)
    except Exception as error:
        size = " x ".join(map(str, image_shape))
        raise ModelError(
            f"{type(network).__name__} could not take one {size} image ({type(error).__name__}: "
            f"{error}); give the channels and size that it is made for (with `inspect`, --in-chans "
            "and --img-size)"
        ) from error
    rows = tuple(
        LayerSummary(
            name=name,
            kind=type(module).__name__,
            output_shape=shapes.get(module),
            num_parameters=sum(p.numel() for p in module.parameters()),
            num_macs=macs[module],
        )
        for name, module in layers.items()
    )
    return ModelSummary(
        rows=rows,
        num_parameters=sum(p.numel() for p in copied.parameters()),
        num_macs=sum(row.num_macs for row in rows),
    )


def count_macs(module: nn.Module, run: Callable[[], object]) -> int:
    """Multiply-adds of the layers of ``module`` while ``run`` runs; which, see :func:`summarise`.

    Args:
        module: what counts; the rest of what runs does not. It is left without hooks.
        run: calls the module or parts of it, however often.

    Example:
        >>> layer = nn.Linear(5, 7)
        >>> count_macs(layer, lambda: layer(torch.zeros(2, 5)))
        70
    """
    total = 0

    def count(
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,  # noqa: ANN401
    ) -> None:
        nonlocal total
        if isinstance(layer, nn.MultiheadAttention):
            output = output[0]
        if isinstance(output, Tensor):
            total += _macs(layer, args, kwargs, output)

    layers = _layers(module).values()
    handles = [layer.register_forward_hook(count, with_kwargs=True) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return total


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """By name, the modules that hold no others, and those whose multiplications are counted."""
    found: dict[str, nn.Module] = {}
    counted: list[str] = []
    for name, module in network.named_modules():
        if any(name.startswith(f"{outer}.") for outer in counted):
            continue  # a part of attention, or of a parametrised weight
        if isinstance(module, _COUNTED):
            counted.append(name)
        elif next(module.children(), None) is not None:
            continue
        found[name] = module
    return found


def _macs(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
) -> int:
    """Multiply-adds of one call."""
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            per_value = module.in_channels // module.groups * math.prod(module.kernel_size)
            return output.numel() * per_value
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            given: Tensor = args[0] if args else kwargs["input"]
            per_value = module.out_channels // module.groups * math.prod(module.kernel_size)
            return given.numel() * per_value
        case nn.Linear():
            return output.numel() * module.in_features
        case nn.MultiheadAttention():
            named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
            return _attention_macs(module, named["query"], named["key"], named["value"])
        case _:
            return 0


def _attention_macs(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> int:
    """Input projections, queries by keys, weights by values, output projection."""
    width = int(module.embed_dim)
    projections = 2 * query.numel() + key.numel() + value.numel()
    num_keys = key.shape[1 if module.batch_first and key.ndim == 3 else 0]
    return width * projections + 2 * query.numel() * num_keys
