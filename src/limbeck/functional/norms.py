"""Batch-norm that bears the smallest batch there is."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BatchNorm2d"]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch-norm which, given one value a channel, uses the statistics it has gathered so far.

    One image with a map of one place has no variance; torch refuses it in training.

    Example:
        >>> import torch
        >>> BatchNorm2d(2)(torch.ones(1, 2, 1, 1)).shape
        torch.Size([1, 2, 1, 1])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """``(B, C, H, W)`` to the same shape."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)
