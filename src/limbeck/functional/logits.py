"""What losses over class scores share: checks, labels, and standardised scores.

B batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import UNLABELLED
from limbeck.functional.precision import widened

__all__ = [
    "LogitPair",
    "Standardize",
    "as_seen",
    "check_logits",
    "check_temperature",
    "joint_logits",
    "standardize_logits",
    "target_mask",
]

# The setting of every method that can standardise: not at all, with the authors' code's unbiased
# deviation, or with the paper's.
Standardize: TypeAlias = bool | Literal["population"]

_SIGMA_EPSILON = 1e-7  # added to the unbiased deviation, as the authors' code does
# A row whose deviation is below this many rounding errors of its largest entry is constant: what
# is left is noise, and the gradient grows as one over it.
_NUM_ROUNDING_ERRORS = 64


class LogitPair(NamedTuple):
    """Both networks' scores, ``(B, K)``."""

    student: Tensor
    teacher: Tensor


def check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Both networks' scores must be ``(B, K)``.

    Raises:
        ShapeError: if the two differ in shape or are not 2-D.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            "student and teacher logits must both be (batch, classes) and equal in shape; "
            f"got student {tuple(student_logits.shape)}, teacher {tuple(teacher_logits.shape)}. "
            "If only the class counts differ, the two networks have different heads"
        )


def check_temperature(temperature: float) -> None:
    """A temperature is above 0.

    Raises:
        SettingsError: if it is not.
    """
    if not temperature > 0:
        raise SettingsError(
            f"the temperature must be above 0, got {temperature}; 1 leaves the probabilities as "
            "they are, and higher ones soften them"
        )


def joint_logits(members: Sequence[Tensor]) -> Tensor:
    r"""What several networks answer together: the log of their mean probability.

    .. math:: \log \frac{1}{n} \sum_i \mathrm{softmax}(z^i)

    Args:
        members: logits ``(B, K)`` of each, one at least.

    Returns:
        ``(B, K)``, float32 or wider.

    Example:
        >>> one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
        >>> joint_logits([one, other]).exp().round(decimals=3).tolist()
        [[0.625, 0.375]]
    """
    # In log space, since a probability of exp(-200) is no float32.
    log_p = torch.stack([widened(logits).log_softmax(dim=1) for logits in members])
    return log_p.logsumexp(dim=0) - math.log(len(members))


def target_mask(label: Tensor, teacher_logits: Tensor) -> Tensor:
    """Where each image's label is, or where there is none the teacher's choice: bool ``(B, K)``.

    Args:
        label: ``(B,)`` int64 in [0, K), or -1 for "unknown".
        teacher_logits: ``(B, K)``; of equal scores one is chosen.

    Raises:
        ShapeError: if there is not one label for each row.

    Example:
        >>> scores = torch.tensor([[0.0, 9.0, 1.0], [5.0, 0.0, 1.0]])
        >>> target_mask(torch.tensor([2, -1]), scores).int().tolist()
        [[0, 0, 1], [1, 0, 0]]
    """
    if label.shape != teacher_logits.shape[:1]:
        raise ShapeError(
            f"label must be (batch,), one class index for each image; got {tuple(label.shape)} "
            f"for logits {tuple(teacher_logits.shape)}. Soft labels (batch, classes) are no label "
            "here"
        )
    target = torch.where(label == UNLABELLED, teacher_logits.argmax(dim=1), label)
    return torch.arange(teacher_logits.shape[1], device=label.device) == target[:, None]


def standardize_logits(logits: Tensor, *, population: bool = False) -> Tensor:
    r"""Each row less its mean, over its standard deviation.

    .. math:: \frac{z_k - \bar z}{\sigma(z) + 10^{-7}}, \quad
        \sigma^2 = \frac{1}{K - 1} \sum_k (z_k - \bar z)^2

    Gradient flows through mean and deviation: it is orthogonal to each row and to the constants.

    Args:
        logits: ``(B, K)``, raw.
        population: divide by K instead, and add nothing, as the paper writes it; the authors'
            code does the former. The two differ as two temperatures do, by
            ``sqrt(K / (K - 1))``: 0.5 % at 100 classes.

    Returns:
        ``(B, K)``, float32 or wider; a row that is constant up to rounding becomes zeros and gives
        no gradient, where the formula has 0/0 or, with the 1e-7, a gradient of 1e6.

    Raises:
        ShapeError: if the logits are not 2-D.

    Source:
        Sun et al. 2024, https://arxiv.org/abs/2403.01427, algorithm 1.

    Example:
        >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0]])).round(decimals=3).tolist()
        [[-1.0, 0.0, 1.0]]
    """
    if logits.ndim != 2:
        raise ShapeError(f"logits must be (batch, classes); got {tuple(logits.shape)}")
    z = widened(logits)
    centred = z - z.mean(dim=1, keepdim=True)
    freedom = z.shape[1] if population else max(z.shape[1] - 1, 1)
    variance = centred.square().sum(dim=1, keepdim=True) / freedom
    noise = _NUM_ROUNDING_ERRORS * torch.finfo(z.dtype).eps * z.detach().abs().amax(1, keepdim=True)
    constant = variance.detach() <= noise.square()
    # The root's gradient at 0 is infinite, and infinity times 0 is not a number.
    sigma = torch.where(constant, 1.0, variance).sqrt()
    if not population:
        sigma = sigma + _SIGMA_EPSILON
    return torch.where(constant, 0.0, centred / sigma)


def as_seen(student_logits: Tensor, teacher_logits: Tensor, standardize: Standardize) -> LogitPair:
    """Scores as a distillation term sees them: raw, or standardised one way or the other."""
    if standardize is False:
        return LogitPair(student_logits, teacher_logits)
    population = standardize == "population"
    return LogitPair(
        standardize_logits(student_logits, population=population),
        standardize_logits(teacher_logits, population=population),
    )
