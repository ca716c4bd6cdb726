r"""Foundation: give a small backbone the features of a large one, without labels or class scores.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + \sum_{l \in \{pooled, tokens\}} w_l \,
    \Big[ w_{cos} \big(1 - \cos(h_l(f^s_l), \hat f^t_l)\big)
    + w_{mse} \, \mathrm{MSE}(h_l(f^s_l), \hat f^t_l) \Big], \quad
    \hat f = \frac{f - \mu}{\sigma}

The teacher is any backbone, such as DINO's, EVA's or CLIP's towers in timm, with or without a
classifier. Two of its outputs are learnt: the vector before its classifier, and the places of its
last map or its patch tokens, without class and register tokens. A projection h of each, two linear
layers with a ReLU between them, takes the student's channels to the teacher's and is dropped
afterwards. The targets have mean 0 and deviation 1 in every channel, over the training images: one
pass of the teacher over them, before the first epoch. Where the two grids differ, the larger is
pooled. Cosine and mean squared difference are means over images and places.

What was learnt is judged at the end, beside the same student before training and the teacher, by
the nearest neighbours of the student's vectors and by a linear probe on them; see
:mod:`limbeck.metrics.embedding`. Without labels the student's own classifier stays as chance made
it: put a new one on the run with --initial-checkpoint, or give the labels a weight.

Source: Sariyildiz, Weinzaepfel, Lucas, Larlus, Kalantidis, "UNIC: Universal Classification Models
    via Multi-teacher Distillation", ECCV 2024, https://arxiv.org/abs/2408.05088, and its authors'
    code. Alike: Wei et al., "Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via
    Feature Distillation", 2022, https://arxiv.org/abs/2205.14141; Ranzinger, Heinrich, Kautz,
    Molchanov, "AM-RADIO", CVPR 2024, https://arxiv.org/abs/2312.06709; Zhang, Ma, Bai, Wang, Fu,
    "Accessing Vision Foundation Models via ImageNet-1K" (Proteus), ICLR 2025,
    https://arxiv.org/abs/2407.10366.
Defaults: UNIC's: cosine 0.5 and smooth L1 0.5, which for differences below 1 is 0.25 times the
    squared difference, as here; both outputs alike. It trains with AdamW, rate 3e-4 for 256 images,
    cosine with 10 of 200 epochs of warm-up, weight decay 0.03.
Differs from the source: one teacher; the last layer alone, where UNIC sums projections of all
    blocks; squared differences in place of smooth L1; ReLU in place of GELU; mean and deviation of
    the teacher's features from one pass, where UNIC has moving averages. UNIC's two networks have
    one grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Self

import torch
from pydantic import NonNegativeFloat, model_validator
from torch import Tensor, nn

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.hints import hint_loss
from limbeck.functional.precision import widened
from limbeck.functional.relations import unit_rows
from limbeck.methods.adapters import Adapter, AdapterConfig, Purpose, make_adapter
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["Foundation", "FoundationConfig", "cosine_distance"]

_LEVELS: Final[dict[str, Purpose]] = {"pooled": "vector", "tokens": "tokens"}
# Of the mean deviation of all channels: one that hardly moves is not blown up to the others' size.
_LEAST_DEVIATION = 1e-3
_PROJECTION = AdapterConfig(kind="mlp", resize="smaller")


class FoundationConfig(MethodConfig):
    """Settings of :class:`Foundation`.

    Attributes:
        student_pooled: the student's vector, by name or meaning; maps are averaged over places.
        teacher_pooled: the teacher's.
        student_tokens: the student's last map or tokens.
        teacher_tokens: the teacher's.
        pooled_projection: from the student's vector to the teacher's; dropped after training.
        tokens_projection: the same of the places.
        pooled_weight: of the vectors; 0 does not read them.
        tokens_weight: of the places; 0 does not read them.
        cosine_weight: of one less the cosine, for both.
        mse_weight: of the mean squared difference, for both.
        standardize: whether the teacher's channels are brought to mean 0 and deviation 1.
        ce_weight: of the cross-entropy with the labels; at 0 labels cannot matter.
    """

    student_pooled: str = "penultimate"
    teacher_pooled: str = "penultimate"
    student_tokens: str = "last"
    teacher_tokens: str = "last"
    pooled_projection: AdapterConfig = _PROJECTION
    tokens_projection: AdapterConfig = _PROJECTION
    pooled_weight: NonNegativeFloat = 0.5
    tokens_weight: NonNegativeFloat = 0.5
    cosine_weight: NonNegativeFloat = 0.5
    mse_weight: NonNegativeFloat = 0.25
    standardize: bool = True
    ce_weight: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        if not self.levels() or not self.cosine_weight + self.mse_weight:
            raise ValueError(
                "nothing is learnt from the teacher: pooled_weight or tokens_weight, and "
                "cosine_weight or mse_weight, must be above 0"
            )
        return self

    def levels(self) -> dict[str, tuple[str, str]]:
        """What is learnt, "pooled" or "tokens": the student's layer and the teacher's."""
        return {
            level: (getattr(self, f"student_{level}"), getattr(self, f"teacher_{level}"))
            for level in _LEVELS
            if getattr(self, f"{level}_weight")
        }


def cosine_distance(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    r"""One less the cosine of two vectors, mean over all vectors.

    .. math:: \frac{1}{N} \sum_n \Big( 1 - \frac{\langle s_n, t_n \rangle}{\|s_n\| \|t_n\|} \Big)

    Args:
        student_feature: ``(..., C)``: N vectors.
        teacher_feature: the same shape; receives no gradient.

    Returns:
        Scalar, float32 or wider, in [0, 2]. A vector of length 0 is at 1 from every other, and
        gets no gradient.

    Raises:
        ShapeError: if the shapes differ.

    Source:
        Sariyildiz et al. 2024, https://arxiv.org/abs/2408.05088.

    Example:
        >>> cosine_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
        1.0
    """
    if student_feature.shape != teacher_feature.shape:
        raise ShapeError(
            "student and teacher feature must be equal in shape, (..., channels); got student "
            f"{tuple(student_feature.shape)}, teacher {tuple(teacher_feature.shape)}. Project the "
            "student's to the teacher's channels first"
        )
    ours, theirs = unit_rows(widened(student_feature)), unit_rows(widened(teacher_feature.detach()))
    return (1 - (ours * theirs).sum(dim=-1)).mean()


class Foundation(Method[FoundationConfig]):
    """See the module docstring.

    In a training loop of your own, call :meth:`prepare` first: until then the teacher's features
    are taken as they are.

    Args:
        config: its settings.
        projections: by level.

    Attributes:
        pooled_mean: ``(C,)``, of the teacher's vectors over the training images; in the checkpoint,
            as ``pooled_deviation``, ``tokens_mean`` and ``tokens_deviation`` are.
    """

    takes_mixed = True

    def __init__(self, config: FoundationConfig, *, projections: dict[str, Adapter]) -> None:
        super().__init__(config)
        self.projections = nn.ModuleDict(projections)
        for level, projection in projections.items():
            channels = projection.alignment.teacher_layout.channels
            self.register_buffer(f"{level}_mean", torch.zeros(channels))
            self.register_buffer(f"{level}_deviation", torch.ones(channels))

    @classmethod
    def needs(cls, config: FoundationConfig) -> Needs:
        """Features of both networks, and nobody's class scores."""
        layers = config.levels().values()
        return Needs(
            teacher_scores=False,
            student_scores=config.ce_weight > 0,
            student_layers=tuple(ours for ours, _ in layers),
            teacher_layers=tuple(theirs for _, theirs in layers),
            embeds=True,
        )

    @classmethod
    def from_probe(cls, config: FoundationConfig, probe: Probe) -> Self:
        """Make the projections for the layers' shapes."""
        projections = {
            level: make_adapter(
                probe.feature("student", ours),
                probe.feature("teacher", theirs),
                purpose=_LEVELS[level],
                config=getattr(config, f"{level}_projection"),
            )
            for level, (ours, theirs) in config.levels().items()
        }
        return cls(config, projections=projections)

    def _projection(self, level: str) -> Adapter:
        projection = self.projections[level]
        assert isinstance(projection, Adapter)
        return projection

    @torch.no_grad()
    def prepare(self, teacher: Callable[[Tensor], Outputs], batches: Iterable[Batch]) -> None:
        """Mean and deviation of the teacher's channels, over all images and places."""
        if not self.config.standardize:
            return
        moments = {level: _Moments() for level in self.projections}
        for batch in batches:
            features = teacher(batch.image).features
            for level, (_, theirs) in self.config.levels().items():
                target = self._projection(level).alignment.teacher(features[theirs])
                moments[level].add(target.flatten(end_dim=-2))
        for level, found in moments.items():
            mean, deviation = found.mean, (found.squares / found.count).sqrt()
            least = _LEAST_DEVIATION * deviation.mean()
            deviation = torch.where(deviation > 0, deviation.clamp(min=least), 1.0)
            self.get_buffer(f"{level}_mean").copy_(mean)
            self.get_buffer(f"{level}_deviation").copy_(deviation)

    def describe(self) -> tuple[str, ...]:
        """The layers and the projections between them, and what becomes of labels."""
        lines = [
            self._projection(level).describe(*layers)
            for level, layers in self.config.levels().items()
        ]
        if not self.config.ce_weight:
            lines.append("no labels are used; the student's own classifier learns nothing")
        return tuple(lines)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cosine and squared difference of vectors and places, and the cross-entropy."""
        del progress
        config = self.config
        ce = self.cross_entropy(student.logits, batch.label)
        total, parts = config.ce_weight * ce, {"ce": ce}
        for level, (ours, theirs) in config.levels().items():
            pair = self._projection(level)(student.features[ours], teacher.features[theirs])
            mean, deviation = (self.get_buffer(f"{level}_{n}") for n in ("mean", "deviation"))
            target = (widened(pair.teacher.detach()) - mean) / deviation
            cosine, mse = cosine_distance(pair.student, target), hint_loss(pair.student, target)
            level_loss = config.cosine_weight * cosine + config.mse_weight * mse
            total = total + getattr(config, f"{level}_weight") * level_loss
            parts |= {f"{level}_cosine": cosine, f"{level}_mse": mse}
        return LossTerms(total=total, parts=parts)


class _Moments:
    """Mean and sum of squared differences from it, batch by batch, in float64.

    Source: Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983, eq. 2.1.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Further rows ``(N, C)``."""
        rows = rows.double()
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        before, self.count = self.count, self.count + len(rows)
        apart = mean - self.mean
        self.mean = self.mean + apart * len(rows) / self.count
        self.squares = (
            self.squares + variance * len(rows) + apart.square() * before * len(rows) / self.count
        )
