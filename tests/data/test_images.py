import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.core.errors import DataError
from limbeck.core.normalization import Normalization
from limbeck.data.images import (
    UNLABELLED_NAME,
    DataBundle,
    ImageSet,
    joint_fingerprint,
    measure_normalization,
    some,
    to_channels,
)


def test_gather_and_subset_give_the_images_asked_for_in_that_order(make_images):
    images = make_images(7)
    index = torch.tensor([5, 0, 5])
    torch.testing.assert_close(images.gather(index), images.images[[5, 0, 5]])
    part = images.subset(index)
    torch.testing.assert_close(part.images, images.images[[5, 0, 5]])
    assert part.labels.tolist() == [2, 0, 2]
    assert len(part) == 3
    assert part.class_names == images.class_names


def test_with_labels_keeps_the_pixels(make_images):
    images = make_images(4)
    relabelled = images.with_labels(torch.tensor([-1, 0, -1, 2]))
    assert relabelled.labels.tolist() == [-1, 0, -1, 2]
    assert relabelled.images is images.images


def test_shape_is_channels_height_width(make_images):
    images = make_images(2, shape=(1, 4, 7))
    assert images.image_shape == (1, 4, 7)
    assert images.num_channels == 1
    assert images.in_memory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, "uint8"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, "uint8"),
        ({"labels": torch.zeros(2)}, "int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"\(2,\)"),
        ({"labels": torch.tensor([0, 2])}, "image 1 has 2"),
        ({"labels": torch.tensor([-2, 0])}, "image 0 has -2"),
    ],
)
def test_tensors_of_another_kind_are_refused(change, message):
    fields = {
        "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        "labels": torch.tensor([0, -1]),
        "class_names": ("a", "b"),
    }
    ImageSet(**fields)
    with pytest.raises(DataError, match=message):
        ImageSet(**(fields | change))


def test_fingerprint_is_that_of_the_plain_bytes():
    images = ImageSet(
        images=torch.arange(4, dtype=torch.uint8).reshape(2, 1, 1, 2),
        labels=torch.tensor([1, -1]),
        class_names=("a", "b"),
    )
    expected = hashlib.sha256(
        b'[[1, 1, 2], ["a", "b"]]'
        + bytes([0, 1, 2, 3])
        + (1).to_bytes(8, "little")
        + (-1).to_bytes(8, "little", signed=True)
    )
    assert images.fingerprint() == expected.hexdigest()


def test_fingerprint_changes_with_any_part(make_images):
    images = make_images(4)
    pixels = images.images.clone()
    pixels[2, 1, 0, 0] ^= 1
    changed = [
        ImageSet(images=pixels, labels=images.labels, class_names=images.class_names),
        images.with_labels(images.labels.flip(0)),
        ImageSet(images=images.images, labels=images.labels, class_names=("a", "b", "c")),
        images.subset(torch.tensor([1, 0, 2, 3])),
    ]
    prints = {images.fingerprint(), *(other.fingerprint() for other in changed)}
    assert len(prints) == 5
    assert make_images(4).fingerprint() == images.fingerprint()


# -- channels and normalisation ----------------------------------------------------------------


def test_grey_is_what_pillow_makes_of_the_colours(generator):
    colours = torch.randint(256, (1, 3, 64, 64), generator=generator, dtype=torch.uint8)
    expected = np.asarray(Image.fromarray(colours[0].permute(1, 2, 0).numpy()).convert("L"))
    assert np.array_equal(to_channels(colours, 1)[0, 0].numpy(), expected)


def test_every_grey_survives_colour_and_back():
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    colour = to_channels(grey, 3)
    assert colour.shape == (1, 3, 16, 16)
    assert torch.equal(to_channels(colour, 1), grey)
    assert to_channels(grey, 1) is grey


def test_other_channel_counts_are_refused():
    with pytest.raises(DataError, match="got 2"):
        to_channels(torch.zeros(1, 2, 3, 3, dtype=torch.uint8), 3)
    with pytest.raises(DataError, match="4 were wanted"):
        to_channels(torch.zeros(1, 3, 3, 3, dtype=torch.uint8), 4)


def test_normalization_is_mean_and_deviation_of_all_pixels(make_images):
    images = make_images(300)
    pixels = images.images.numpy().astype(np.float64) / 255
    found = measure_normalization(images)
    assert found.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=5e-5)
    assert found.std == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=5e-5)


def test_a_channel_without_variation_gets_a_deviation_of_one():
    pixels = torch.full((3, 1, 2, 2), 51, dtype=torch.uint8)
    images = ImageSet(images=pixels, labels=torch.zeros(3).long(), class_names=("a",))
    assert measure_normalization(images) == Normalization(mean=(0.2,), std=(1.0,))


def test_a_set_on_disk_is_measured_like_one_in_memory(lazy):
    stored = ImageSet(
        images=lazy.gather(torch.arange(len(lazy))),
        labels=lazy.labels,
        class_names=lazy.class_names,
    )
    assert measure_normalization(lazy) == measure_normalization(stored)


# -- bundle ------------------------------------------------------------------------------------


@pytest.fixture
def bundle(make_images):
    train = make_images(7).with_labels(torch.tensor([0, 0, 1, 2, -1, -1, 2]))
    return DataBundle(
        name="mine",
        train=train,
        val=None,
        test=make_images(3, seed=1),
        normalization=Normalization(),
    )


def test_bundle_counts_by_split_and_class(bundle):
    assert bundle.counts() == {
        "train": {"class 0": 2, "class 1": 1, "class 2": 2, UNLABELLED_NAME: 2},
        "test": {"class 0": 1, "class 1": 1, "class 2": 1},
    }
    assert bundle.num_classes == 3
    assert bundle.image_shape == (3, 6, 5)


def test_bundle_fingerprint_tells_splits_apart(bundle, make_images):
    def variant(**splits):
        fields = {"train": bundle.train, "val": bundle.val, "test": bundle.test} | splits
        return DataBundle(name="mine", normalization=Normalization(), **fields).fingerprint()

    assert variant() == bundle.fingerprint()
    others = {
        variant(test=None),
        variant(val=bundle.test, test=None),
        variant(test=make_images(3, seed=2)),
        variant(train=make_images(7)),
    }
    assert len(others | {bundle.fingerprint()}) == 5


def test_each_split_has_its_own_fingerprint_and_they_make_the_whole(bundle, make_images):
    prints = bundle.split_fingerprints()
    assert prints == {"train": bundle.train.fingerprint(), "test": bundle.test.fingerprint()}
    assert joint_fingerprint(prints) == bundle.fingerprint()
    assert joint_fingerprint(prints | {"test": "other"}) != bundle.fingerprint()


def test_splits_of_other_classes_or_shapes_are_refused(bundle, make_images):
    fields = {"name": "mine", "train": bundle.train, "normalization": Normalization()}
    with pytest.raises(DataError, match="val images have the classes"):
        DataBundle(**fields, val=make_images(2, num_classes=2), test=None)
    with pytest.raises(DataError, match=r"test images are .* \(3, 6, 6\)"):
        DataBundle(**fields, val=None, test=make_images(3, shape=(3, 6, 6)))


def test_some_names_ten_and_counts_the_rest():
    assert some(["a", "b"]) == "'a', 'b'"
    assert some([str(n) for n in range(12)]).endswith("'9' and 2 more")
