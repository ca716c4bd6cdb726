"""Which code made a result: what two runs must share before they stand in one table."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from limbeck._version import __version__
from limbeck.core.settings import Settings

__all__ = ["CodeVersion", "code_commit", "code_differences", "code_version", "sources_hash"]

# They read finished runs or write settings: a run's numbers do not depend on them.
_NOT_IN_A_RUN = ("analysis", "cli", "recipes", "reports")
_PACKAGES = ("torch", "torchvision", "timm")  # what computes, and where networks come from
_NAMED = 5  # files listed in a message


class CodeVersion(Settings):
    """The code that a comparison's runs are made with.

    Attributes:
        limbeck: its version.
        commit: its git commit, for people; files may have been edited since. None outside git.
        sources: file of the package to the SHA-256 of its content; those that a run's numbers
            can depend on.
        packages: versions.
        models: ``file.py:function`` of the user's own networks to the SHA-256 of the file.
    """

    limbeck: str
    commit: str | None
    sources: dict[str, str]
    packages: dict[str, str]
    models: dict[str, str]


def code_version(models: Iterable[str] = ()) -> CodeVersion:
    """The code as it is now.

    Args:
        models: names of networks; those that are functions in files count with their files.
    """
    packages = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    files = {name: Path(name.rpartition(":")[0]) for name in models if ".py:" in name}
    return CodeVersion(
        limbeck=__version__,
        commit=code_commit(),
        sources=_sources(),
        packages=packages,
        models={name: _digest(path) for name, path in sorted(files.items()) if path.is_file()},
    )


def code_differences(then: CodeVersion, now: CodeVersion) -> list[str]:
    """What differs between two versions of the code, each as a phrase; the commit does not count.

    Example:
        >>> code_differences(code_version(), code_version())
        []
    """
    found = []
    sources = _changed(then.sources, now.sources)
    if sources:
        more = f" and {len(sources) - _NAMED} more" if len(sources) > _NAMED else ""
        found.append(f"limbeck's {', '.join(sources[:_NAMED])}{more}")
    for package in _changed(then.packages, now.packages):
        was, is_now = then.packages.get(package), now.packages.get(package)
        found.append(f"{package} ({was or 'none'} then, {is_now or 'none'} now)")
    found += [f"the file of {name}" for name in _changed(then.models, now.models)]
    return found


def sources_hash() -> str:
    """One SHA-256 over all of :attr:`CodeVersion.sources`."""
    return hashlib.sha256(json.dumps(_sources(), sort_keys=True).encode()).hexdigest()


def code_commit() -> str | None:
    """The commit this code stands at, if it lies in its own git checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD", "--show-toplevel"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    commit, top = out.stdout.split("\n")[:2]
    return commit if (Path(top) / "src" / "limbeck").is_dir() else None


@lru_cache(maxsize=1)
def _sources() -> dict[str, str]:
    """As this process first found them: what it has imported stays as it is, too."""
    root = Path(__file__).resolve().parents[1]
    return {
        path.relative_to(root).as_posix(): _digest(path)
        for path in sorted(root.rglob("*.py"))
        if path.relative_to(root).parts[0] not in _NOT_IN_A_RUN
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _changed(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
