"""Distances between the class probabilities of two networks.

B batch, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.functional.precision import widened

__all__ = ["kd_loss"]


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    r"""KL(teacher || student) at temperature T, times T squared.

    .. math:: T^2 \frac{1}{B} \sum_b \sum_k p^t_{bk} \log \frac{p^t_{bk}}{p^s_{bk}},
        \quad p = \mathrm{softmax}(z / T)

    The sum over classes, the mean over the batch; the factor keeps the size of the gradient
    nearly independent of T.

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits: ``(B, K)``, raw; receives no gradient.
        temperature: ``> 0``. 1 leaves the distributions as they are.

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``; 0 when the two rows' softmaxes agree.

    Raises:
        ShapeError: if the two logits differ in shape or are not 2-D.
        SettingsError: if the temperature is not positive.

    Source:
        Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531, section 2.

    Example:
        >>> import torch
        >>> student = torch.tensor([[2.0, 0.0]])
        >>> kd_loss(student, student, temperature=4.0).item()
        0.0
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            "student and teacher logits must both be (batch, classes) and equal in shape; "
            f"got student {tuple(student_logits.shape)}, teacher {tuple(teacher_logits.shape)}. "
            "If only the class counts differ, the two networks have different heads"
        )
    if not temperature > 0:
        raise SettingsError(
            f"the temperature must be above 0, got {temperature}; 1 leaves the probabilities as "
            "they are, and higher ones soften them"
        )
    student_log_p = F.log_softmax(widened(student_logits) / temperature, dim=1)
    teacher_log_p = F.log_softmax(widened(teacher_logits.detach()) / temperature, dim=1)
    divergence = F.kl_div(student_log_p, teacher_log_p, reduction="batchmean", log_target=True)
    return divergence * temperature**2
