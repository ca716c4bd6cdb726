"""Which of a teacher's classes are the data's: by number, or by name from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from limbeck.core.errors import SettingsError

__all__ = ["read_class_map"]

_SHOWN = 6  # names in a message


def read_class_map(class_map: Sequence[int] | str, class_names: Sequence[str]) -> tuple[int, ...]:
    """The teacher's class for each class of the data, in the data's order.

    Args:
        class_map: numbers, one for each class of the data; or the path of a JSON file of
            ``{class name: number}``, which may hold further names.
        class_names: the data's K names.

    Returns:
        K different numbers, ``>= 0``.

    Raises:
        SettingsError: if the file cannot be read, a class is missing, or two have one number.
    """
    if isinstance(class_map, str):
        numbers = _from_file(Path(class_map), class_names)
    else:
        numbers = list(class_map)
        if len(numbers) != len(class_names):
            raise SettingsError(
                f"class_map has {len(numbers)} numbers, the data {len(class_names)} classes "
                f"({_some(class_names)}); give the teacher's class for each, in this order"
            )
    wrong = [number for number in numbers if isinstance(number, bool) or number < 0]
    if wrong:
        raise SettingsError(f"class_map holds {wrong[0]!r}; classes are numbered from 0")
    first: dict[int, str] = {}
    for name, number in zip(class_names, numbers, strict=True):
        if number in first:
            raise SettingsError(
                f"class_map gives {first[number]!r} and {name!r} the same class {number} of the "
                "teacher; each class needs its own"
            )
        first[number] = name
    return tuple(numbers)


def _from_file(path: Path, class_names: Sequence[str]) -> list[int]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise SettingsError(
            f"class_map {path} cannot be read: {error.strerror}; give a JSON file of "
            '{"class name": number}'
        ) from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"class_map {path} cannot be read as JSON: {error}") from None
    if not isinstance(table, dict) or not all(isinstance(v, int) for v in table.values()):
        raise SettingsError(
            f'class_map {path} should hold {{"class name": number}}; got something else'
        )
    missing = [name for name in class_names if name not in table]
    if missing:
        raise SettingsError(
            f"class_map {path} lacks {len(missing)} of the data's classes ({_some(missing)}); it "
            f"has {_some(list(table))}"
        )
    return [table[name] for name in class_names]


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A table whose names differ: JSON would silently take the last of each."""
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} stands there twice")
    return dict(pairs)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
