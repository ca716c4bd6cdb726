"""Findings as files: one JSON of every number for each experiment, and its pictures beside it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.analysis.base import Contrast, Finding, Reading

__all__ = ["fingerprint", "is_finished", "write_finding"]


def fingerprint(path: Path | None) -> str | None:
    """SHA-256 of the names, sizes and times of a file, or of all files of a folder; None of None.

    The content is not read: an edit that keeps size and time is not seen.
    """
    if path is None:
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    facts = [
        (str(file.relative_to(path)), (about := file.stat()).st_size, about.st_mtime_ns)
        for file in files
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def write_finding(
    finding: Finding,
    folder: Path,
    *,
    inputs: str,
    about: Mapping[str, Any] | None = None,
    place: int = 0,
) -> Path:
    """Write ``KEY.json``, after its pictures, so that a finding is there whole or not at all.

    Args:
        finding: from :func:`~limbeck.analysis.base.examine`.
        folder: made if it is not there.
        inputs: a hash of what it was asked of; see :func:`is_finished`.
        about: the same to read: the hashes of networks and images, their number, and the like.
        place: in the order of the report.

    Returns:
        The JSON file.
    """
    experiment, measured = finding.experiment, finding.measured
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for picture in () if measured is None else measured.pictures:
        svg = picture.svg is not None
        name = f"{experiment.key}-{picture.name}.{'svg' if svg else 'png'}"
        content = picture.svg.encode() if picture.svg is not None else picture.png or b""
        _replace(folder / name, content)
        pictures.append({"file": name, "caption": picture.caption, "alt": picture.alt})
    values: dict[str, Any] = {
        "key": experiment.key,
        "title": experiment.title,
        "question": experiment.question,
        "source": experiment.source,
        "place": place,
        "inputs": inputs,
        "about": dict(about or {}),
        "skipped": finding.skipped,
        "seconds": round(finding.seconds, 3),
        "readings": [],
        "pictures": pictures,
    }
    if measured is not None:
        values["readings"] = [
            _numbers(reading, found)
            for reading, found in zip(measured.readings, finding.contrasts, strict=True)
        ]
        values["tables"] = {title: list(map(list, rows)) for title, rows in measured.tables.items()}
        values["notes"] = list(measured.notes)
        values["settings"] = dict(measured.settings)
    path = folder / f"{experiment.key}.json"
    _replace(path, json.dumps(values, indent=1, allow_nan=False).encode())
    return path


def is_finished(folder: Path, key: str, *, inputs: str) -> bool:
    """Whether an experiment's finding is there, and is of the same networks, images and settings.

    A skipped one counts; a damaged file does not.
    """
    try:
        values = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        return bool(values["inputs"] == inputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _numbers(reading: Reading, found: Contrast) -> dict[str, Any]:
    means = {
        kind: {str(seed): _number(np.mean(values)) for seed, values in by_seed.items()}
        for kind, by_seed in (
            ("independent", reading.independent),
            ("distilled", reading.distilled),
        )
    }
    return {
        "name": reading.name,
        "items": reading.items,
        "pupil": reading.pupil,
        "unit": reading.unit,
        "nearer": reading.nearer,
        "words": list(reading.words),
        "chance": reading.chance,
        "teacher": reading.teacher,
        "independent_by_seed": means["independent"],
        "distilled_by_seed": means["distilled"],
        "independent": _number(found.independent),
        "distilled": _number(found.distilled),
        "difference": _number(found.difference),
        "seed_interval": None
        if found.seed_interval is None
        else [_number(end) for end in found.seed_interval],
        "item_interval": [_number(end) for end in found.item_interval],
        "num_seeds": found.num_seeds,
        "num_items": found.num_items,
        "verdict": found.verdict,
        "sentence": found.sentence,
    }


def _number(value: float | np.floating[Any]) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
