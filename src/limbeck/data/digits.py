"""Scikit-learn's 8x8 handwritten digits: 1,797 images that come with the package."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from limbeck.data.images import ImageSet
from limbeck.data.splits import stratified_split

__all__ = ["DIGITS_TEST_FRACTION", "DIGITS_TEST_SEED", "DigitsSplits", "load_digits"]

DIGITS_TEST_FRACTION = 0.25
DIGITS_TEST_SEED = 20_250_101  # the test split is one for all runs, whatever their seed


class DigitsSplits(NamedTuple):
    """The digits, split for good."""

    train: ImageSet
    test: ImageSet


def load_digits() -> DigitsSplits:
    """1,348 training and 449 test images of shape ``(1, 8, 8)``, in ten classes.

    Source:
        Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998, https://doi.org/10.24432/C50P49; the copy within scikit-learn.
    Differs from the source: grey levels 0..16 become round(level * 255 / 16), and the data
        set's own test half is split anew, stratified, by :data:`DIGITS_TEST_SEED`.
    """
    from sklearn import datasets  # slow to import, and only the digits need it

    digits = datasets.load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    every = ImageSet(
        images=torch.from_numpy(pixels).unsqueeze(1),
        labels=torch.from_numpy(digits.target.astype(np.int64)),
        class_names=tuple(str(name) for name in digits.target_names),
    )
    split = stratified_split(every.labels, DIGITS_TEST_FRACTION, seed=DIGITS_TEST_SEED)
    return DigitsSplits(train=every.subset(split.rest), test=every.subset(split.held_out))
