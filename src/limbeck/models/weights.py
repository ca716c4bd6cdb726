"""A network's weights in a file, and back: exactly the right ones or an error, and never code.

Loading a pickle can run whatever its author wrote into it. Weights are therefore written as
safetensors. Files of ``torch.save`` are read with torch's restricted unpickler, and what that
refuses stays refused.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from limbeck.core.errors import CheckpointError
from limbeck.core.files import write_durably

__all__ = ["fill_network", "load_weights", "read_weights", "save_weights", "without_prefix"]

_MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit
_WRAPPERS = ("state_dict", "model")  # where training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_SHOWN = 6  # names of each kind in a message


def save_weights(
    state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict as safetensors, in one step: temporary file, flush, rename.

    Args:
        state: tensors by name, as ``network.state_dict()`` gives them.
        path: the file.
        metadata: kept in its header. Of several entries safetensors writes any first, so that
            equal weights make equal files with one entry alone.

    Raises:
        RunFolderError: if it cannot be written; what was there before stays.
    """
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()
    }
    # Not save_file: it leaves a file that nobody but its owner may read.
    write_durably(Path(path), save(tensors, None if metadata is None else dict(metadata)))


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Fill ``network`` with the weights of a file: all of them, and no others.

    Reads safetensors, and files of ``torch.save`` that hold a state dict: bare, or under
    ``"state_dict"`` or ``"model"``, with or without DataParallel's ``module.`` before each name.
    Which of the two it is shows in the content, not in the file's name.

    Args:
        network: its names and shapes must be the file's; values are converted to its dtype.
        path: the file.

    Raises:
        CheckpointError: if the file is missing, damaged or unsafe, or made for another network;
            the network is then as it was.
    """
    fill_network(network, read_weights(path), source=path)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A file's tensors under its own names, in any form that :func:`load_weights` reads.

    Raises:
        CheckpointError: if the file is missing, damaged or unsafe.
    """
    path = Path(path)
    try:
        return _read(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def fill_network(network: nn.Module, state: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Fill ``network`` with tensors by name: all of them, and no others.

    Args:
        network: its names and shapes must be those of ``state``; values are converted to its
            dtype.
        state: with or without DataParallel's ``module.`` before each name.
        source: where they come from, for messages.

    Raises:
        CheckpointError: naming what is missing, unknown or of another shape; the network is then
            as it was.
    """
    given = without_prefix(state, network)
    _check_fit(network, given, source)
    try:
        network.load_state_dict(given)
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit {type(network).__name__}: {error}") from None


def without_prefix(given: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The same tensors without what wrappers put before every name of ``network``'s own."""
    given = dict(given)
    known = network.state_dict().keys()
    while not known & given.keys():
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in given)), None)
        if prefix is None or not given:
            break
        given = {name.removeprefix(prefix): value for name, value in given.items()}
    return given


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise CheckpointError(f"{path} is not there; give the path of a file of weights")
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder; give the file of weights in it (a finished run's is "
            "student.safetensors)"
        )
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise CheckpointError(f"{path} is empty; copy or save it again")
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER:
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise _damaged(path, error) from None
    if head.startswith((b"PK\x03\x04", b"\x80")):  # a zip, or a pickle of protocol 2 and later
        return _state_of(_read_torch(path), path)
    raise CheckpointError(
        f"{path} is no file of weights: it is neither safetensors nor what torch.save writes, "
        "or it was cut short at the start. Give such a file, or copy it again"
    )


def _damaged(path: Path, error: object) -> CheckpointError:
    reason = re.split(r"\. |\n", str(error).strip())[0].rstrip(".")
    return CheckpointError(
        f"{path} is damaged or cut short ({reason or type(error).__name__}); copy or save it again"
    )


def _read_torch(path: Path) -> Any:  # noqa: ANN401  (tensors and plain values)
    """What a file of ``torch.save`` holds, none of its code run."""
    try:
        _check_archive(path)
        # An open file and not its path: torch would go by the name.
        with (
            path.open("rb") as file,
            # The settings that training scripts keep beside the weights: a holder of plain
            # values, and to make one runs no code.
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # on pickle protocols, which it then reads or refuses
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Python objects ({named[1]})" if named else "more than tensors and plain values"
        raise CheckpointError(
            f"{path} holds {what}, or is damaged, and is not read: loading such a file runs code "
            "that is in it. If you trust where it comes from, convert it with the program that "
            "wrote it: safetensors.torch.save_file(network.state_dict(), 'weights.safetensors')"
        ) from None
    except Exception as error:  # noqa: BLE001  (a damaged file fails wherever it happens to)
        raise _damaged(path, error) from None


def _check_archive(path: Path) -> None:
    """Look into a zip before torch does: is it of ``torch.save``, and are its checksums right?"""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = {PurePosixPath(name).name for name in archive.namelist()}
        # torch.load compares no checksums: a flipped bit would go unnoticed.
        broken = archive.testzip()
    if "data.pkl" not in names or "constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a zip without a state dict: a program of torch.jit or torch.export, or "
            "something else. Save network.state_dict() instead"
        )
    if broken is not None:
        raise _damaged(path, f"the checksum of {broken} is not the recorded one")


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:  # noqa: ANN401  (any plain value)
    """The state dict in what a torch file held."""
    state = content
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            state = content[name]
            break
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(
            f"{path} should hold a state dict, and holds "
            f"{'an empty one' if isinstance(state, Mapping) else type(state).__name__}"
        )
    strangers = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(
            f"{path} should hold tensors by name, alone or under 'state_dict' or 'model'; these "
            f"entries are none: {_some(strangers)}. Save network.state_dict() instead"
        )
    return {str(name): value for name, value in state.items()}


def _check_fit(network: nn.Module, given: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise unless names, shapes and kinds of number are the network's own."""
    wanted = {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}
    # Files from before torch 0.4.1 lack these counters; torch then starts them at 0.
    missing = [
        name for name in wanted if name not in given and not name.endswith(".num_batches_tracked")
    ]
    unexpected = [name for name in given if name not in wanted]
    unequal = [
        name
        for name in wanted
        if name in given
        and (
            given[name].shape != wanted[name].shape
            or given[name].is_floating_point() != wanted[name].is_floating_point()
        )
    ]
    if not missing and not unexpected and not unequal:
        return
    head = _classifier_names(network)
    if not missing and not unexpected and set(unequal) <= set(head):
        theirs, ours = given[head[0]].shape, wanted[head[0]].shape
        if theirs[1:] == ours[1:] and theirs[0] != ours[0]:
            raise CheckpointError(
                f"{path} was made for {theirs[0]} classes, this {type(network).__name__} has "
                f"{ours[0]}; use weights that were trained on the same classes"
            )
    lines = [f"{path} was made for another network than this {type(network).__name__}:"]
    if missing:
        lines.append(f"  missing in the file ({len(missing)}): {_some(missing)}")
    if unexpected:
        lines.append(f"  unknown to the network ({len(unexpected)}): {_some(unexpected)}")
    if unequal:
        shapes = [f"{k} {_form(given[k])}, not {_form(wanted[k])}" for k in unequal]
        lines.append(f"  of another form ({len(unequal)}): {_some(shapes, '; ')}")
    lines.append("Name the model that the file was made for, or give another file.")
    raise CheckpointError("\n".join(lines))


def _classifier_names(network: nn.Module) -> list[str]:
    """Weight, then bias if it has one, of the last linear layer."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        return []
    prefix = f"{linear[-1]}." if linear[-1] else ""
    names = (f"{prefix}weight", f"{prefix}bias")
    return [name for name in names if name in network.state_dict()]


def _form(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{tuple(tensor.shape)} {kind}"


def _some(names: list[str], separator: str = ", ") -> str:
    return separator.join(names[:_SHOWN]) + (f"{separator}..." if len(names) > _SHOWN else "")
