r"""DIST: correlate with the teacher, image by image and class by class, instead of matching it.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + T^2 \Big( \beta \, \frac{1}{B} \sum_b
    (1 - \rho(p^s_{b \cdot}, p^t_{b \cdot})) + \gamma \, \frac{1}{K} \sum_k
    (1 - \rho(p^s_{\cdot k}, p^t_{\cdot k})) \Big)

where rho is Pearson's correlation of probabilities at temperature T: over the classes of one image
(inter), and over the images of one class (intra). What a strong teacher has too much of, its
certainty, does not count.

The intra term is over the batch at hand, and its value depends on that batch's size: under DDP it
is the local one, 32 in the authors' ImageNet runs of 8 x 32. Keep that at 32 or more, or set
``gather_batch``, which takes it over all processes' images.

Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
    https://arxiv.org/abs/2205.10536, eq. 8-10; and its authors' code.
Defaults: T = 4 and weights 1, 2, 2, the authors' for CIFAR-100; on ImageNet they take T = 1.
Differs from the source: as in the authors' code, 1e-8 is added to the product of the two norms, so
    that networks that agree do not quite reach 0: for 1000 classes and a sharp teacher 0.02 is
    left. A row or column that is constant up to rounding counts as uncorrelated and gives no
    gradient, where that code gives one of 1e7 at a student that answers all classes alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.gather import gathered
from limbeck.functional.logits import check_logits, check_temperature
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, MethodConfig

__all__ = ["DIST", "DISTConfig", "dist_loss", "pearson_distance"]

_EPSILON = 1e-8  # added to the product of two norms, as the authors' code does
# A vector whose centred norm is below this many rounding errors of its largest entry is constant.
_NUM_ROUNDING_ERRORS = 64


class DISTConfig(MethodConfig):
    """Settings of :class:`DIST`.

    Attributes:
        temperature: by which both networks' scores are divided.
        ce_weight: of the cross-entropy with the labels.
        inter_weight: of the correlation over classes, image by image.
        intra_weight: of the correlation over images, class by class.
        gather_batch: take the latter over all processes' images, where there are several.
    """

    temperature: PositiveFloat = 4.0
    ce_weight: NonNegativeFloat = 1.0
    inter_weight: NonNegativeFloat = 2.0
    intra_weight: NonNegativeFloat = 2.0
    gather_batch: bool = False


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""One minus Pearson's correlation of probabilities, over classes and over images.

    .. math:: T^2 \Big( \beta \, \frac{1}{B} \sum_b (1 - \rho_b) + \gamma \, \frac{1}{K} \sum_k
        (1 - \rho_k) \Big), \quad \rho(u, v) = \frac{\langle u, v \rangle}
        {\|u\| \, \|v\| + 10^{-8}} \text{ of centred } u, v

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits: ``(B, K)``, raw; receives no gradient.
        inter_weight: of the mean over images.
        intra_weight: of the mean over classes; it is 1 for a batch of one.
        temperature: ``> 0``.

    Returns:
        Scalar, float32 or wider, each part in [0, 2] before weight and T squared.

    Raises:
        ShapeError: if the two logits differ in shape or are not 2-D.
        SettingsError: if the temperature is not positive.

    Source:
        Huang et al. 2022, https://arxiv.org/abs/2205.10536, eq. 8-10.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
        >>> dist_loss(logits, logits).abs().item() < 1e-4
        True
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    student, teacher = (_softened(z, temperature) for z in (student_logits, teacher_logits))
    inter, intra = pearson_distance(student, teacher), pearson_distance(student.T, teacher.T)
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _softened(logits: Tensor, temperature: float) -> Tensor:
    return F.softmax(widened(logits) / temperature, dim=1)


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of one minus their correlation: a scalar in [0, 2]."""
    teacher = teacher.detach()
    (student, student_flat), (teacher, teacher_flat) = _centred(student), _centred(teacher)
    norms = student.norm(dim=1) * teacher.norm(dim=1)
    correlation = (student * teacher).sum(dim=1) / (norms + _EPSILON)
    return 1 - torch.where(student_flat | teacher_flat, 0.0, correlation).mean()


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less their means, and which of them were constant up to rounding."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    noise = _NUM_ROUNDING_ERRORS * torch.finfo(rows.dtype).eps * rows.detach().abs().amax(dim=1)
    return centred, centred.detach().norm(dim=1) <= noise


class DIST(Method[DISTConfig]):
    """See the module docstring."""

    takes_mixed = True

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy, inter and intra."""
        del progress
        config = self.config
        check_logits(student.logits, teacher.logits)
        ce = self.label_loss(student.logits, batch)
        theirs, ours = (
            _softened(z, config.temperature) for z in (teacher.logits.detach(), student.logits)
        )
        inter = pearson_distance(ours, theirs)
        if config.gather_batch:
            theirs, ours = gathered(theirs), gathered(ours)
        intra = pearson_distance(ours.T, theirs.T)
        imitation = config.inter_weight * inter + config.intra_weight * intra
        return LossTerms(
            total=config.ce_weight * ce + config.temperature**2 * imitation,
            parts={"ce": ce, "inter": inter, "intra": intra},
        )
