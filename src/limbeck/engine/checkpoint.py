"""Checkpoints: a folder that is there whole or not at all, and holds no code.

``tensors.safetensors`` + ``state.json`` + ``manifest.json`` (SHA-256 of both), written to a
temporary folder beside its final name, flushed to disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.core.errors import CheckpointError, RunFolderError
from limbeck.core.files import fsync_file, fsync_folder

__all__ = ["SCHEMA", "CheckpointStore", "restore_rng_state", "rng_state"]

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_TEMPORARY = ".saving-"
SCHEMA = 1


class CheckpointStore:
    """The checkpoints of one run, newest last.

    Args:
        folder: made when first written to.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``state``, a tree of tensors and plain values, as the checkpoint of ``step``.

        Raises:
            RunFolderError: if the disk is full or cannot be written; older checkpoints stay.
        """
        final = self.folder / f"step-{step:09d}"
        temporary = self.folder / f"{_TEMPORARY}{os.getpid()}"
        tensors: dict[str, Tensor] = {}
        text = json.dumps({"schema": SCHEMA, "state": _encode(state, tensors)})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(stale)
            temporary.mkdir()
            save_file(tensors, temporary / _TENSORS)
            (temporary / _STATE).write_text(text)
            manifest = {name: _sha256(temporary / name) for name in (_TENSORS, _STATE)}
            (temporary / _MANIFEST).write_text(json.dumps(manifest))
            for name in (_TENSORS, _STATE, _MANIFEST):
                fsync_file(temporary / name)
            fsync_folder(temporary)
            if final.exists():  # the same step once more, after a resume
                shutil.rmtree(final)
            temporary.rename(final)
            fsync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunFolderError(
                f"checkpoint {final} could not be written: {error}. Older checkpoints are "
                "untouched; free space or choose another folder, then `limbeck resume`"
            ) from None
        paths = self.paths()
        kept = paths.index(final) + 1
        # Later ones too: the run went back behind them, because they were damaged.
        for other in (*paths[: max(0, kept - self.keep)], *paths[kept:]):
            shutil.rmtree(other)
        return final

    def load(self, path: Path) -> dict[str, Any]:
        """One of :meth:`paths`.

        Raises:
            CheckpointError: if it is not whole.
        """
        return _read(path)

    def load_newest(self) -> tuple[dict[str, Any], list[str]]:
        """The newest checkpoint that is whole, and what was wrong with newer ones.

        Raises:
            CheckpointError: if none is.
        """
        faults: list[str] = []
        for path in reversed(self.paths()):
            try:
                return _read(path), faults
            except CheckpointError as error:
                faults.append(str(error))
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise CheckpointError(
            f"{self.folder} holds no usable checkpoint{listed or ': it has none'}; start the run "
            "again in a new folder"
        )


def _read(path: Path) -> dict[str, Any]:
    """One checkpoint, verified against its manifest."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        for name in (_TENSORS, _STATE):
            if _sha256(path / name) != manifest[name]:
                raise CheckpointError(f"{path / name} is damaged: its SHA-256 is not the recorded")
        stored = json.loads((path / _STATE).read_text())
        if stored["schema"] != SCHEMA:
            raise CheckpointError(
                f"{path} has checkpoint format {stored['schema']}, this version reads {SCHEMA}"
            )
        state: dict[str, Any] = _decode(stored["state"], load_file(path / _TENSORS))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return state


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """A JSON-like tree with tensors moved out into ``tensors``."""
    if isinstance(value, Tensor):
        key = f"t{len(tensors)}"
        # A clone: safetensors refuses tensors that share memory.
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"$": "tensor", "key": key}
    if isinstance(value, dict):
        return {
            "$": "dict",
            "items": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()],
        }
    if isinstance(value, tuple):
        return {"$": "tuple", "items": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value["$"]:
        case "tensor":
            return tensors[value["key"]]
        case "dict":
            return {_decode(k, tensors): _decode(v, tensors) for k, v in value["items"]}
        case "tuple":
            return tuple(_decode(item, tensors) for item in value["items"])
        case kind:
            raise CheckpointError(f"unknown kind of value {kind!r}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rng_state() -> dict[str, Any]:
    """The global generators' states: dropout inside networks draws from them."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng_state(state: dict[str, Any]) -> None:
    """Undo :func:`rng_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
