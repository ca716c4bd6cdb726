"""Pictures of a folder that the user gave, in the size and channels of a case's own images."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.analysis.base import Case, NotApplicableError
from limbeck.core.errors import DataError
from limbeck.core.types import UNLABELLED
from limbeck.data.files import open_files
from limbeck.data.image_folder import EXTENSIONS, LazyImages

__all__ = ["Pictures", "read_pictures"]


class Pictures(NamedTuple):
    """Pictures and where they came from.

    Attributes:
        images: ``(n, C, H, W)`` uint8.
        names: n paths within the folder, with ``/``.
        labels: ``(n,)`` int64: the class that the folder around each is called like, in whatever
            case; -1 where there is none.
    """

    images: Tensor
    names: tuple[str, ...]
    labels: Tensor


def read_pictures(case: Case, folder: Path, *, at_most: int) -> Pictures:
    """Read pictures anywhere in a folder or zip.

    Args:
        case: whose image size and channels they come to: the shorter side is resized and the
            middle square kept.
        folder: a directory or zip.
        at_most: pictures; of more, so many are drawn.

    Raises:
        DataError: if there is no picture, or one cannot be read.
        NotApplicableError: if the case's images are no squares.
    """
    channels, height, width = case.images.shape[1:]
    if height != width:
        raise NotApplicableError(
            f"other pictures are cut to squares, and the test images are {height} x {width}"
        )
    files = open_files(folder)
    listed = files.list().files
    names = sorted(n for n in listed if PurePosixPath(n).suffix.lower() in EXTENSIONS)
    if not names:
        raise DataError(f"{folder} holds no pictures ({', '.join(sorted(EXTENSIONS))})")
    drawn = case.generator(f"pictures of {folder.name}").permutation(len(names))[:at_most]
    names = [names[place] for place in sorted(drawn)]
    numbers = {_folded(name): number for number, name in enumerate(case.class_names)}
    labels = [numbers.get(_folded(PurePosixPath(n).parent.name), UNLABELLED) for n in names]
    found = LazyImages(
        files=files,
        names=tuple(names),
        labels=torch.tensor(labels),
        class_names=case.class_names,
        image_shape=(channels, height, width),
        image_size=height,
        stamps=tuple(listed[name] for name in names),
    )
    return Pictures(found.gather(torch.arange(len(found))), found.names, found.labels)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
