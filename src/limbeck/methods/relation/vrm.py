r"""VRM, our reading: match the edges between images and between classes, over two views of each.

.. math:: \mathcal{L} = CE(z^s, y) + \alpha \, \frac{1}{|M|} \sum_{mn \in M}
    h(E^s_{mn} - E^t_{mn}) + \beta \, \frac{1}{|P|} \sum_{cd \in P} h(F^s_{cd} - F^t_{cd})
.. math:: E_{mn} = \frac{z_m - u_n}{\| z_m - u_n \|}, \quad
    F_{cd} = \frac{w_c - w_d}{\| w_c - w_d \|}

where z are the logits of the images and u those of their virtual views, w are the columns of both
one above the other, h is Huber's loss summed over coordinates, M are the pairs of a real and a
virtual view that the student finds reliable, and P all pairs of classes. This is our reading:
neither the paper's full text nor its code could be read, and every choice that the sources at hand
leave open is a setting. Do not take its numbers for the paper's.

Both networks see both views, the student in two forward passes with batch statistics of their own.
Where Huber's loss is quadratic, an edge costs three entries of Gram matrices instead of one entry
for every coordinate; the others are computed as they stand, in chunks.

Source: Zhang, Xie, Cai, Ma, "VRM: Knowledge Distillation via Virtual Relation Matching", ICCV 2025,
    https://arxiv.org/abs/2502.20760: its abstract, and second-hand transcriptions of its equations.
Defaults: ours. alpha = 8 and beta = 2 had the lowest validation loss of four pairs on digits, mean
    of three seeds; a published reimplementation on other data has 64 and 16, on twice these losses.
    Cross-entropy on the real views, scores centred for each image, an edge for each real and
    virtual view, the 80 % of them kept whose cross-entropy between the student's two predictions is
    lowest, Huber's threshold 1.
Differs from the source: the virtual view is a draw of crop and flip of its own, RandAugment of two
    operations and Cutout; the paper's RandAugment has settings that are not known. Which criterion
    prunes unreliable edges, how many, whether scores are standardised, both weights and Huber's
    threshold are not known. The "logit adapters" of an earlier version are left out, since their
    form is not known. Edges between vertices that are equal up to rounding are zero and give no
    gradient.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.core.settings import Settings
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.gather import gathered
from limbeck.functional.logits import check_logits, standardize_logits
from limbeck.functional.precision import widened
from limbeck.functional.relations import directions, rounding_of, without_autocast
from limbeck.methods.base import Method, MethodConfig, Needs

__all__ = ["VRM", "VRMConfig", "VRMReading", "vrm_class_loss", "vrm_loss", "vrm_sample_loss"]

# An edge shorter than this share of its vertices' squared lengths has lost four of float32's seven
# digits to cancellation in the Gram matrices; it is taken as it stands.
_SHORT = 1e-4
_CHUNK_ENTRIES = 2**21  # of explicit edges at a time: 8 MB in float32


class VRMReading(Settings):
    """The choices that the sources leave open.

    Attributes:
        scores: what edges are made of: logits "centred" for each image, so that what softmax does
            not see does not count; "standardised", as an earlier version of the paper; or "raw".
        sample_edges: "cross_view", from each real view to each virtual one; "each_pair_once", every
            pair among both kinds; "all", both directions of it and the zero diagonal.
        class_vertices: a class is its column of scores "stacked" over both views, or has a vertex
            "per_view", as a review of an earlier version says.
        class_edges: "each_pair_once", or "all", both directions and the zero diagonal.
        criterion: by which edges between images are unreliable, from the student's probabilities:
            "xent", cross-entropy of the two; "mix", entropy of their mean; "indep", sum of their
            entropies; or "none".
        threshold: keep the "share" keep_share of the edges, or those not above the "mean".
        keep_share: in (0, 1].
        coordinates: Huber's "sum" over an edge's coordinates, or their "mean".
        delta: Huber's threshold.
        beyond_delta: what a coordinate that differs by more counts: "linear", as Huber's loss has
            it, or "nothing", as one reader of the paper's pseudo-code understands it.
    """

    scores: Literal["centred", "standardised", "raw"] = "centred"
    sample_edges: Literal["cross_view", "each_pair_once", "all"] = "cross_view"
    class_vertices: Literal["stacked", "per_view"] = "stacked"
    class_edges: Literal["each_pair_once", "all"] = "each_pair_once"
    criterion: Literal["xent", "mix", "indep", "none"] = "xent"
    threshold: Literal["share", "mean"] = "share"
    keep_share: float = Field(0.8, gt=0, le=1)
    coordinates: Literal["sum", "mean"] = "sum"
    delta: PositiveFloat = 1.0
    beyond_delta: Literal["linear", "nothing"] = "linear"


class VRMConfig(VRMReading, MethodConfig):
    """Settings of :class:`VRM`: what the sources leave open, and the rest.

    Attributes:
        virtual_view: "strong", RandAugment and Cutout behind crop and flip, or "second", crop and
            flip alone.
        ce_weight: of the cross-entropy with the labels, on the real views.
        virtual_ce_weight: of that on the virtual views.
        sample_weight: alpha, of the edges between images.
        class_weight: beta, of the edges between classes.
        gather: compare the images of all processes, where there are several.
    """

    virtual_view: Literal["second", "strong"] = "strong"
    ce_weight: NonNegativeFloat = 1.0
    virtual_ce_weight: NonNegativeFloat = 0.0
    sample_weight: NonNegativeFloat = 8.0
    class_weight: NonNegativeFloat = 2.0
    gather: bool = False


class _Vertices(NamedTuple):
    """Where edges begin and where they end: ``(N, D)`` and ``(M, D)``."""

    first: Tensor
    second: Tensor


def vrm_loss(
    student_logits: Tensor,
    student_virtual_logits: Tensor,
    teacher_logits: Tensor,
    teacher_virtual_logits: Tensor,
    *,
    sample_weight: float = 1.0,
    class_weight: float = 1.0,
    reading: VRMReading = VRMReading(),  # noqa: B008  (frozen)
) -> Tensor:
    r"""Weighted sum of the edges between images and those between classes; see the module.

    Our reading of a paper whose text and code could not be read.

    Args:
        student_logits: ``(B, K)``, of the images.
        student_virtual_logits: ``(B, K)``, of their second views.
        teacher_logits: ``(B, K)``; receives no gradient.
        teacher_virtual_logits: ``(B, K)``; receives no gradient.
        sample_weight: of :func:`vrm_sample_loss`.
        class_weight: of :func:`vrm_class_loss`.
        reading: what the sources leave open.

    Returns:
        Scalar, float32 or wider, ``>= 0``.

    Raises:
        ShapeError: if the four differ in shape or are not 2-D.

    Source:
        Zhang et al., ICCV 2025, https://arxiv.org/abs/2502.20760.

    Example:
        >>> logits = torch.eye(3)
        >>> vrm_loss(logits, 2 * logits, logits, 2 * logits).item() < 1e-6
        True
    """
    four = student_logits, student_virtual_logits, teacher_logits, teacher_virtual_logits
    samples = vrm_sample_loss(*four, reading=reading)
    return sample_weight * samples + class_weight * vrm_class_loss(*four, reading=reading)


def vrm_sample_loss(
    student_logits: Tensor,
    student_virtual_logits: Tensor,
    teacher_logits: Tensor,
    teacher_virtual_logits: Tensor,
    *,
    reading: VRMReading = VRMReading(),  # noqa: B008  (frozen)
) -> Tensor:
    """Huber's loss between the unit edges of images, mean over those that are kept.

    Our reading. Invariant to one scale of all logits of a network and to one vector added to all;
    with centred scores also to a constant added to single images' logits. Needs ``O(B^2)`` memory.

    Args:
        student_logits: ``(B, K)``, of the images.
        student_virtual_logits: ``(B, K)``, of their second views.
        teacher_logits: ``(B, K)``; receives no gradient.
        teacher_virtual_logits: ``(B, K)``; receives no gradient.
        reading: what the sources leave open.

    Returns:
        Scalar, float32 or wider, in [0, 2] for sums over coordinates and a threshold of 1 or more.

    Raises:
        ShapeError: if the four differ in shape or are not 2-D.
    """
    student, teacher = _views(
        student_logits, student_virtual_logits, teacher_logits, teacher_virtual_logits
    )
    kept = _kept_edges(student, reading)
    ours, theirs = (_sample_vertices(views, reading) for views in (student, teacher))
    return _mean_over_edges(ours, theirs, kept, reading)


def vrm_class_loss(
    student_logits: Tensor,
    student_virtual_logits: Tensor,
    teacher_logits: Tensor,
    teacher_virtual_logits: Tensor,
    *,
    reading: VRMReading = VRMReading(),  # noqa: B008  (frozen)
) -> Tensor:
    """Huber's loss between the unit edges of classes, mean over pairs of classes.

    Our reading. Invariant to one scale of all logits of a network, and to a constant added to
    single images' logits in any case, but not to one vector added to all. Needs ``O(K^2)`` memory.

    Args:
        student_logits: ``(B, K)``, of the images.
        student_virtual_logits: ``(B, K)``, of their second views.
        teacher_logits: ``(B, K)``; receives no gradient.
        teacher_virtual_logits: ``(B, K)``; receives no gradient.
        reading: what the sources leave open.

    Returns:
        Scalar, float32 or wider, in [0, 2] for sums over coordinates and a threshold of 1 or more.

    Raises:
        ShapeError: if the four differ in shape or are not 2-D.
    """
    student, teacher = _views(
        student_logits, student_virtual_logits, teacher_logits, teacher_virtual_logits
    )
    ours, theirs = (_class_vertices(views, reading) for views in (student, teacher))
    pairs = _all_pairs(ours)
    if reading.class_edges == "each_pair_once":
        pairs = pairs.triu(diagonal=1)
    return _mean_over_edges(ours, theirs, pairs, reading)


# -- vertices and edges --------------------------------------------------------------------


def _views(
    student_logits: Tensor, student_virtual: Tensor, teacher_logits: Tensor, teacher_virtual: Tensor
) -> tuple[_Vertices, _Vertices]:
    """The real and the virtual view of both networks, checked and widened."""
    for other in (student_virtual, teacher_logits, teacher_virtual):
        check_logits(student_logits, other)
    student = _Vertices(widened(student_logits), widened(student_virtual))
    teacher = _Vertices(widened(teacher_logits.detach()), widened(teacher_virtual.detach()))
    return student, teacher


def _scores(logits: Tensor, reading: VRMReading) -> Tensor:
    match reading.scores:
        case "raw":
            return logits
        case "centred":
            return logits - logits.mean(dim=1, keepdim=True)
        case "standardised":
            return standardize_logits(logits)


def _sample_vertices(views: _Vertices, reading: VRMReading) -> _Vertices:
    real, virtual = (_scores(logits, reading) for logits in views)
    if reading.sample_edges == "cross_view":
        return _Vertices(real, virtual)
    both = torch.cat([real, virtual])
    return _Vertices(both, both)


def _class_vertices(views: _Vertices, reading: VRMReading) -> _Vertices:
    scores = [_scores(logits, reading) for logits in views]
    if reading.class_vertices == "stacked":
        classes = torch.cat(scores).T
    else:
        classes = torch.cat(scores, dim=1).T
    return _Vertices(classes, classes)


def _all_pairs(vertices: _Vertices) -> Tensor:
    shape = len(vertices.first), len(vertices.second)
    return torch.ones(shape, dtype=torch.bool, device=vertices.first.device)


@torch.no_grad()
def _kept_edges(student: _Vertices, reading: VRMReading) -> Tensor:
    """Which edges between images count: bool ``(N, M)``."""
    if reading.sample_edges == "cross_view":
        ends = student
    else:
        both = torch.cat(student)
        ends = _Vertices(both, both)
    pairs, num_pairs = _all_pairs(ends), len(ends.first) * len(ends.second)
    if reading.sample_edges == "each_pair_once":
        pairs, num_pairs = pairs.triu(diagonal=1), (num_pairs - len(ends.first)) // 2
    if reading.criterion == "none":
        return pairs
    unreliable = _unreliability(ends, reading.criterion)
    # Masked, and not picked out: indexing by a mask makes a GPU wait for the host.
    match reading.threshold:
        case "share":
            count = math.ceil(reading.keep_share * num_pairs)
            candidates = torch.where(pairs, unreliable, math.inf)
            highest = candidates.flatten().kthvalue(count).values
        case "mean":
            # Of equal numbers none may be above the mean by its rounding.
            mean = torch.where(pairs, unreliable, 0.0).sum() / num_pairs
            highest = mean + rounding_of(unreliable)
    return pairs & (unreliable <= highest)


def _unreliability(ends: _Vertices, criterion: Literal["xent", "mix", "indep"]) -> Tensor:
    """How little the student's two predictions agree, or say: ``(N, M)``, high where little."""
    log_p, log_q = (F.log_softmax(logits, dim=1) for logits in ends)
    p, q = log_p.exp(), log_q.exp()
    with without_autocast(p):
        match criterion:
            case "xent":
                return -p @ log_q.T
            case "indep":
                return _entropy(p)[:, None] + _entropy(q)
            case "mix":
                chunks = _chunks(len(p), q.numel())
                return torch.cat([_entropy((p[at, None] + q) / 2) for at in chunks])


def _entropy(p: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(p).sum(dim=-1)
    return entropy


def _chunks(count: int, entries: int) -> list[slice]:
    """Slices of ``count`` rows, each row standing for so many entries at once."""
    size = max(1, _CHUNK_ENTRIES // entries)
    return [slice(start, start + size) for start in range(0, count, size)]


# -- Huber's loss of edges -----------------------------------------------------------------


def _mean_over_edges(
    student: _Vertices, teacher: _Vertices, kept: Tensor, reading: VRMReading
) -> Tensor:
    total = _edge_huber(student, teacher, kept, reading)
    if reading.coordinates == "mean":
        total = total / student.first.shape[1]
    return total / kept.sum().clamp(min=1)


def _edge_huber(
    student: _Vertices, teacher: _Vertices, kept: Tensor, reading: VRMReading
) -> Tensor:
    """Huber's loss summed over the coordinates of the kept edges: a scalar.

    Where the squared distance q = 2 - 2 cos of two unit edges is at most delta squared, or no
    coordinate of either can be large enough, every coordinate is in Huber's quadratic part, and
    the loss is q / 2, which takes inner products alone.
    """
    with without_autocast(student.first):
        ours, theirs = _gram(student), _gram(teacher)
        inner = _inner_products(ours.ends, theirs.ends)
        half = 1 - inner * ours.reciprocal_length * theirs.reciprocal_length
        with torch.no_grad():
            far = (2 * half > reading.delta**2) & (_reach(ours) + _reach(theirs) > reading.delta)
            explicit = kept & (far | ours.short | theirs.short)
        total = torch.where(kept & ~explicit, half, 0.0).sum()
        edges = explicit.nonzero()
        for at in _chunks(len(edges), student.first.shape[1]):
            # What was computed is computed again for the backward pass, instead of being kept.
            total = total + checkpoint(
                _explicit_huber,
                student,
                teacher,
                edges[at].unbind(1),
                reading,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return total


def _explicit_huber(
    student: _Vertices, teacher: _Vertices, edges: tuple[Tensor, Tensor], reading: VRMReading
) -> Tensor:
    """The same of edges by their two vertices, coordinate by coordinate."""
    begin, end = edges
    ours, theirs = (
        directions(
            first[begin] - second[end], torch.maximum(rounding_of(first), rounding_of(second))
        )
        for first, second in (student, teacher)
    )
    match reading.beyond_delta:
        case "linear":
            return F.huber_loss(ours, theirs, delta=reading.delta, reduction="sum")
        case "nothing":
            difference = ours - theirs
            inside = difference.detach().abs() <= reading.delta
            return 0.5 * torch.where(inside, difference, 0.0).square().sum()


class _Gram(NamedTuple):
    """What the Gram matrices say of one network's edges, each ``(N, M)`` but for the vertices."""

    ends: _Vertices  # about the origin, where less cancels: edges stay as they are
    reciprocal_length: Tensor  # 1 for a short edge
    short: Tensor  # which edges they cannot tell from nothing


def _gram(ends: _Vertices) -> _Gram:
    centre = torch.cat(ends).detach().mean(dim=0)
    ends = _Vertices(ends.first - centre, ends.second - centre)
    norms = ends.first.square().sum(1)[:, None] + ends.second.square().sum(1)
    squared = norms - 2 * ends.first @ ends.second.T
    with torch.no_grad():
        short = squared <= _SHORT * norms
    # Both branches are differentiated, so neither may divide by zero.
    return _Gram(ends, torch.where(short, 1.0, squared).rsqrt(), short)


def _reach(gram: _Gram) -> Tensor:
    """A bound on the coordinates of the unit edges that are not short."""
    first, second = (vertices.abs().amax(1) for vertices in gram.ends)
    return (first[:, None] + second) * gram.reciprocal_length


def _inner_products(ours: _Vertices, theirs: _Vertices) -> Tensor:
    """Of two networks' edges."""
    begins, ends = ((one * other).sum(1) for one, other in zip(ours, theirs, strict=True))
    mixed = ours.first @ theirs.second.T + theirs.first @ ours.second.T
    return begins[:, None] + ends - mixed


class VRM(Method[VRMConfig]):
    """See the module docstring."""

    takes_mixed = True

    @classmethod
    def needs(cls, config: VRMConfig) -> Needs:
        """A second view of every image."""
        return Needs(views=(config.virtual_view,))

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropies and the two kinds of edges."""
        del progress
        config = self.config
        virtual = student.views[config.virtual_view].logits
        ce = self.label_loss(student.logits, batch)
        virtual_ce = self.label_loss(virtual, batch)
        theirs = teacher.views[config.virtual_view].logits
        four = [student.logits, virtual, teacher.logits, theirs]
        if config.gather:
            four = [gathered(logits) for logits in four]
        samples = vrm_sample_loss(*four, reading=config)
        classes = vrm_class_loss(*four, reading=config)
        labels = config.ce_weight * ce + config.virtual_ce_weight * virtual_ce
        edges = config.sample_weight * samples + config.class_weight * classes
        return LossTerms(
            total=labels + edges,
            parts={"ce": ce, "virtual_ce": virtual_ce, "samples": samples, "classes": classes},
        )
