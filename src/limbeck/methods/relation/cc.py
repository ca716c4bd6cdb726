r"""CC as benchmarks run it: shrink the products of consecutive images' embedding errors.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{cc} \, \frac{1}{B - 1} \sum_{i=1}^{B-1} \sum_d
    \delta_{i, d} \, \delta_{i+1, d}, \quad \delta = | r_s(x^s) - r_t(x^t) |

where r are linear layers of the two networks' embeddings x, both trained. This is not the paper's
loss, which is the method "cc_kernel": it depends on the order of the images in the batch, and is 0
as soon as both linear layers give the same for all images.

Source: Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang, "Correlation Congruence for Knowledge
    Distillation", ICCV 2019, https://arxiv.org/abs/1904.01802; in the form of RepDistiller (Tian et
    al., ICLR 2020, https://arxiv.org/abs/1910.10699), which says that it restructured the authors'
    code, and whose numbers stand under CC in the benchmark tables.
Defaults: weights 1 and 0.02, 128 dimensions, on the input of the last linear layer: RepDistiller's
    CIFAR-100 script.
Differs from the source: nothing from RepDistiller, but that a batch of one gives 0, not NaN, and a
    layer of maps or tokens is averaged over its places.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.gather import gathered
from limbeck.functional.precision import widened
from limbeck.methods.adapters import Alignment
from limbeck.methods.embeddings import EmbeddingConfig, EmbeddingMethod

__all__ = ["CC", "CCConfig", "cc_loss"]


class CCConfig(EmbeddingConfig):
    """Settings of :class:`CC`.

    Attributes:
        embedding_dim: what both linear layers give.
        ce_weight: of the cross-entropy with the labels.
        cc_weight: of the products.
    """

    embedding_dim: PositiveInt = 128
    ce_weight: NonNegativeFloat = 1.0
    cc_weight: NonNegativeFloat = 0.02


def cc_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean over consecutive images of the inner product of their absolute errors; see the module.

    Args:
        student_embedding: ``(B, D)``, behind its trained linear layer.
        teacher_embedding: ``(B, D)``, behind its own; unlike elsewhere it receives a gradient,
            since that layer is trained too.

    Returns:
        Scalar, float32 or wider, ``>= 0``, the sum over dimensions, the mean over the ``B - 1``
        pairs; 0 for a batch of one.

    Raises:
        ShapeError: if the two differ in shape or are not 2-D.

    Source:
        RepDistiller (Tian et al., ICLR 2020).

    Example:
        >>> import torch
        >>> cc_loss(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)).item()
        4.0
    """
    if student_embedding.ndim != 2 or student_embedding.shape != teacher_embedding.shape:
        raise ShapeError(
            "student and teacher embedding must both be (batch, features) and equal in shape; got "
            f"student {tuple(student_embedding.shape)}, teacher {tuple(teacher_embedding.shape)}. "
            "Bring both to one length by a linear layer each"
        )
    error = (widened(student_embedding) - widened(teacher_embedding)).abs()
    return (error[:-1] * error[1:]).sum() / max(1, len(error) - 1)


class CC(EmbeddingMethod[CCConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        alignment: of the two layers, as vectors.
    """

    def __init__(self, config: CCConfig, *, alignment: Alignment) -> None:
        super().__init__(config, alignment=alignment)
        student, teacher = alignment.student_layout.channels, alignment.teacher_layout.channels
        self.student_embedding = nn.Linear(student, config.embedding_dim)
        self.teacher_embedding = nn.Linear(teacher, config.embedding_dim)

    def describe(self) -> tuple[str, ...]:
        """The two embeddings, each before its linear layer."""
        config, alignment = self.config, self.alignment
        student = alignment.student_layout.describe("vector")
        teacher = alignment.teacher_layout.describe("vector")
        count = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"student {config.student_layer} {student} -> linear -> {config.embedding_dim} <- "
            f"linear <- teacher {config.teacher_layer} {teacher}; {count:,} parameters",
        )

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and products."""
        del progress
        config = self.config
        pair = self.aligned(student, teacher)
        ce = self.label_loss(student.logits, batch)
        ours, theirs = self.student_embedding(pair.student), self.teacher_embedding(pair.teacher)
        if config.gather:
            ours, theirs = gathered(ours), gathered(theirs)
        correlation = cc_loss(ours, theirs)
        return LossTerms(
            total=config.ce_weight * ce + config.cc_weight * correlation,
            parts={"ce": ce, "correlation": correlation},
        )
