"""A run folder: made when a run may start, locked while it runs, read when it is over."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch
from filelock import FileLock, Timeout

from limbeck._version import __version__
from limbeck.core.errors import RunFolderError
from limbeck.core.files import write_durably
from limbeck.runs.provenance import code_commit, sources_hash

__all__ = ["RunFolder", "describe_environment", "read_json"]

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "scikit-learn")


class RunFolder:
    """Paths inside a run folder, and writing to them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """Resolved settings."""
        return self.path / "config.json"

    @property
    def summary(self) -> Path:
        """There once the run is finished."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """Their folder."""
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        """Last-epoch weights of what is deployed."""
        return self.path / "student.safetensors"

    @property
    def student_best(self) -> Path:
        """The same of the best epoch on validation."""
        return self.path / "student_best.safetensors"

    @property
    def predictions(self) -> Path:
        """Logits and labels of validation and test."""
        return self.path / "predictions.safetensors"

    def cka(self, form: str) -> Path:
        """The map of CKA, if one was made: "json", "csv" or "png"."""
        return self.path / f"cka.{form}"

    @property
    def lipschitz(self) -> Path:
        """The Lipschitz profiles of its networks, if they were made."""
        return self.path / "lipschitz.json"

    @property
    def student_card(self) -> Path:
        """What the weights are of: model, classes, normalisation."""
        return self.path / "student.json"

    def stage(self, name: str) -> RunFolder:
        """What a stage or peer with a network of its own leaves: weights and card."""
        return RunFolder(self.path / "stages" / name)

    def check_free(self) -> None:
        """Refuse a folder that already holds something, or cannot be made or written.

        Raises:
            RunFolderError: with what to do.
        """
        if self.config.exists():
            self._refuse_taken()
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunFolderError(
                f"{self.path} exists and is not an empty folder; choose another (--output)"
            )
        parent = self.path
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise RunFolderError(f"{parent} is a file; choose another folder (--output)")
        probe = parent / f".limbeck-write-test-{os.getpid()}"
        try:
            probe.write_bytes(b"x" * 4096)
        except OSError as error:
            raise RunFolderError(
                f"{parent} cannot be written: {error}; choose another folder (--output)"
            ) from None
        finally:
            with suppress(OSError):
                probe.unlink()

    def _refuse_taken(self) -> NoReturn:
        """Say what the folder holds; or who is at work there, if somebody is."""
        state = "finished"
        if not self.summary.exists():
            state = "unfinished"
            with self.locked():
                pass
        raise RunFolderError(
            f"{self.path} already holds a run ({state}); choose another folder (--output), or "
            f"`limbeck resume {self.path}`"
        )

    @contextmanager
    def created(self) -> Iterator[None]:
        """Make and lock the folder; if nothing was recorded in it, take it away again.

        Raises:
            RunFolderError: if it is taken, or cannot be made.
        """
        self.check_free()
        existed = self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.path} could not be made: {error}") from None
        with self.locked():
            if self.config.exists():  # another process was quicker, and is done
                self._refuse_taken()
            try:
                yield
            finally:
                if not self.config.exists():
                    for ours in self.path.iterdir():  # it was empty
                        ours.unlink()
                    if not existed:
                        self.path.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second run that wants it is refused.

        Raises:
            RunFolderError: naming the process that holds it.
        """
        owner = self.path / ".owner.json"
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            who: dict[str, Any] = {}
            with suppress(RunFolderError):  # between taking the lock and writing its name
                who = read_json(owner)
            raise RunFolderError(
                f"{self.path} is in use by process {who.get('pid', '?')} on "
                f"{who.get('host', '?')}; wait for it, or choose another folder (--output)"
            ) from None
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be locked: {error}") from None
        try:
            self.write_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            owner.unlink(missing_ok=True)
            # Still held: after its release the file may be another process's lock.
            with suppress(OSError):
                (self.path / ".lock").unlink()
            lock.release()

    def write_json(self, path: Path, values: Any) -> None:  # noqa: ANN401  (any JSON)
        """Replace a JSON file in one step."""
        write_durably(path, (json.dumps(values, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a run folder.

    Raises:
        RunFolderError: if it is missing or no JSON object.
    """
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise RunFolderError(
            f"{path} is missing; {path.parent} is not a run folder (or not a finished one)"
        ) from None
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RunFolderError(f"{path} should hold a JSON object")
    return values


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, code commit and machine, for ``environment.json``; no environment variables."""
    versions = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    versions["torch"] = str(torch.__version__)  # with the build, which the metadata leave out
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "limbeck": __version__,
        "commit": code_commit(),
        "sources": sources_hash(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device": str(device),
        "device_name": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
