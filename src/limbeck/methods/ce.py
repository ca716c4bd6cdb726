r"""CE: no distillation; the matched baseline that learns from labels alone.

.. math:: \mathcal{L} = CE(z^s, y)

Source: the usual loss of classification; label smoothing as in Szegedy et al., "Rethinking the
    Inception Architecture for Computer Vision", CVPR 2016, https://arxiv.org/abs/1512.00567,
    section 7.
Defaults: no label smoothing.
Differs from the source: images without a label count for nothing, and a batch without any gives 0.
"""

from __future__ import annotations

from typing import Self

from limbeck.core.errors import DataError
from limbeck.core.types import UNLABELLED, Batch, LossTerms, Outputs, Progress
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["CE", "CEConfig"]


class CEConfig(MethodConfig):
    """Settings of :class:`CE`: those that every method has."""


class CE(Method[CEConfig]):
    """See the module docstring."""

    takes_mixed = True

    @classmethod
    def needs(cls, config: CEConfig) -> Needs:
        """No teacher."""
        del config
        return Needs(teacher=False)

    @classmethod
    def from_probe(cls, config: CEConfig, probe: Probe) -> Self:
        """Nothing to build.

        Raises:
            DataError: if no training image has a label.
        """
        if probe.labels is not None and not (probe.labels != UNLABELLED).any():
            raise DataError(
                "ce learns from labels alone, and no training image has one; keep some "
                "(data.num_labels), or learn from a teacher"
            )
        return cls(config)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy with the labels."""
        del teacher, progress
        ce = self.label_loss(student.logits, batch)
        return LossTerms(total=ce, parts={"ce": ce})
