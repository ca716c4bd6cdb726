"""Files that are there whole or not at all, whatever stops the process or fills the disk."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from limbeck.core.errors import RunFolderError

__all__ = ["fsync_file", "fsync_folder", "write_durably"]


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


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file in one step: temporary file beside it, flush, rename, flush the folder.

    Beside it and not in the system's folder for such files: a rename is one step only within a
    file system.

    Raises:
        RunFolderError: if it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        fsync_file(temporary)
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunFolderError(
            f"{path} could not be written: {error.strerror or error}. Free space or choose "
            "another folder; what was there before is untouched"
        ) from None
