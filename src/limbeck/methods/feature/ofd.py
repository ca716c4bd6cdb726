r"""OFD: match the teacher's features before their ReLU, as far as the ReLU lets them through.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{ofd} \sum_{l=1}^{n} \frac{1}{2^{n-l} B}
    \sum_{bchw} d\big(r_l(f^s_l), \max(f^t_l, m_l)\big), \quad
    d(s, t) = (s - t)^2 \, [s > t \text{ or } t > 0]

at the ends of the n stages. The margin m of a channel, below zero, is the mean of the negative
values that the batch-norm before the ReLU gives, from its weight and bias. Where the teacher is not
positive, a student's value below it costs nothing. The regressors r are 1x1 convolutions with
batch-norm, trained with the student.

Source: Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV
    2019, https://arxiv.org/abs/1904.01866; and its authors' code.
Defaults: the code's for CIFAR-100: weight 1e-3, all stages; the same in mdistiller. On ImageNet
    the weight is 1e-4.
Differs from the source: the code's teacher is in train mode on purpose: its batch-norms use the
    batch's statistics, and go on gathering them; here a teacher never changes. Where sizes differ,
    the larger map is averaged to the other's, and where the numbers of stages do, the last goes
    with the last, as in mdistiller. The student's stages are read before their last ReLU, as the
    teacher's, where they end in one.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.norms import BatchNorm2d
from limbeck.functional.overhaul import batch_norm_margins, overhaul_loss
from limbeck.methods.adapters import LayoutConfig
from limbeck.methods.base import Method, MethodConfig, Needs, Probe
from limbeck.methods.pairing import LayerPairs, Pairing, pair_layers

__all__ = ["OFD", "OFDConfig", "ofd_loss"]


class OFDConfig(MethodConfig):
    """Settings of :class:`OFD`.

    Attributes:
        student_layers: maps of the student, by name or meaning; "pre_activation:stage*" is every
            stage before its last ReLU.
        teacher_layers: maps of the teacher, each of a batch-norm's output.
        pairing: which stage goes with which: the last with the last and so on ("depth"), or those
            of one size ("resolution"). Layers named one by one are paired as they are named.
        student_layout: how the student's layers lie, where their shapes leave it open.
        teacher_layout: the same of the teacher's.
        ce_weight: of the cross-entropy with the labels.
        ofd_weight: of the last stage; each earlier one has half the next one's.
    """

    student_layers: tuple[str, ...] = ("pre_activation:stage*",)
    teacher_layers: tuple[str, ...] = ("pre_activation:stage*",)
    pairing: Pairing = "depth"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    ce_weight: NonNegativeFloat = 1.0
    ofd_weight: NonNegativeFloat = 1e-3


def ofd_loss(student_feature: Tensor, teacher_feature: Tensor, margin: Tensor) -> Tensor:
    r"""Partial squared distance before the ReLU, each image's sum, mean over the batch.

    .. math:: \frac{1}{B} \sum_{bchw} (s - t')^2 \, [s > t' \text{ or } t' > 0],
        \quad t' = \max(t, m_c)

    Args:
        student_feature: ``(B, C, H, W)``.
        teacher_feature: the same shape; receives no gradient.
        margin: ``(C,)``, ``<= 0``.

    Returns:
        Scalar, float32 or wider, ``>= 0``.

    Raises:
        ShapeError: if the features differ in shape.

    Source:
        Heo et al. 2019, https://arxiv.org/abs/1904.01866.

    Example:
        >>> student, teacher = torch.full((2, 1, 1, 1), 0.5), torch.full((2, 1, 1, 1), -2.0)
        >>> ofd_loss(student, teacher, torch.tensor([-0.5])).item()
        1.0
    """
    return overhaul_loss(student_feature, teacher_feature, margin) / len(student_feature)


class OFD(Method[OFDConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        layers: the pairs that are compared, each brought to one size.
        margins: ``(C,)`` for each pair.
    """

    takes_mixed = True

    def __init__(self, config: OFDConfig, *, layers: LayerPairs, margins: list[Tensor]) -> None:
        super().__init__(config)
        self.layers = layers
        self.regressors = nn.ModuleList(_regressor(*pair.channels) for pair in layers.pairs)
        for place, margin in enumerate(margins):
            self.register_buffer(f"margin{place}", margin.clone())

    @classmethod
    def needs(cls, config: OFDConfig) -> Needs:
        """The stages of both networks, and the teacher's batch-norms before them."""
        return Needs(
            student_layers=config.student_layers,
            teacher_layers=config.teacher_layers,
            teacher_batch_norms=True,
        )

    @classmethod
    def from_probe(cls, config: OFDConfig, probe: Probe) -> Self:
        """Pair the stages, and find the margins.

        Raises:
            ModelError: if no batch-norm stands before a layer of the teacher.
        """
        layers = pair_layers(
            probe,
            config.student_layers,
            config.teacher_layers,
            rule=config.pairing,
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        ).resized("smaller")
        norms = [probe.batch_norm(pair.teacher) for pair in layers.pairs]
        margins = [batch_norm_margins(norm.weight, norm.bias) for norm in norms]
        return cls(config, layers=layers, margins=margins)

    def describe(self) -> tuple[str, ...]:
        """The pairs with what stands between, and what is left out."""
        return self.layers.describe(self.regressors)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, and the distances, each earlier stage's half as heavy as the next's."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        distances = []
        last = len(self.layers.pairs) - 1
        for place, (pair, regressor) in enumerate(
            zip(self.layers.pairs, self.regressors, strict=True)
        ):
            maps = pair.bring(student, teacher)
            margin = self.get_buffer(f"margin{place}")
            distance = ofd_loss(regressor(maps.student), maps.teacher, margin)
            distances.append(distance / 2 ** (last - place))
        feature = torch.stack(distances).sum()
        return LossTerms(
            total=config.ce_weight * ce + config.ofd_weight * feature,
            parts={"ce": ce, "feature": feature},
        )


def _regressor(student_channels: int, teacher_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, BatchNorm2d(teacher_channels))
