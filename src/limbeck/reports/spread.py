"""Mean and standard deviation of a few numbers, such as one score over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread", "spread"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1) of ``count`` numbers.

    Attributes:
        mean: of the numbers.
        sd: None for a single number, which has no spread.
        count: how many there were, ``>= 1``.
    """

    mean: float
    sd: float | None
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one number.

    Raises:
        ValueError: if there is no number.

    Example:
        >>> spread([1.0, 3.0])
        Spread(mean=2.0, sd=1.4142135623730951, count=2)
        >>> spread([1.0]).sd is None
        True
    """
    if not values:
        raise ValueError("the spread of no numbers is not defined; give at least one")
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), sd=sd, count=len(values))
