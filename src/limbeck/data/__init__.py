"""From settings to images: sources, splits, augmentation, and batches in a keyed order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, assert_never

from torch.utils.data import Dataset

from limbeck.core.errors import DataError
from limbeck.core.normalization import Normalization
from limbeck.core.types import UNLABELLED
from limbeck.data.augment import EpochTable
from limbeck.data.cifar import CIFAR_SIZES, load_cifar
from limbeck.data.config import AugmentConfig, DataConfig
from limbeck.data.digits import load_digits
from limbeck.data.from_dataset import image_set_from_dataset, own_classes
from limbeck.data.image_folder import LazyImages, load_image_folder
from limbeck.data.images import (
    DataBundle,
    ImageSet,
    ImageSource,
    measure_normalization,
    to_channels,
)
from limbeck.data.loader import VIEWS, TrainLoader, eval_batches
from limbeck.data.randaugment import StrongTable
from limbeck.data.splits import (
    keep_labels,
    long_tailed_subset,
    stratified_split,
    stratified_subset,
)

__all__ = [
    "CIFAR_NORMALIZATION",
    "VIEWS",
    "AugmentConfig",
    "DataBundle",
    "DataConfig",
    "EpochTable",
    "ImageSet",
    "ImageSource",
    "LazyImages",
    "StrongTable",
    "TrainLoader",
    "build_data",
    "bundle_from_datasets",
    "eval_batches",
    "image_set_from_dataset",
    "keep_labels",
    "load_cifar",
    "load_digits",
    "load_image_folder",
    "long_tailed_subset",
    "measure_normalization",
    "stratified_split",
    "stratified_subset",
    "to_channels",
]

# Of the official training images, as the benchmark codes have them. Kept to four decimals.
CIFAR_NORMALIZATION = MappingProxyType(
    {
        "cifar10": Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        "cifar100": Normalization(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    }
)


def build_data(config: DataConfig, *, seed: int) -> DataBundle:
    """The data set that the settings name, split and ready.

    In this order: some of the classes (``num_classes``), a share of the training images
    (``fraction``), the long tail of those (``imbalance_factor``), the validation split, which has
    the same tail, the labels that are kept (``num_labels``, of the rest alone). All but the first
    are chosen by ``split_seed``, or by ``seed`` where that is None. The test images are fixed. Mean
    and deviation are those of all training images before any of this, so that no seed changes them.

    Args:
        config: which data and what becomes of them.
        seed: the run's seed.

    Raises:
        DataError: if the files or the settings' numbers do not allow it.

    Example:
        >>> bundle = build_data(DataConfig(dataset="digits"), seed=0)
        >>> {name: len(source) for name, source in bundle.splits.items()}
        {'train': 1213, 'val': 135, 'test': 449}
    """
    return _split(_load(config), config, seed)


def bundle_from_datasets(
    datasets: Sequence[Dataset[Any]], config: DataConfig, *, seed: int
) -> DataBundle:
    """Torch data sets of (image, label), split by the same settings as any other data.

    Args:
        datasets: (train, test) or (train, val, test); see :func:`image_set_from_dataset`. The
            classes are those of the training images, or of the test images where no training
            image has one.
        config: what becomes of them.
        seed: the run's seed.

    Raises:
        DataError: if there are not two or three, or an image or label is unusable.
    """
    if len(datasets) not in (2, 3):
        raise DataError(
            f"wanted (train, test) or (train, val, test) data sets; got {len(datasets)}"
        )
    train = image_set_from_dataset(datasets[0])
    if not train.class_names:
        judged = image_set_from_dataset(datasets[-1])
        train = dataclasses.replace(train, class_names=judged.class_names)
    sources = [train]
    for other in datasets[1:]:
        # A data set that names its own classes is held to them, so that other ones are noticed.
        names = None if own_classes(other) else train.class_names
        sources.append(image_set_from_dataset(other, names))
    sources = [_with_channels(source, config.in_chans) for source in sources]
    val = sources[1] if len(sources) == 3 else None
    return _split(_bundle(config, sources[0], val, sources[-1]), config, seed)


def _split(loaded: DataBundle, config: DataConfig, seed: int) -> DataBundle:
    """The bundle after fraction, long tail, validation split and hidden labels."""
    split_seed = seed if config.split_seed is None else config.split_seed
    if config.num_classes is not None:
        loaded = _first_classes(loaded, config.num_classes)
    train, val, notes = loaded.train, loaded.val, loaded.notes
    if config.fraction < 1:
        train = train.subset(stratified_subset(train.labels, config.fraction, seed=split_seed))
    if config.imbalance_factor is not None:
        factor = config.imbalance_factor
        train = train.subset(long_tailed_subset(train.labels, factor, seed=split_seed))
        notes += (
            f"the training images are a long tail of factor {factor:g}; a validation split of "
            "them has the same tail, and says little of rare classes",
        )
    if val is None and config.val_fraction > 0:
        if not (train.labels != UNLABELLED).any():
            raise DataError(
                "no training image has a label, so none of them can judge: set val_fraction to 0, "
                "or bring labelled validation images"
            )
        split = stratified_split(train.labels, config.val_fraction, seed=split_seed)
        train, val = train.subset(split.rest), train.subset(split.held_out)
    if config.num_labels is not None:
        train = train.with_labels(keep_labels(train.labels, config.num_labels, seed=split_seed))
    if config.labelled_only:
        train = train.subset((train.labels != UNLABELLED).nonzero().flatten())
    return dataclasses.replace(loaded, train=train, val=val, notes=notes)


def _first_classes(loaded: DataBundle, count: int) -> DataBundle:
    if count > loaded.num_classes:
        raise DataError(
            f"data.num_classes wants the first {count} classes; {loaded.name} has "
            f"{loaded.num_classes}"
        )

    def part(source: ImageSource) -> ImageSource:
        chosen = source.subset((source.labels < count).nonzero().flatten())
        return chosen.with_labels(chosen.labels, source.class_names[:count])

    return dataclasses.replace(
        loaded,
        train=part(loaded.train),
        val=None if loaded.val is None else part(loaded.val),
        test=None if loaded.test is None else part(loaded.test),
    )


def _load(config: DataConfig) -> DataBundle:
    """All of a data set, with its own splits alone."""
    data_dir = config.data_dir or ""
    dataset = config.dataset
    match dataset:
        case "digits":
            digits = load_digits()
            train, test = (_with_channels(part, config.in_chans) for part in digits)
            return _bundle(config, train, None, test)
        case "cifar10" | "cifar100":
            cifar = load_cifar(dataset, data_dir)
            sizes = (len(cifar.train), len(cifar.test))
            note = (
                f"{sizes[0]} training and {sizes[1]} test images are not the official "
                f"{CIFAR_SIZES[0]} and {CIFAR_SIZES[1]}"
            )
            train, test = (_with_channels(part, config.in_chans) for part in cifar)
            return _bundle(config, train, None, test, (note,) if sizes != CIFAR_SIZES else ())
        case "image_folder":
            folder = load_image_folder(
                data_dir, image_size=config.image_size, in_chans=config.in_chans
            )
            return _bundle(config, *folder)
        case "python":
            raise DataError(
                "these data were passed in Python and are stored nowhere; pass them again, or name "
                "a data set in data.dataset"
            )
        case _:
            assert_never(dataset)


def _bundle(
    config: DataConfig,
    train: ImageSource,
    val: ImageSource | None,
    test: ImageSource | None,
    notes: tuple[str, ...] = (),
) -> DataBundle:
    if config.dataset in CIFAR_NORMALIZATION and train.num_channels == 3:
        normalization = CIFAR_NORMALIZATION[config.dataset]
    else:
        normalization = measure_normalization(train)
    return DataBundle(
        name=config.dataset,
        train=train,
        val=val,
        test=test,
        normalization=normalization,
        notes=notes,
    )


def _with_channels(source: ImageSet, in_chans: int | None) -> ImageSet:
    if in_chans is None:
        return source
    return dataclasses.replace(source, images=to_channels(source.images, in_chans))
