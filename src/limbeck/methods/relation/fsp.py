r"""FSP: first learn how the teacher's channels flow from layer to layer, then train on the labels.

.. math:: \mathcal{L}_1 = w_{fsp} \sum_l \frac{1}{B C_l C_{l+1}} \sum_b
    \| G^s_{l,b} - G^t_{l,b} \|_F^2, \quad
    G_{cd} = \frac{1}{HW} \sum_{hw} A_{chw} B_{dhw}
.. math:: \mathcal{L}_2 = CE(z^s, y)

where A and B are the maps at the two ends of a part of the network, the larger of them pooled to
the other's size. Stage "init" trains the student up to its last map; stage "train" is plain
training from there.

Source: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network
    Minimization and Transfer Learning", CVPR 2017, https://doi.org/10.1109/CVPR.2017.754, eq. 1 and
    2, algorithm 1.
Defaults: 30 of 270 epochs in the first stage and weight 1, as RepDistiller's script (Tian et al.,
    ICLR 2020, https://arxiv.org/abs/1910.10699), whose weight of 50 is never used.
Differs from the source: the mean over the matrix's entries, as in RepDistiller, where the paper
    has their sum. Pairs of the stages' ends, without the stem, which not every network has. Both
    want equal widths; here a trained 1x1 convolution, dropped after the first stage, brings a
    student's map to the teacher's width where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.relations import transmitting_matrix
from limbeck.methods.adapters import LayoutConfig
from limbeck.methods.base import Method, MethodConfig, Needs, Probe, Stage
from limbeck.methods.ce import CE, CEConfig
from limbeck.methods.pairing import LayerPairs, Pairing, pair_layers

__all__ = ["FSPConfig", "FSPInit", "fsp_loss", "fsp_stages"]


class FSPConfig(MethodConfig):
    """Settings of both stages.

    Attributes:
        student_layers: the student's maps, two at least, in the order of the forward pass;
            "stage*" is every stage's end.
        teacher_layers: the teacher's, as many.
        pairing: which stage goes with which: the last with the last and so on ("depth"), or those
            of one size ("resolution"). Layers named one by one are paired as they are named.
        student_layout: how the student's layers lie, where their shapes leave it open.
        teacher_layout: the same of the teacher's.
        init_share: share of the run's epochs that go to the first stage, in (0, 1).
        fsp_weight: of the first stage's only term.
    """

    student_layers: tuple[str, ...] = ("stage*",)
    teacher_layers: tuple[str, ...] = ("stage*",)
    pairing: Pairing = "depth"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    init_share: float = Field(1 / 9, gt=0, lt=1)
    fsp_weight: PositiveFloat = 1.0


def fsp_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    r"""Squared distance of the two networks' flows between consecutive maps; see the module.

    Args:
        student_features: two or more maps ``(B, C_l, H_l, W_l)``.
        teacher_features: as many; ``C_l`` equal, sizes free; receive no gradient.

    Returns:
        Scalar, float32 or wider, ``>= 0``: the mean over images and the matrix's entries, the sum
        over pairs of consecutive maps.

    Raises:
        ShapeError: if the numbers of maps differ or are below 2, a feature is no map, or the
            widths or batch sizes differ.

    Source:
        Yim et al. 2017, eq. 2; the mean as in RepDistiller.

    Example:
        >>> import torch
        >>> maps = [torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)]
        >>> fsp_loss(maps, [2 * feature for feature in maps]).item()
        9.0
    """
    widths = [
        [f.shape[1] for f in maps if f.ndim == 4] for maps in (student_features, teacher_features)
    ]
    if len(student_features) < 2 or widths[0] != widths[1]:
        shapes = [
            ", ".join(str(tuple(feature.shape)) for feature in features) or "none"
            for features in (student_features, teacher_features)
        ]
        raise ShapeError(
            "two or more maps (batch, channels, height, width) of each network, of equal widths, "
            f"are needed; got student {shapes[0]}; teacher {shapes[1]}. Bring the student's to "
            "the teacher's widths first, by 1x1 convolutions for example"
        )
    distances = [
        F.mse_loss(transmitting_matrix(*student), transmitting_matrix(*teacher).detach())
        for student, teacher in zip(
            pairwise(student_features), pairwise(teacher_features), strict=True
        )
    ]
    total: Tensor = sum(distances[1:], start=distances[0])
    return total


class FSPInit(Method[FSPConfig]):
    """The first stage; see the module docstring.

    Args:
        config: of both stages.
        layers: the pairs whose flows are compared, two at least.
    """

    takes_mixed = True

    def __init__(self, config: FSPConfig, *, layers: LayerPairs) -> None:
        super().__init__(config)
        self.layers = layers
        self.connectors = nn.ModuleList(_connector(*pair.channels) for pair in layers.pairs)

    @classmethod
    def needs(cls, config: FSPConfig) -> Needs:
        """The ends of the parts, and nothing of the student behind the last."""
        return Needs(
            student_layers=config.student_layers,
            teacher_layers=config.teacher_layers,
            stop_student=True,
        )

    @classmethod
    def from_probe(cls, config: FSPConfig, probe: Probe) -> Self:
        """Pair the layers.

        Raises:
            SettingsError: if there are fewer than two pairs.
        """
        layers = pair_layers(
            probe,
            config.student_layers,
            config.teacher_layers,
            rule=config.pairing,
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        )
        if len(layers.pairs) < 2:
            raise SettingsError(
                "FSP compares what is between two layers; got one layer of each network. Name two "
                "at least in student_layers and teacher_layers"
            )
        return cls(config, layers=layers)

    def describe(self) -> tuple[str, ...]:
        """Each pair of layers, and the connector between them."""
        return self.layers.describe(self.connectors)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """The distance of the flows alone."""
        del batch, progress
        maps = [pair.bring(student, teacher) for pair in self.layers.pairs]
        ours = [
            connector(pair.student) for connector, pair in zip(self.connectors, maps, strict=True)
        ]
        flow = fsp_loss(ours, [pair.teacher for pair in maps])
        return LossTerms(total=self.config.fsp_weight * flow, parts={"flow": flow})


def _connector(student_channels: int, teacher_channels: int) -> nn.Module:
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1)


def fsp_stages(config: FSPConfig) -> tuple[Stage, ...]:
    """The initial stage, then plain training."""
    plain = CEConfig(label_smoothing=config.label_smoothing)
    return (
        Stage(
            name="init",
            method=FSPInit,
            config=config,
            share=config.init_share,
            schedule="constant",
        ),
        Stage(name="train", method=CE, config=plain, share=1 - config.init_share),
    )
