r"""CKA as a loss: hold the same images alike as the teacher does, layer by layer.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + \frac{w_{cka}}{L} \sum_l
    \big(1 - \mathrm{CKA}(f^s_l, f^t_l)\big)

CKA compares the similarities between the images of a batch, so that layers of any two shapes can be
compared and no adapter is needed. Features are flattened, places and tokens among them.

Source: Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited",
    ICML 2019, https://arxiv.org/abs/1905.00414, section 3; as a loss: Zhou et al., "Rethinking
    Centered Kernel Alignment in Knowledge Distillation", IJCAI 2024,
    https://arxiv.org/abs/2401.11824.
Defaults: linear kernels, biased, weight 1, all stages: ours. For gaussian kernels the width is half
    the median's, as in the notebook of Kornblith et al.
Differs from the source: Kornblith et al. measure and do not train. Zhou et al. also compare the
    logits by CKA, average over channels and stay with the Kullback-Leibler divergence; here CKA
    stands by itself beside the cross-entropy.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.cka import debiased_cka, linear_cka, rbf_cka
from limbeck.functional.gather import gathered
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, MethodConfig, Needs, Probe
from limbeck.methods.pairing import named_one_by_one

__all__ = ["CKA", "CKAConfig"]

_FEWEST = 4  # images that the debiased form needs


class CKAConfig(MethodConfig):
    """Settings of :class:`CKA`.

    Attributes:
        student_layers: layers of the student, by name or meaning; "stage*" is every stage.
        teacher_layers: layers of the teacher; the last goes with the last, and so on.
        kernel: "linear", "debiased", which is linear without the inflation by many features, or
            "rbf".
        threshold: of the rbf kernel: its width over the root of the median squared distance.
        ce_weight: of the cross-entropy with the labels.
        cka_weight: of the mean over layers of what is missing to 1.
        gather: whether the images of all processes are one batch; by default each process compares
            its own.
    """

    student_layers: tuple[str, ...] = ("stage*",)
    teacher_layers: tuple[str, ...] = ("stage*",)
    kernel: Literal["linear", "debiased", "rbf"] = "linear"
    threshold: PositiveFloat = 0.5
    ce_weight: NonNegativeFloat = 1.0
    cka_weight: NonNegativeFloat = 1.0
    gather: bool = False


class CKA(Method[CKAConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        pairs: names of the layers that are compared, the student's first.
        lines: what is said of them.
    """

    takes_mixed = True

    def __init__(
        self, config: CKAConfig, *, pairs: tuple[tuple[str, str], ...], lines: tuple[str, ...]
    ) -> None:
        super().__init__(config)
        self.pairs = pairs
        self.lines = lines

    @classmethod
    def needs(cls, config: CKAConfig) -> Needs:
        """The stages of both networks."""
        return Needs(student_layers=config.student_layers, teacher_layers=config.teacher_layers)

    @classmethod
    def from_probe(cls, config: CKAConfig, probe: Probe) -> Self:
        """Pair the layers from the last backwards.

        Raises:
            SettingsError: if layers are named one by one, and not equally many of both networks.
        """
        named_one_by_one(config.student_layers, config.teacher_layers)
        ours = probe.layers("student", config.student_layers)
        theirs = probe.layers("teacher", config.teacher_layers)
        pairs = tuple(zip(ours[::-1], theirs[::-1], strict=False))[::-1]

        def shown(whose: str, layer: str) -> str:
            shape = "x".join(map(str, probe.feature(whose, layer).shape[1:]))
            return f"{whose} {layer} {shape}"

        lines = [f"{shown('student', one)} - {shown('teacher', other)}" for one, other in pairs]
        for whose, names in (("student", ours), ("teacher", theirs)):
            left_out = names[: len(names) - len(pairs)]
            lines += [f"{shown(whose, name)} is left out: it has no partner" for name in left_out]
        return cls(config, pairs=pairs, lines=tuple(lines))

    def describe(self) -> tuple[str, ...]:
        """The pairs, and what is left out."""
        return self.lines

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, and what is missing to 1, mean over layers."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        found = [
            self._cka(student.features[ours], teacher.features[theirs].detach())
            for ours, theirs in self.pairs
        ]
        apart = 1 - torch.stack(found).mean()
        return LossTerms(
            total=config.ce_weight * ce + config.cka_weight * apart,
            parts={"ce": ce, "cka": apart},
        )

    def _cka(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.config.gather:
            student, teacher = gathered(student), gathered(teacher)
        match self.config.kernel:
            case "linear":
                return linear_cka(student, teacher)
            case "rbf":
                return rbf_cka(student, teacher, threshold=self.config.threshold)
            case "debiased":
                if len(student) < _FEWEST:  # a short last batch says nothing
                    return 0 * widened(student).sum()
                return debiased_cka(student, teacher)
