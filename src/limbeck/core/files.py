"""Files that are there whole or not at all, whatever stops the process or fills the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from limbeck.core.errors import RunFolderError

__all__ = ["fsync_file", "fsync_folder", "open_durably", "write_durably"]


def fsync_file(path: Path) -> None:
    """Flush a file's content to disk."""
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, where the system can (Windows cannot)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_durably(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name in one step once the block has ended well.

    Until then it lies beside its name under another one; then it is flushed, renamed, and the
    folder flushed. Beside it and not in the system's folder for such files: a rename is one step
    only within a file system.

    Raises:
        RunFolderError: if it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
        fsync_file(temporary)
        temporary.replace(path)
        fsync_folder(path.parent)
    except RunFolderError:  # of another file, written in the same block
        raise
    except OSError as error:
        raise RunFolderError(
            f"{path} could not be written: {error.strerror or error}. Free space or choose "
            "another folder; what was there before is untouched"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file in one step, as :func:`open_durably` does.

    Raises:
        RunFolderError: if it cannot be written; what was there before stays.
    """
    with open_durably(path) as file:
        file.write(content)
