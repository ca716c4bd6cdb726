r"""VID: predict the teacher's stages from the student's, with a variance learnt for each channel.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{vid} \sum_l \frac{1}{2 B C_l H_l W_l} \sum_{bchw}
    \Big[ \frac{(\mu_l(f^s)_{bchw} - f^t_{bchw})^2}{v_{l,c}} + \log v_{l,c} \Big]

The means mu are three 1x1 convolutions without bias, with ReLUs between, trained with the student;
so are the variances v = softplus(alpha) + 1e-5, which begin at 5. The larger of the two networks'
maps is averaged to the other's size first. It is a bound on the information that the student's
layer holds of the teacher's, and is negative where the prediction is good: v < 1.

Source: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge
    Transfer", CVPR 2019, https://arxiv.org/abs/1904.05835, in the form of
    RepDistiller (Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699).
Defaults: RepDistiller's, for every pair of the CIFAR-100 tables: weight 1, all stages.
Differs from the source: softplus itself, where RepDistiller's log(1 + exp(alpha)) overflows. In
    mdistiller the variances are in no optimiser and stay at 5, which makes the loss a tenth of a
    mean squared error; here they learn. A transformer's tokens are the map of their places.
"""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.precision import widened
from limbeck.methods.adapters import LayoutConfig
from limbeck.methods.base import Method, MethodConfig, Needs, Probe
from limbeck.methods.pairing import LayerPairs, Pairing, pair_layers

__all__ = ["VID", "Prediction", "VIDConfig", "vid_loss"]

_LEAST_VARIANCE = 1e-5


class VIDConfig(MethodConfig):
    """Settings of :class:`VID`.

    Attributes:
        student_layers: maps of the student, by name or meaning; "stage*" is every stage.
        teacher_layers: maps of the teacher.
        pairing: which stage goes with which: the last with the last and so on ("depth"), or those
            of one size ("resolution"). Layers named one by one are paired as they are named.
        student_layout: how the student's layers lie, where their shapes leave it open.
        teacher_layout: the same of the teacher's.
        initial_variance: of every channel, above 1e-5.
        ce_weight: of the cross-entropy with the labels.
        vid_weight: of the sum over pairs of layers.
    """

    student_layers: tuple[str, ...] = ("stage*",)
    teacher_layers: tuple[str, ...] = ("stage*",)
    pairing: Pairing = "depth"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    initial_variance: PositiveFloat = 5.0
    ce_weight: NonNegativeFloat = 1.0
    vid_weight: NonNegativeFloat = 1.0


def vid_loss(mean: Tensor, teacher_feature: Tensor, variance: Tensor) -> Tensor:
    r"""Negative log-likelihood of the teacher's map under a Gaussian, less its constant.

    .. math:: \frac{1}{2BCHW} \sum_{bchw}
        \Big[ \frac{(\mu_{bchw} - f^t_{bchw})^2}{v_c} + \log v_c \Big]

    Args:
        mean: ``(B, C, H, W)``, predicted from the student.
        teacher_feature: the same shape; receives no gradient.
        variance: ``(C,)``, ``> 0``.

    Returns:
        Scalar, float32 or wider, of either sign.

    Raises:
        ShapeError: if the shapes do not fit.

    Source:
        Ahn et al. 2019, https://arxiv.org/abs/1904.05835.

    Example:
        >>> vid_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1)).item()
        0.5
    """
    if mean.shape != teacher_feature.shape or variance.shape != mean.shape[1:2]:
        raise ShapeError(
            "mean and teacher feature must be equal in shape, with one variance a channel; got "
            f"mean {tuple(mean.shape)}, teacher {tuple(teacher_feature.shape)}, variance "
            f"{tuple(variance.shape)}. Bring the student's to the teacher's channels and size "
            "first, by 1x1 convolutions for example"
        )
    spread = widened(variance).reshape(-1, *[1] * (mean.ndim - 2))
    squared = (widened(mean) - widened(teacher_feature.detach())).square()
    return 0.5 * (squared / spread + spread.log()).mean()


class Prediction(nn.Module):
    """The Gaussian of the teacher's map given the student's.

    Args:
        student_channels: of the student's map.
        teacher_channels: of the teacher's.
        initial_variance: of every channel.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, *, initial_variance: float = 5.0
    ) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=1, bias=False),
        )
        above = max(initial_variance - _LEAST_VARIANCE, _LEAST_VARIANCE)
        # The inverse of softplus, without its overflow.
        alpha = above + math.log(-math.expm1(-above))
        self.alpha = nn.Parameter(torch.full((teacher_channels,), alpha))

    @property
    def variance(self) -> Tensor:
        """``(C,)``."""
        return F.softplus(widened(self.alpha)) + _LEAST_VARIANCE

    def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        """The loss of one pair of maps of one size."""
        return vid_loss(self.mean(student_feature), teacher_feature, self.variance)


class VID(Method[VIDConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        layers: the pairs that are compared, each brought to one size.
        predictions: one for each pair.
    """

    takes_mixed = True

    def __init__(
        self, config: VIDConfig, *, layers: LayerPairs, predictions: list[Prediction]
    ) -> None:
        super().__init__(config)
        self.layers = layers
        self.predictions = nn.ModuleList(predictions)

    @classmethod
    def needs(cls, config: VIDConfig) -> Needs:
        """The stages of both networks."""
        return Needs(student_layers=config.student_layers, teacher_layers=config.teacher_layers)

    @classmethod
    def from_probe(cls, config: VIDConfig, probe: Probe) -> Self:
        """Pair the stages, and make the prediction for each pair."""
        layers = pair_layers(
            probe,
            config.student_layers,
            config.teacher_layers,
            rule=config.pairing,
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        ).resized("smaller")
        predictions = [
            Prediction(*pair.channels, initial_variance=config.initial_variance)
            for pair in layers.pairs
        ]
        return cls(config, layers=layers, predictions=predictions)

    def describe(self) -> tuple[str, ...]:
        """The pairs with what predicts one from the other, and what is left out."""
        return self.layers.describe(self.predictions)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, and the negative log-likelihood summed over pairs."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        likelihoods = [
            prediction(*pair.bring(student, teacher))
            for pair, prediction in zip(self.layers.pairs, self.predictions, strict=True)
        ]
        information = torch.stack(likelihoods).sum()
        return LossTerms(
            total=config.ce_weight * ce + config.vid_weight * information,
            parts={"ce": ce, "information": information},
        )
