"""Class folders of pictures, in a directory or zip, split or not.

``train/<class>/<picture>`` with an optional ``val`` (or ``valid``, ``validation``) and ``test``
beside it, ``Training`` and ``Testing`` meaning the same; or ``<class>/<picture>``, which is all
training images. Folders within a class folder belong to the class. One folder around everything
is looked through.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import unicodedata
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from limbeck.core.errors import DataError
from limbeck.data.decode import Header, decode_image, read_header
from limbeck.data.files import FileSource, Listing, open_files
from limbeck.data.images import ImageSet, ImageSource, some

__all__ = ["EXTENSIONS", "MAX_BYTES_IN_MEMORY", "FolderSplits", "LazyImages", "load_image_folder"]

MAX_BYTES_IN_MEMORY = 4 << 30  # all splits together; a larger set is read batch by batch
EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_SPLITS: Mapping[str, str] = {  # in whatever case
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_NAMED = 10  # pictures named one by one in a message
_THREADS = min(16, os.cpu_count() or 1)
_CHUNK = 64  # pictures a thread takes at a time
# Below, threads wait for the interpreter more than they decode: two take 150 us for a picture of
# 32 x 32 that one reads in 110.
_WORTH_A_THREAD = 128 * 128  # pixels

T = TypeVar("T")


class FolderSplits(NamedTuple):
    """What a folder holds; None where there is no such split."""

    train: ImageSource
    val: ImageSource | None
    test: ImageSource | None
    notes: tuple[str, ...]  # what the user should know, a sentence each


class _Names(NamedTuple):
    """Pictures of one split, ordered by class and name."""

    names: tuple[str, ...]
    labels: Tensor


class _Failure(NamedTuple):
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyImages:
    """Pictures that stay in their files until a batch asks for them.

    Attributes:
        files: the directory or zip.
        names: ``N`` paths within it.
        labels: ``(N,)`` int64 in [-1, K).
        class_names: K names, in the order of the labels.
        image_shape: ``(C, H, W)`` that every picture must come to.
        image_size: side that pictures are resized and cropped to; None where they are not.
        stamps: a size or checksum for each file, for the fingerprint.
    """

    files: FileSource
    names: tuple[str, ...]
    labels: Tensor
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    image_size: int | None
    stamps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_channels(self) -> int:
        """C."""
        return self.image_shape[0]

    @property
    def in_memory(self) -> bool:
        """Always false."""
        return False

    def subset(self, positions: Tensor) -> LazyImages:
        """The pictures at ``positions`` alone, in that order."""
        chosen = positions.tolist()
        return dataclasses.replace(
            self,
            names=tuple(self.names[position] for position in chosen),
            stamps=tuple(self.stamps[position] for position in chosen),
            labels=self.labels[positions],
        )

    def with_labels(self, labels: Tensor, class_names: tuple[str, ...] | None = None) -> LazyImages:
        """The same pictures under other labels ``(N,)``, of other classes where they are given."""
        return dataclasses.replace(self, labels=labels, class_names=class_names or self.class_names)

    def gather(self, index: Tensor) -> Tensor:
        """Read and decode the pictures at ``index (B,)``: uint8 ``(B, C, H, W)``.

        Raises:
            DataError: naming a picture that cannot be read or has another size.
        """
        images = np.empty((len(index), *self.image_shape), dtype=np.uint8)
        decode = partial(decode_image, image_size=self.image_size, in_chans=self.num_channels)
        for row, position in enumerate(index.tolist()):
            name = self.names[position]
            picture = _attempt(self.files, name, decode)
            if isinstance(picture, _Failure):
                raise DataError(f"{self.files.root}: {name}: {picture.reason}")
            pixels = picture.pixels.transpose(2, 0, 1)
            if pixels.shape != self.image_shape:
                raise DataError(
                    f"{self.files.root}: {name} has shape {pixels.shape}, the others "
                    f"{self.image_shape}; set image_size"
                )
            images[row] = pixels
        return torch.from_numpy(images)

    def fingerprint(self) -> str:
        """SHA-256 of names, sizes (of a directory) or checksums (of a zip), labels and shape.

        The pixels are not read: an edit that keeps a file's size in a directory is not seen.
        """
        about = [self.image_shape, self.image_size, self.class_names, self.names, self.stamps]
        digest = hashlib.sha256(json.dumps(about).encode())
        digest.update(self.labels.numpy().astype("<i8").data)
        return digest.hexdigest()


def load_image_folder(
    root: str | Path,
    *,
    image_size: int | None = None,
    in_chans: int | None = None,
    max_bytes: int = MAX_BYTES_IN_MEMORY,
) -> FolderSplits:
    """Read class folders of pictures; classes are numbered in the order of their names.

    Args:
        root: a directory or zip, laid out as the module says.
        image_size: side in pixels: the shorter side is resized to it and the middle square
            kept. None keeps the size, which must then be one for all.
        in_chans: 1 or 3; None gives 1 if every picture is grey and 3 otherwise.
        max_bytes: the most that all splits together may take in memory. A larger set stays in
            its files (:class:`LazyImages`); only headers are then read and checked here.

    Raises:
        DataError: naming everything that is wrong with the folders, or with the pictures.
    """
    files = open_files(Path(root))
    listing = files.list()
    notes: list[str] = []
    class_names, splits = _arrange(files.root, listing, notes)
    every = [name for split in splits.values() for name in split.names]
    first = _first_header(files, every)
    width, height = first.size if image_size is None else (image_size, image_size)
    channels = in_chans or (1 if first.is_grey else 3)
    threads = _THREADS if first.size[0] * first.size[1] >= _WORTH_A_THREAD else 1
    if len(every) * channels * width * height > max_bytes:
        sources = _on_demand(
            files, listing.files, class_names, splits, image_size, in_chans, threads
        )
        notes.append(
            f"the images would take more than {max_bytes / 2**30:.1f} GiB of memory and are read "
            "from their files for each batch; workers read ahead"
        )
    else:
        sources = _in_memory(files, class_names, splits, image_size, in_chans, threads, notes)
    return FolderSplits(
        train=sources["train"],
        val=sources.get("val"),
        test=sources.get("test"),
        notes=tuple(notes),
    )


def _arrange(
    root: Path, listing: Listing, notes: list[str]
) -> tuple[tuple[str, ...], dict[str, _Names]]:
    """Class names, and the pictures of each split."""
    pictures = [name for name in listing.files if _extension(name) in EXTENSIONS]
    if not pictures:
        raise DataError(
            f"{root} holds no pictures ({', '.join(sorted(EXTENSIONS))}); wanted "
            "train/<class>/<picture> or <class>/<picture>"
        )
    around = _wrapping(pictures)
    inside = [tuple(name[len(around) :].split("/")) for name in pictures]
    is_split = any(_split_of(parts[0]) == "train" and len(parts) > 2 for parts in inside)
    tops = {parts[0] for parts in inside if len(parts) > 1}
    has_split = any(_split_of(parts[0]) and len(parts) > 2 for parts in inside)
    # A class may be called "train", but not if every class is called like a split.
    if not is_split and (has_split or all(map(_split_of, tops))):
        raise DataError(
            f"{root} has {some(sorted(tops)) or 'no folders'} and no picture at "
            "train/<class>/<picture>; put the pictures to learn from there, each in the folder of "
            "its class"
        )

    found: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    folders_of: defaultdict[str, set[str]] = defaultdict(set)
    stray = []
    for folder in listing.folders:
        place = _place(tuple(folder.removeprefix(around).split("/")), is_split)
        if place and folder.startswith(around):
            found[place[0]].setdefault(place[1], [])
    for name, parts in zip(pictures, inside, strict=True):
        place = _place(parts[:-1], is_split)
        if place is None:
            stray.append(name)
            continue
        found[place[0]].setdefault(place[1], []).append(name)
        if is_split:
            folders_of[place[0]].add(parts[0])
    found_splits = {split: found[split] for split in ("train", "val", "test") if found[split]}

    faults = [
        f"{split} images lie in {' and in '.join(sorted(names))}: keep one"
        for split, names in folders_of.items()
        if len(names) > 1
    ]
    faults += _class_faults(found_splits)
    if faults:
        raise DataError(f"{root} cannot be used:\n" + "\n".join(faults))
    _note_ignored(listing, stray, notes)
    if "test" not in found_splits:
        notes.append("there is no test folder, so no image is kept for a final test")

    class_names = tuple(sorted(found_splits["train"]))
    splits = {}
    for split, classes in found_splits.items():
        ordered = [sorted(classes[name]) for name in class_names]
        labels = [label for label, names in enumerate(ordered) for _ in names]
        splits[split] = _Names(
            tuple(name for names in ordered for name in names), torch.tensor(labels)
        )
    return class_names, splits


def _wrapping(pictures: Sequence[str]) -> str:
    """The folders around everything, as ``""`` or ``"folder/"``."""
    around = ""
    while True:
        inside = [name[len(around) :].split("/") for name in pictures]
        tops = {parts[0] for parts in inside}
        if len(tops) > 1 or any(map(_split_of, tops)) or any(len(parts) < 3 for parts in inside):
            return around
        around += f"{tops.pop()}/"


def _split_of(folder: str) -> str | None:
    return _SPLITS.get(folder.casefold())


def _place(parts: tuple[str, ...], is_split: bool) -> tuple[str, str] | None:
    """Split and class of a folder, or None where it is within none."""
    if is_split:
        split = _split_of(parts[0]) if len(parts) > 1 else None
        return None if split is None else (split, unicodedata.normalize("NFC", parts[1]))
    return ("train", unicodedata.normalize("NFC", parts[0])) if parts and parts[0] else None


def _class_faults(found: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """Everything that is wrong with the class folders, a line each."""
    faults = []
    wanted = found["train"].keys()
    for split, classes in found.items():
        empty = sorted(name for name, names in classes.items() if not names)
        if empty:
            faults.append(f"{split}: no pictures in class {some(empty)}: fill or remove it")
        spellings = Counter(name.casefold() for name in classes)
        clashing = sorted(name for name in classes if spellings[name.casefold()] > 1)
        if clashing:
            faults.append(f"{split}: classes differ only in case: {some(clashing)}: rename one")
        missing, extra = sorted(wanted - classes.keys()), sorted(classes.keys() - wanted)
        if missing or extra:
            parts = [f"lacks {some(missing)}"] * bool(missing)
            parts += [f"also has {some(extra)}"] * bool(extra)
            faults.append(f"{split}: other classes than train: it {' and '.join(parts)}")
    if len(wanted) < 2:
        faults.append(
            f"train: only one class, {some(list(wanted))}; a classifier needs two, each in a "
            "folder of its own"
        )
    return faults


def _note_ignored(listing: Listing, stray: Sequence[str], notes: list[str]) -> None:
    if stray:
        notes.append(f"{len(stray)} pictures outside any class folder are ignored: {some(stray)}")
    others = [name for name in listing.files if _extension(name) not in EXTENSIONS]
    if others:
        notes.append(f"{len(others)} files are no pictures and are ignored: {some(others)}")


def _first_header(files: FileSource, names: Sequence[str]) -> Header:
    """The first that can be read, as a sample of what the pictures are like."""
    for name in names:
        header = _attempt(files, name, read_header)
        if isinstance(header, Header):
            return header
    return Header((0, 0), is_grey=False)  # none can be read, and the next pass will say why


def _in_memory(
    files: FileSource,
    class_names: tuple[str, ...],
    splits: Mapping[str, _Names],
    image_size: int | None,
    in_chans: int | None,
    threads: int,
    notes: list[str],
) -> dict[str, ImageSource]:
    """All pictures decoded now."""
    names = [name for split in splits.values() for name in split.names]
    decode = partial(decode_image, image_size=image_size, in_chans=in_chans)
    # Held by the queue alone, so that a picture taken off it is gone.
    pictures = deque(
        _sound(
            files.root,
            _in_threads(partial(_attempt, files, work=decode), names, threads),
            lambda picture: _size_of(picture.pixels),
        )
    )
    channels = in_chans or max(picture.pixels.shape[2] for picture in pictures)
    more = [name for name, picture in zip(names, pictures, strict=True) if picture.has_more_frames]
    if more:
        notes.append(
            f"{len(more)} pictures have several frames, and the first is used: {some(more)}"
        )
    height, width = pictures[0].pixels.shape[:2]
    sources: dict[str, ImageSource] = {}
    for split, (split_names, labels) in splits.items():
        images = np.empty((len(split_names), channels, height, width), dtype=np.uint8)
        for row in range(len(split_names)):
            images[row] = pictures.popleft().pixels.transpose(2, 0, 1)
        sources[split] = ImageSet(
            images=torch.from_numpy(images), labels=labels, class_names=class_names
        )
    return sources


def _on_demand(
    files: FileSource,
    stamps: Mapping[str, int],
    class_names: tuple[str, ...],
    splits: Mapping[str, _Names],
    image_size: int | None,
    in_chans: int | None,
    threads: int,
) -> dict[str, ImageSource]:
    """All headers checked now, the pictures left where they are."""
    names = [name for split in splits.values() for name in split.names]
    found = _in_threads(partial(_attempt, files, work=read_header), names, threads)
    # The header alone does not tell which side is up, and sizes matter only where they are kept.
    headers = _sound(
        files.root,
        found,
        lambda header: (0, 0) if image_size else (min(header.size), max(header.size)),
    )
    channels = in_chans or (1 if all(header.is_grey for header in headers) else 3)
    first = _attempt(files, names[0], partial(decode_image, image_size=image_size))
    (picture,) = _sound(files.root, [first], lambda picture: _size_of(picture.pixels))
    height, width = picture.pixels.shape[:2]
    return {
        split: LazyImages(
            files=files,
            names=split_names,
            labels=labels,
            class_names=class_names,
            image_shape=(channels, height, width),
            image_size=image_size,
            stamps=tuple(stamps[name] for name in split_names),
        )
        for split, (split_names, labels) in splits.items()
    }


def _attempt(files: FileSource, name: str, work: Callable[[IO[bytes]], T]) -> T | _Failure:
    """What ``work`` makes of one file, or why it cannot."""
    try:
        with files.open(name) as stream:
            return work(stream)
    except (DataError, OSError) as error:
        return _Failure(name, str(error))


def _in_threads(work: Callable[[str], T], names: Sequence[str], threads: int) -> list[T]:
    """``work`` of every name, in order; decoding leaves the interpreter to other threads."""
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Pillow warns of large pictures when it opens them; our own limit is lower and an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return [
            result
            for results in pool.map(lambda chunk: list(map(work, chunk)), chunks)
            for result in results
        ]


def _sound(
    root: Path, found: Sequence[T | _Failure], size_of: Callable[[T], tuple[int, int]]
) -> list[T]:
    """The results, or one error with every failure and every size."""
    failures = [result for result in found if isinstance(result, _Failure)]
    sound = [result for result in found if not isinstance(result, _Failure)]
    faults = []
    if failures:
        lines = [f"  {name}: {reason}" for name, reason in failures[:_NAMED]]
        if len(failures) > _NAMED:
            lines.append(f"  and {len(failures) - _NAMED} more")
        faults.append(
            f"{len(failures)} pictures cannot be read; mend or remove them:\n" + "\n".join(lines)
        )
    sizes = Counter(map(size_of, sound))
    if len(sizes) > 1:
        common = ", ".join(f"{w} x {h} ({n} images)" for (w, h), n in sizes.most_common(_NAMED))
        faults.append(
            f"pictures have {len(sizes)} sizes: {common}. Set image_size to resize and crop all to "
            "one square"
        )
    if faults:
        raise DataError(f"{root}: " + "\n".join(faults))
    return sound


def _size_of(pixels: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height."""
    return pixels.shape[1], pixels.shape[0]


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
