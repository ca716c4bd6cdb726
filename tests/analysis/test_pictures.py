import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.analysis.base import NotApplicableError
from limbeck.analysis.pictures import read_pictures
from limbeck.core.errors import DataError


@pytest.fixture
def case(make_case, images, labels, linear):
    network = linear(torch.eye(16)[:3], torch.zeros(3))
    return make_case(network, network, network, images, labels)


def write(path, value, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, dtype=np.uint8)).save(path)


def test_pictures_lie_anywhere_and_folders_called_like_classes_label_them(case, tmp_path):
    write(tmp_path / "B" / "one.png", 10)
    write(tmp_path / "deep" / "c" / "two.png", 20)
    write(tmp_path / "z" / "three.png", 30)
    write(tmp_path / "four.png", 40)
    (tmp_path / "notes.txt").write_text("no picture")
    found = read_pictures(case, tmp_path, at_most=10)
    assert found.names == ("B/one.png", "deep/c/two.png", "four.png", "z/three.png")
    assert found.labels.tolist() == [1, 2, -1, -1]
    assert found.images.shape == (4, 1, 4, 4)
    assert found.images[:, 0, 0, 0].tolist() == [10, 20, 40, 30]


def test_pictures_come_in_the_size_and_channels_of_the_test_images(case, tmp_path):
    tmp_path.joinpath("a").mkdir()
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:, :2] = 255  # cut away with the left margin
    Image.fromarray(pixels).save(tmp_path / "a" / "wide.png")
    found = read_pictures(case, tmp_path, at_most=10)
    assert found.images.shape == (1, 1, 4, 4)
    assert found.images.max() == 0


def test_of_too_many_some_are_drawn_and_the_same_again(case, tmp_path):
    for value in range(12):
        write(tmp_path / "a" / f"{value:02d}.png", value)
    first = read_pictures(case, tmp_path, at_most=5)
    assert len(first.names) == 5
    assert list(first.names) == sorted(first.names)
    assert read_pictures(case, tmp_path, at_most=5).names == first.names
    assert [int(name[2:4]) for name in first.names] == first.images[:, 0, 0, 0].tolist()


def test_a_zip_is_read_as_a_folder_is(case, tmp_path):
    write(tmp_path / "a.png", 7)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "b/a.png")
    found = read_pictures(case, tmp_path / "set.zip", at_most=10)
    assert found.labels.tolist() == [1]


def test_a_folder_without_pictures_is_refused(case, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match="holds no pictures"):
        read_pictures(case, tmp_path, at_most=10)


def test_a_damaged_picture_is_named(case, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png"):
        read_pictures(case, tmp_path, at_most=10)


def test_test_images_that_are_no_squares_have_no_others_beside_them(
    make_case, linear, labels, tmp_path
):
    write(tmp_path / "a.png", 7)
    network = linear(torch.eye(12)[:3], torch.zeros(3))
    images = torch.zeros(30, 1, 3, 4, dtype=torch.uint8)
    case = make_case(network, network, network, images, labels)
    with pytest.raises(NotApplicableError, match="the test images are 3 x 4"):
        read_pictures(case, tmp_path, at_most=10)
