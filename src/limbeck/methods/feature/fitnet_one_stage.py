r"""FitNets in one stage: imitate a middle layer of the teacher and learn the labels at once.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{hint} \, \frac{1}{BCHW} \| r(f^s) - f^t \|^2

The regressor r is a convolution, batch-norm and ReLU, trained with the student: 3x3 with stride 2
where the student's map is twice the size of the teacher's, a transposed 4x4 with stride 2 where it
is half, otherwise without padding, of the kernel that makes the two equal in size. Where none
fits, or a layer gives no map (B, C, H, W), the student's map is resized and the convolution is 1x1.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015,
    https://arxiv.org/abs/1412.6550, eq. 3, in the form of RepDistiller (Tian et al., ICLR 2020,
    https://arxiv.org/abs/1910.10699) and mdistiller.
Defaults: weights 1 and 100, both networks' "stage2": RepDistiller's settings, which gave the
    FitNet rows of the CIFAR-100 tables.
Differs from the source: from RepDistiller, nothing on the pairs of maps that it takes. It refuses
    other pairs: here tokens become the map of their places, without class and register tokens, and
    a student's map that no convolution of these fits is resized, by bilinear interpolation where it
    is the smaller, by adaptive average pooling where the larger. Tokens are signed, as wide
    ResNets' maps are, and the regressor's ReLU stays: their negative entries are a part of the loss
    that no student removes. From the paper: it trains in two stages (method "fitnet") and reports
    that joint training failed for its thin 19-layer network; it has half the squared norm for each
    image, not the mean over all entries, and no batch-norm in the regressor; and its second stage
    distils the teacher's outputs.
"""

from __future__ import annotations

from typing import Self

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.hints import hint_loss, rescaling_convolution, valid_convolution
from limbeck.functional.norms import BatchNorm2d
from limbeck.methods.adapters import Alignment, LayoutConfig, align
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["FitNetOneStage", "FitNetOneStageConfig", "fitted_regressor", "normed_regressor"]


class FitNetOneStageConfig(MethodConfig):
    """Settings of :class:`FitNetOneStage`.

    Attributes:
        student_layer: a feature map of the student, by name or meaning.
        teacher_layer: a feature map of the teacher.
        student_layout: how the student's layer lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.
        ce_weight: of the cross-entropy with the labels.
        hint_weight: of the mean squared difference of the two maps.
    """

    student_layer: str = "stage2"
    teacher_layer: str = "stage2"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    ce_weight: NonNegativeFloat = 1.0
    hint_weight: NonNegativeFloat = 100.0


def normed_regressor(student_feature: Tensor, teacher_feature: Tensor) -> nn.Sequential:
    """Convolution, batch-norm and ReLU from the student's shape to the teacher's.

    Args:
        student_feature: ``(B, C, H, W)``; only the shape counts.
        teacher_feature: ``(B, C', H', W')``: both axes half as large, twice as large, or neither
            larger than the student's.

    Raises:
        ShapeError: if a feature is no map, or the sizes are none of these.
    """
    convolution: nn.Module | None = rescaling_convolution(student_feature, teacher_feature)
    if convolution is None:
        convolution = valid_convolution(student_feature, teacher_feature)
    return nn.Sequential(convolution, BatchNorm2d(teacher_feature.shape[1]), nn.ReLU())


def fitted_regressor(
    student_feature: Tensor,
    teacher_feature: Tensor,
    *,
    student_layout: LayoutConfig,
    teacher_layout: LayoutConfig,
) -> tuple[Alignment, nn.Sequential]:
    """The regressor by the rule of the module, for any two layers with places.

    Args:
        student_feature: only its shape counts.
        teacher_feature: the same.
        student_layout: how the student's lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.

    Returns:
        How the two become maps, resized where no convolution fits; and what follows on the
        student's side.

    Raises:
        ShapeError: if the two cannot be brought together.
    """
    features = student_feature, teacher_feature
    alignment = align(
        *features, purpose="map", student_layout=student_layout, teacher_layout=teacher_layout
    )
    pairs = list(zip(*alignment.grids, strict=True))
    fits = all(s >= t for s, t in pairs) or all(2 * s == t for s, t in pairs)
    if not (alignment.convolutional and fits):
        alignment = alignment.resized("teacher")
    return alignment, normed_regressor(*alignment(*features))


class FitNetOneStage(Method[FitNetOneStageConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        alignment: of the two layers, as maps.
        regressor: from the student's map to the teacher's shape.
    """

    takes_mixed = True

    def __init__(
        self, config: FitNetOneStageConfig, *, alignment: Alignment, regressor: nn.Module
    ) -> None:
        super().__init__(config)
        self.alignment = alignment
        self.regressor = regressor

    @classmethod
    def needs(cls, config: FitNetOneStageConfig) -> Needs:
        """One layer of each network."""
        return Needs(student_layers=(config.student_layer,), teacher_layers=(config.teacher_layer,))

    @classmethod
    def from_probe(cls, config: FitNetOneStageConfig, probe: Probe) -> Self:
        """Make the regressor for the two layers' shapes."""
        alignment, regressor = fitted_regressor(
            probe.feature("student", config.student_layer),
            probe.feature("teacher", config.teacher_layer),
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        )
        return cls(config, alignment=alignment, regressor=regressor)

    def describe(self) -> tuple[str, ...]:
        """The two layers and the regressor between them."""
        layers = self.config.student_layer, self.config.teacher_layer
        return (self.alignment.describe(*layers, self.regressor),)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and hint loss."""
        del progress
        ce = self.label_loss(student.logits, batch)
        maps = self.alignment(
            student.features[self.config.student_layer],
            teacher.features[self.config.teacher_layer],
        )
        hint = hint_loss(self.regressor(maps.student), maps.teacher)
        return LossTerms(
            total=self.config.ce_weight * ce + self.config.hint_weight * hint,
            parts={"ce": ce, "hint": hint},
        )
