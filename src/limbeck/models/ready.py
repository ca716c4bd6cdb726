"""A network of somebody's own, made fit to train: every weight there, in full precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from limbeck.core.errors import ModelError

__all__ = ["make_ready"]


def make_ready(
    network: nn.Module, input_shape: tuple[int, int, int], *, seed: int = 0
) -> tuple[str, ...]:
    """Make lazy weights real and widen half precision, in place; say what was done.

    Lazy weights (``nn.LazyLinear`` and its kin) have no size before the first images: one dry
    forward pass in eval mode gives it to them, their values drawn from the seed. Weights in half
    precision become float32: small steps would be lost in them, and mixed precision
    (``train.amp``) is what saves time.

    Args:
        network: changed in place, its mode kept.
        input_shape: ``(C, H, W)`` as the network takes it.
        seed: of lazy weights.

    Returns:
        A sentence for each change; () where there was nothing to do.

    Raises:
        ModelError: if weights stay without a size.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
        >>> make_ready(network, (1, 2, 2))
        ('Sequential: its lazy weights now have the size that images of 1 x 2 x 2 give them',)
        >>> network[1].weight.shape
        torch.Size([3, 4])
    """
    notes = []
    kind = type(network).__name__
    if any(is_lazy(value) for value in _state(network)):
        size = " x ".join(map(str, input_shape))
        _materialise(network, input_shape, seed)
        named = [*network.named_parameters(), *network.named_buffers()]
        lazy = [name for name, value in named if is_lazy(value)]
        if lazy:
            raise ModelError(
                f"{kind} has lazy weights that a forward pass does not reach ({', '.join(lazy)}); "
                "give them a size, or remove the layers"
            )
        notes.append(f"{kind}: its lazy weights now have the size that images of {size} give them")
    half = {v.dtype for v in _state(network) if v.is_floating_point() and v.element_size() < 4}
    if half:
        network.float()
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in half))
        notes.append(f"{kind}: its {names} weights are float32 now")
    return tuple(notes)


def _materialise(network: nn.Module, input_shape: tuple[int, int, int], seed: int) -> None:
    modes = [(part, part.training) for part in network.modules()]
    own = next((v for v in network.parameters() if v.is_floating_point()), torch.empty(0))
    image = torch.zeros(2, *input_shape, dtype=own.dtype, device=own.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network.eval()(image)
    except Exception as error:
        size = " x ".join(map(str, input_shape))
        raise ModelError(
            f"{type(network).__name__} has lazy weights and could not take {size} images to give "
            f"them a size ({type(error).__name__}: {error}); give it images it can take"
        ) from error
    finally:
        for part, training in modes:
            part.training = training


def _state(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
