"""Distances between the class probabilities of two networks.

B batch, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.functional.logits import check_logits, check_temperature
from limbeck.functional.precision import widened

__all__ = ["kd_loss", "softened_kl"]


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
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    return softened_kl(student_logits, teacher_logits, temperature).mean()


def softened_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor
) -> Tensor:
    r"""Each image's KL(teacher || student) at temperature T, times T squared; nothing is checked.

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits: the same shape; receives no gradient.
        temperature: ``> 0``; a scalar tensor may receive one.

    Returns:
        ``(B,)`` in nats, float32 or wider, ``>= 0``.
    """
    student_log_p = F.log_softmax(widened(student_logits) / temperature, dim=1)
    teacher_log_p = F.log_softmax(widened(teacher_logits.detach()) / temperature, dim=1)
    divergence = F.kl_div(student_log_p, teacher_log_p, reduction="none", log_target=True)
    return divergence.sum(dim=1) * temperature**2
