import numpy as np
import torch
from sklearn.datasets import load_digits as sklearn_digits

from limbeck.data.digits import load_digits


def as_set(images):
    return sorted(image.tobytes() for image in images.images.numpy())


def test_every_digit_is_in_one_split():
    train, test = load_digits()
    assert (len(train), len(test)) == (1348, 449)
    every = np.rint(sklearn_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(as_set(train) + as_set(test)) == sorted(image.tobytes() for image in every)


def test_grey_levels_are_sixteenths_of_white():
    train, _ = load_digits()
    expected = {(2 * 255 * level + 16) // 32 for level in range(17)}  # halves up; there are none
    assert set(train.images.unique().tolist()) == expected
    assert train.image_shape == (1, 8, 8)


def test_labels_are_those_of_the_pictures():
    digits = sklearn_digits()
    known = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    for split in load_digits():
        found = [known[image.tobytes()] for image in split.images.numpy()]
        assert found == split.labels.tolist()
        assert split.class_names == tuple("0123456789")


def test_the_test_split_is_stratified_and_always_the_same():
    train, test = load_digits()
    counts = torch.bincount(torch.cat([train.labels, test.labels]))
    assert (torch.bincount(test.labels) - counts * 0.25).abs().max() <= 1
    again = load_digits().test
    assert again.fingerprint() == test.fingerprint()
    # One for all runs and machines: who changes this changes every published result.
    assert test.fingerprint().startswith("83dfff72b35b59da")
