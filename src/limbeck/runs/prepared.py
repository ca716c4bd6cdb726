"""What a method finds in its pass over the data, kept for the next run with the same teacher.

WKD-L's prices between classes take the teacher's features of every training image; a comparison of
five seeds would compute them five times. They lie as ``prepared/KEY.safetensors`` in a folder of
the user's own: :data:`VARIABLE` names it, and set to nothing keeps nothing. The key is a hash of
all that the result depends on (teacher, images, settings, code, the kind of machine), so that a
file is never another run's, and any file may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from limbeck.core.errors import CheckpointError, RunFolderError
from limbeck.models import save_weights

__all__ = ["VARIABLE", "keep_buffers", "prepared_path", "recall_buffers"]

VARIABLE = "LIMBECK_CACHE"  # of the environment; unset, ~/.cache/limbeck or its like
_DIGEST = "sha256"


def prepared_path(facts: Mapping[str, JsonValue]) -> Path | None:
    """Where the result of a pass lies, whether it is there or not; None where none is kept.

    Args:
        facts: all that the result depends on.
    """
    folder = os.environ.get(VARIABLE)
    if folder == "":
        return None
    if folder is None:
        try:
            caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:  # nobody's home
            return None
        folder = str(Path(caches) / "limbeck")
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Path(folder) / "prepared" / f"{key}.safetensors"


def keep_buffers(buffers: Mapping[str, Tensor], path: Path) -> None:
    """Write some of a module's buffers, by name, in one step.

    Raises:
        RunFolderError: if they cannot be written.
    """
    buffers = {name: buffer.detach().cpu() for name, buffer in buffers.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{path.parent} could not be made: {error.strerror}") from None
    save_weights(buffers, path, {_DIGEST: _digest(buffers)})


def recall_buffers(module: nn.Module, path: Path) -> None:
    """Fill those of a module's buffers that :func:`keep_buffers` wrote.

    Raises:
        CheckpointError: if the file cannot be read, is damaged, or is of other buffers; the
            module is then as it was.
    """
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(_DIGEST)
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if _digest(found) != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the recorded")
    own = dict(module.named_buffers())
    if any(name not in own or own[name].shape != value.shape for name, value in found.items()):
        raise CheckpointError(f"{path} is of other buffers than {', '.join(own) or 'none'}")
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
