r"""Relation: any relation between nodes, matched; the general form that the others are cases of.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_r \, \mathrm{reduce}_{ij} \, d\big(
    n(r(v^s_i, v^s_j)), n(r(v^t_i, v^t_j))\big)

Nodes v, a relation r between two (or three) of them, a normalisation n, a discrepancy d between
the networks, a reduction. What other methods are, in these words, in :data:`RELATION_PRESETS`;
``--set method.preset=sp`` takes one:

- rkd_distance: samples, distance, mean, huber, mean.
- rkd_angle: samples, angle, none, huber, mean.
- sp: samples, inner_product, unit_rows, squared, mean.
- pkt: samples, shifted_cosine, row_sums, divergence, mean.
- cc_kernel: samples, kernel, none, squared, mean.
- irg: samples, squared_distance, maximum, squared, half_rows.
- fsp: channels, mean_product, none, squared, mean.
- dist_inter: predictions, itself, centred, cosine, mean.
- dist_intra: classes, itself, centred, cosine, mean.

Not of this form: the method "cc", whose products are of consecutive images; "london", which
compares one number of each image; and "vrm", whose edges lie between views and are pruned.

Source: the survey of Yang, Yu, An, Xu, "Categories of Response-Based, Feature-Based, and
    Relation-Based Knowledge Distillation", 2023, https://arxiv.org/abs/2306.10687; each row's own
    source is on the card of its method.
Defaults: RKD's distances, with its weights 1 and 25.
Differs from the source: that form has neither normalisation nor reduction of its own, which the
    methods' codes have. All layers are flattened, maps not averaged over their places. FSP is one
    stage and one pair of layers here, without connectors. Angles are taken at once, where "rkd"
    takes those of large batches in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)
from torch import Tensor

from limbeck.core.errors import ShapeError, UnknownNameError
from limbeck.core.settings import Settings
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.gather import gathered
from limbeck.functional.precision import widened
from limbeck.functional.relations import (
    angle_cosines,
    over_maximum,
    over_mean,
    pairwise_distances,
    pooled_channels,
    rounding_of,
    shifted_cosines,
    smoothed_divergence,
    taylor_kernel,
    unit_rows,
    without_autocast,
)
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["RELATION_PRESETS", "Relation", "RelationConfig", "RelationSpec", "relation_loss"]

_EPSILON = 1e-8  # added to the product of two lengths, as DIST's authors' code does

# What nodes are made of: one tensor of each network, or two maps of it for channels.
NodeSource: TypeAlias = Tensor | tuple[Tensor, Tensor]


class RelationSpec(Settings):
    """One row of the module's list; the defaults are RKD's distances.

    Attributes:
        nodes: "samples" are a batch's rows, flattened; "channels" those of two maps, over common
            places; "predictions" the rows of softened class probabilities; "classes" their
            columns.
        relation: of two nodes, a vector each: their "inner_product", or its mean over entries,
            "mean_product"; their "distance" or "squared_distance"; (cos + 1) / 2,
            "shifted_cosine"; a Gaussian "kernel" of unit vectors as a series. Of three, the cosine
            of the "angle" at the first. Of one, "itself".
        normalization: divide by the "mean" of the positive ones, or the "maximum" as a constant;
            bring rows to length 1, "unit_rows", or to sum 1, "row_sums"; take the rows' means
            away, "centred"; or "none".
        discrepancy: "squared" difference; its "huber" form; summand of the "divergence" KL(teacher
            || student); or one minus the "cosine" of two rows.
        reduction: the "mean" over all, or the sum over twice the number of rows, "half_rows".
        temperature: that softens probabilities.
        gamma: of the kernel.
        order: of the kernel's series.
        delta: Huber's threshold.
    """

    nodes: Literal["samples", "channels", "predictions", "classes"] = "samples"
    relation: Literal[
        "angle",
        "distance",
        "inner_product",
        "itself",
        "kernel",
        "mean_product",
        "shifted_cosine",
        "squared_distance",
    ] = "distance"
    normalization: Literal["none", "centred", "maximum", "mean", "row_sums", "unit_rows"] = "mean"
    discrepancy: Literal["cosine", "divergence", "huber", "squared"] = "huber"
    reduction: Literal["mean", "half_rows"] = "mean"
    temperature: PositiveFloat = 1.0
    gamma: PositiveFloat = 0.4
    order: NonNegativeInt = 2
    delta: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _relation_fits_nodes(self) -> Self:
        if self.nodes == "channels" and self.relation in ("angle", "itself"):
            raise ValueError(
                f"relation {self.relation!r} is of one set of nodes; channels are of two layers"
            )
        return self


RELATION_PRESETS: Final[Mapping[str, RelationSpec]] = MappingProxyType(
    {
        "cc_kernel": RelationSpec(relation="kernel", normalization="none", discrepancy="squared"),
        "dist_inter": RelationSpec(
            nodes="predictions", relation="itself", normalization="centred", discrepancy="cosine"
        ),
        "dist_intra": RelationSpec(
            nodes="classes", relation="itself", normalization="centred", discrepancy="cosine"
        ),
        "fsp": RelationSpec(
            nodes="channels", relation="mean_product", normalization="none", discrepancy="squared"
        ),
        "irg": RelationSpec(
            relation="squared_distance",
            normalization="maximum",
            discrepancy="squared",
            reduction="half_rows",
        ),
        "pkt": RelationSpec(
            relation="shifted_cosine", normalization="row_sums", discrepancy="divergence"
        ),
        "rkd_angle": RelationSpec(relation="angle", normalization="none"),
        "rkd_distance": RelationSpec(),
        "sp": RelationSpec(
            relation="inner_product", normalization="unit_rows", discrepancy="squared"
        ),
    }
)


class RelationConfig(RelationSpec, MethodConfig):
    """Settings of :class:`Relation`: a relation, and where it is read.

    ``preset`` stands for the settings of one of :data:`RELATION_PRESETS`; what is set beside it
    goes before.

    Attributes:
        student_layers: one for samples, two for channels, none for predictions and classes; left
            empty, "penultimate" for samples, "stage2" and "stage3" for channels.
        teacher_layers: the same of the teacher.
        ce_weight: of the cross-entropy with the labels.
        relation_weight: of the relation.
        gather: compare the images of all processes, where there are several.
    """

    student_layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    ce_weight: NonNegativeFloat = 1.0
    relation_weight: NonNegativeFloat = 25.0
    gather: bool = False

    @model_validator(mode="before")
    @classmethod
    def _preset_is_its_settings(cls, values: Any) -> Any:  # noqa: ANN401  (as pydantic gives it)
        if not isinstance(values, Mapping) or "preset" not in values:
            return values
        others = dict(values)
        name = others.pop("preset")
        if name not in RELATION_PRESETS:
            # pydantic reports a ValueError by field, and this one is a KeyError.
            raise ValueError(str(UnknownNameError("preset", str(name), RELATION_PRESETS)))
        return RELATION_PRESETS[name].plain() | others

    @model_validator(mode="after")
    def _layers_fit_nodes(self) -> Self:
        expected = self._usual_layers()
        for whose in ("student_layers", "teacher_layers"):
            named = getattr(self, whose)
            if named and len(named) != len(expected):
                raise ValueError(
                    f"{whose} must name {len(expected)} layers for nodes {self.nodes!r}; got "
                    f"{len(named)}"
                )
        if self.gather and self.nodes == "channels":
            raise ValueError("gather compares images, and channels are compared within one image")
        return self

    def _usual_layers(self) -> tuple[str, ...]:
        match self.nodes:
            case "samples":
                return ("penultimate",)
            case "channels":
                return ("stage2", "stage3")
            case "predictions" | "classes":
                return ()

    def layers(self, whose: Literal["student", "teacher"]) -> tuple[str, ...]:
        """Those named, or the usual ones."""
        named = self.student_layers if whose == "student" else self.teacher_layers
        return named or self._usual_layers()


def relation_loss(
    student_nodes: NodeSource, teacher_nodes: NodeSource, spec: RelationSpec
) -> Tensor:
    r"""The discrepancy between two networks' relations; see the module for the form.

    Args:
        student_nodes: for samples ``(B, ...)``; for channels two maps ``(B, C, H, W)``; for
            predictions and classes logits ``(B, K)``.
        teacher_nodes: the same of the teacher; receives no gradient.
        spec: nodes, relation, normalisation, discrepancy, reduction.

    Returns:
        Scalar, float32 or wider.

    Raises:
        ShapeError: if the nodes are not what the spec says, or the relations of the two networks
            differ in shape.

    Source:
        Yang et al. 2023, https://arxiv.org/abs/2306.10687.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> relation_loss(student, 4 * student, RELATION_PRESETS["rkd_distance"]).item()
        0.0
    """
    student, teacher = (
        _normalized(_relations(_nodes(given, spec), spec), spec)
        for given in (student_nodes, _detached(teacher_nodes))
    )
    if student.shape != teacher.shape:
        raise ShapeError(
            "the relations of student and teacher must be equal in shape; got student "
            f"{tuple(student.shape)}, teacher {tuple(teacher.shape)} for nodes {spec.nodes!r}. Run "
            "both networks on the same images, and choose layers of equal widths for channels"
        )
    return _reduced(_discrepancies(student, teacher, spec), spec)


# -- the five steps ------------------------------------------------------------------------


class _Nodes(NamedTuple):
    """``(..., N, D)`` and ``(..., M, D)``; the same tensor twice where there is one set."""

    first: Tensor
    second: Tensor


def _detached(given: NodeSource) -> NodeSource:
    if isinstance(given, Tensor):
        return given.detach()
    return given[0].detach(), given[1].detach()


def _nodes(given: NodeSource, spec: RelationSpec) -> _Nodes:
    if isinstance(given, tuple):
        if spec.nodes == "channels" and len(given) == 2:
            return _Nodes(*pooled_channels(*given))
        raise ShapeError(f"two maps make channels; got {len(given)} for nodes {spec.nodes!r}")
    if spec.nodes == "channels":
        raise ShapeError("channels are nodes of two maps; give both, as a tuple")
    if given.ndim < 2 or (spec.nodes != "samples" and given.ndim > 2):
        wanted = "(batch, ...)" if spec.nodes == "samples" else "logits (batch, classes)"
        raise ShapeError(f"nodes {spec.nodes!r} are made of {wanted}; got {tuple(given.shape)}")
    rows = widened(given).flatten(1)
    if spec.nodes != "samples":
        rows = F.softmax(rows / spec.temperature, dim=1)
    rows = rows.T if spec.nodes == "classes" else rows
    return _Nodes(rows, rows)


def _relations(nodes: _Nodes, spec: RelationSpec) -> Tensor:
    first, second = nodes
    match spec.relation:
        case "itself":
            return first
        case "inner_product" | "mean_product":
            count = first.shape[-1] if spec.relation == "mean_product" else 1
            with without_autocast(first):
                return first @ second.mT / count
        case "distance":
            return pairwise_distances(first, second)
        case "squared_distance":
            return pairwise_distances(first, second).square()
        case "shifted_cosine":
            return shifted_cosines(first, second)
        case "kernel":
            return taylor_kernel(first, second, gamma=spec.gamma, order=spec.order)
        case "angle":
            return angle_cosines(first)


def _normalized(relations: Tensor, spec: RelationSpec) -> Tensor:
    match spec.normalization:
        case "none":
            return relations
        case "mean":
            return over_mean(relations)
        case "maximum":
            return over_maximum(relations)
        case "unit_rows":
            return unit_rows(relations)
        case "row_sums":
            return relations / relations.sum(dim=-1, keepdim=True)
        case "centred":
            centred = relations - relations.mean(dim=-1, keepdim=True)
            # What is left of a constant row is noise: it points nowhere.
            length = torch.linalg.vector_norm(centred.detach(), dim=-1, keepdim=True)
            return torch.where(length > rounding_of(relations, each=True), centred, 0.0)


def _discrepancies(student: Tensor, teacher: Tensor, spec: RelationSpec) -> Tensor:
    match spec.discrepancy:
        case "squared":
            return (student - teacher).square()
        case "huber":
            return F.huber_loss(student, teacher, reduction="none", delta=spec.delta)
        case "divergence":
            return smoothed_divergence(student, teacher)
        case "cosine":
            lengths = student.norm(dim=-1) * teacher.norm(dim=-1)
            cosines: Tensor = (student * teacher).sum(dim=-1) / (lengths + _EPSILON)
            return 1 - cosines


def _reduced(discrepancies: Tensor, spec: RelationSpec) -> Tensor:
    match spec.reduction:
        case "mean":
            return discrepancies.mean()
        case "half_rows":
            return discrepancies.sum() / (2 * len(discrepancies))


class Relation(Method[RelationConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        shapes: of one image's feature in each layer, the student's and the teacher's.
    """

    takes_mixed = True

    def __init__(
        self, config: RelationConfig, *, shapes: tuple[tuple[tuple[int, ...], ...], ...]
    ) -> None:
        super().__init__(config)
        self.shapes = shapes

    @classmethod
    def needs(cls, config: RelationConfig) -> Needs:
        """The layers that the nodes are made of."""
        return Needs(
            student_layers=config.layers("student"), teacher_layers=config.layers("teacher")
        )

    @classmethod
    def from_probe(cls, config: RelationConfig, probe: Probe) -> Self:
        """Remember the shapes, to describe them."""
        shapes = tuple(
            tuple(tuple(probe.feature(whose, layer).shape[1:]) for layer in config.layers(whose))
            for whose in ("student", "teacher")
        )
        return cls(config, shapes=shapes)

    def describe(self) -> tuple[str, ...]:
        """The layers that answer to each other."""
        layers = zip(self.config.layers("student"), self.config.layers("teacher"), strict=True)
        shapes = zip(*self.shapes, strict=True)
        return tuple(
            f"student {ours} {'x'.join(map(str, our_shape))} -> "
            f"teacher {theirs} {'x'.join(map(str, their_shape))}; no parameters"
            for (ours, theirs), (our_shape, their_shape) in zip(layers, shapes, strict=True)
        )

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and relation."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        ours, theirs = self._source("student", student), self._source("teacher", teacher)
        relation = relation_loss(ours, theirs, config)
        return LossTerms(
            total=config.ce_weight * ce + config.relation_weight * relation,
            parts={"ce": ce, "relation": relation},
        )

    def _source(self, whose: Literal["student", "teacher"], outputs: Outputs) -> NodeSource:
        layers = self.config.layers(whose)
        if self.config.nodes == "channels":
            return outputs.features[layers[0]], outputs.features[layers[1]]
        rows = outputs.features[layers[0]] if layers else outputs.logits
        return gathered(rows) if self.config.gather else rows
