r"""FitNets in one stage: imitate a middle layer of the teacher and learn the labels at once.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{hint} \, \frac{1}{BCHW} \| r(f^s) - f^t \|^2

The regressor r is a convolution, batch-norm and ReLU, trained with the student: 3x3 with stride 2
where the student's map is twice the size of the teacher's, a transposed 4x4 with stride 2 where it
is half, otherwise without padding, of the kernel that makes the two equal in size.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015,
    https://arxiv.org/abs/1412.6550, eq. 3, in the form of RepDistiller (Tian et al., ICLR 2020,
    https://arxiv.org/abs/1910.10699) and mdistiller.
Defaults: weights 1 and 100, both networks' "stage2": RepDistiller's settings, which gave the
    FitNet rows of the CIFAR-100 tables.
Differs from the source: nothing from RepDistiller. From the paper: it trains in two stages
    (method "fitnet") and reports that joint training failed for its thin 19-layer network; it has
    half the squared norm for each image, not the mean over all entries, and no batch-norm in the
    regressor; and its second stage distils the teacher's outputs.
"""

from __future__ import annotations

from typing import Self

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.hints import hint_loss, valid_convolution
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["FitNetOneStage", "FitNetOneStageConfig", "normed_regressor"]


class FitNetOneStageConfig(MethodConfig):
    """Settings of :class:`FitNetOneStage`.

    Attributes:
        student_layer: a feature map of the student, by name or meaning.
        teacher_layer: a feature map of the teacher, at most twice as large along each axis.
        ce_weight: of the cross-entropy with the labels.
        hint_weight: of the mean squared difference of the two maps.
    """

    student_layer: str = "stage2"
    teacher_layer: str = "stage2"
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
    channels = student_feature.shape[1], teacher_feature.shape[1]
    student_size, teacher_size = student_feature.shape[2:], teacher_feature.shape[2:]
    convolution: nn.Module
    if len(student_size) == 2 and student_size == tuple(2 * size for size in teacher_size):
        convolution = nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
    elif len(student_size) == 2 and teacher_size == tuple(2 * size for size in student_size):
        convolution = nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1)
    else:
        convolution = valid_convolution(student_feature, teacher_feature)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels[1]), nn.ReLU())


class FitNetOneStage(Method[FitNetOneStageConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        regressor: from the student's feature to the teacher's shape.
    """

    def __init__(self, config: FitNetOneStageConfig, *, regressor: nn.Module) -> None:
        super().__init__(config)
        self.regressor = regressor

    @classmethod
    def needs(cls, config: FitNetOneStageConfig) -> Needs:
        """One layer of each network."""
        return Needs(student_layers=(config.student_layer,), teacher_layers=(config.teacher_layer,))

    @classmethod
    def from_probe(cls, config: FitNetOneStageConfig, probe: Probe) -> Self:
        """Make the regressor for the two layers' shapes."""
        features = (
            probe.feature("student", config.student_layer),
            probe.feature("teacher", config.teacher_layer),
        )
        return cls(config, regressor=normed_regressor(*features))

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and hint loss."""
        del progress
        ce = self.cross_entropy(student.logits, batch.label)
        imitation = self.regressor(student.features[self.config.student_layer])
        hint = hint_loss(imitation, teacher.features[self.config.teacher_layer])
        return LossTerms(
            total=self.config.ce_weight * ce + self.config.hint_weight * hint,
            parts={"ce": ce, "hint": hint},
        )
