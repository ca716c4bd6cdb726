"""One batch of all processes, for losses that compare images with each other.

R processes, B images of one, D entries of each.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gathered"]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in rank order; the rows themselves where there is one process.

    Every process must call it, with rows of one shape. Gradient flows to the own rows alone, R
    times as large: DDP divides the sum over processes by R, and what is left is the gradient of
    one loss over all rows.

    Args:
        rows: ``(B, D)``.

    Returns:
        ``(R * B, D)``.

    Example:
        >>> gathered(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    num_ranks = dist.get_world_size()
    own = rows.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(num_ranks)]
    dist.all_gather(parts, own)
    parts[dist.get_rank()] = own + num_ranks * (rows - own)  # the value of own, exactly
    return torch.cat(parts)
