import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from limbeck.core.errors import DataError
from limbeck.data.from_dataset import image_set_from_dataset, own_classes


class Pairs(Dataset):
    """A data set of given items."""

    def __init__(self, *items):
        self.items = items

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


@pytest.fixture
def pixels(generator):
    return torch.randint(256, (6, 3, 4, 5), generator=generator, dtype=torch.uint8)


LABELS = [0, 1, 2, 0, 1, 2]


def test_bytes_are_kept_as_they_are(pixels):
    images = image_set_from_dataset(TensorDataset(pixels, torch.tensor(LABELS)))
    assert torch.equal(images.images, pixels)
    assert images.labels.tolist() == LABELS
    assert images.class_names == ("0", "1", "2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_byte_survives_as_a_fraction_of_one(dtype):
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = image_set_from_dataset(TensorDataset(every.to(dtype) / 255, torch.tensor([0])))
    assert torch.equal(images.images, every)


def test_pillow_images_and_tensors_are_alike(pixels):
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    images = image_set_from_dataset(Pairs(*zip(pictures, LABELS, strict=True)))
    assert torch.equal(images.images, pixels)


def test_grey_comes_with_or_without_its_channel():
    image = torch.arange(4, dtype=torch.uint8).reshape(2, 2)
    images = image_set_from_dataset(Pairs((image, 0), (image[None], 0)))
    assert images.images.shape == (2, 1, 2, 2)
    assert torch.equal(images.images[0], images.images[1])


@pytest.mark.parametrize("label", [1, torch.tensor(1), torch.tensor([1]), np.int64(1), np.uint8(1)])
def test_any_kind_of_whole_number_is_a_label(pixels, label):
    assert image_set_from_dataset(Pairs((pixels[0], label))).labels.tolist() == [1]


def test_names_are_the_given_ones_or_the_data_sets_own(pixels):
    dataset = Pairs(*zip(pixels, LABELS, strict=True))
    assert image_set_from_dataset(dataset, ["a", "b", "c", "d"]).class_names == ("a", "b", "c", "d")
    dataset.classes = ["x", "y", "z"]
    assert image_set_from_dataset(dataset).class_names == ("x", "y", "z")


def test_a_subset_has_the_names_of_the_whole(pixels):
    """As torch's random_split makes them: its parts have no ``classes`` of their own."""
    dataset = Pairs(*zip(pixels, LABELS, strict=True))
    dataset.classes = ["x", "y", "z"]
    part = Subset(Subset(dataset, [4, 3, 0]), [0, 1])
    images = image_set_from_dataset(part)
    assert images.class_names == ("x", "y", "z")
    assert images.labels.tolist() == [1, 0]


@pytest.mark.parametrize("classes", [None, [], 3, [("tench", "Tinca"), ("goldfish",)]])
def test_classes_that_are_no_list_of_names_are_no_names(pixels, classes):
    dataset = Pairs(*zip(pixels, LABELS, strict=True))
    dataset.classes = classes
    assert own_classes(dataset) is None
    assert image_set_from_dataset(dataset).class_names == ("0", "1", "2")


def test_a_stream_is_read_to_its_end(pixels):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(pixels, LABELS, strict=True)

    assert torch.equal(image_set_from_dataset(Stream()).images, pixels)


def test_unknown_labels_are_minus_one(pixels):
    images = image_set_from_dataset(Pairs((pixels[0], -1), (pixels[1], 1)))
    assert images.labels.tolist() == [-1, 1]


def bad(value, at=(0, 0, 0)):
    image = torch.zeros(3, 2, 2)
    image[at] = value
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (bad(float("nan")), "image 1 has NaN pixels"),
        (
            bad(1.5),
            "image 1 has values from 0 to 1.5.*normalisation, which belongs to each network",
        ),
        (bad(-0.1), "image 1 has values from -0.1 to 0.*normalisation"),
        (bad(float("inf")), "image 1 has values from 0 to inf"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "image 1 is torch.int64; wanted uint8"),
        (torch.zeros(2, 2, 3), r"image 1 has shape \(2, 2, 3\)"),
        (torch.zeros(3, 2, 3), r"image 1 is \(3, 2, 3\), the first \(3, 2, 2\)"),
        (torch.zeros(1, 2, 2), r"image 1 is \(1, 2, 2\), the first \(3, 2, 2\)"),
        (np.zeros((3, 2, 2)), "image 1 is a ndarray; wanted a Pillow image or a torch tensor"),
    ],
)
def test_unusable_images_are_named(image, message):
    with pytest.raises(DataError, match=message):
        image_set_from_dataset(Pairs((torch.zeros(3, 2, 2), 0), (image, 0)))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (2, r"image 1 has label 2, outside \[-1, 2\)"),
        (-2, "image 1 has label -2"),
        ("cat", "image 1 has label 'cat'"),
        (1.5, "image 1 has label 1.5"),
        (torch.tensor([0, 1]), "image 1 has label tensor"),
        (None, "image 1 has label None"),
    ],
)
def test_unusable_labels_are_named(pixels, label, message):
    with pytest.raises(DataError, match=message):
        image_set_from_dataset(Pairs((pixels[0], 0), (pixels[1], label)), ["cat", "dog"])


def test_data_sets_of_something_else_are_refused(pixels):
    with pytest.raises(DataError, match="no images"):
        image_set_from_dataset(Pairs())
    with pytest.raises(DataError, match=r"item 0 is a dict, not \(image, label\)"):
        image_set_from_dataset(Pairs({"image": pixels[0]}))
    with pytest.raises(DataError, match="neither a length nor an iterator"):
        image_set_from_dataset(object())
