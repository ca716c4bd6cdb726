"""Every error a caller may meet, each a kind of the builtin that a caller would expect.

A message says what was wanted, what came, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "CacheError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "LimbeckError",
    "MissingOutputError",
    "ModelError",
    "NonFiniteError",
    "RunFolderError",
    "SettingsError",
    "ShapeError",
    "TapError",
    "TeacherChangedError",
    "UnknownNameError",
    "nearest_names",
]


class LimbeckError(Exception):
    """Base of every error that the caller can mend; the command line exits with 2."""


class ShapeError(LimbeckError, ValueError):
    """A tensor whose shape breaks the documented contract."""


class SettingsError(LimbeckError, ValueError):
    """Settings that cannot be used; the message lists every fault at once.

    Args:
        message: for people.
        faults: the same for programs: the dotted path to each setting, empty where it is the
            settings as a whole, and what is wrong with it. Left out where no one field is meant.
    """

    def __init__(self, message: str, faults: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class DataError(LimbeckError, ValueError):
    """Images, labels or folders that cannot be used as they are."""


class ModelError(LimbeckError, ValueError):
    """A network that cannot be built, or does not fit the data or its partner."""


class CacheError(LimbeckError, ValueError):
    """A teacher's stored answers that are missing, unfinished, damaged, or to other questions."""


class CheckpointError(LimbeckError, ValueError):
    """A file of weights that is missing, damaged, unsafe, or made for another network."""


class RunFolderError(LimbeckError, OSError):
    """A run folder that is in use, taken, not writable, or not a run."""


class DeviceError(LimbeckError, RuntimeError):
    """A device that was asked for and is not there."""


class TapError(LimbeckError, RuntimeError):
    """A layer that was asked for and did not give exactly one usable tensor."""


class MissingOutputError(LimbeckError, AttributeError):
    """A value that this forward pass did not make, and why."""


class TeacherChangedError(LimbeckError, RuntimeError):
    """The teacher's state differs from what it was when the run began."""


class NonFiniteError(LimbeckError, FloatingPointError):
    """A loss or gradient that is NaN or infinite; raised before it reaches the weights."""


class UnknownNameError(LimbeckError, KeyError):
    """A name that is not in a known set, answered with the nearest ones.

    Args:
        kind: what was looked up, e.g. ``"method"``.
        name: what came.
        known: every name that would have been accepted.
        hint: one more sentence on what to do.
        near: the nearest of them, where spelling alone does not tell; None goes by spelling.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        known: Iterable[str],
        *,
        hint: str = "",
        near: Sequence[str] | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(known)
        near = nearest_names(name, self.known) if near is None else near
        listed = ", ".join(self.known[:24]) + (", ..." if len(self.known) > 24 else "")
        message = f"no {kind} called {name!r}"
        if near:
            message += "; did you mean " + " or ".join(repr(other) for other in near) + "?"
        elif self.known:
            message += f"; known: {listed}"
        if hint:
            message += f"{'' if near else '.'} {hint}"
        self.message = message
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message  # KeyError would print the repr


def nearest_names(name: str, known: Sequence[str], *, count: int = 3) -> list[str]:
    """Known names that look most like ``name``, best first; empty when none is close.

    Example:
        >>> nearest_names("layer_1", ["layer1", "fc"])
        ['layer1']
    """
    by_folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.6)
    return [by_folded[other] for other in near]
