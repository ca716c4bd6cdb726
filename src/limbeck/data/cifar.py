"""CIFAR-10 and CIFAR-100 as torchvision stores them: a ``.tar.gz`` or the folder in it.

The files are pickles. They are read by an unpickler that knows arrays, bytes and plain
containers and nothing else, so that a file from anywhere cannot run code.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from limbeck.core.errors import DataError
from limbeck.data.images import ImageSet

__all__ = ["CIFAR_SIZES", "CifarSplits", "load_cifar"]

CIFAR_SIZES = (50_000, 10_000)  # official numbers of training and test images
_IMAGE_SHAPE = (3, 32, 32)
_MAX_FILE_BYTES = 1 << 30  # the largest official file has 155 MB
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20


class CifarSplits(NamedTuple):
    """The official splits."""

    train: ImageSet
    test: ImageSet


class _Layout(NamedTuple):
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels_key: str
    names_key: str


_LAYOUTS: Final[Mapping[str, _Layout]] = MappingProxyType(
    {
        "cifar10": _Layout(
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            train=tuple(f"data_batch_{part}" for part in range(1, 6)),
            test="test_batch",
            meta="batches.meta",
            labels_key="labels",
            names_key="label_names",
        ),
        "cifar100": _Layout(
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            train=("train",),
            test="test",
            meta="meta",
            labels_key="fine_labels",
            names_key="fine_label_names",
        ),
    }
)


def load_cifar(dataset: Literal["cifar10", "cifar100"], data_dir: str | Path) -> CifarSplits:
    """The official training and test images, ``(3, 32, 32)``, in the files' order.

    Args:
        dataset: which of the two; CIFAR-100 has its fine labels.
        data_dir: the folder that holds the archive or the unpacked folder (an unpacked one is
            preferred), or either of these itself. An archive is read in place.

    Raises:
        DataError: if a file is missing, damaged, or holds anything but the data.

    Source:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
        https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    layout = _LAYOUTS[dataset]
    place = _find(layout, Path(data_dir))
    wanted = (*layout.train, layout.test, layout.meta)
    read = _read_archive if place.is_file() else _read_folder
    tables = {name: _unpickle(data, f"{place}: {name}") for name, data in read(place, wanted)}
    missing = [name for name in wanted if name not in tables]
    if missing:
        raise DataError(
            f"{place} lacks {', '.join(missing)}; a whole one holds {', '.join(wanted)}"
        )
    names = tables[layout.meta].get(layout.names_key)
    if not isinstance(names, list) or not names or not all(map(_is_text, names)):
        raise DataError(f"{place}: {layout.meta} has no list of {layout.names_key}")
    class_names = tuple(_text(name) for name in names)

    def images(parts: Sequence[str]) -> ImageSet:
        found = [
            _batch(tables[part], layout.labels_key, len(class_names), f"{place}: {part}")
            for part in parts
        ]
        return ImageSet(
            images=torch.from_numpy(np.concatenate([pixels for pixels, _ in found])),
            labels=torch.tensor([label for _, labels in found for label in labels]),
            class_names=class_names,
        )

    return CifarSplits(train=images(layout.train), test=images([layout.test]))


def _find(layout: _Layout, data_dir: Path) -> Path:
    """The folder of the files or the archive."""
    for place in (data_dir / layout.folder, data_dir / layout.archive):
        if place.exists():
            return place
    if data_dir.is_file() or (data_dir / layout.meta).is_file():
        return data_dir
    raise DataError(
        f"{data_dir} holds neither {layout.folder}/ nor {layout.archive}, nor the files "
        f"{', '.join((*layout.train, layout.test, layout.meta))} themselves; give the folder "
        "that torchvision downloaded to, or fetch the python version from "
        "https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _read_folder(folder: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
    found = [folder / name for name in names if (folder / name).is_file()]
    try:
        for path in found:
            _check_size(path.stat().st_size, str(path))
        return [(path.name, path.read_bytes()) for path in found]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error


def _read_archive(archive: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
    """The members of that name, whatever folder they lie in; nothing is written to disk."""
    found = {}
    try:
        with _unzipped(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as members:
            for member in members:
                name = member.name.rpartition("/")[2]
                if name in names and member.isfile() and name not in found:
                    _check_size(member.size, f"{archive}: {name}")
                    content = members.extractfile(member)
                    found[name] = b"" if content is None else content.read()
            while stream.read(_CHUNK_BYTES):  # to the end, where its checksum is compared
                pass
    except DataError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{archive} is damaged or cut short ({error}); fetch it again") from error
    return list(found.items())


def _unzipped(archive: Path) -> gzip.GzipFile | io.BufferedReader:
    """A tar as a stream; gzip's own reader, since tarfile's does not compare the checksum."""
    with archive.open("rb") as stream:
        is_zipped = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return gzip.open(archive) if is_zipped else archive.open("rb")


def _check_size(size: int, place: str) -> None:
    if size > _MAX_FILE_BYTES:
        raise DataError(f"{place} has {size:,} bytes, far more than any CIFAR file; refused")


class _Array:
    """Stands in for a numpy array while unpickling: keeps the state, builds nothing."""

    def __init__(self, *arguments: object) -> None:
        del arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


# No plain functions, since a pickle may set attributes of what it is given; these have none.
class _FromBuffer:
    """How numpy writes arrays into pickles of protocol 5."""

    __slots__ = ()

    def __call__(self, raw: object, dtype: object, shape: object, order: object) -> _Array:
        array = _Array()
        array.state = (1, shape, dtype, order == "F", raw)
        return array


class _Latin1:
    """How Python 3 writes bytes into old pickles; the name of the encoding is not looked up."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        del encoding
        return text.encode("latin1")


# Stand-ins and not numpy's own classes: their unpickling is C code that trusts its input.
_KNOWN_GLOBALS: Final[Mapping[tuple[str, str], Callable[..., Any]]] = MappingProxyType(
    {
        ("_codecs", "encode"): _Latin1(),
        ("numpy", "dtype"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.numeric", "_frombuffer"): _FromBuffer(),
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.numeric", "_frombuffer"): _FromBuffer(),
    }
)


# The reader written in Python, since the one in C reserves as much memory as a memo's number
# says: one flipped bit in a downloaded file can make that 64 GB.
class _PlainUnpickler(pickle._Unpickler):
    """Plain containers, numbers, text and the state of arrays; anything else is refused."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """One of the few stand-ins."""
        if (module, name) not in _KNOWN_GLOBALS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which image data has no use for"
            )
        return _KNOWN_GLOBALS[module, name]


def _unpickle(data: bytes, place: str) -> dict[str, Any]:
    """A pickled dictionary, its keys as text."""
    try:
        table = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged or hostile pickle raises anything
        raise DataError(
            f"{place} cannot be read as CIFAR data ({error}); nothing in it was run. Fetch the "
            "official file again"
        ) from error
    if not isinstance(table, dict):
        raise DataError(f"{place} holds a {type(table).__name__}, and a dictionary was wanted")
    return {_text(key): value for key, value in table.items() if _is_text(key)}


def _batch(
    table: dict[str, Any], labels_key: str, num_classes: int, place: str
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Images ``(n, 3, 32, 32)`` and labels of one file."""
    pixels = getattr(table.get("data"), "state", None)
    labels = table.get(labels_key)
    match pixels:
        case (_, (int(count), int(width)), _, False, bytes() | bytearray() as raw) if (
            width == np.prod(_IMAGE_SHAPE) and len(raw) == count * width
        ):
            images = np.frombuffer(raw, dtype=np.uint8).reshape(count, *_IMAGE_SHAPE)
        case _:
            raise DataError(f"{place} has no 'data' of shape (n, 3072) in bytes")
    if (
        not isinstance(labels, list)
        or len(labels) != count
        or not all(isinstance(label, int) and 0 <= label < num_classes for label in labels)
    ):
        raise DataError(
            f"{place} has no list {labels_key!r} of {count} whole numbers in [0, {num_classes})"
        )
    return images, labels


def _is_text(value: object) -> bool:
    return isinstance(value, str | bytes)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
