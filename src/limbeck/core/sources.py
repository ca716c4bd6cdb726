"""The files that a module's numbers depend on, as one hash."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from limbeck.core.errors import UnknownNameError

__all__ = ["source_hash"]

_ROOT = Path(__file__).resolve().parents[2]


def source_hash(module: str) -> str:
    """SHA-256 over a module's file and those of all modules of this package that it imports.

    The files are read and not run, so that a report can ask without loading torch.

    Args:
        module: as ``limbeck.methods.output.kd``.

    Raises:
        UnknownNameError: if the package has no such module.

    Example:
        >>> source_hash("limbeck.core.errors") == source_hash("limbeck.core.sources")
        False
    """
    if _file(module) is None:
        raise UnknownNameError("module", module, ())
    found: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name] = path.read_bytes()
        waiting += _imported(found[name])
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode() + b"\0" + hashlib.sha256(found[name]).digest())
    return digest.hexdigest()


def _file(module: str) -> Path | None:
    path = _ROOT.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _imported(source: bytes) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limbeck"):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("limbeck"))
