"""Stratified splits that depend on a key alone: the same on every machine and version.

Every image gets the key (its rank within its class, by a hash of seed and position) divided by
the size of its class. Any first part of the images in that order is stratified, and a smaller
part lies inside a larger one.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import DataError
from limbeck.core.types import UNLABELLED

__all__ = ["Split", "keep_labels", "stratified_split", "stratified_subset"]


class Split(NamedTuple):
    """Positions of two disjoint parts, each ascending, int64."""

    rest: Tensor
    held_out: Tensor


def stratified_split(labels: Tensor, fraction: float, *, seed: int) -> Split:
    """Hold out a share of the images, the same share of every class up to one image.

    Args:
        labels: ``(N,)`` int64; images without a class (-1) are shared out like a class.
        fraction: share held out, in (0, 1); ``N * fraction`` is rounded to a whole number.
        seed: which images; another seed, another split.

    Returns:
        Positions of the rest and of the held-out images.

    Raises:
        DataError: if nothing would be held out, or a class would keep no image.

    Example:
        >>> import torch
        >>> split = stratified_split(torch.tensor([0, 0, 1, 1]), 0.5, seed=0)
        >>> len(split.rest), len(split.held_out)
        (2, 2)
    """
    if not 0 < fraction < 1:
        raise DataError(f"the share to hold out must be in (0, 1); got {fraction}")
    count = _share(len(labels), fraction)
    if count == 0:
        raise DataError(
            f"{fraction:g} of {len(labels)} images is not one whole image; hold out a larger "
            "share, or none"
        )
    order = _stratified_order(labels, key=f"split\x1f{seed}", offset=0.5)
    split = Split(rest=_ascending(order[count:]), held_out=_ascending(order[:count]))
    emptied = set(labels.tolist()) - set(labels[split.rest].tolist()) - {UNLABELLED}
    if emptied:
        raise DataError(
            f"holding out {fraction:g} of {len(labels)} images leaves none of class "
            f"{', '.join(map(str, sorted(emptied)))} to learn from; hold out less"
        )
    return split


def stratified_subset(labels: Tensor, fraction: float, *, seed: int) -> Tensor:
    """Positions of a share of the images, at least one of every class, ascending.

    A smaller fraction with the same seed gives a part of what a larger one gives.

    Args:
        labels: ``(N,)`` int64.
        fraction: share kept, in (0, 1]; ``N * fraction`` is rounded to a whole number.
        seed: which images.

    Raises:
        DataError: if that is fewer images than there are classes.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"the share to keep must be in (0, 1]; got {fraction}")
    count = _share(len(labels), fraction)
    num_classes = len(set(labels.tolist()) - {UNLABELLED})
    if count < num_classes:
        raise DataError(
            f"{fraction:g} of {len(labels)} images is {count}, fewer than the {num_classes} "
            "classes; keep a larger share"
        )
    return _ascending(_stratified_order(labels, key=f"subset\x1f{seed}", offset=0.0)[:count])


def keep_labels(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """The same labels with all but ``count`` of them hidden, at least one of every class kept.

    A smaller count with the same seed keeps a part of what a larger one keeps.

    Args:
        labels: ``(N,)`` int64; -1 where already unknown.
        count: labels kept, at least one for each class and at most all.
        seed: which images.

    Returns:
        ``(N,)`` int64, -1 at every image but ``count``.

    Raises:
        DataError: if ``count`` is below the number of classes or above that of labels.

    Example:
        >>> import torch
        >>> int((keep_labels(torch.tensor([0, 0, 1, 1]), 2, seed=0) >= 0).sum())
        2
    """
    labelled = (labels != UNLABELLED).nonzero().flatten()
    num_classes = len(set(labels[labelled].tolist()))
    if not num_classes <= count <= len(labelled):
        raise DataError(
            f"the number of labels kept must be between {num_classes}, one for each class, and "
            f"{len(labelled)}, all there are; got {count}"
        )
    order = _stratified_order(labels[labelled], key=f"labels\x1f{seed}", offset=0.0)
    kept = labelled[_ascending(order[:count])]
    hidden = torch.full_like(labels, UNLABELLED)
    hidden[kept] = labels[kept]
    return hidden


def _share(total: int, fraction: float) -> int:
    return math.floor(total * fraction + 0.5)


def _ascending(positions: list[int]) -> Tensor:
    return torch.tensor(sorted(positions), dtype=torch.int64)


def _stratified_order(labels: Tensor, *, key: str, offset: float) -> list[int]:
    """All positions, each prefix stratified: offset 0.5 is fairest, 0 serves each class first."""
    # Apportionment by divisors (Webster's at offset 0.5, Adams's at 0), which, unlike largest
    # remainders, never takes a seat away when the house grows: hence the nested parts.
    members: defaultdict[int, list[tuple[bytes, int]]] = defaultdict(list)
    for position, label in enumerate(labels.tolist()):
        lot = hashlib.sha256(f"{key}\x1f{position}".encode()).digest()
        members[label].append((lot, position))
    keyed = [
        ((rank + offset) / len(lots), lot, position)
        for lots in members.values()
        for rank, (lot, position) in enumerate(sorted(lots))
    ]
    return [position for _, _, position in sorted(keyed)]
