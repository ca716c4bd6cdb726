r"""MLKD: align single answers, relations of images and relations of classes, at many temperatures.

.. math:: \mathcal{L} = w_{ce} \, (CE(z^{s,weak}, y) + CE(z^{s,strong}, y)) + w_{kd} \, \sum_T
    (ins_T + bat_T + cls_T)

.. math:: ins_T = T^2 \, KL(p^t \,\|\, p^s), \quad
    bat_T = \frac{1}{B} \|G(P^t) - G(P^s)\|^2, \quad cls_T = \frac{1}{K} \|H(P^t) - H(P^s)\|^2

with P the probabilities of a batch at temperature T, (B, K), G its (B, B) products of images and H
its (K, K) products of classes. Two views of each image: the usual crop and flip, and a "strong" one
with RandAugment and Cutout after its own crop and flip. Which parts of which view count is a
setting:

"official" is what the released code computes. Its masks, which were to pick the half of the images
and of the classes that the teacher is least sure of, multiply a sum that is already one number:
they scale it by the share picked, m_B and m_C, about one half. The weak view enters as m_B ins over
all temperatures, m_B bat and m_C cls; the strong one with ins alone at the first three
temperatures, and the last two of that sum see the weak view again.

"masked" is what the code evidently means: ins, bat and cls of the weak view are summed over the
picked images (columns of bat) or classes (columns of cls), and ins of the strong view over all
temperatures. Strong bat and cls, which the code computes and throws away, stay out.

Medians and relations are over the local batch. Each step costs two forward passes of each network.

Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, pages 24276-24285; formulas
    from its authors' code, https://github.com/Jin-Ying/Multi-Level-Logit-Distillation.
Defaults: the code's: weights 0.1 and 0.9, temperatures 4, 3, 5, 2, 6 (1 in place of 4 on ImageNet,
    with weights 0.5 and 0.5). Its CIFAR-100 runs take a learning rate of 0.025 (0.01 for MobileNet
    and ShuffleNet students) and up to 960 epochs.
Differs from the source: none from the code in "official". The paper's own formulas could not be
    compared. With standardize, ins alone sees standardised scores, as in LSKD's code.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from limbeck.core.errors import SettingsError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import softened_kl
from limbeck.functional.logits import Standardize, as_seen, check_logits, check_temperature
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, MethodConfig, Needs

__all__ = ["MLKD", "MLKDConfig", "MLKDTerms", "mlkd_loss", "mlkd_terms"]

_TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)
_NUM_STRONG = 3  # temperatures at which the released code's strong sum sees the strong view


class MLKDConfig(MethodConfig):
    """Settings of :class:`MLKD`.

    Attributes:
        temperatures: at each of which all three levels are compared.
        ce_weight: of the sum of both views' cross-entropies with the labels.
        kd_weight: of the three levels together.
        mode: "official" for what the released code computes, "masked" for what it means.
        standardize: whether single answers see each row less its mean over its deviation; true
            takes the unbiased deviation, "population" the other. All else sees raw scores.
    """

    temperatures: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = _TEMPERATURES
    ce_weight: NonNegativeFloat = 0.1
    kd_weight: NonNegativeFloat = 0.9
    mode: Literal["official", "masked"] = "official"
    standardize: Standardize = False


class MLKDTerms(NamedTuple):
    """The three levels, each a scalar summed over temperatures."""

    instance: Tensor
    batch: Tensor
    classes: Tensor


def mlkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_strong_logits: Tensor,
    teacher_strong_logits: Tensor,
    *,
    temperatures: tuple[float, ...] = _TEMPERATURES,
    mode: Literal["official", "masked"] = "official",
    standardize: Standardize = False,
) -> Tensor:
    """The sum of the three levels; see the module for formulas and modes.

    Args:
        student_logits: ``(B, K)``, raw, of the weak view.
        teacher_logits: ``(B, K)``, raw; receives no gradient.
        student_strong_logits: ``(B, K)``, raw, of the strong view.
        teacher_strong_logits: ``(B, K)``, raw; receives no gradient.
        temperatures: each ``> 0``.
        mode: "official" or "masked".
        standardize: whether single answers are standardised.

    Returns:
        Scalar, float32 or wider, ``>= 0``; 0 when the two networks agree in both views. Relations
        of images take ``O(B^2)`` memory, of classes ``O(K^2)``.

    Raises:
        ShapeError: if the logits differ in shape or are not 2-D.
        SettingsError: if a temperature is not positive or the mode not known.

    Source:
        Jin, Wang, Lin 2023, and the code of its authors.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
        >>> mlkd_loss(logits, logits, logits, logits).item()
        0.0
    """
    terms = mlkd_terms(
        student_logits,
        teacher_logits,
        student_strong_logits,
        teacher_strong_logits,
        temperatures=temperatures,
        mode=mode,
        standardize=standardize,
    )
    return terms.instance + terms.batch + terms.classes


def mlkd_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_strong_logits: Tensor,
    teacher_strong_logits: Tensor,
    *,
    temperatures: tuple[float, ...] = _TEMPERATURES,
    mode: Literal["official", "masked"] = "official",
    standardize: Standardize = False,
) -> MLKDTerms:
    """The three levels of :func:`mlkd_loss`, which see."""
    if mode not in ("official", "masked"):
        raise SettingsError(f"mode must be 'official' or 'masked', got {mode!r}")
    teacher_logits, teacher_strong_logits = teacher_logits.detach(), teacher_strong_logits.detach()
    for other in (teacher_logits, student_strong_logits, teacher_strong_logits):
        check_logits(student_logits, other)
    for temperature in temperatures:
        check_temperature(temperature)
    teacher_p = F.softmax(widened(teacher_logits), dim=1)
    unsure_image = _lower_half(teacher_p.amax(dim=1))
    unsure_class = _lower_half(teacher_p.sum(dim=0))
    weak = as_seen(student_logits, teacher_logits, standardize)
    strong = as_seen(student_strong_logits, teacher_strong_logits, standardize)
    zero = torch.zeros((), dtype=teacher_p.dtype, device=teacher_p.device)
    instance, batch, classes = zero, zero, zero
    for count, temperature in enumerate(temperatures):
        divergence = softened_kl(weak.student, weak.teacher, temperature)
        of_images, of_classes = (
            relations / len(relations)
            for relations in _relations(student_logits, teacher_logits, temperature)
        )
        second = strong if mode == "masked" or count < _NUM_STRONG else weak
        instance = instance + softened_kl(second.student, second.teacher, temperature).mean()
        if mode == "masked":
            instance = instance + (unsure_image * divergence).mean()
            batch = batch + (unsure_image * of_images).sum()
            classes = classes + (unsure_class * of_classes).sum()
        else:
            instance = instance + unsure_image.mean() * divergence.mean()
            batch = batch + unsure_image.mean() * of_images.sum()
            classes = classes + unsure_class.mean() * of_classes.sum()
    return MLKDTerms(instance, batch, classes)


def _relations(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Squared differences of the networks' Gram matrices: of images (B, B), of classes (K, K)."""
    student, teacher = (
        F.softmax(widened(z) / temperature, dim=1) for z in (student_logits, teacher_logits)
    )
    # Autocast would multiply in half precision: both are differences of nearly equal numbers.
    with torch.autocast(student.device.type, enabled=False):
        of_images = (teacher @ teacher.T - student @ student.T).square()
        of_classes = (teacher.T @ teacher - student.T @ student).square()
    return of_images, of_classes


def _lower_half(values: Tensor) -> Tensor:
    """1 where a value is at most the median, else 0; nothing is read to the host."""
    middle = values.sort().values[(len(values) - 1) // 2]
    return (values <= middle).to(values.dtype)


class MLKD(Method[MLKDConfig]):
    """See the module docstring."""

    takes_mixed = True

    @classmethod
    def needs(cls, config: MLKDConfig) -> Needs:
        """The strong view."""
        del config
        return Needs(views=("strong",))

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Both views' cross-entropies and the three levels."""
        del progress
        config = self.config
        strong = student.views["strong"].logits, teacher.views["strong"].logits
        ce = self.label_loss(student.logits, batch)
        ce = ce + self.label_loss(strong[0], batch)
        levels = mlkd_terms(
            student.logits,
            teacher.logits,
            *strong,
            temperatures=config.temperatures,
            mode=config.mode,
            standardize=config.standardize,
        )
        imitation = levels.instance + levels.batch + levels.classes
        return LossTerms(
            total=config.ce_weight * ce + config.kd_weight * imitation,
            parts={"ce": ce, **levels._asdict()},
        )
