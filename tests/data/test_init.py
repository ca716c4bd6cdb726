import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset, random_split

from limbeck.core.errors import DataError
from limbeck.core.normalization import Normalization
from limbeck.core.types import UNLABELLED
from limbeck.data import (
    DataConfig,
    LazyImages,
    build_data,
    bundle_from_datasets,
    image_folder,
    load_digits,
    to_channels,
)


def as_bytes(source):
    """Every image of a set, to be looked up and compared."""
    return [image.numpy().tobytes() for image in source.gather(torch.arange(len(source)))]


def shares(labels):
    """Images of each class, as a share of all labelled ones."""
    counts = torch.bincount(labels[labels != UNLABELLED]).double()
    return counts / counts.sum()


# -- in which order -----------------------------------------------------------------------------


def test_train_and_val_share_out_the_training_images_and_test_is_left_alone():
    bundle = build_data(DataConfig(val_fraction=0.2), seed=3)
    train, test = load_digits()
    assert sorted(as_bytes(bundle.train) + as_bytes(bundle.val)) == sorted(as_bytes(train))
    assert bundle.test.fingerprint() == test.fingerprint()
    assert len(bundle.val) == round(0.2 * 1348)
    assert (shares(bundle.val.labels) - shares(train.labels)).abs().max() < 0.004
    assert (bundle.name, bundle.num_classes, bundle.image_shape) == ("digits", 10, (1, 8, 8))


def test_fraction_comes_first_then_validation_then_labels():
    bundle = build_data(DataConfig(fraction=0.5, val_fraction=0.1, num_labels=50), seed=0)
    assert len(bundle.train) + len(bundle.val) == 674  # half of 1,348
    assert len(bundle.val) == 67  # a tenth of the half
    assert (bundle.val.labels >= 0).all()  # validation keeps its labels
    assert int((bundle.train.labels >= 0).sum()) == 50  # of what is left to learn from
    assert len(bundle.test) == 449
    assert (bundle.test.labels >= 0).all()


def test_the_long_tail_is_of_the_share_that_is_used_and_validation_has_it_too():
    config = DataConfig(fraction=0.5, imbalance_factor=10, val_fraction=0.2)
    bundle = build_data(config, seed=0)
    half = torch.bincount(build_data(DataConfig(fraction=0.5, val_fraction=0), seed=0).train.labels)
    both = torch.cat([bundle.train.labels, bundle.val.labels])
    expected = [min(int(n), int(half.max() * 10 ** (-k / 9) + 1e-9)) for k, n in enumerate(half)]
    assert torch.bincount(both).tolist() == expected
    assert torch.bincount(bundle.val.labels).diff().max() <= 1  # no rarer class has many more
    assert len(bundle.val) == round(0.2 * len(both))
    assert bundle.label_counts().tolist() == torch.bincount(bundle.train.labels).tolist()
    assert bundle.test.fingerprint() == load_digits().test.fingerprint()
    assert "long tail of factor 10" in bundle.notes[-1]


def test_the_long_tail_is_the_split_seeds():
    free = DataConfig(imbalance_factor=10)
    prints = [build_data(free, seed=seed).train.fingerprint() for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    fixed = DataConfig(imbalance_factor=10, split_seed=0)
    assert build_data(fixed, seed=1).train.fingerprint() == prints[0]


def test_hidden_labels_change_neither_images_nor_validation():
    every = build_data(DataConfig(), seed=0)
    few = build_data(DataConfig(num_labels=100), seed=0)
    assert as_bytes(few.train) == as_bytes(every.train)
    assert few.val.fingerprint() == every.val.fingerprint()
    kept = few.train.labels != UNLABELLED
    assert int(kept.sum()) == 100
    assert torch.equal(few.train.labels[kept], every.train.labels[kept])
    assert torch.bincount(few.train.labels[kept], minlength=10).min() >= 9  # stratified


def test_labelled_only_leaves_the_same_labelled_images_alone():
    few = build_data(DataConfig(num_labels=100), seed=0)
    alone = build_data(DataConfig(num_labels=100, labelled_only=True), seed=0)
    labelled = few.train.subset((few.train.labels >= 0).nonzero().flatten())
    assert alone.train.fingerprint() == labelled.fingerprint()
    assert len(alone.train) == 100
    assert alone.val.fingerprint() == few.val.fingerprint()
    assert alone.test.fingerprint() == few.test.fingerprint()


def test_without_a_validation_share_there_is_none():
    bundle = build_data(DataConfig(val_fraction=0), seed=0)
    assert bundle.val is None
    assert bundle.train.fingerprint() == load_digits().train.fingerprint()


def test_nothing_but_the_shared_out_images_depends_on_the_seed():
    config = DataConfig(fraction=0.5, num_labels=20)
    bundles = [build_data(config, seed=seed) for seed in range(3)]
    assert len({bundle.test.fingerprint() for bundle in bundles}) == 1
    assert len({bundle.normalization.mean for bundle in bundles}) == 1
    for split in ("train", "val"):
        assert len({getattr(bundle, split).fingerprint() for bundle in bundles}) == 3
    assert build_data(config, seed=1).fingerprint() == bundles[1].fingerprint()


def test_a_split_seed_fixes_the_split_for_all_seeds():
    config = DataConfig(fraction=0.5, num_labels=20, split_seed=7)
    prints = {build_data(config, seed=seed).fingerprint() for seed in range(3)}
    free = DataConfig(fraction=0.5, num_labels=20)
    assert prints == {build_data(free, seed=7).fingerprint()}


def test_the_numbers_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="between 10, one for each class, and 1213"):
        build_data(DataConfig(num_labels=9), seed=0)
    with pytest.raises(DataError, match="between 10, one for each class, and 1213"):
        build_data(DataConfig(num_labels=1214), seed=0)


# -- channels and normalisation -----------------------------------------------------------------


def test_normalisation_is_that_of_all_training_images_whatever_is_held_out():
    train = load_digits().train.images.numpy() / 255
    bundle = build_data(DataConfig(fraction=0.1, num_labels=20), seed=5)
    assert bundle.normalization.mean == pytest.approx([train.mean()], abs=5e-5)
    assert bundle.normalization.std == pytest.approx([train.std()], abs=5e-5)


def test_the_test_images_have_no_part_in_the_normalisation():
    train = pairs(30)
    prints = {
        bundle_from_datasets(
            [train, TensorDataset(torch.full((3, 3, 4, 4), value).byte(), torch.arange(3))],
            PYTHON,
            seed=0,
        ).normalization.mean
        for value in (0, 255)
    }
    assert len(prints) == 1


def test_digits_become_colour_where_that_is_asked_for():
    bundle = build_data(DataConfig(in_chans=3), seed=0)
    plain = build_data(DataConfig(), seed=0)
    assert bundle.image_shape == (3, 8, 8)
    for name, source in bundle.splits.items():
        assert torch.equal(source.images, plain.splits[name].images.expand(-1, 3, -1, -1))
    assert bundle.normalization.mean == plain.normalization.mean * 3


@pytest.fixture
def cifar(tmp_path):
    """``cifar(dataset, num_images)``: an archive of random pixels in the official layout."""

    def make(dataset, num_images=20, *, num_classes=4):
        rng = np.random.default_rng(0)
        names = [f"class {label}" for label in range(num_classes)]

        def table(count, key):
            labels = [number % num_classes for number in range(count)]
            return {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), key: labels}

        if dataset == "cifar10":
            files = {f"data_batch_{part}": table(num_images, "labels") for part in range(1, 6)}
            files |= {"test_batch": table(num_images, "labels")}
            files |= {"batches.meta": {"label_names": names}}
        else:
            files = {name: table(num_images, "fine_labels") for name in ("train", "test")}
            files |= {"meta": {"fine_label_names": names}}
        stem = "cifar-10-python" if dataset == "cifar10" else "cifar-100-python"
        with tarfile.open(tmp_path / f"{stem}.tar.gz", "w:gz", compresslevel=1) as archive:
            for name, content in files.items():
                data = pickle.dumps(content, 2)
                member = tarfile.TarInfo(f"folder/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [
        # Of the 50,000 official training images, as every benchmark code has them.
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ],
)
def test_cifar_has_the_benchmarks_normalisation(cifar, dataset, mean, std):
    config = DataConfig(dataset=dataset, data_dir=str(cifar(dataset)))
    bundle = build_data(config, seed=0)
    assert bundle.normalization == Normalization(mean=mean, std=std)
    assert bundle.name == dataset
    assert bundle.image_shape == (3, 32, 32)


def test_grey_cifar_is_measured_since_no_benchmark_has_numbers_for_it(cifar):
    place = str(cifar("cifar100"))
    colour = build_data(DataConfig(dataset="cifar100", data_dir=place, val_fraction=0), seed=0)
    config = DataConfig(dataset="cifar100", data_dir=place, in_chans=1, val_fraction=0)
    grey = build_data(config, seed=0)
    assert torch.equal(grey.train.images, to_channels(colour.train.images, 1))
    pixels = grey.train.images.numpy() / 255
    assert grey.normalization.mean == pytest.approx([pixels.mean()], abs=5e-5)


def test_cifar_of_other_sizes_is_used_and_said(cifar):
    config = DataConfig(dataset="cifar10", data_dir=str(cifar("cifar10")))
    bundle = build_data(config, seed=0)
    assert bundle.notes == ("100 training and 20 test images are not the official 50000 and 10000",)
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (90, 10, 20)


def test_cifar_of_the_official_sizes_needs_no_note(cifar, monkeypatch):
    monkeypatch.setattr("limbeck.data.CIFAR_SIZES", (20, 20))
    config = DataConfig(dataset="cifar100", data_dir=str(cifar("cifar100")))
    assert build_data(config, seed=0).notes == ()


# -- folders ------------------------------------------------------------------------------------


def test_a_folders_own_validation_is_not_split_again(folder, picture):
    for name in ("cat", "dog"):
        picture(folder / "val" / name / "0.png", seed=50)
    config = DataConfig(dataset="image_folder", data_dir=str(folder), val_fraction=0.5)
    bundle = build_data(config, seed=0)
    assert {name: len(source) for name, source in bundle.splits.items()} == {
        "train": 6,
        "val": 2,
        "test": 4,
    }


def test_a_folder_without_validation_is_split(folder):
    config = DataConfig(dataset="image_folder", data_dir=str(folder), val_fraction=0.34)
    bundle = build_data(config, seed=0)
    assert bundle.counts() == {
        "train": {"cat": 2, "dog": 2},
        "val": {"cat": 1, "dog": 1},
        "test": {"cat": 2, "dog": 2},
    }


def test_settings_and_notes_of_a_folder_pass_through(folder):
    config = DataConfig(
        dataset="image_folder", data_dir=str(folder / "train"), image_size=3, in_chans=1
    )
    bundle = build_data(config.changed(val_fraction=0), seed=0)
    assert bundle.image_shape == (1, 3, 3)
    assert bundle.test is None
    assert bundle.notes == ("there is no test folder, so no image is kept for a final test",)


def test_images_on_disk_are_split_like_those_in_memory(folder, monkeypatch):
    config = DataConfig(
        dataset="image_folder", data_dir=str(folder), val_fraction=0.34, num_labels=2
    )
    stored = build_data(config, seed=0)
    limited = image_folder.load_image_folder
    monkeypatch.setattr(
        "limbeck.data.load_image_folder",
        lambda root, **options: limited(root, max_bytes=0, **options),
    )
    lazy = build_data(config, seed=0)
    assert isinstance(lazy.train, LazyImages)
    assert lazy.normalization == stored.normalization
    for name, source in stored.splits.items():
        assert as_bytes(lazy.splits[name]) == as_bytes(source)
        assert torch.equal(lazy.splits[name].labels, source.labels)


# -- data passed in Python ----------------------------------------------------------------------

PYTHON = DataConfig(dataset="python")


def pairs(num_images, *, num_classes=3, seed=0, shape=(3, 4, 4), classes=None):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (num_images, *shape), generator=generator, dtype=torch.uint8)
    dataset = TensorDataset(pixels, torch.arange(num_images) % num_classes)
    if classes is not None:
        dataset.classes = classes
    return dataset


def test_data_passed_in_python_cannot_be_loaded_from_settings():
    with pytest.raises(DataError, match="passed in Python and are stored nowhere; pass them again"):
        build_data(PYTHON, seed=0)


def test_two_data_sets_are_split_as_any_other_data():
    train, test = pairs(30), pairs(9, seed=1)
    bundle = bundle_from_datasets([train, test], PYTHON.changed(num_labels=6), seed=0)
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (27, 3, 9)
    assert int((bundle.train.labels >= 0).sum()) == 6
    assert torch.equal(bundle.test.images, test.tensors[0])
    pixels = train.tensors[0].numpy() / 255
    assert bundle.normalization.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=5e-5)
    assert bundle.name == "python"


def test_training_images_without_labels_have_the_classes_of_the_test_images():
    unlabelled = TensorDataset(pairs(30).tensors[0], torch.full((30,), UNLABELLED))
    bundle = bundle_from_datasets(
        [unlabelled, pairs(9, seed=1)], PYTHON.changed(val_fraction=0), seed=0
    )
    assert bundle.train.class_names == bundle.test.class_names == ("0", "1", "2")
    assert (bundle.train.labels == UNLABELLED).all()
    with pytest.raises(DataError, match=r"no training image has a label, .* val_fraction to 0"):
        bundle_from_datasets([unlabelled, pairs(9)], PYTHON, seed=0)
    three = bundle_from_datasets([unlabelled, pairs(6), pairs(9)], PYTHON, seed=0)
    assert (len(three.train), len(three.val)) == (30, 6)


def test_three_data_sets_are_train_val_and_test():
    sets = [pairs(count, seed=count) for count in (30, 6, 9)]
    bundle = bundle_from_datasets(sets, PYTHON, seed=0)
    for name, dataset in zip(("train", "val", "test"), sets, strict=True):
        assert torch.equal(bundle.splits[name].images, dataset.tensors[0])
        assert torch.equal(bundle.splits[name].labels, dataset.tensors[1])


@pytest.mark.parametrize("count", [0, 1, 4])
def test_other_numbers_of_data_sets_are_refused(count):
    with pytest.raises(DataError, match=f"wanted .train, test. or .train, val, test..*got {count}"):
        bundle_from_datasets([pairs(6)] * count, PYTHON, seed=0)


def test_classes_are_those_of_the_training_images():
    train = pairs(9, classes=["a", "b", "c"])
    for test in (pairs(4, num_classes=2), pairs(4, num_classes=2, classes=["a", "b", "c"])):
        bundle = bundle_from_datasets([train, test], PYTHON.changed(val_fraction=0), seed=0)
        assert bundle.test.class_names == ("a", "b", "c")


def test_a_label_that_training_does_not_know_is_refused():
    with pytest.raises(DataError, match=r"has label 3, outside \[-1, 3\)"):
        bundle_from_datasets([pairs(9), pairs(4, num_classes=4)], PYTHON, seed=0)


@pytest.mark.parametrize("names", [["b", "a", "c"], ["a", "b"], ["a", "b", "c", "d"]])
def test_other_names_of_classes_or_another_order_are_refused(names):
    """The same numbers would mean other things."""
    train, test = pairs(30, classes=["a", "b", "c"]), pairs(4, num_classes=2, classes=names)
    with pytest.raises(DataError, match=r"test images have the classes .*the same, in one order"):
        bundle_from_datasets([train, test], PYTHON, seed=0)


def test_parts_of_one_data_set_fit_the_whole():
    """The usual way to make a validation set, and a subset has no ``classes``."""
    whole, test = pairs(30, classes=["a", "b", "c"]), pairs(9, classes=["a", "b", "c"])
    train, val = random_split(whole, [24, 6], generator=torch.Generator().manual_seed(0))
    assert not hasattr(train, "classes")
    bundle = bundle_from_datasets([train, val, test], PYTHON, seed=0)
    assert bundle.train.class_names == ("a", "b", "c")
    other = Subset(pairs(9, classes=["x", "y", "z"]), [0, 1])
    with pytest.raises(DataError, match="val images have the classes 'x', 'y', 'z'"):
        bundle_from_datasets([train, other, test], PYTHON, seed=0)


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"test images are .* \(3, 5, 5\), the training images"):
        bundle_from_datasets([pairs(30), pairs(9, shape=(3, 5, 5))], PYTHON, seed=0)


def test_channels_of_data_sets_are_those_asked_for():
    grey, colour = pairs(30, shape=(1, 4, 4)), pairs(9, shape=(3, 4, 4))
    with pytest.raises(DataError, match="they must be the same"):
        bundle_from_datasets([grey, colour], PYTHON, seed=0)
    bundle = bundle_from_datasets([grey, colour], PYTHON.changed(in_chans=1), seed=0)
    assert bundle.image_shape == (1, 4, 4)
    assert torch.equal(bundle.test.images, to_channels(colour.tensors[0], 1))


def test_a_data_set_is_read_once_and_its_transform_with_it():
    class Counted(Dataset):
        def __init__(self):
            self.reads = 0

        def __len__(self):
            return 6

        def __getitem__(self, index):
            self.reads += 1
            return torch.full((1, 2, 2), index / 10), index % 2

    train = Counted()
    bundle_from_datasets([train, Counted()], PYTHON.changed(val_fraction=0), seed=0)
    assert train.reads == 6


def test_only_the_first_classes_are_kept_in_every_split():
    whole = build_data(DataConfig(), seed=0)
    some = build_data(DataConfig(num_classes=3), seed=0)
    assert some.train.class_names == whole.train.class_names[:3]
    assert some.num_classes == 3
    counts = {name: sum(list(by.values())[:3]) for name, by in whole.counts().items()}
    found = {name: len(source) for name, source in some.splits.items()}
    assert found["test"] == counts["test"]
    assert found["train"] + found["val"] == counts["train"] + counts["val"]
    assert some.train.labels.unique().tolist() == [0, 1, 2]
    assert some.normalization == whole.normalization


def test_more_classes_than_there_are_is_an_error():
    with pytest.raises(DataError, match="the first 11 classes; digits has 10"):
        build_data(DataConfig(num_classes=11), seed=0)
