"""Feature maps as where a network looks: check them, pool them alike, bring them to one length.

B batch, C channels, H W spatial.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.functional.precision import widened
from limbeck.functional.relations import directions, rounding_of

__all__ = ["check_feature_maps", "pooled_alike", "unit_maps"]


def check_feature_maps(
    student_feature: Tensor,
    teacher_feature: Tensor,
    *,
    channels: bool = False,
    equal: bool = False,
) -> None:
    """Both must be maps ``(B, C, H, W)`` of one batch.

    Args:
        student_feature: as it came.
        teacher_feature: as it came.
        channels: whether C must be equal too.
        equal: whether C, H and W must be.

    Raises:
        ShapeError: if they are not.
    """
    features = student_feature, teacher_feature
    axes = 4 if equal else 2 if channels else 1
    if any(f.ndim != 4 for f in features) or len({f.shape[:axes] for f in features}) > 1:
        more = {1: "", 2: " and channels", 4: ", channels and size"}[axes]
        raise ShapeError(
            "student and teacher feature must be maps (batch, channels, height, width) of the same "
            f"batch{more}; got student {tuple(student_feature.shape)}, teacher "
            f"{tuple(teacher_feature.shape)}. Choose layers before the pooling (`limbeck inspect "
            "MODEL` lists a network's layers)"
            + (", and bring the student's to the teacher's first, by a convolution" * (axes > 1))
        )


def pooled_alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The larger of two maps averaged to the size of the smaller, along each axis.

    Args:
        first: ``(B, C, H, W)``.
        second: ``(B, C', H', W')``.

    Example:
        >>> import torch
        >>> one, other = pooled_alike(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 8))
        >>> one.shape[2:], other.shape[2:]
        (torch.Size([2, 4]), torch.Size([2, 4]))
    """
    height, width = (min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
    size = (height, width)
    one, other = (
        feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(widened(feature), size)
        for feature in (first, second)
    )
    return one, other


def unit_maps(maps: Tensor) -> Tensor:
    """Each map over its length, all its places together; a zero map stays zero, without gradient.

    Args:
        maps: ``(..., H, W)``.

    Returns:
        ``(..., H * W)``, float32 or wider.

    Example:
        >>> import torch
        >>> unit_maps(torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])).tolist()
        [[0.6000000238418579, 0.0, 0.0, 0.800000011920929], [0.0, 0.0, 0.0, 0.0]]
    """
    rows = widened(maps).flatten(start_dim=-2)
    return directions(rows, rounding_of(rows, each=True))
