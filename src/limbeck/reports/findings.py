"""What ``limbeck analyse`` found of a comparison's rows, read from the folder and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from limbeck.core.errors import RunFolderError
from limbeck.reports.layout import Picture
from limbeck.reports.svg import checked_svg

__all__ = ["Findings", "Found", "FoundPicture", "FoundReading", "read_findings", "read_picture"]

_PNG = b"\x89PNG\r\n\x1a\n"
Ends = tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class FoundReading:
    """How near to the teacher the students are; see ``analysis.base``. Fractions, not percent."""

    name: str
    items: str
    unit: Literal["fraction", "1", "nats"]
    distilled: float | None
    independent: float | None
    difference: float | None
    teacher: float | None
    chance: float | None
    seed_interval: Ends | None
    item_interval: Ends
    num_seeds: int
    num_items: int
    verdict: Literal["nearer", "further", "cannot tell"]
    sentence: str
    words: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class FoundPicture:
    """A file beside the finding, and its words."""

    file: str
    caption: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class _About:
    """Whom it was asked of: ``students`` from kind and seed to the hash of the weights."""

    students: dict[str, str] = field(default_factory=dict)
    num_images: int | None = None
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """One experiment's answer for one row.

    Attributes:
        folder: where it lies.
        key: its name.
        title: a few words.
        question: that was asked.
        source: who asked it first.
        place: in the order of the report.
        about: whom it was asked of.
        skipped: why it does not apply; None where it does.
        readings: the headline first.
        pictures: in files.
        tables: title to rows, the first of them the heading.
        notes: a sentence each.
        settings: name to value.
    """

    folder: Path
    key: str
    title: str
    question: str
    source: str
    place: int
    about: _About
    skipped: str | None
    readings: tuple[FoundReading, ...] = ()
    pictures: tuple[FoundPicture, ...] = ()
    tables: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def num_images(self) -> int | None:
        """Test images; None where it does not say."""
        return self.about.num_images

    @property
    def quick(self) -> bool:
        """Whether fewer items were taken than could have been."""
        return self.about.quick


class Findings(NamedTuple):
    """Of one row.

    Attributes:
        found: in the order of the report.
        stale: titles of those that are of other networks than the comparison now has.
    """

    found: tuple[Found, ...]
    stale: tuple[str, ...]


_FOUND = TypeAdapter(Found)


def read_findings(folder: Path, hashes: Mapping[str, str]) -> Findings:
    """What was found of one row.

    Args:
        folder: ``analysis/ROW`` of a comparison; it need not be there.
        hashes: the comparison's networks, as "distilled 0" to the hash of the weights; one that is
            not known is not compared.

    Raises:
        RunFolderError: if a file is damaged.
    """
    found, stale = [], []
    for path in sorted(folder.glob("*.json")):
        one = _read(path)
        students = one.about.students
        if any(students.get(name, other) != other for name, other in hashes.items() if other):
            stale.append(one.title)
        else:
            found.append(one)
    return Findings(tuple(sorted(found, key=lambda one: (one.place, one.key))), tuple(stale))


def read_picture(found: Found, picture: FoundPicture, *, name: str, caption: str = "") -> Picture:
    """A picture as part of a page.

    Args:
        found: whose it is.
        picture: one of its pictures.
        name: unique on the page: letters, digits and hyphens.
        caption: stands before its own.

    Raises:
        RunFolderError: if its file is missing, or is no PNG and no SVG that may stand in a page.
    """
    path = found.folder / Path(picture.file).name  # never outside the folder
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, str(error)) from None
    caption += picture.caption
    if content.startswith(_PNG):
        return Picture(png=content, alt=picture.alt, caption=caption)
    try:
        svg = checked_svg(content, name=name)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    return Picture(svg=svg, alt=picture.alt, caption=caption)


def _read(path: Path) -> Found:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found: Found = _FOUND.validate_python({**values, "folder": path.parent})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            reason = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            )
        raise _damaged(path, reason) from None
    return found


def _damaged(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(
        f"{path} is not what `limbeck analyse` writes ({reason}); remove it, or analyse again"
    )
