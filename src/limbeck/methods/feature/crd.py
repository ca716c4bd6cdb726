r"""CRD: tell, among many images, the one that the other network is looking at.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{kd} \, KD(z^s, z^t) + w_{crd} (N_s + N_t), \quad
    N = -\frac{1}{B} \sum_b \Big[ \log h(o_{b,0}) + \sum_{k=1}^{K} \log (1 - h(o_{b,k})) \Big], \;
    h(o) = \frac{o}{o + K / n}

Both networks' vectors before the classifier go through a linear layer, trained with the student, to
length 1. A memory bank holds such a vector of each of the n training images for each network. The
student's score of image j is o = exp(v_s . m_j / tau) / Z, with m_j from the teacher's bank: j is
the image itself (k = 0) or one of K images of other classes; N_t is the same with the networks'
parts exchanged. Z is set once, from the first batch, so that the scores begin at a mean of 1 / n.
After the scores, the rows of the batch's images move: m <- (m + v) / 2, to length 1.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
    https://arxiv.org/abs/1910.10699, section 3; and its authors' code, RepDistiller.
Defaults: the code's, for all pairs: weight 0.8, 128 numbers, 16384 negatives, tau = 0.07, momentum
    0.5. "CRD + KD" of its tables is kd_weight = 1 at T = 4. The same on ImageNet, in mdistiller.
Differs from the source: the images that may be negatives are drawn once a batch, and each image of
    the batch takes the first K of them that are of other classes: by itself that is the code's
    draw, without replacement, and all that the batch shares is one matrix product in place of K
    rows of the bank for each image (a gigabyte at B = 64). Where there are not K images of other
    classes, as many as there are; the code draws them several times. Scores, Z and rows are the
    same in any number of processes, where the code has a bank in each. A vector of length 0 stays
    so; the code divides by 0. Images without a label have all others as negatives.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from limbeck.core.errors import DataError, ShapeError
from limbeck.core.types import UNLABELLED, Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import kd_loss
from limbeck.functional.gather import gathered
from limbeck.functional.precision import widened
from limbeck.functional.relations import unit_rows, without_autocast
from limbeck.methods.adapters import Alignment, LayoutConfig, align
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["CRD", "CRDConfig", "ContrastScores", "bank_bytes", "crd_loss", "nce_loss"]

_NCE_EPSILON = 1e-7  # beside K / n, as the authors' code has it
_MEGABYTE = 1e6


class CRDConfig(MethodConfig):
    """Settings of :class:`CRD`.

    Attributes:
        student_layer: the student's vector, by name or meaning; maps are averaged over places.
        teacher_layer: the teacher's.
        student_layout: how the student's layer lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.
        num_features: of the vectors that are compared.
        num_negatives: K, at most as many as there are images of other classes.
        temperature: tau, of the scores.
        momentum: share of the old vector in the new one of the bank.
        ce_weight: of the cross-entropy with the labels.
        crd_weight: of both networks' contrast.
        kd_weight: of the divergence from the teacher's probabilities.
        kd_temperature: of that divergence.
    """

    student_layer: str = "penultimate"
    teacher_layer: str = "penultimate"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    num_features: PositiveInt = 128
    num_negatives: PositiveInt = 16384
    temperature: PositiveFloat = 0.07
    momentum: float = Field(0.5, ge=0, lt=1)
    ce_weight: NonNegativeFloat = 1.0
    crd_weight: NonNegativeFloat = 0.8
    kd_weight: NonNegativeFloat = 0.0
    kd_temperature: PositiveFloat = 4.0


class ContrastScores(NamedTuple):
    """How well one network's vectors fit the other's bank, before they are divided by Z."""

    positive: Tensor  # (B,)
    others: Tensor  # (B, M)


def crd_loss(positive: Tensor, negatives: Tensor, *, num_images: int) -> Tensor:
    r"""Noise-contrastive estimation of one network's scores.

    .. math:: -\frac{1}{B} \sum_b \Big[ \log \frac{o_b}{o_b + K/n} + \sum_k
        \log \frac{K/n}{o_{bk} + K/n} \Big]

    with 1e-7 beside each K / n of the denominators.

    Args:
        positive: ``(B,)``, scores ``> 0`` of each image with itself.
        negatives: ``(B, K)``, scores ``>= 0`` with images of other classes.
        num_images: n, in the bank.

    Returns:
        Scalar, float32 or wider, ``>= 0``; ``log(1 + K) + K log(1 + 1/K)`` where all scores are
        ``1 / n``.

    Raises:
        ShapeError: if the shapes do not fit.

    Source:
        Tian et al. 2020, https://arxiv.org/abs/1910.10699; as in RepDistiller.

    Example:
        >>> even = crd_loss(torch.full((2,), 0.1), torch.full((2, 3), 0.1), num_images=10)
        >>> round(even.item(), 3)  # log 4 + 3 log 4/3
        2.249
    """
    if positive.ndim != 1 or negatives.ndim != 2 or len(positive) != len(negatives):
        raise ShapeError(
            "scores must be positive (batch,) and negatives (batch, K); got "
            f"{tuple(positive.shape)} and {tuple(negatives.shape)}"
        )
    kept = torch.ones_like(negatives, dtype=torch.bool)
    log_positive = widened(positive).log()
    return nce_loss(
        log_positive, negatives, kept, num_negatives=negatives.shape[1], num_images=num_images
    )


def nce_loss(
    log_positive: Tensor,
    others: Tensor,
    kept: Tensor,
    *,
    num_negatives: int,
    num_images: int,
) -> Tensor:
    """:func:`crd_loss` of those scores that are kept.

    Args:
        log_positive: ``(B,)``, logarithms of the scores.
        others: ``(B, M)``, scores.
        kept: ``(B, M)``, whether each is a negative: K of each row.
        num_negatives: K.
        num_images: n.
    """
    noise = num_negatives / num_images
    others = widened(others)
    against = math.log(noise) - (others + noise + _NCE_EPSILON).log()
    for_itself = log_positive - (log_positive.exp() + noise + _NCE_EPSILON).log()
    return -(for_itself + torch.where(kept, against, 0.0).sum(dim=1)).mean()


def bank_bytes(num_images: int, num_features: int = 128) -> int:
    """Memory of the two banks, in float32.

    Example:
        >>> bank_bytes(1_281_167)  # ImageNet
        1311915008
    """
    return 2 * num_images * num_features * 4


class CRD(Method[CRDConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        alignment: of the two layers, as vectors.
        labels: ``(n,)``, of the training images, -1 where unknown.

    Attributes:
        student_bank: ``(n, D)``, rows of length 1; in the checkpoint.
        teacher_bank: the same of the teacher.
        normalizer: Z of the student's and of the teacher's scores; 0 before the first batch.
        num_negatives: K, as many as there are.
    """

    buffers_kept_equal: tuple[str, ...] = (
        "labels",
        "normalizer",
        "student_bank",
        "teacher_bank",
    )

    labels: Tensor
    normalizer: Tensor
    student_bank: Tensor
    teacher_bank: Tensor

    def __init__(self, config: CRDConfig, *, alignment: Alignment, labels: Tensor) -> None:
        super().__init__(config)
        self.alignment = alignment
        self.num_images = len(labels)
        known = labels[labels != UNLABELLED]
        largest = int(known.bincount().max()) if len(known) else 1
        self.num_negatives = min(config.num_negatives, self.num_images - largest)
        if self.num_negatives < 1:
            raise DataError(
                "CRD contrasts each image with images of other classes, and all "
                f"{self.num_images} training images are of one class; use data of two classes, or "
                "another method"
            )
        # So many that K of other classes are among them, whatever is drawn.
        self.num_drawn = min(self.num_images, self.num_negatives + largest)
        widths = alignment.student_layout.channels, alignment.teacher_layout.channels
        self.embed_student, self.embed_teacher = (
            nn.Linear(width, config.num_features) for width in widths
        )
        bound = 1 / math.sqrt(config.num_features / 3)
        for name in ("student_bank", "teacher_bank"):
            bank = torch.empty(self.num_images, config.num_features).uniform_(-bound, bound)
            self.register_buffer(name, bank)
        self.register_buffer("normalizer", torch.zeros(2))
        # From the data, and not from a checkpoint.
        self.register_buffer("labels", labels.detach().clone(), persistent=False)

    @classmethod
    def needs(cls, config: CRDConfig) -> Needs:
        """One vector of each network."""
        return Needs(student_layers=(config.student_layer,), teacher_layers=(config.teacher_layer,))

    @classmethod
    def from_probe(cls, config: CRDConfig, probe: Probe) -> Self:
        """Make the banks for the training images, and the layers in front of them.

        Raises:
            DataError: if the labels of the training images are not known, or are all the same.
        """
        if probe.labels is None:
            raise DataError(
                "CRD draws negatives from other classes and needs the labels of all "
                f"{probe.num_images} training images; pass them as `labels` (build_learner, Probe)"
            )
        alignment = align(
            probe.feature("student", config.student_layer),
            probe.feature("teacher", config.teacher_layer),
            purpose="vector",
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        )
        return cls(config, alignment=alignment, labels=probe.labels)

    def describe(self) -> tuple[str, ...]:
        """The two layers, and what the banks take."""
        config = self.config
        lines = [
            f"{whose} {layer} {layout.describe('vector')} -> linear -> {config.num_features} of "
            f"length 1; {sum(p.numel() for p in embed.parameters()):,} parameters"
            for whose, layer, layout, embed in (
                (
                    "student",
                    config.student_layer,
                    self.alignment.student_layout,
                    self.embed_student,
                ),
                (
                    "teacher",
                    config.teacher_layer,
                    self.alignment.teacher_layout,
                    self.embed_teacher,
                ),
            )
        ]
        size = bank_bytes(self.num_images, config.num_features) / _MEGABYTE
        few = ""
        if self.num_negatives < config.num_negatives:
            few = f" ({config.num_negatives:,} were asked for: there are no more)"
        lines.append(
            f"memory banks of 2 x {self.num_images:,} x {config.num_features} numbers, "
            f"{size:,.1f} MB; {self.num_negatives:,} negatives of other classes an image{few}"
        )
        return tuple(lines)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, contrast, and the divergence where it has a weight; moves the banks."""
        config = self.config
        ce = self.cross_entropy(student.logits, batch.label)
        pair = self.alignment(
            student.features[config.student_layer], teacher.features[config.teacher_layer]
        )
        ours = unit_rows(widened(self.embed_student(pair.student)))
        theirs = unit_rows(widened(self.embed_teacher(pair.teacher.detach())))
        drawn = self._draw(progress)
        kept = self._of_other_classes(batch.index, drawn)
        logits = (
            self._logits(ours, self.teacher_bank, batch.index, drawn),
            self._logits(theirs, self.student_bank, batch.index, drawn),
        )
        normalizer = self._normalize(logits, kept)
        sides = [
            nce_loss(
                positive - z.log(),
                others.exp() / z,
                kept,
                num_negatives=self.num_negatives,
                num_images=self.num_images,
            )
            for (positive, others), z in zip(logits, normalizer, strict=True)
        ]
        contrast = sides[0] + sides[1]
        if self.training:
            self._remember(batch.index, ours, theirs)
        total = config.ce_weight * ce + config.crd_weight * contrast
        parts = {"ce": ce, "contrast": contrast}
        if config.kd_weight:
            kd = kd_loss(student.logits, teacher.logits, temperature=config.kd_temperature)
            total, parts = total + config.kd_weight * kd, {**parts, "kd": kd}
        return LossTerms(total=total, parts=parts)

    def _draw(self, progress: Progress) -> Tensor:
        """Positions ``(M,)`` of images that may be negatives, the same in every process."""
        generator = progress.generator("negatives")
        device = self.labels.device
        if device.type != "cpu":  # drawing on the host would make the device wait for the copy
            generator = torch.Generator(device).manual_seed(generator.initial_seed())
        order = torch.randperm(self.num_images, generator=generator, device=device)
        return order[: self.num_drawn]

    def _of_other_classes(self, index: Tensor, drawn: Tensor) -> Tensor:
        """Which of those drawn are each image's negatives: ``(B, M)``, K of each row."""
        label = self.labels[index][:, None]
        others = (self.labels[drawn] != label) | (label == UNLABELLED)
        others &= drawn != index[:, None]
        return others & (others.cumsum(dim=1) <= self.num_negatives)

    def _logits(
        self, vectors: Tensor, bank: Tensor, index: Tensor, drawn: Tensor
    ) -> ContrastScores:
        """Logarithms of the scores before they are divided by Z."""
        with without_autocast(vectors):
            positive = (vectors * bank[index]).sum(dim=1)
            others = vectors @ bank[drawn].T
        return ContrastScores(positive / self.config.temperature, others / self.config.temperature)

    @torch.no_grad()
    def _normalize(self, logits: tuple[ContrastScores, ContrastScores], kept: Tensor) -> Tensor:
        """Z: what it was set to, or in the first batch the mean score of all processes, n times."""
        means = [
            (positive.exp().sum() + torch.where(kept, others.exp(), 0.0).sum())
            / (len(positive) * (self.num_negatives + 1))
            for positive, others in logits
        ]
        first = gathered(torch.stack(means)[None]).mean(dim=0) * self.num_images
        normalizer = torch.where(self.normalizer > 0, self.normalizer, first.to(self.normalizer))
        if self.training:
            self.normalizer.copy_(normalizer)
        return normalizer

    @torch.no_grad()
    def _remember(self, index: Tensor, ours: Tensor, theirs: Tensor) -> None:
        """Move the rows of the batches of all processes towards their new vectors."""
        everyone = gathered(index[:, None])[:, 0]
        momentum = self.config.momentum
        for bank, vectors in ((self.student_bank, ours), (self.teacher_bank, theirs)):
            new = gathered(vectors.detach()).to(bank.dtype)
            moved = momentum * bank[everyone] + (1 - momentum) * new
            bank.index_copy_(0, everyone, unit_rows(moved))
