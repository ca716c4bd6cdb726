r"""Hard labels: the class that the teacher would choose is a second label of each image.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{hard} \, CE(z^s, \mathrm{argmax}_k \, z^t_k)

Source: Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, "Training data-efficient image
    transformers & distillation through attention", ICML 2021, https://arxiv.org/abs/2012.12877,
    eq. 3.
Defaults: weights 1/2 and 1/2, as in the paper, which smooths labels by 0.1 (``label_smoothing``)
    and never the teacher's choice.
Differs from the source: one classifier learns from both labels, in place of a classifier of its
    own for the distillation token, which only a transformer has. The teacher's choice also counts
    for unlabelled images.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.logits import check_logits
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, MethodConfig

__all__ = ["HardLabel", "HardLabelConfig", "hard_label_loss"]


class HardLabelConfig(MethodConfig):
    """Settings of :class:`HardLabel`.

    Attributes:
        ce_weight: of the cross-entropy with the labels.
        hard_weight: of the cross-entropy with the teacher's choices.
    """

    ce_weight: NonNegativeFloat = 0.5
    hard_weight: NonNegativeFloat = 0.5


def hard_label_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""Cross-entropy with the class that the teacher scores highest.

    .. math:: -\frac{1}{B} \sum_b \log \mathrm{softmax}(z^s_b)_{c_b}, \quad
        c_b = \arg\max_k z^t_{bk}

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits: ``(B, K)``; of equal scores one is chosen.

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``, mean over the batch.

    Raises:
        ShapeError: if the two logits differ in shape or are not 2-D.

    Source:
        Touvron et al. 2021, https://arxiv.org/abs/2012.12877, eq. 3.

    Example:
        >>> import torch
        >>> hard_label_loss(torch.zeros(1, 4), torch.tensor([[0.0, 9.0, 1.0, 2.0]])).exp().item()
        4.0
    """
    check_logits(student_logits, teacher_logits)
    return F.cross_entropy(widened(student_logits), teacher_logits.argmax(dim=1))


class HardLabel(Method[HardLabelConfig]):
    """See the module docstring."""

    takes_mixed = True

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of two cross-entropies."""
        del progress
        ce = self.label_loss(student.logits, batch)
        hard = hard_label_loss(student.logits, teacher.logits)
        return LossTerms(
            total=self.config.ce_weight * ce + self.config.hard_weight * hard,
            parts={"ce": ce, "hard": hard},
        )
