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

__all__ = ["Split", "keep_labels", "long_tailed_subset", "stratified_split", "stratified_subset"]

_ROUNDING = 1e-9  # of a power that is a whole number but for its last digit


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


def long_tailed_subset(labels: Tensor, factor: float, *, seed: int) -> Tensor:
    r"""Positions of images whose classes are the fewer the later they come, ascending.

    .. math:: n_k = \lfloor n_{max} \, \mu^{-k / (K - 1)} \rfloor, \quad k = 0 \ldots K - 1

    with n_max the images of the most frequent class, and K the classes that have any. No class
    gets more images than it has, or none. A larger factor with the same seed gives a part of what
    a smaller one gives. Images without a class stay.

    Args:
        labels: ``(N,)`` int64; -1 where unknown.
        factor: mu, at least 1: how many times the last class's images the first one has.
        seed: which images.

    Raises:
        DataError: if the factor is below 1, or there are fewer than two classes.

    Source:
        Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples",
        CVPR 2019, https://arxiv.org/abs/1901.05555, section 5.1, and its authors' code. With
        val_fraction 0 and factor 100 the classes of CIFAR have the sizes of CIFAR-10-LT and
        CIFAR-100-LT; which images they hold is another draw than any code's.

    Example:
        >>> import torch
        >>> positions = long_tailed_subset(torch.arange(3).repeat(9), 9, seed=0)
        >>> torch.arange(3).repeat(9)[positions].bincount().tolist()
        [9, 3, 1]
    """
    members = _by_lot(labels, key=f"long-tail\x1f{seed}")
    kept = [position for _, position in members.pop(UNLABELLED, [])]
    if factor < 1 or len(members) < 2:
        raise DataError(
            "a long tail takes a factor of at least 1 and two classes or more; got factor "
            f"{factor:g} and {len(members)} classes"
        )
    largest = max(map(len, members.values()))
    for rank, label in enumerate(sorted(members)):
        wanted = largest * factor ** (-rank / (len(members) - 1))
        count = max(1, math.floor(wanted + _ROUNDING))
        kept += [position for _, position in sorted(members[label])[:count]]
    return _ascending(kept)


def keep_labels(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """The same labels with all but ``count`` of them hidden, at least one of every class kept.

    A smaller count with the same seed keeps a part of what a larger one keeps.

    Args:
        labels: ``(N,)`` int64; -1 where already unknown.
        count: labels kept, at least one for each class and at most all; or 0.
        seed: which images.

    Returns:
        ``(N,)`` int64, -1 at every image but ``count``.

    Raises:
        DataError: if ``count`` is above 0 and below the number of classes, or above that of
            labels.

    Example:
        >>> import torch
        >>> int((keep_labels(torch.tensor([0, 0, 1, 1]), 2, seed=0) >= 0).sum())
        2
    """
    labelled = (labels != UNLABELLED).nonzero().flatten()
    num_classes = len(set(labels[labelled].tolist()))
    if count != 0 and not num_classes <= count <= len(labelled):
        raise DataError(
            f"the number of labels kept must be between {num_classes}, one for each class, and "
            f"{len(labelled)}, all there are, or 0; got {count}"
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
    keyed = [
        ((rank + offset) / len(lots), lot, position)
        for lots in _by_lot(labels, key=key).values()
        for rank, (lot, position) in enumerate(sorted(lots))
    ]
    return [position for _, _, position in sorted(keyed)]


def _by_lot(labels: Tensor, *, key: str) -> dict[int, list[tuple[bytes, int]]]:
    """By label, each image's lot and position."""
    members: defaultdict[int, list[tuple[bytes, int]]] = defaultdict(list)
    for position, label in enumerate(labels.tolist()):
        lot = hashlib.sha256(f"{key}\x1f{position}".encode()).digest()
        members[label].append((lot, position))
    return members
