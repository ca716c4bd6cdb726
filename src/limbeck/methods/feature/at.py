r"""Attention transfer: look where the teacher looks, stage by stage.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{at} \sum_l \frac{1}{B H_l W_l} \sum_b
    \| q^s_{l,b} - q^t_{l,b} \|_2^2, \quad
    q = \frac{m}{\|m\|_2}, \; m_{hw} = \frac{1}{C} \sum_c |A_{chw}|^p

where A is a stage's map, and the larger of the two networks' is averaged to the other's size before
the power. The channels may differ in number: no adapter is needed.

Source: Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer", ICLR 2017,
    https://arxiv.org/abs/1612.03928, eq. 2; and its authors' code.
Defaults: p = 2, weight 1000, all stages: the code's, and RepDistiller's for every pair of the
    CIFAR-100 tables (Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699). On ImageNet the
    same weight, at the ends of the four stages.
Differs from the source: the paper has half the norm, not its square over the number of places;
    distance="norm" is that reading, and its weight is another. Stages are paired by the size of
    their maps, not by their place in a list: RepDistiller and mdistiller pair them in order, which
    pairing="depth" does, and where one network's list begins a stage later they compare maps of
    different depth. mdistiller leaves out the absolute value, which is wrong for odd p on signed
    maps. A transformer's tokens are the map of their places.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from limbeck.core.errors import SettingsError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.maps import check_feature_maps, pooled_alike, unit_maps
from limbeck.functional.precision import widened
from limbeck.methods.adapters import LayoutConfig
from limbeck.methods.base import Method, MethodConfig, Needs, Probe
from limbeck.methods.pairing import LayerPairs, Pairing, pair_layers

__all__ = ["AT", "ATConfig", "at_loss", "attention_map"]


class ATConfig(MethodConfig):
    """Settings of :class:`AT`.

    Attributes:
        student_layers: maps of the student, by name or meaning; "stage*" is every stage.
        teacher_layers: maps of the teacher.
        pairing: which stage goes with which: those of one size ("resolution"), or the last with
            the last and so on ("depth"). Layers named one by one are paired as they are named.
        student_layout: how the student's layers lie, where their shapes leave it open.
        teacher_layout: the same of the teacher's.
        p: power of the activations.
        distance: "squared" is the code's mean squared difference, "norm" half the paper's norm.
        ce_weight: of the cross-entropy with the labels.
        at_weight: of the sum over pairs of layers.
    """

    student_layers: tuple[str, ...] = ("stage*",)
    teacher_layers: tuple[str, ...] = ("stage*",)
    pairing: Pairing = "resolution"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    p: PositiveFloat = 2.0
    distance: Literal["squared", "norm"] = "squared"
    ce_weight: NonNegativeFloat = 1.0
    at_weight: NonNegativeFloat = 1000.0


def attention_map(feature: Tensor, *, p: float = 2) -> Tensor:
    r"""Where a layer looks: the mean over channels of :math:`|A|^p`, one unit vector per image.

    Args:
        feature: ``(B, C, H, W)``.
        p: ``> 0``.

    Returns:
        ``(B, H * W)``, float32 or wider, not negative; zero for a map that is zero everywhere.

    Raises:
        SettingsError: if p is not positive.

    Example:
        >>> attention_map(torch.tensor([[[[1.0, -2.0]], [[1.0, 0.0]]]])).tolist()[0]
        [0.4472135901451111, 0.8944271802902222]
    """
    if not p > 0:
        raise SettingsError(f"an attention map needs p > 0, got {p}; the paper has 2")
    size = widened(feature)
    # The map's scale cancels, so that no power of large or small values leaves the range.
    if p == 2:
        energy = size.square().mean(dim=1)
    else:
        size = _over_largest(size.abs())
        positive = size > 0  # below p = 1 the power's slope at 0 is infinite
        energy = torch.where(positive, torch.where(positive, size, 1.0).pow(p), 0.0).mean(dim=1)
    return unit_maps(_over_largest(energy))


def at_loss(student_feature: Tensor, teacher_feature: Tensor, *, p: float = 2) -> Tensor:
    r"""Mean squared difference of two layers' attention maps, over batch and places.

    .. math:: \frac{1}{BHW} \sum_b \| q^s_b - q^t_b \|_2^2

    Args:
        student_feature: ``(B, C, H, W)``.
        teacher_feature: ``(B, C', H', W')``; receives no gradient. The larger of the two is
            averaged to the other's size first.
        p: power of the activations, ``> 0``.

    Returns:
        Scalar, float32 or wider, in [0, 2 / (H * W)].

    Raises:
        ShapeError: if a feature is no map, or the batch sizes differ.
        SettingsError: if p is not positive.

    Source:
        Zagoruyko, Komodakis 2017, https://arxiv.org/abs/1612.03928; the square as in its authors'
        code.

    Example:
        >>> left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
        >>> at_loss(left, right).item()
        1.0
    """
    student, teacher = _attention_maps(student_feature, teacher_feature, p=p)
    return (student - teacher).square().mean()


def _attention_maps(
    student_feature: Tensor, teacher_feature: Tensor, *, p: float
) -> tuple[Tensor, Tensor]:
    check_feature_maps(student_feature, teacher_feature)
    student, teacher = pooled_alike(student_feature, teacher_feature.detach())
    return attention_map(student, p=p), attention_map(teacher, p=p)


def _half_norm(student_feature: Tensor, teacher_feature: Tensor, *, p: float) -> Tensor:
    """Half the distance of the two attention maps, mean over the batch: the paper's reading."""
    student, teacher = _attention_maps(student_feature, teacher_feature, p=p)
    squared = (student - teacher).square().sum(dim=1)
    apart = squared > 0  # equal maps give no gradient, where that of the root is infinite
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0).mean() / 2


def _over_largest(values: Tensor) -> Tensor:
    """Each image's values over their largest, which counts as a constant; zeros stay zeros."""
    largest = values.detach().flatten(start_dim=1).amax(dim=1)
    largest = torch.where(largest > 0, largest, 1.0)
    return values / largest.reshape(-1, *[1] * (values.ndim - 1))


class AT(Method[ATConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        layers: the pairs that are compared, each brought to one size.
    """

    takes_mixed = True

    def __init__(self, config: ATConfig, *, layers: LayerPairs) -> None:
        super().__init__(config)
        self.layers = layers

    @classmethod
    def needs(cls, config: ATConfig) -> Needs:
        """The stages of both networks."""
        return Needs(student_layers=config.student_layers, teacher_layers=config.teacher_layers)

    @classmethod
    def from_probe(cls, config: ATConfig, probe: Probe) -> Self:
        """Pair the stages."""
        layers = pair_layers(
            probe,
            config.student_layers,
            config.teacher_layers,
            rule=config.pairing,
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        )
        return cls(config, layers=layers.resized("smaller"))

    def describe(self) -> tuple[str, ...]:
        """The pairs, and what is left out."""
        return self.layers.describe([None] * len(self.layers.pairs))

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, and the distance of the attention maps summed over pairs."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        distance = at_loss if config.distance == "squared" else _half_norm
        distances = [
            distance(*pair.bring(student, teacher), p=config.p) for pair in self.layers.pairs
        ]
        attention = torch.stack(distances).sum()
        return LossTerms(
            total=config.ce_weight * ce + config.at_weight * attention,
            parts={"ce": ce, "attention": attention},
        )
