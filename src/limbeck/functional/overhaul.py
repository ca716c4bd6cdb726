"""Matching features before the ReLU, one-sided below zero: what comes from the OFD method.

B batch, C channels, H W spatial.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.functional.precision import widened

__all__ = ["batch_norm_margins", "overhaul_loss"]

_RARE = 1e-3  # a share of negative values below this says nothing of their mean
_NUM_DEVIATIONS = 3  # of the margin, below zero, in its stead


def batch_norm_margins(weight: Tensor, bias: Tensor) -> Tensor:
    r"""The mean of the negative values that a batch-norm gives, channel by channel.

    .. math:: m = E[x \mid x < 0] = \mu - \sigma \, \frac{\phi(\mu / \sigma)}{\Phi(-\mu / \sigma)},
        \quad x \sim N(\mu, \sigma^2), \; \sigma = |\gamma|, \; \mu = \beta

    Args:
        weight: ``(C,)``, gamma.
        bias: ``(C,)``, beta.

    Returns:
        ``(C,)``, float32 or wider, ``<= 0``; -3 sigma where less than 1 in 1000 values is
        negative.

    Source:
        Heo et al., ICCV 2019, https://arxiv.org/abs/1904.01866; the bound from its authors' code.

    Example:
        >>> round(batch_norm_margins(torch.ones(1), torch.zeros(1)).item(), 4)
        -0.7979
    """
    # In double: far below zero the two factors are a quotient of tiny numbers.
    sigma, mu = weight.detach().double().abs(), bias.detach().double()
    # Without spread all values are mu; dividing by 1 keeps the unused branch finite.
    flat = sigma == 0
    ratio = mu / torch.where(flat, 1.0, sigma)
    log_density = -0.5 * ratio.square() - 0.5 * math.log(2 * math.pi)
    log_share = torch.special.log_ndtr(-ratio)
    mean = mu - sigma * (log_density - log_share).exp()
    margin = torch.where(log_share > math.log(_RARE), mean, -_NUM_DEVIATIONS * sigma)
    margin = torch.where(flat, mu.clamp(max=0), margin)
    return margin.to(widened(weight).dtype)


def overhaul_loss(student_feature: Tensor, teacher_feature: Tensor, margin: Tensor) -> Tensor:
    r"""Squared distance before the ReLU; below zero the student need only be as low as the margin.

    .. math:: \sum_{bchw} (s - t')^2 \, [s > t' \text{ or } t' > 0], \quad t' = \max(t, m_c)

    Args:
        student_feature: ``(B, C, H, W)``.
        teacher_feature: the same shape; receives no gradient.
        margin: ``(C,)``, ``<= 0``.

    Returns:
        Scalar, float32 or wider, ``>= 0``, the sum over every entry.

    Raises:
        ShapeError: if the features differ in shape.

    Source:
        Heo et al., ICCV 2019, https://arxiv.org/abs/1904.01866.

    Example:
        >>> student, teacher = torch.full((1, 1, 1, 1), -5.0), torch.full((1, 1, 1, 1), -2.0)
        >>> overhaul_loss(student, teacher, torch.tensor([-1.0])).item()
        0.0
    """
    if student_feature.shape != teacher_feature.shape:
        raise ShapeError(
            "student and teacher feature must be equal in shape; got student "
            f"{tuple(student_feature.shape)}, teacher {tuple(teacher_feature.shape)}. Bring the "
            "student's to the teacher's channels and size first, by a 1x1 convolution for example"
        )
    student, teacher = widened(student_feature), widened(teacher_feature.detach())
    target = torch.maximum(teacher, margin.to(teacher.dtype)[:, None, None])
    matters = (student.detach() > target) | (target > 0)
    # Not a product with the mask: an infinite difference times 0 is not a number.
    return torch.where(matters, student - target, 0.0).square().sum()
