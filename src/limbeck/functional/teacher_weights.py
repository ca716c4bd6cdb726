"""How much each of several teachers counts: by its entropy, by its error, by its gradient.

B batch, C classes, K teachers.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import SettingsError
from limbeck.core.types import UNLABELLED
from limbeck.functional.precision import widened

__all__ = [
    "MOST_TEACHERS",
    "agreement_weights",
    "check_max_weight",
    "confidence_weights",
    "entropy_weights",
    "mean_kd_gradients",
    "min_norm_weights",
]

MOST_TEACHERS = 8  # of min_norm_weights, which goes through all 3^K ways to be at the bounds
# Of the longest vector's square, added to each: it makes the weights unique and shares alike
# between equal teachers, where the problem itself leaves that open.
_RIDGE = 1e-10
_SLACK = 1e-8  # by which rounding may carry a weight over its bound


def entropy_weights(teacher_logits: Tensor) -> Tensor:
    r"""For each image, the more the surer a teacher is, whatever the label.

    .. math:: w_k = \frac{1}{K - 1} \left(1 - \frac{H(p^k)}{\sum_j H(p^j)}\right), \quad
        p = \mathrm{softmax}(z)

    Args:
        teacher_logits: ``(K, B, C)``, raw.

    Returns:
        ``(K, B)``, float32 or wider, in [0, 1], of sum 1 over the teachers. Where none has any
        entropy left, and for one teacher, all alike.

    Source:
        Kwon et al., ICASSP 2020, as the code of Zhang et al. 2022 has it.

    Example:
        >>> sure, unsure = [[9.0, 0.0]], [[0.0, 0.0]]
        >>> entropy_weights(torch.tensor([sure, unsure])).round(decimals=2).tolist()
        [[1.0], [0.0]]
    """
    log_p = widened(teacher_logits).log_softmax(dim=2)
    entropy = -(log_p.exp() * log_p).sum(dim=2).clamp(max=0)
    total = entropy.sum(dim=0)
    # 0/0 where all are certain; the inner `where` keeps it out of the division.
    share = entropy / torch.where(total > 0, total, 1.0)
    return _all_but(torch.where(total > 0, share, 1 / len(entropy)))


def confidence_weights(teacher_logits: Tensor, label: Tensor) -> Tensor:
    r"""For each image, the more the nearer a teacher is to the label.

    .. math:: w_k = \frac{1}{K - 1} \left(1 - \mathrm{softmax}_k \, CE(z^k, y)\right)

    Args:
        teacher_logits: ``(K, B, C)``, raw; gradient flows through.
        label: ``(B,)`` int64 in [0, C), or -1 for "unknown".

    Returns:
        ``(K, B)``, float32 or wider, in [0, 1], of sum 1 over the teachers. For an image without a
        label, and for one teacher, all alike.

    Source:
        Zhang, Chen, Wang 2022, https://arxiv.org/abs/2201.00007.

    Example:
        >>> right, wrong = [[9.0, 0.0]], [[0.0, 9.0]]
        >>> scores = torch.tensor([right, wrong])
        >>> confidence_weights(scores, torch.tensor([0])).round(decimals=2).tolist()
        [[1.0], [0.0]]
        >>> confidence_weights(scores, torch.tensor([-1])).tolist()
        [[0.5], [0.5]]
    """
    count, size, _ = teacher_logits.shape
    error = F.cross_entropy(
        widened(teacher_logits).flatten(0, 1),
        label.repeat(count),
        ignore_index=UNLABELLED,  # whose error is 0, the same for all
        reduction="none",
    )
    return _all_but(error.reshape(count, size).softmax(dim=0))


def _all_but(share: Tensor) -> Tensor:
    """What the other teachers have of something, scaled to a sum of 1; K = 1 is left at 1."""
    count = len(share)
    return (1 - share) / (count - 1) if count > 1 else torch.ones_like(share)


def agreement_weights(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    max_weight: float,
    unit_gradients: bool,
) -> Tensor:
    """Weights with which the teachers' gradients, summed, oppose none of them: those of AEKD.

    Args:
        student_logits: ``(B, C)``, raw; receives no gradient.
        teacher_logits: ``(K, B, C)``, raw.
        temperature: ``> 0``.
        max_weight: in [1 / K, 1]: 1 / K is the average, 1 the shortest sum there is.
        unit_gradients: weigh gradients of length 1, and divide by the lengths afterwards.

    Returns:
        ``(K,)``, float32 or wider, in [0, 1], of sum 1. With ``unit_gradients`` the division may
        take them above ``max_weight``.

    Raises:
        SettingsError: as :func:`check_max_weight`.

    Source:
        Du et al., NeurIPS 2020.
    """
    gradients = mean_kd_gradients(student_logits, teacher_logits, temperature=temperature)
    if not unit_gradients:
        return min_norm_weights(gradients, max_weight=max_weight)
    length = gradients.norm(dim=1)
    # A teacher that the student equals has no direction. Any length will do: its weight alone
    # is all there is to it.
    length = torch.where(length > 0, length, 1.0)
    weights = min_norm_weights(gradients / length[:, None], max_weight=max_weight) / length
    return weights / weights.sum()


def mean_kd_gradients(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    r"""Gradient of each teacher's divergence by the student's logits, mean over the images.

    .. math:: g_k = \frac{1}{B} \sum_b \frac{T}{B} \left(p^s_{T,b} - p^k_{T,b}\right)

    In closed form: no backward pass.

    Args:
        student_logits: ``(B, C)``, raw; receives no gradient.
        teacher_logits: ``(K, B, C)``, raw.
        temperature: ``> 0``.

    Returns:
        ``(K, C)``, float32 or wider; every row sums to 0.
    """
    student_p = (widened(student_logits.detach()) / temperature).softmax(dim=1)
    teacher_p = (widened(teacher_logits.detach()) / temperature).softmax(dim=2)
    return temperature / len(student_p) * (student_p - teacher_p).mean(dim=1)


def min_norm_weights(vectors: Tensor, *, max_weight: float) -> Tensor:
    r"""Weights of the shortest sum of vectors, exactly.

    .. math:: \min_\alpha \left\| \sum_k \alpha_k g_k \right\|^2, \quad \sum_k \alpha_k = 1, \quad
        0 \le \alpha_k \le C

    Every way in which weights may stand at their bounds gives one small linear system; the best
    of those solutions that keep the bounds is the answer. All systems are solved at once, in
    float64, without the host being waited for.

    Args:
        vectors: ``(K, D)``.
        max_weight: C, in [1 / K, 1]; of no effect for one vector.

    Returns:
        ``(K,)`` in the vectors' dtype. Equal vectors have equal weights; so have all, if all are 0.

    Raises:
        SettingsError: as :func:`check_max_weight`.

    Source:
        Du et al., NeurIPS 2020, there as the dual of a one-class SVM.

    Example:
        >>> opposite = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
        >>> min_norm_weights(opposite, max_weight=1.0).tolist()
        [0.75, 0.25]
    """
    count = len(vectors)
    check_max_weight(max_weight, count)
    limit = max(max_weight, 1 / count)  # one vector counts whole, whatever was asked
    wide = vectors.detach().double()
    # Products by hand: autocast knows nothing of them.
    gram = (wide[:, None] * wide[None]).sum(dim=2)
    gram = gram / gram.diagonal().max().clamp(min=torch.finfo(torch.float64).tiny)
    gram = gram + _RIDGE * torch.eye(count, dtype=wide.dtype, device=wide.device)
    most_at_bound = min(count - 1, int(1 / limit + _SLACK))
    free, bound = _patterns(count, most_at_bound, wide.device)
    fixed = limit * bound
    # Of the free weights: G a + lambda = -G fixed, and their sum is what the fixed ones leave.
    system = torch.zeros(len(free), count + 1, count + 1, dtype=wide.dtype, device=wide.device)
    system[:, :count, :count] = free[:, :, None] * gram * free[:, None] + torch.diag_embed(1 - free)
    system[:, :count, count] = free
    system[:, count, :count] = free
    by_fixed = (gram * fixed[:, None]).sum(dim=2)
    right = torch.cat([fixed - free * by_fixed, 1 - fixed.sum(dim=1, keepdim=True)], dim=1)
    weights: Tensor = torch.linalg.solve_ex(system, right).result[:, :count]
    kept = ((weights > -_SLACK) & (weights < limit + _SLACK)).all(dim=1)
    length = (weights[:, :, None] * gram * weights[:, None]).sum(dim=(1, 2))
    best = torch.where(kept, length, torch.inf).argmin()
    found = weights.index_select(0, best[None])[0].clamp(0, limit)
    return found.to(vectors.dtype)


@lru_cache(maxsize=16)
def _patterns(count: int, most_at_bound: int, device: torch.device) -> Tensor:
    """All ways to be free, or at the upper bound, or else at 0: float64 ``(2, P, K)``.

    One weight at least is free, so that they can have a sum of 1.
    """
    rows = [
        row
        for row in itertools.product((0, 1, 2), repeat=count)
        if 1 in row and row.count(2) <= most_at_bound
    ]
    kinds = torch.tensor(rows, device=device)
    return torch.stack([kinds == 1, kinds == 2]).double()


def check_max_weight(max_weight: float, count: int) -> None:
    """Whether weights of at most that can have a sum of 1.

    Args:
        max_weight: of a teacher.
        count: of the teachers.

    Raises:
        SettingsError: if they cannot, or there are more than :data:`MOST_TEACHERS`.
    """
    if count > MOST_TEACHERS:
        raise SettingsError(
            f"aekd weighs at most {MOST_TEACHERS} teachers, got {count}; use fewer, or another "
            "fusion"
        )
    if count > 1 and not 1 / count <= max_weight + _SLACK <= 1 + 2 * _SLACK:
        raise SettingsError(
            f"max_weight must be from 1 / {count} = {1 / count:.4g}, which is the average of "
            f"{count} teachers, to 1; got {max_weight}"
        )
