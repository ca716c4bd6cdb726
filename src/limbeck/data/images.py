"""Labelled images, in memory or read when asked for, and the splits of one data set.

N images, B of one batch, C channels, H W spatial, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from limbeck.core.errors import DataError
from limbeck.core.normalization import Normalization
from limbeck.core.types import UNLABELLED, keyed_generator

__all__ = [
    "UNLABELLED_NAME",
    "DataBundle",
    "ImageSet",
    "ImageSource",
    "joint_fingerprint",
    "measure_normalization",
    "some",
    "to_channels",
]

UNLABELLED_NAME = "(unlabelled)"  # the row of images without a class in a table of counts
_MEASURED_IMAGES = 2048  # of a set that is not in memory, for its mean and deviation
_MEASURED_AT_ONCE = 256
_NAMED = 10  # names listed in a message


class ImageSource(Protocol):
    """What every set of images can do, wherever its pixels lie.

    Attributes:
        labels: ``(N,)`` int64 in [-1, K); -1 where the class is unknown.
        class_names: K names, in the order of the labels.
        num_channels: C, 1 or 3.
        image_shape: ``(C, H, W)``, one for all images.
        in_memory: whether :meth:`gather` only copies, so that reading ahead gains nothing.
    """

    @property
    def labels(self) -> Tensor: ...  # noqa: D102  (documented above)

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def num_channels(self) -> int: ...  # noqa: D102

    @property
    def image_shape(self) -> tuple[int, int, int]: ...  # noqa: D102

    @property
    def in_memory(self) -> bool: ...  # noqa: D102

    def __len__(self) -> int: ...

    def subset(self, positions: Tensor) -> ImageSource:
        """The images at ``positions`` alone, in that order."""
        ...

    def with_labels(
        self, labels: Tensor, class_names: tuple[str, ...] | None = None
    ) -> ImageSource:
        """The same images under other labels ``(N,)``, of other classes where they are given."""
        ...

    def gather(self, index: Tensor) -> Tensor:
        """The images at ``index (B,)``: uint8 ``(B, C, H, W)``."""
        ...

    def fingerprint(self) -> str:
        """A SHA-256 that changes with the images, the labels and the class names."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images held in memory as bytes, on the host or on an accelerator.

    Attributes:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64 in [-1, K); -1 where the class is unknown.
        class_names: K names, in the order of the labels.

    Raises:
        DataError: if a tensor has another dtype or shape, or a label is out of range.

    Example:
        >>> import torch
        >>> pixels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
        >>> labels = torch.tensor([0, 1, -1])
        >>> images = ImageSet(images=pixels, labels=labels, class_names=("a", "b"))
        >>> len(images), images.image_shape
        (3, (1, 2, 2))
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                "images must be uint8 (N, C, H, W); "
                f"got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels must be int64 ({len(self.images)},), one an image; "
                f"got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        _check_labels(self.labels, self.class_names)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_channels(self) -> int:
        """C."""
        return self.images.shape[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def in_memory(self) -> bool:
        """Always true."""
        return True

    def subset(self, positions: Tensor) -> ImageSet:
        """A copy of the images at ``positions`` alone, in that order."""
        positions = positions.to(self.images.device)
        return dataclasses.replace(
            self, images=self.images[positions], labels=self.labels[positions]
        )

    def with_labels(self, labels: Tensor, class_names: tuple[str, ...] | None = None) -> ImageSet:
        """The same images under other labels ``(N,)``, of other classes where they are given."""
        return dataclasses.replace(self, labels=labels, class_names=class_names or self.class_names)

    def gather(self, index: Tensor) -> Tensor:
        """The images at ``index (B,)``, on the device of :attr:`images`: ``(B, C, H, W)``."""
        return self.images.index_select(0, index.to(self.images.device))

    def to(self, device: torch.device) -> ImageSet:
        """The same set on ``device``; batches are then made there, without further copies."""
        return dataclasses.replace(
            self, images=self.images.to(device), labels=self.labels.to(device)
        )

    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels, labels and class names, the same on every machine."""
        digest = hashlib.sha256(json.dumps([self.image_shape, self.class_names]).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().numpy().astype("<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class DataBundle:
    """One data set, split and ready.

    Attributes:
        name: of the data set.
        train: what is learnt from.
        val: what choices are made on; None where there is none.
        test: what is looked at once, at the end; None where there is none.
        normalization: mean and standard deviation of the training images.
        notes: what the reader of a run should know about the data, a sentence each.

    Raises:
        DataError: if a split has other classes or another image shape than the training images.
    """

    name: str
    train: ImageSource
    val: ImageSource | None
    test: ImageSource | None
    normalization: Normalization
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, source in self.splits.items():
            if source.class_names != self.train.class_names:
                raise DataError(
                    f"the {name} images have the classes {some(source.class_names)}, the training "
                    f"images {some(self.train.class_names)}; they must be the same, in one order"
                )
            if source.image_shape != self.image_shape:
                raise DataError(
                    f"the {name} images are (C, H, W) = {source.image_shape}, the training images "
                    f"{self.image_shape}; they must be the same"
                )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.train.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        return self.train.image_shape

    @property
    def splits(self) -> dict[str, ImageSource]:
        """The splits that exist, by name."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: source for name, source in every.items() if source is not None}

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by split and class; images without a class count as ``"(unlabelled)"``."""
        return {name: _count_classes(source) for name, source in self.splits.items()}

    def label_counts(self) -> Tensor:
        """Labelled training images of each class: ``(K,)`` int64."""
        return torch.bincount(self.train.labels + 1, minlength=self.num_classes + 1)[1:]

    def split_fingerprints(self) -> dict[str, str]:
        """Each split's own fingerprint."""
        return {name: source.fingerprint() for name, source in self.splits.items()}

    def fingerprint(self) -> str:
        """A SHA-256 that changes with any split's images, labels or class names."""
        return joint_fingerprint(self.split_fingerprints())


def joint_fingerprint(splits: Mapping[str, str]) -> str:
    """What :meth:`DataBundle.fingerprint` makes of :meth:`DataBundle.split_fingerprints`."""
    return hashlib.sha256(json.dumps(dict(splits), sort_keys=True).encode()).hexdigest()


def to_channels(images: Tensor, num_channels: int) -> Tensor:
    """Grey images as colour, colour images as grey, or the same images: uint8 ``(N, C, H, W)``.

    Grey is Rec. 601 luma in 16-bit fixed point, as Pillow has it: equal channels stay as they
    are.

    Args:
        images: ``(N, 1, H, W)`` or ``(N, 3, H, W)`` uint8.
        num_channels: 1 or 3.

    Returns:
        ``(N, num_channels, H, W)`` uint8.

    Raises:
        DataError: if either count is not 1 or 3.

    Source:
        ITU-R BT.601: Y = 0.299 R + 0.587 G + 0.114 B.

    Example:
        >>> import torch
        >>> to_channels(torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(1, 3, 1, 1), 1).item()
        76
    """
    if {images.shape[1], num_channels} - {1, 3}:
        raise DataError(
            f"images have 1 or 3 channels; got {images.shape[1]}, and {num_channels} were wanted"
        )
    if images.shape[1] == num_channels:
        return images
    if num_channels == 3:
        return images.repeat(1, 3, 1, 1)
    red, green, blue = images.to(torch.int32).unbind(dim=1)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return luma.to(torch.uint8).unsqueeze(1)


def measure_normalization(source: ImageSource) -> Normalization:
    """Mean and standard deviation per channel of images in [0, 1], to four decimals.

    A channel without any variation gets a deviation of 1. A set that is not in memory is
    measured on 2,048 of its images, always the same ones.
    """
    positions = torch.arange(len(source))
    if not source.in_memory:
        order = torch.randperm(len(source), generator=keyed_generator("normalization"))
        positions = order[:_MEASURED_IMAGES]
    # Counts of the 256 values are integers: the result depends on no order of summation.
    counts = torch.zeros(source.num_channels, 256, dtype=torch.float64)
    for index in torch.split(positions, _MEASURED_AT_ONCE):
        for channel, image in enumerate(source.gather(index).unbind(dim=1)):
            counts[channel] += torch.bincount(image.flatten(), minlength=256).cpu()
    share = counts / counts.sum(dim=1, keepdim=True)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * value).sum(dim=1)
    std = (share * (value - mean[:, None]).square()).sum(dim=1).sqrt()
    return Normalization(
        mean=tuple(round(x, 4) for x in mean.tolist()),
        std=tuple(round(x, 4) or 1.0 for x in std.tolist()),
    )


def some(names: Sequence[str]) -> str:
    """The first ten names, quoted, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(map(repr, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _check_labels(labels: Tensor, class_names: tuple[str, ...]) -> None:
    wrong = ((labels < UNLABELLED) | (labels >= len(class_names))).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"labels must be in [-1, {len(class_names)}), -1 where unknown; image {first} has "
            f"{int(labels[first])}, and {len(wrong) - 1} more are out of range"
        )


def _count_classes(source: ImageSource) -> dict[str, int]:
    counts = torch.bincount(source.labels + 1, minlength=len(source.class_names) + 1).tolist()
    known = dict(zip(source.class_names, counts[1:], strict=True))
    return known | ({UNLABELLED_NAME: counts[0]} if counts[0] else {})
