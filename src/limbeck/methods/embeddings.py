"""What every method shares that compares one vector per image of each network.

B batch, D features.
"""

from __future__ import annotations

from typing import Self, TypeVar

from limbeck.core.types import Outputs
from limbeck.functional.gather import gathered
from limbeck.methods.adapters import AlignedPair, Alignment, LayoutConfig, align
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["EmbeddingConfig", "EmbeddingMethod"]


class EmbeddingConfig(MethodConfig):
    """Settings of every method between two embeddings.

    Attributes:
        student_layer: the student's embedding, by name or meaning.
        teacher_layer: the teacher's; its length may differ.
        student_layout: how the student's layer lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.
        gather: compare the images of all processes, where there are several.
    """

    student_layer: str = "penultimate"
    teacher_layer: str = "penultimate"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    gather: bool = False


E = TypeVar("E", bound=EmbeddingConfig)


class EmbeddingMethod(Method[E]):
    """Base of methods that read one layer of each network as vectors; no method by itself.

    Args:
        config: its settings.
        alignment: of the two layers, as vectors.
    """

    takes_mixed = True

    def __init__(self, config: E, *, alignment: Alignment) -> None:
        super().__init__(config)
        self.alignment = alignment

    @classmethod
    def needs(cls, config: E) -> Needs:
        """One embedding of each network."""
        return Needs(student_layers=(config.student_layer,), teacher_layers=(config.teacher_layer,))

    @classmethod
    def from_probe(cls, config: E, probe: Probe) -> Self:
        """Find how the two layers lie."""
        alignment = align(
            probe.feature("student", config.student_layer),
            probe.feature("teacher", config.teacher_layer),
            purpose="vector",
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        )
        return cls(config, alignment=alignment)

    def describe(self) -> tuple[str, ...]:
        """The two embeddings."""
        layers = self.config.student_layer, self.config.teacher_layer
        return (self.alignment.describe(*layers, None),)

    def aligned(self, student: Outputs, teacher: Outputs) -> AlignedPair:
        """This process's embeddings: ``(B, D)`` of the student, ``(B, D')`` of the teacher."""
        config = self.config
        return self.alignment(
            student.features[config.student_layer], teacher.features[config.teacher_layer]
        )

    def embeddings(self, student: Outputs, teacher: Outputs) -> AlignedPair:
        """The same, of all processes where the settings say so."""
        pair = self.aligned(student, teacher)
        if self.config.gather:
            pair = AlignedPair(gathered(pair.student), gathered(pair.teacher))
        return pair
