"""Relations between the images of a batch, or the channels of two layers, and safe divisions.

B batch, D features, C channels, H W spatial, N M nodes, K classes.

A vector that is zero up to rounding has no direction, and the gradient of its direction grows as
one over its length. Everything here treats such a vector as zero and gives it no gradient.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.functional.precision import widened

__all__ = [
    "angle_cosines",
    "check_embeddings",
    "check_maps",
    "directions",
    "over_maximum",
    "over_mean",
    "pairwise_distances",
    "pooled_channels",
    "relative_distances",
    "rounding_of",
    "shifted_cosines",
    "smoothed_divergence",
    "taylor_kernel",
    "transmitting_matrix",
    "unit_rows",
    "without_autocast",
]

_PKT_EPSILON = 1e-7  # of lengths and of probabilities, as PKT's authors' code has it
# Two vectors nearer than this many rounding errors of the largest entry are the same vector.
_NUM_ROUNDING_ERRORS = 64


def without_autocast(tensor: Tensor) -> torch.autocast:
    """Matrix products in their factors' own precision: autocast would halve that."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_embeddings(student_embedding: Tensor, teacher_embedding: Tensor) -> None:
    """Both networks' embeddings must be ``(B, D)``, of one batch; D may differ.

    Raises:
        ShapeError: if one is not 2-D, or the batch sizes differ.
    """
    embeddings = student_embedding, teacher_embedding
    if any(e.ndim != 2 for e in embeddings) or len(student_embedding) != len(teacher_embedding):
        raise ShapeError(
            "student and teacher embedding must both be (batch, features), of the same batch; got "
            f"student {tuple(student_embedding.shape)}, teacher {tuple(teacher_embedding.shape)}. "
            "For a feature map, choose the layer behind the pooling, or pool and flatten it"
        )


def check_maps(*features: Tensor) -> None:
    """All must be maps ``(B, C, H, W)`` of one batch.

    Raises:
        ShapeError: if one is not 4-D, or the batch sizes differ.
    """
    if any(f.ndim != 4 for f in features) or len({len(f) for f in features}) > 1:
        shapes = ", ".join(str(tuple(feature.shape)) for feature in features)
        raise ShapeError(
            "relations between layers need feature maps (batch, channels, height, width) of the "
            f"same batch; got {shapes}. Choose layers before the pooling (`limbeck inspect MODEL` "
            "lists a network's layers)"
        )


def rounding_of(rows: Tensor, *, each: bool = False) -> Tensor:
    """The length below which what is left of these rows is rounding and no more.

    Args:
        rows: ``(..., D)``.
        each: for each row by itself, ``(..., 1)``; otherwise a scalar, for differences of rows.
    """
    size = rows.detach().abs()
    largest = size.amax(dim=-1, keepdim=True) if each else size.amax()
    return _NUM_ROUNDING_ERRORS * torch.finfo(rows.dtype).eps * largest


def directions(vectors: Tensor, rounding: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """Vectors along the last axis over their lengths; zero, without gradient, where not longer.

    Args:
        vectors: ``(..., D)``.
        rounding: scalar; what is not longer than this has no direction.
        epsilon: added to each length.

    Returns:
        The same shape, each vector of length 1 or 0.
    """
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    there = length.detach() > rounding
    # Both branches of the outer where are differentiated, so neither may divide by zero.
    return torch.where(there, vectors / (torch.where(there, length, 1.0) + epsilon), 0.0)


def unit_rows(rows: Tensor) -> Tensor:
    """Each row over its length; zero rows stay zero and give no gradient.

    Example:
        >>> unit_rows(torch.tensor([[0.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    return directions(rows, rounding_of(rows))


def pairwise_distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances of rows, from their differences: ``(..., N, D)``, ``(..., M, D)``.

    Gram matrices would give them with fewer multiplications and lose the small ones to
    cancellation. Equal rows give no gradient, where that of a square root is infinite.

    Returns:
        ``(..., N, M)``, float32 or wider.
    """
    return torch.cdist(widened(first), widened(second), compute_mode="donot_use_mm_for_euclid_dist")


def relative_distances(embedding: Tensor) -> Tensor:
    """Distances over the mean of the positive ones: ``(B, D)`` to ``(B, B)``."""
    return over_mean(pairwise_distances(embedding, embedding))


def over_mean(values: Tensor) -> Tensor:
    """Values ``>= 0`` over the mean of the positive ones; zeros stay zeros.

    Example:
        >>> over_mean(torch.tensor([0.0, 1.0, 3.0])).tolist()
        [0.0, 0.5, 1.5]
    """
    mean = values.sum() / (values > 0).sum().clamp(min=1)
    # Without a positive value there is nothing to divide, and 1 keeps the gradient finite.
    return values / torch.where(mean > 0, mean, 1.0)


def over_maximum(values: Tensor) -> Tensor:
    """Values ``>= 0`` over their largest, which counts as a constant; zeros stay zeros.

    Example:
        >>> over_maximum(torch.tensor([1.0, 4.0])).tolist()
        [0.25, 1.0]
    """
    largest = values.detach().amax()
    return values / torch.where(largest > 0, largest, 1.0)


def angle_cosines(embedding: Tensor, corners: slice = slice(None)) -> Tensor:
    """At [i, j, k] the cosine at image i between the ways to j and k.

    Args:
        embedding: ``(B, D)``.
        corners: which images i; all by default.

    Returns:
        ``(B, B, B)``, or fewer along the first axis; 0 where two of the three images are equal up
        to rounding.
    """
    with without_autocast(embedding):
        wide = widened(embedding)
        way = wide[None, :, :] - wide[corners, None, :]
        direction = directions(way, rounding_of(wide))
        return direction @ direction.transpose(1, 2)


def taylor_kernel(first: Tensor, second: Tensor, *, gamma: float, order: int) -> Tensor:
    r"""A Gaussian kernel of unit rows, its exponential cut off after some terms.

    .. math:: K_{ij} = e^{-2 \gamma} \sum_{p=0}^{P} \frac{(2 \gamma)^p}{p!}
        \langle \hat f_i, \hat g_j \rangle^p \approx e^{-\gamma \| \hat f_i - \hat g_j \|^2}

    Args:
        first: ``(..., N, D)``, f.
        second: ``(..., M, D)``, g.
        gamma: ``> 0``.
        order: P, the last power.

    Returns:
        ``(..., N, M)``, float32 or wider.
    """
    with without_autocast(first):
        cosine = unit_rows(widened(first)) @ unit_rows(widened(second)).mT
    kernel = torch.zeros_like(cosine)
    for power in range(order, -1, -1):  # Horner's scheme
        kernel = kernel * cosine + (2 * gamma) ** power / math.factorial(power)
    return math.exp(-2 * gamma) * kernel


def shifted_cosines(first: Tensor, second: Tensor) -> Tensor:
    """(cos + 1) / 2 of rows, as PKT has it: ``(..., N, D)``, ``(..., M, D)`` to ``(..., N, M)``.

    A row that is zero up to rounding has cosine 0 to all, itself among them.
    """
    with without_autocast(first):
        units = [
            directions(rows, rounding_of(rows), epsilon=_PKT_EPSILON)
            for rows in (widened(first), widened(second))
        ]
        return (units[0] @ units[1].mT + 1) / 2


def smoothed_divergence(student_p: Tensor, teacher_p: Tensor) -> Tensor:
    r"""The summands of KL(teacher || student), finite where a probability is 0.

    .. math:: p^t \log \frac{p^t + 10^{-7}}{p^s + 10^{-7}}
    """
    ratio = (teacher_p + _PKT_EPSILON) / (student_p + _PKT_EPSILON)
    return teacher_p * ratio.log()


def transmitting_matrix(first_feature: Tensor, second_feature: Tensor) -> Tensor:
    r"""How one layer's channels go together with another's: the FSP matrix of each image.

    .. math:: G_{cd} = \frac{1}{HW} \sum_{hw} A_{chw} B_{dhw}

    Args:
        first_feature: ``(B, C, H, W)``.
        second_feature: ``(B, C', H', W')``; along each axis the larger of the two is brought to
            the smaller one's size by adaptive average pooling.

    Returns:
        ``(B, C, C')``, float32 or wider.

    Raises:
        ShapeError: if one is no map, or the batch sizes differ.

    Source:
        Yim, Joo, Bae, Kim, CVPR 2017, eq. 1; the pooling as in RepDistiller.
    """
    first, second = pooled_channels(first_feature, second_feature)
    with without_autocast(first):
        return first @ second.mT / first.shape[2]


def pooled_channels(first_feature: Tensor, second_feature: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps as channels over common places, for :func:`transmitting_matrix`.

    Returns:
        ``(B, C, HW)`` and ``(B, C', HW)``, float32 or wider.

    Raises:
        ShapeError: if one is no map, or the batch sizes differ.
    """
    check_maps(first_feature, second_feature)
    sizes = zip(first_feature.shape[2:], second_feature.shape[2:], strict=True)
    height, width = (min(pair) for pair in sizes)
    first, second = (
        _pooled(widened(feature), (height, width)).flatten(2)
        for feature in (first_feature, second_feature)
    )
    return first, second


def _pooled(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)
