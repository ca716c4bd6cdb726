"""Keep losses in float32 or wider, whatever autocast made of the tensors that come in."""

from __future__ import annotations

from torch import Tensor

__all__ = ["widened"]


def widened(tensor: Tensor) -> Tensor:
    """The same values in float32 where they came in half precision; wider ones as they are.

    bfloat16 keeps 8 bits of mantissa, and a loss is the difference of nearly equal numbers.

    Example:
        >>> import torch
        >>> widened(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> widened(torch.zeros(2, dtype=torch.float64)).dtype
        torch.float64
    """
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()
