import io
import os
import tracemalloc
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.core.errors import DataError
from limbeck.data.image_folder import LazyImages, load_image_folder
from limbeck.data.images import ImageSet


def zipped(folder, *, prefix="", compression=zipfile.ZIP_DEFLATED):
    """The files of a folder as a zip beside it, each name after ``prefix``."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                # writestr, since write tidies names up.
                archive.writestr(prefix + file.relative_to(folder).as_posix(), file.read_bytes())
    return path


def pixels_of(source):
    """All images of a set, ``(N, H, W, C)``, as a numpy array."""
    return source.gather(torch.arange(len(source))).permute(0, 2, 3, 1).numpy()


def truth(folder, split):
    """Pixels and labels of a split by plain loops and Pillow, in sorted order."""
    pixels, labels = [], []
    for label, name in enumerate(sorted(path.name for path in (folder / split).iterdir())):
        for path in sorted((folder / split / name).iterdir()):
            pixels.append(np.asarray(Image.open(path)))
            labels.append(label)
    return np.stack(pixels), labels


def same(found, expected):
    """Whether two loads hold the same splits with the same names, labels and pixels."""
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.class_names == other.class_names
            assert torch.equal(one.labels, other.labels)
            assert np.array_equal(pixels_of(one), pixels_of(other))
    return True


# -- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda folder: folder, zipped, lambda folder: str(folder)])
@pytest.mark.parametrize("max_bytes", [1 << 30, 0])
def test_pixels_and_labels_are_those_of_the_files(folder, form, max_bytes):
    found = load_image_folder(form(folder), max_bytes=max_bytes)
    assert found.val is None
    for split in ("train", "test"):
        pixels, labels = truth(folder, split)
        source = getattr(found, split)
        assert np.array_equal(pixels_of(source), pixels)
        assert source.labels.tolist() == labels
        assert source.labels.dtype == torch.int64
        assert source.class_names == ("cat", "dog")
        assert source.image_shape == (3, 4, 5)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_a_validation_folder_of_any_usual_name_is_respected(folder, picture, name):
    held_out = [picture(folder / name / label / "9.png", seed=9) for label in ("cat", "dog")]
    found = load_image_folder(folder)
    assert np.array_equal(pixels_of(found.val), held_out)
    assert found.val.labels.tolist() == [0, 1]
    assert (len(found.train), len(found.test)) == (6, 4)


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("TRAIN", "test"), ("Training", "Testing")]
)
def test_splits_are_known_in_any_case(folder, train, test):
    """Else they would be taken for two classes, and a network learns to tell train from test."""
    expected = load_image_folder(folder)
    (folder / "train").rename(folder / "t")
    (folder / "test").rename(folder / test)
    (folder / "t").rename(folder / train)
    assert same(load_image_folder(folder), expected)


def test_class_folders_alone_are_training_images(folder):
    expected = load_image_folder(folder).train
    found = load_image_folder(folder / "train")
    assert found.val is None
    assert found.test is None
    assert np.array_equal(pixels_of(found.train), pixels_of(expected))
    assert found.train.labels.tolist() == expected.labels.tolist()
    assert any("no test folder" in note for note in found.notes)


def test_a_class_may_be_called_train(tmp_path, picture):
    """As one of CIFAR-100 is: with splits and without."""
    for name in ("bus", "train"):
        for split in ("train", "test"):
            picture(tmp_path / "split" / split / name / "0.png")
        picture(tmp_path / "plain" / name / "0.png")
    for root in ("split", "plain"):
        found = load_image_folder(tmp_path / root)
        assert found.train.class_names == ("bus", "train")
        assert found.train.labels.tolist() == [0, 1]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("form", [lambda folder: folder, zipped])
@pytest.mark.parametrize("inner", ["", "train"])
def test_folders_around_everything_are_looked_through(folder, tmp_path, form, inner, depth):
    expected = load_image_folder(folder / inner)
    around = tmp_path / "around"
    place = around.joinpath(*("outer", "middle", "deep")[:depth])
    place.parent.mkdir(parents=True)
    (folder / inner).rename(place)
    (around / "outer" / "readme.txt").write_text("hello")
    assert same(load_image_folder(form(around)), expected)


def test_folders_within_a_class_belong_to_it(folder, picture):
    deep = picture(folder / "train" / "cat" / "indoors" / "black" / "1.png", seed=7)
    found = load_image_folder(folder).train
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert np.array_equal(pixels_of(found)[3], deep)  # after cat/0.png to cat/2.png


def test_classes_are_numbered_in_the_order_of_their_names(tmp_path, picture):
    """By code point, as torchvision's ImageFolder numbers them: 10 before 2, Z before a."""
    names = ["a", "10", "\u00e4", "2", "Z", "b c"]
    pictures = {name: picture(tmp_path / name / "0.png", seed=n) for n, name in enumerate(names)}
    found = load_image_folder(tmp_path).train
    assert found.class_names == ("10", "2", "Z", "a", "b c", "\u00e4")
    for name, pixels in zip(found.class_names, pixels_of(found), strict=True):
        assert np.array_equal(pixels, pictures[name])


def test_names_composed_in_two_ways_are_one_class(folder, picture):
    """A Mac stores an accent as a character of its own; other systems mostly do not.

    The composed name comes after all of ASCII, the decomposed one between "dog" and "fox".
    """
    name = "\u00e9t\u00e9"
    picture(folder / "train" / unicodedata.normalize("NFD", name) / "0.png")
    picture(folder / "test" / unicodedata.normalize("NFC", name) / "0.png")
    for split in ("train", "test"):
        picture(folder / split / "fox" / "0.png")
    found = load_image_folder(folder)
    assert found.train.class_names == found.test.class_names == ("cat", "dog", "fox", name)


def test_other_files_are_ignored_and_said(folder, picture):
    expected = load_image_folder(folder)
    (folder / "train" / "cat" / "notes.txt").write_text("hello")
    (folder / "train" / "cat" / ".hidden.png").write_text("hello")
    (folder / "train" / "cat" / "Thumbs.db").write_text("hello")
    picture(folder / "train" / "stray.png")
    picture(folder / "overview.png")
    found = load_image_folder(folder)
    assert same(found, expected)
    assert found.notes == (
        "2 pictures outside any class folder are ignored: 'overview.png', 'train/stray.png'",
        "1 files are no pictures and are ignored: 'train/cat/notes.txt'",
    )


def test_all_is_well_without_a_note(folder):
    assert load_image_folder(folder).notes == ()


# -- faults of the layout -----------------------------------------------------------------------


def test_classes_that_differ_between_splits_are_named(folder, picture):
    picture(folder / "test" / "bird" / "0.png")
    (folder / "test" / "dog").rename(folder / "test" / "dogs")
    with pytest.raises(
        DataError,
        match="test: other classes than train: it lacks 'dog' and also has 'bird', 'dogs'",
    ):
        load_image_folder(folder)


def test_every_fault_of_the_layout_is_told_at_once(folder, picture):
    picture(folder / "val" / "cat" / "0.png")
    picture(folder / "valid" / "dog" / "0.png")
    picture(folder / "train" / "Dog" / "0.png")
    (folder / "train" / "empty").mkdir()
    with pytest.raises(DataError) as raised:
        load_image_folder(folder)
    lines = str(raised.value).splitlines()
    assert lines == [
        f"{folder} cannot be used:",
        "val images lie in val and in valid: keep one",
        "train: no pictures in class 'empty': fill or remove it",
        "train: classes differ only in case: 'Dog', 'dog': rename one",
        "val: other classes than train: it lacks 'Dog', 'empty'",
        "test: other classes than train: it lacks 'Dog', 'empty'",
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_folder_is_an_error(folder, split):
    (folder / split / "bird" / "nothing inside").mkdir(parents=True)
    with pytest.raises(DataError, match=f"{split}: no pictures in class 'bird': fill or remove"):
        load_image_folder(folder)


def test_an_empty_class_folder_of_a_zip_is_an_error(folder):
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/bird/", b"")
    with pytest.raises(DataError, match="train: no pictures in class 'bird'"):
        load_image_folder(path)


@pytest.mark.parametrize("split", ["", "train/"])
def test_one_class_is_no_classification(tmp_path, picture, split):
    for number in range(2):
        picture(tmp_path / f"{split}cat" / f"{number}.png")
    with pytest.raises(DataError, match="train: only one class, 'cat'; a classifier needs two"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("test/cat/0.png", "test/dog/0.png"),
        ("val/cat/0.png", "test/cat/0.png"),
        ("train/0.png", "train/1.png", "test/0.png"),  # class names in a table somewhere else
        ("Train/0.png", "Val/0.png"),
        ("train/0.png",),
    ],
)
def test_splits_without_class_folders_to_learn_from_are_refused(tmp_path, picture, names):
    for name in names:
        picture(tmp_path / name)
    with pytest.raises(DataError, match="no picture at train/<class>/<picture>; put the pictures"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("form", [lambda folder: folder, zipped])
def test_pictures_in_no_folder_have_no_class(tmp_path, picture, form):
    picture(tmp_path / "flat" / "0.png")
    with pytest.raises(DataError, match="has no folders and no picture at train/<class>"):
        load_image_folder(form(tmp_path / "flat"))


def test_nothing_to_see_is_an_error(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "0.txt").write_text("hello")
    with pytest.raises(DataError, match=r"holds no pictures \(\.bmp, .*wanted train/<class>"):
        load_image_folder(tmp_path)
    with pytest.raises(DataError, match="no directory or zip"):
        load_image_folder(tmp_path / "nowhere")


# -- pictures -----------------------------------------------------------------------------------


def test_every_picture_that_cannot_be_read_is_named_in_one_error(folder):
    broken = {
        "train/cat/broken.jpg": b"\xff\xd8\xff\xe0 broken",
        "train/dog/empty.png": b"",
        "test/dog/text.png": b"<html>404</html>",
    }
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere")
    for max_bytes in (1 << 30, 0):
        with pytest.raises(DataError, match="4 pictures cannot be read; mend or remove") as raised:
            load_image_folder(folder, max_bytes=max_bytes)
        for name in (*broken, "train/cat/gone.png"):
            assert f"  {name}: " in str(raised.value)


def test_many_unreadable_pictures_are_counted(folder):
    for number in range(30):
        (folder / "train" / "cat" / f"bad{number:02}.png").write_bytes(b"")
    with pytest.raises(DataError, match="30 pictures cannot be read") as raised:
        load_image_folder(folder)
    assert len(str(raised.value).splitlines()) == 12
    assert str(raised.value).endswith("  and 20 more")


def test_where_no_picture_can_be_read_that_is_the_error(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"broken")
    for max_bytes in (1 << 30, 0):
        with pytest.raises(DataError, match="2 pictures cannot be read"):
            load_image_folder(tmp_path, max_bytes=max_bytes)


@pytest.mark.parametrize("max_bytes", [1 << 30, 0])
def test_sizes_that_differ_need_an_image_size(folder, picture, max_bytes):
    picture(folder / "train" / "cat" / "wide.png", size=(20, 10))
    with pytest.raises(
        DataError,
        match=r"2 sizes: \d x \d \(10 images\), \d+ x \d+ \(1 images\)\. Set image_size",
    ):
        load_image_folder(folder, max_bytes=max_bytes)
    found = load_image_folder(folder, image_size=4, max_bytes=max_bytes)
    assert found.train.image_shape == found.test.image_shape == (3, 4, 4)


def test_image_size_keeps_the_middle_of_a_picture_whose_shorter_side_fits(folder):
    pixels, _ = truth(folder, "train")  # 4 high, 5 wide: half a pixel on each side goes
    found = pixels_of(load_image_folder(folder, image_size=4).train)
    assert np.array_equal(found, pixels[:, :, :4])


@pytest.mark.parametrize("max_bytes", [1 << 30, 0])
@pytest.mark.parametrize("image_size", [None, 3, 8])
def test_a_set_beyond_the_limit_has_the_same_pixels(folder, image_size, max_bytes):
    expected = load_image_folder(folder, image_size=image_size)
    found = load_image_folder(folder, image_size=image_size, max_bytes=max_bytes)
    assert isinstance(found.train, LazyImages if max_bytes == 0 else ImageSet)
    assert same(found, expected)
    assert any("read from their files" in note for note in found.notes) == (max_bytes == 0)


def test_the_limit_counts_every_split_to_the_byte(folder):
    size = 10 * 3 * 4 * 5
    assert load_image_folder(folder, max_bytes=size).train.in_memory
    assert not load_image_folder(folder, max_bytes=size - 1).train.in_memory
    assert not load_image_folder(folder, image_size=5, max_bytes=size).train.in_memory
    assert load_image_folder(folder, in_chans=1, max_bytes=size // 3).train.in_memory


@pytest.fixture
def grey(tmp_path, picture):
    """Two classes of two grey pictures each."""
    root = tmp_path / "grey"
    for number in range(2):
        for name in ("cat", "dog"):
            picture(root / name / f"{number}.png", mode="L", seed=number)
    return root


@pytest.mark.parametrize("max_bytes", [1 << 30, 0])
def test_grey_pictures_have_one_channel_until_one_has_colour(grey, picture, max_bytes):
    pixels, _ = truth(grey.parent, "grey")
    found = load_image_folder(grey, max_bytes=max_bytes).train
    assert found.num_channels == 1
    assert np.array_equal(pixels_of(found)[:, :, :, 0], pixels)
    colour = picture(grey / "dog" / "2.png")
    found = load_image_folder(grey, max_bytes=max_bytes).train
    assert found.num_channels == 3
    for channel in range(3):
        assert np.array_equal(pixels_of(found)[:4, :, :, channel], pixels)
    assert np.array_equal(pixels_of(found)[4], colour)


@pytest.mark.parametrize("max_bytes", [1 << 30, 0])
def test_channels_are_those_asked_for(grey, folder, max_bytes):
    assert load_image_folder(grey, in_chans=3, max_bytes=max_bytes).train.num_channels == 3
    found = load_image_folder(folder, in_chans=1, max_bytes=max_bytes).train
    expected = [
        np.asarray(Image.open(folder / "train" / name / f"{number}.png").convert("L"))
        for name in ("cat", "dog")
        for number in range(3)
    ]
    assert np.array_equal(pixels_of(found)[:, :, :, 0], expected)


def test_animations_are_said(folder):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "train" / "dog" / "x.webp", save_all=True, append_images=frames[1:])
    (note,) = load_image_folder(folder).notes
    assert note == "1 pictures have several frames, and the first is used: 'train/dog/x.webp'"


def test_the_kind_of_a_picture_is_told_by_its_content_and_not_its_name(folder):
    cat = folder / "train" / "cat"
    expected = load_image_folder(folder)
    (cat / "1.png").rename(cat / "1.JPEG")
    assert same(load_image_folder(folder), expected)


@pytest.mark.parametrize("side", [256, 8])
def test_pictures_are_in_order_however_many_threads_read_them(tmp_path, side):
    """Large ones are read by several threads."""
    for number in range(200):
        path = tmp_path / ("even" if number % 2 == 0 else "odd") / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (side, side), number).save(path)
    found = load_image_folder(tmp_path).train
    assert pixels_of(found)[:, 0, 0, 0].tolist() == [*range(0, 200, 2), *range(1, 200, 2)]


def test_pictures_are_not_held_twice(tmp_path):
    """Three splits of a size: never more than all of them and one beside."""
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            for number in range(10):
                path = tmp_path / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (200, 200)).save(path)
    tracemalloc.start()
    found = load_image_folder(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * 3 * found.train.images.numel()


# -- read when asked for ------------------------------------------------------------------------


def test_a_set_on_disk_behaves_as_one_in_memory(folder, lazy):
    stored = load_image_folder(folder).train
    assert len(lazy) == len(stored) == 6
    assert not lazy.in_memory
    assert lazy.num_channels == stored.num_channels
    positions = torch.tensor([4, 0, 4])
    index = torch.tensor([2, 1])
    assert torch.equal(lazy.gather(positions), stored.gather(positions))
    part, expected = lazy.subset(positions), stored.subset(positions)
    assert torch.equal(part.gather(index), expected.gather(index))
    assert part.labels.tolist() == expected.labels.tolist() == [1, 0, 1]
    relabelled = part.with_labels(torch.tensor([-1, 1, 0]))
    assert relabelled.labels.tolist() == [-1, 1, 0]
    assert torch.equal(relabelled.gather(index), part.gather(index))
    assert lazy.gather(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 4, 5)


def test_a_picture_that_changes_later_is_named(folder, lazy, picture):
    picture(folder / "train" / "cat" / "1.png", size=(6, 4))
    with pytest.raises(DataError, match=r"train/cat/1\.png has shape \(3, 4, 6\), the others"):
        lazy.gather(torch.arange(6))
    (folder / "train" / "cat" / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"train/cat/1\.png: no picture"):
        lazy.gather(torch.arange(6))
    (folder / "train" / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match=r"train/cat/1\.png: .*No such file"):
        lazy.gather(torch.arange(6))
    assert lazy.gather(torch.tensor([0, 5])).shape == (2, 3, 4, 5)


@pytest.mark.parametrize("form", [lambda folder: folder, zipped])
def test_a_fingerprint_changes_with_whatever_changes_the_images(folder, picture, form):
    def lazy(**options):
        return load_image_folder(form(folder), max_bytes=0, **options).train

    first = lazy()
    prints = [
        first.fingerprint(),
        lazy(image_size=3).fingerprint(),
        lazy(in_chans=1).fingerprint(),
        first.with_labels(first.labels.flip(0)).fingerprint(),
        first.subset(torch.arange(5)).fingerprint(),
        first.subset(torch.arange(6).flip(0)).fingerprint(),
    ]
    assert lazy().fingerprint() == prints[0]
    picture(folder / "train" / "cat" / "1.png", mode="L", seed=77)  # other pixels and bytes
    prints.append(lazy().fingerprint())
    (folder / "train" / "cat" / "1.png").rename(folder / "train" / "cat" / "1b.png")
    prints.append(lazy().fingerprint())
    for split in ("train", "test"):
        (folder / split / "dog").rename(folder / split / "fox")
    prints.append(lazy().fingerprint())
    assert len(set(prints)) == 9


def test_a_fingerprint_in_memory_is_that_of_the_pixels_alone(folder):
    """Whether they come from a directory, a zip, or another format."""
    expected = load_image_folder(folder).train.fingerprint()
    assert load_image_folder(zipped(folder)).train.fingerprint() == expected
    for path in (folder / "train").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    assert load_image_folder(folder).train.fingerprint() == expected


# -- links and zips -----------------------------------------------------------------------------


def test_a_circle_of_links_adds_nothing(folder):
    expected = load_image_folder(folder)
    (folder / "train" / "cat" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "train" / "dog" / "here").symlink_to(folder / "train" / "dog")
    assert same(load_image_folder(folder), expected)


@pytest.mark.parametrize("prefix", ["./", "pictures//", "a/./"])
def test_names_in_a_zip_may_be_written_in_a_roundabout_way(folder, prefix):
    expected = load_image_folder(folder)
    path = zipped(folder, prefix=prefix)
    assert same(load_image_folder(path), expected)
    assert same(load_image_folder(path, max_bytes=0), expected)


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "train/cat/../../../evil.png"])
def test_a_zip_with_names_that_lead_out_of_it_is_refused(folder, name):
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(DataError, match=r"lead out of it, .*evil\.png"):
        load_image_folder(path)
    assert sorted(path.parent.rglob("*")) == before


def test_a_zip_with_a_password_is_refused(folder):
    path = zipped(folder)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"needs a password for 'test/cat/0\.png'; pack it without"):
        load_image_folder(path)


def test_a_bomb_in_a_zip_is_one_of_the_unreadable_pictures(folder):
    path = zipped(folder)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/bomb.bmp", b"BM" + bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"1 pictures cannot .*\n  train/cat/bomb\.bmp: .*refused"):
        load_image_folder(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_line_that_resizing_would_make_huge_is_refused(folder):
    """100,000 x 1 pixels are a small file; as 22,400,000 x 224 they take gigabytes."""
    Image.new("RGB", (100_000, 1)).save(folder / "train" / "cat" / "line.png")
    with pytest.raises(DataError, match=r"line\.png: 100000 x 1 pixels become 22400000 x 224"):
        load_image_folder(folder, image_size=224)


def test_a_damaged_member_of_a_zip_is_named(folder):
    path = zipped(folder, compression=zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("train/dog/1.png")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + member.file_size - 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"1 pictures cannot be read.*\n  train/dog/1\.png: "):
        load_image_folder(path)


def test_flipped_bytes_in_a_zip_are_a_data_error_or_another_name(folder):
    path = zipped(folder)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for turn in range(200):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data if turn % 4 else data[: rng.integers(len(data))])
        try:
            load_image_folder(path)
        except DataError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("place", [6, 4])
def test_a_zip_of_an_unknown_version_or_with_broken_names_is_an_error(folder, place):
    """Zipfile answers with NotImplementedError and UnicodeDecodeError."""
    path = zipped(folder)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    if place == 6:
        data[entry + 6] = 200  # version needed
    else:
        data[entry + 9] |= 8  # the name is UTF-8,
        data[entry + 46] = 0xFF  # and it is not
    path.write_bytes(data)
    with pytest.raises(DataError, match="no readable zip"):
        load_image_folder(path)


def test_a_stored_checksum_is_checked(folder):
    """The pixels of an uncompressed bitmap may change without a decoder noticing."""
    bitmap = io.BytesIO()
    Image.new("RGB", (5, 4)).save(bitmap, "BMP")
    path = zipped(folder, compression=zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/cat/x.bmp", bitmap.getvalue())
        member = archive.getinfo("train/cat/x.bmp")
    assert zlib.crc32(bitmap.getvalue()) == member.CRC
    with path.open("r+b") as stream:
        stream.seek(member.header_offset + 30 + len(member.filename) + 60, os.SEEK_SET)
        stream.write(b"\x55")
    with pytest.raises(DataError, match=r"x\.bmp: .*CRC"):
        load_image_folder(path)
