"""Frozen, validated settings, and changing single fields of them by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from limbeck.core.errors import SettingsError, nearest_names

__all__ = ["Settings", "apply_overrides", "parse_override"]


class Settings(BaseModel):
    """Base of all settings: frozen, unknown fields refused, checked when made.

    Every fault is reported at once, by field, with what came and the nearest known name:
    a :class:`~limbeck.core.errors.SettingsError` and not pydantic's own error.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    def __init__(self, **fields: Any) -> None:  # noqa: ANN401  (pydantic checks them)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            faults = _faults(type(self), error)
            lines = [f"{place or type(self).__name__}: {text}" for place, text in faults]
            raise SettingsError("\n".join(lines), faults) from None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Settings from plain values, as :func:`json.load` gives them.

        Raises:
            SettingsError: naming every wrong field.
        """
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """JSON-like values from which :meth:`read` makes an equal object."""
        return self.model_dump(mode="json")

    def changed(self, **fields: Any) -> Self:  # noqa: ANN401  (pydantic checks them)
        """A checked copy with some fields replaced."""
        current = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**(current | fields))


def _faults(owner: type[BaseModel], error: ValidationError) -> list[tuple[str, str]]:
    """All faults of one validation: where, and what is wrong there."""
    found: list[tuple[str, str]] = []
    for fault in error.errors(include_url=False):
        place = ".".join(map(str, fault["loc"]))
        cause = fault.get("ctx", {}).get("error")
        if isinstance(cause, SettingsError) and cause.faults:  # settings inside these
            found += [(".".join(filter(None, (place, at))), text) for at, text in cause.faults]
            continue
        came = fault.get("input")
        short = "" if isinstance(came, Mapping | BaseModel) else f"; got {came!r:.80}"
        match fault["type"]:
            case "extra_forbidden":
                known = sorted(owner.model_fields)
                near = nearest_names(str(fault["loc"][-1]), known)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                text = f"no such setting; {hint}"
            case "missing":
                text = "required, and not given"
            case _:
                text = fault["msg"].removeprefix("Value error, ") + short
        found.append((place, text))
    return found


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """``"a.b=value"`` as a path and a value; the value is JSON where it parses, else a string.

    Raises:
        SettingsError: if there is no ``=`` or the name is empty.

    Example:
        >>> parse_override("method.temperature=2")
        (('method', 'temperature'), 2)
    """
    name, equals, raw = text.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path):
        raise SettingsError(f"an override reads 'a.b=value', got {text!r}")
    try:
        value = json.loads(raw)
    except json.JSONDecodeError:
        value = {"None": None, "True": True, "False": False}.get(raw, raw)
    return path, value


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Plain settings with single fields changed; checking them is the settings' own affair.

    Example:
        >>> apply_overrides({"method": {"name": "kd"}}, ["method.temperature=2"])
        {'method': {'name': 'kd', 'temperature': 2}}
    """
    result: dict[str, Any] = json.loads(json.dumps(values))
    for text in overrides:
        path, value = parse_override(text)
        place = result
        for part in path[:-1]:
            inner = place.get(part)
            if inner is None:
                inner = place[part] = {}
            if not isinstance(inner, dict):
                raise SettingsError(f"{text!r}: {part!r} is a single value and has no fields")
            place = inner
        place[path[-1]] = value
    return result
