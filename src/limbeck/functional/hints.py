"""What the forms of FitNets share: the distance of two feature maps, and fitting convolutions.

B batch, C channels, H W spatial.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import ShapeError
from limbeck.functional.precision import widened

__all__ = ["hint_loss", "rescaling_convolution", "valid_convolution"]


def hint_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    r"""Mean squared difference of two equally shaped features, over every entry.

    .. math:: \frac{1}{BCHW} \sum_{bchw} (f^s_{bchw} - f^t_{bchw})^2

    Half the squared norm per image, as eq. 3 of the paper has it, is ``C * H * W / 2`` times
    as much.

    Args:
        student_feature: ``(B, C, H, W)`` or any other shape, after the regressor.
        teacher_feature: the same shape; receives no gradient.

    Returns:
        Scalar, float32 or wider, ``>= 0``; 0 exactly when the two agree.

    Raises:
        ShapeError: if the shapes differ.

    Source:
        Romero et al. 2015, https://arxiv.org/abs/1412.6550, eq. 3.

    Example:
        >>> import torch
        >>> hint_loss(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)).item()
        4.0
    """
    if student_feature.shape != teacher_feature.shape:
        raise ShapeError(
            "student and teacher feature must be equal in shape; got student "
            f"{tuple(student_feature.shape)}, teacher {tuple(teacher_feature.shape)}. Bring the "
            "student's to the teacher's channels and size first, by a convolution for example"
        )
    return F.mse_loss(widened(student_feature), widened(teacher_feature.detach()))


def rescaling_convolution(
    student_feature: Tensor, teacher_feature: Tensor, *, bias: bool = True
) -> nn.Conv2d | nn.ConvTranspose2d | None:
    """The convolution that halves or doubles the student's map, where that gives the teacher's.

    3x3 with stride 2 where the student's map is twice the teacher's along both axes, a transposed
    4x4 with stride 2 where it is half, None otherwise and where a feature is no map.

    Args:
        student_feature: ``(B, C, H, W)``; only the shape counts.
        teacher_feature: ``(B, C', H', W')``.
        bias: of the convolution.

    Source:
        RepDistiller (Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699).

    Example:
        >>> import torch
        >>> rescaling_convolution(torch.zeros(1, 4, 6, 6), torch.zeros(1, 9, 3, 3))
        Conv2d(4, 9, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    """
    if student_feature.ndim != 4 or teacher_feature.ndim != 4:
        return None
    channels = student_feature.shape[1], teacher_feature.shape[1]
    student_size, teacher_size = student_feature.shape[2:], teacher_feature.shape[2:]
    if student_size == tuple(2 * size for size in teacher_size):
        return nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1, bias=bias)
    if teacher_size == tuple(2 * size for size in student_size):
        return nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1, bias=bias)
    return None


def valid_convolution(student_feature: Tensor, teacher_feature: Tensor) -> nn.Conv2d:
    """A convolution without padding from the student's channels and size to the teacher's.

    Its kernel is ``student size - teacher size + 1`` along each axis, 1x1 for equal sizes.

    Args:
        student_feature: ``(B, C, H, W)``; only the shape counts.
        teacher_feature: ``(B, C', H', W')``, ``H' <= H`` and ``W' <= W``.

    Raises:
        ShapeError: if a feature is no map, or the student's is the smaller one.

    Source:
        Romero et al. 2015, https://arxiv.org/abs/1412.6550, section 2.2.

    Example:
        >>> import torch
        >>> valid_convolution(torch.zeros(1, 4, 6, 6), torch.zeros(1, 9, 4, 4))
        Conv2d(4, 9, kernel_size=(3, 3), stride=(1, 1))
    """
    shapes = f"got student {tuple(student_feature.shape)}, teacher {tuple(teacher_feature.shape)}"
    if student_feature.ndim != 4 or teacher_feature.ndim != 4:
        raise ShapeError(
            f"hints compare feature maps (batch, channels, height, width); {shapes}. Choose layers "
            "before the pooling (`limbeck inspect MODEL` lists a network's layers)"
        )
    _, student_channels, *student_size = student_feature.shape
    _, teacher_channels, *teacher_size = teacher_feature.shape
    height, width = (s - t + 1 for s, t in zip(student_size, teacher_size, strict=True))
    if height < 1 or width < 1:
        raise ShapeError(
            f"the student's map must be at least as large as the teacher's; {shapes}. Choose an "
            "earlier student layer or a later teacher layer"
        )
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=(height, width))
