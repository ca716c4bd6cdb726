r"""WKD-L: carry the student's class probabilities to the teacher's, each move at its price.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) - p^t_y \log p^s_y + \lambda(e) \, \langle P, C \rangle

P transports the distribution over the classes but the label's, at temperature T, from student to
teacher: ten Sinkhorn iterations at eps = 0.05. The term of the label has temperature 1 and weight
1. The weight lambda is constant for the first epochs, then falls as half a cosine to 0.

The price C of two classes comes from the teacher alone, in one pass over the training images:
1 - exp(-kappa (1 - CKA)) of its features ("features") or scores ("logits"), or of the cosine of
its classifier's weights ("classifier"), which takes no pass. What a pass finds is kept in the
folder that the environment's LIMBECK_CACHE names, else in ~/.cache/limbeck, and read by later runs
with the same teacher and images.

Ten iterations are far from convergence here, and the size of the loss, hence lambda, depends on
them: the plan's columns miss the teacher's probabilities by 0.07 in sum, and the loss is neither 0
nor without a gradient where the two networks agree. solver="converged", the method
"sinkhorn_logit", is the optimum itself, and another loss.

Source: Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation", NeurIPS 2024, https://arxiv.org/abs/2412.08139, section 3.1; and its authors'
    code.
Defaults: the code's for resnet32x4 -> resnet8x4: lambda 600 for 150 epochs, T = 8, kappa = 1, the
    last feature map. For WRN-40-2 -> ShuffleNetV1 lambda is 200 and T = 6. On ImageNet the cost is
    from scores, T = 2, lambda falls from the first epoch on, and is 30 with kappa 1 (ResNet34 ->
    ResNet18) or 25 with kappa 2 (ResNet50 -> MobileNetV1).
Differs from the source: one kernel for the batch, equal to the code's of (B, K-1, K-1). An
    image without a label takes the class that the teacher scores highest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from limbeck.core.errors import DataError, ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.class_cost import cka_cost, cosine_cost, sharpened
from limbeck.functional.logits import (
    check_logits,
    check_temperature,
    target_mask,
)
from limbeck.functional.precision import widened
from limbeck.functional.sinkhorn import converged_sinkhorn_cost, sinkhorn_cost
from limbeck.methods.adapters import Layout, LayoutConfig, find_layout
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["WKDLogit", "WKDLogitConfig", "WKDTerms", "wkd_logit_loss", "wkd_terms"]

_COST_EPSILON = 1e-8  # added to every price, as the authors' code does
# The settings that the prices depend on.
_OF_THE_COST = ("cost", "cost_sharpness", "teacher_layer", "teacher_layout", "images_per_class")

Solver = Literal["official", "converged"]


class WKDLogitConfig(MethodConfig):
    """Settings of :class:`WKDLogit`.

    Attributes:
        temperature: by which both networks' scores are divided for the transport.
        ce_weight: of the cross-entropy with the labels.
        transport_weight: lambda.
        constant_epochs: before lambda falls; 0 lets it fall from the first epoch on.
        regularization: eps of the Sinkhorn iterations.
        iterations: how many; 10 belong to lambda, and "converged" needs 100 or more.
        solver: "official" for the authors' iterations, "converged" for the optimum.
        cost: what of the teacher sets the prices: "features", "logits" or "classifier".
        cost_sharpness: kappa; 0 takes the price as it is.
        teacher_layer: whose features, by name or meaning; every place of a map is a row.
        teacher_layout: how that layer lies, where its shape leaves it open.
        images_per_class: at most so many set the cost; None takes as many as the rarest class has.
            CKA depends on their number.
    """

    temperature: PositiveFloat = 8.0
    ce_weight: NonNegativeFloat = 1.0
    transport_weight: NonNegativeFloat = 600.0
    constant_epochs: NonNegativeInt = 150
    regularization: PositiveFloat = 0.05
    iterations: PositiveInt = 10
    solver: Solver = "official"
    cost: Literal["features", "logits", "classifier"] = "features"
    cost_sharpness: NonNegativeFloat = 1.0
    teacher_layer: str = "last"
    teacher_layout: LayoutConfig = LayoutConfig()
    images_per_class: int | None = Field(None, ge=2)


class WKDTerms(NamedTuple):
    """The two parts, scalars, means over the batch."""

    target: Tensor
    transport: Tensor


def wkd_logit_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    cost: Tensor,
    *,
    temperature: float = 8.0,
    weight: float = 600.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    r"""The label's part, and ``weight`` times the transport cost of the other classes.

    .. math:: -\frac{1}{B} \sum_b p^t_{b, y_b} \log p^s_{b, y_b} + \lambda \, \frac{1}{B} \sum_b
        \langle P_b, C \rangle

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits: ``(B, K)``, raw; receives no gradient.
        label: ``(B,)`` int64 in [0, K); -1 stands for the class that the teacher scores highest.
        cost: ``(K, K)``, from the student's class (row) to the teacher's; negative prices count as
            0, and 1e-8 is added to all.
        temperature: ``> 0``, of the transport alone.
        weight: lambda; 0 leaves the label's part.
        regularization: eps, ``> 0``.
        iterations: of Sinkhorn's scaling, from uniform.

    Returns:
        Scalar, float32 or wider, ``>= 0``, mean over the batch; not 0 where the two networks
        agree. No tensor is larger than ``(B, K)`` or ``(K, K)``.

    Raises:
        ShapeError: if the logits differ in shape, are not 2-D, or labels or cost do not fit.
        SettingsError: if the temperature is not positive.

    Source:
        Lv et al. 2024, https://arxiv.org/abs/2412.08139, section 3.1.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> free = torch.zeros(3, 3)
        >>> target_alone = wkd_logit_loss(logits, logits, torch.tensor([0]), free, weight=0)
        >>> round(target_alone.item(), 4)
        0.2712
    """
    terms = wkd_terms(
        student_logits,
        teacher_logits,
        label,
        cost,
        temperature=temperature,
        regularization=regularization,
        iterations=iterations,
        solver="official",
    )
    return terms.target + weight * terms.transport


def wkd_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    cost: Tensor,
    *,
    temperature: float,
    regularization: float,
    iterations: int,
    solver: Solver,
) -> WKDTerms:
    """The two parts of :func:`wkd_logit_loss`, which see, by either solver."""
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    num_classes = student_logits.shape[1]
    if cost.shape != (num_classes, num_classes):
        raise ShapeError(
            f"cost must be one price for each two of {num_classes} classes; got {tuple(cost.shape)}"
        )
    student, teacher = widened(student_logits), widened(teacher_logits.detach())
    price = cost.detach().to(student.dtype).relu() + _COST_EPSILON
    at_label = target_mask(label, teacher)
    target = -(F.softmax(teacher, dim=1) * F.log_softmax(student, dim=1) * at_label).sum(dim=1)
    # A probability of exactly 0 in both takes the label's class out of the transport.
    student_log_p, teacher_log_p = (
        F.log_softmax(z.masked_fill(at_label, -torch.inf) / temperature, dim=1)
        for z in (student, teacher)
    )
    if solver == "converged":
        transport = converged_sinkhorn_cost(
            student_log_p,
            teacher_log_p,
            price,
            regularization=regularization,
            iterations=iterations,
        )
    else:
        transport = sinkhorn_cost(
            student_log_p.exp(),
            teacher_log_p.exp(),
            price,
            start=(~at_label).to(student.dtype) / max(num_classes - 1, 1),
            regularization=regularization,
            iterations=iterations,
        )
    return WKDTerms(target.mean(), transport.mean())


class WKDLogit(Method[WKDLogitConfig]):
    """See the module docstring.

    In a training loop of your own, call :meth:`prepare` first: until then, unless the cost is from
    the classifier, all classes are equally far apart.

    Args:
        config: its settings.
        cost: ``(K, K)``, before any pass over the data.
        layout: of the teacher's layer, where the cost is from its features.

    Attributes:
        class_cost: the prices in use; in the checkpoint.
    """

    class_cost: Tensor

    def __init__(
        self, config: WKDLogitConfig, *, cost: Tensor, layout: Layout | None = None
    ) -> None:
        super().__init__(config)
        self.layout = layout
        self.register_buffer("class_cost", cost)

    @classmethod
    def needs(cls, config: WKDLogitConfig) -> Needs:
        """What the cost is from."""
        layers = (config.teacher_layer,) if config.cost == "features" else ()
        return Needs(
            teacher_layers=layers,
            teacher_classifier=config.cost == "classifier",
            before_training=_OF_THE_COST,
        )

    @classmethod
    def from_probe(cls, config: WKDLogitConfig, probe: Probe) -> Self:
        """The cost from the classifier, or one for all until :meth:`prepare`."""
        if config.cost == "classifier":
            assert probe.teacher.classifier is not None
            cost = cosine_cost(probe.teacher.classifier.weight.detach())
            return cls(config, cost=sharpened(cost, config.cost_sharpness))
        layout = None
        if config.cost == "features":
            feature = probe.feature("teacher", config.teacher_layer)
            layout = find_layout(feature, config.teacher_layout, whose="teacher")
        return cls(config, cost=1 - torch.eye(probe.num_classes), layout=layout)

    def describe(self) -> tuple[str, ...]:
        """The layer whose features set the cost, where one does."""
        if self.layout is None:
            return ()
        shape = self.layout.describe("tokens")
        return (f"cost between classes from teacher {self.config.teacher_layer} {shape}",)

    @torch.no_grad()
    def prepare(self, teacher: Callable[[Tensor], Outputs], batches: Iterable[Batch]) -> None:
        """The teacher's features or scores of every labelled image, and their CKA by class."""
        config = self.config
        if config.cost == "classifier":
            return
        found: dict[str, list[Tensor]] = {"rows": [], "label": []}
        for batch in batches:
            image = batch.image if batch.teacher_image is None else batch.teacher_image
            rows = self._rows(teacher(image))
            for name, value in (("rows", rows), ("label", batch.label)):
                found[name].append(value.cpu())
        rows, label = (torch.cat(parts) for parts in found.values())
        grouped = _grouped(
            rows,
            label,
            num_classes=len(self.class_cost),
            at_most=config.images_per_class,
        )
        cost = cka_cost(grouped.to(self.class_cost.device))
        self.class_cost.copy_(sharpened(cost, config.cost_sharpness))

    def _rows(self, outputs: Outputs) -> Tensor:
        """``(B, N, D)``: N rows of each image."""
        if self.layout is None:
            return widened(outputs.logits)[:, None]
        return widened(self.layout.as_tokens(outputs.features[self.config.teacher_layer]))

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, the label's part and the transport cost."""
        config = self.config
        ce = self.cross_entropy(student.logits, batch.label)
        terms = wkd_terms(
            student.logits,
            teacher.logits,
            batch.label,
            self.class_cost,
            temperature=config.temperature,
            regularization=config.regularization,
            iterations=config.iterations,
            solver=config.solver,
        )
        weight = config.transport_weight * falling(
            progress.epoch + 1, config.constant_epochs, progress.num_epochs
        )
        return LossTerms(
            total=config.ce_weight * ce + terms.target + weight * terms.transport,
            parts={"ce": ce, **terms._asdict()},
        )


def falling(epoch: int, constant_epochs: int, num_epochs: int) -> float:
    """1 up to ``constant_epochs``, then half a cosine to 0 in the last epoch; epochs from 1.

    Example:
        >>> [round(falling(epoch, 4, 8), 3) for epoch in (1, 4, 6, 8)]
        [1.0, 1.0, 0.5, 0.0]
    """
    if epoch <= constant_epochs:
        return 1.0
    return (1 + math.cos(math.pi * (epoch - constant_epochs) / (num_epochs - constant_epochs))) / 2


def _grouped(rows: Tensor, label: Tensor, *, num_classes: int, at_most: int | None) -> Tensor:
    """``(K, n * N, D)``: the first n images of each class, n being the fewest of any."""
    positions = [(label == k).nonzero().squeeze(1) for k in range(num_classes)]
    fewest = min(len(found) for found in positions)
    if fewest < 2:
        poor = [k for k, found in enumerate(positions) if len(found) < 2]
        raise DataError(
            "a cost from features or logits takes two labelled training images of every class, and "
            f"classes {poor[:10]}{' ...' if len(poor) > 10 else ''} have fewer. Take the teacher's "
            "classifier (--set method.cost=classifier), or label more images"
        )
    fewest = fewest if at_most is None else min(fewest, at_most)
    return torch.stack([rows[found[:fewest]].flatten(0, 1) for found in positions])
