"""The files of a directory or zip, listed and read alike; nothing is ever unpacked to disk."""

from __future__ import annotations

import os
import stat
import threading
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol

from limbeck.core.errors import DataError
from limbeck.data.images import some

__all__ = ["DirectoryFiles", "FileSource", "Listing", "ZipFiles", "open_files"]

_MAX_FILE_BYTES = 1 << 28  # 256 MiB in one picture
_MAX_RATIO = 200  # of a packed file's size to that in the zip, above _RATIO_FREE_BYTES
_RATIO_FREE_BYTES = 1 << 20


class Listing(NamedTuple):
    """What there is, hidden files left out; paths are relative, with ``/``."""

    files: dict[str, int]  # path to a number that changes with the content where cheaply known
    folders: tuple[str, ...]


class FileSource(Protocol):
    """A directory or zip. Safe to read from many threads, and from forked or started workers."""

    root: Path

    def list(self) -> Listing:
        """All files and folders.

        Raises:
            DataError: if the listing itself is broken or unsafe.
        """
        ...

    def open(self, name: str) -> IO[bytes]:
        """One file, to read.

        Raises:
            DataError: if it is too large or cannot be unpacked.
            OSError: if it cannot be read.
        """
        ...


class DirectoryFiles:
    """Files below a directory; links are followed, but never in a circle."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> Listing:
        """All files, with their sizes, and all folders."""
        files: dict[str, int] = {}
        folders: list[str] = []

        def visit(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> None:
            about = folder.stat()
            here = (about.st_dev, about.st_ino)
            if here in above:  # a link to one of the folders it lies in
                return
            if prefix:
                folders.append(prefix.rstrip("/"))
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if _is_hidden(entry.name):
                        continue
                    if _is_folder(entry):
                        visit(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
                    else:
                        files[prefix + entry.name] = _size(entry)

        try:
            visit(self.root, "", frozenset())
        except OSError as error:
            raise DataError(f"{self.root} cannot be listed: {error}") from error
        return Listing(files, tuple(folders))

    def open(self, name: str) -> IO[bytes]:
        """One file, to read."""
        path = self.root / name
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise DataError("no regular file")
        _check_size(about.st_size)
        return path.open("rb")


class ZipFiles:
    """Files within a zip, read in place.

    Raises:
        DataError: if it is no zip.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._opened: tuple[int, zipfile.ZipFile, dict[str, zipfile.ZipInfo]] | None = None
        self._opening = threading.Lock()
        self._archive()

    def __getstate__(self) -> Path:
        return self.root

    def __setstate__(self, root: Path) -> None:
        self.__init__(root)  # type: ignore[misc]

    def _archive(self) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        """The opened zip: one a process, since a fork would share one reading position.

        With its members by path: a name may be stored as ``./a//b`` and is listed as ``a/b``.
        """
        with self._opening:
            if self._opened is None or self._opened[0] != os.getpid():
                try:
                    archive = zipfile.ZipFile(self.root)
                except Exception as error:  # a damaged zip raises anything
                    raise DataError(f"{self.root} is no readable zip: {error}") from error
                members = {
                    str(PurePosixPath(member.filename)): member
                    for member in archive.infolist()
                    if not member.is_dir()
                }
                self._opened = os.getpid(), archive, members
            return self._opened[1:]

    def list(self) -> Listing:
        """All files, with their checksums, and all folders.

        Raises:
            DataError: if a name leads out of the zip, or a file has a password.
        """
        files: dict[str, int] = {}
        folders: set[str] = set()
        unsafe, locked = [], []
        archive, _ = self._archive()
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
                unsafe.append(member.filename)
                continue
            if any(map(_is_hidden, path.parts)):
                continue
            parents = list(path.parents)[:-1]
            folders.update(map(str, [path, *parents] if member.is_dir() else parents))
            if not member.is_dir():
                files[str(path)] = member.CRC
                if member.flag_bits & 1:
                    locked.append(member.filename)
        if unsafe:
            raise DataError(
                f"{self.root} is refused: names in it lead out of it, or have backslashes: "
                f"{some(unsafe)}. Pack it anew, with relative names and /"
            )
        if locked:
            raise DataError(f"{self.root} needs a password for {some(locked)}; pack it without")
        return Listing(dict(sorted(files.items())), tuple(sorted(folders)))

    def open(self, name: str) -> IO[bytes]:
        """One file, to read."""
        archive, members = self._archive()
        member = members[name]
        _check_size(member.file_size)
        if member.file_size > max(_RATIO_FREE_BYTES, _MAX_RATIO * member.compress_size):
            raise DataError(
                f"{member.compress_size:,} bytes that unpack to {member.file_size:,}; refused"
            )
        try:
            return archive.open(member)
        except Exception as error:  # a damaged zip raises anything
            raise DataError(f"cannot be unpacked: {error}") from error


def open_files(root: Path) -> FileSource:
    """The files of a directory or zip.

    Raises:
        DataError: if there is neither at ``root``.
    """
    if root.is_dir():
        return DirectoryFiles(root)
    if root.is_file():
        return ZipFiles(root)
    raise DataError(f"there is no directory or zip at {root}; check data_dir")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing; reading it will say so
        return -1


def _check_size(size: int) -> None:
    if size > _MAX_FILE_BYTES:
        raise DataError(f"{size:,} bytes, and a picture may have {_MAX_FILE_BYTES:,}")
