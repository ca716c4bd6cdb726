"""What a run writes while it trains: metrics.jsonl, TensorBoard events, and its observer."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from limbeck.core.errors import RunFolderError

__all__ = ["Observer", "Recorder", "RunningMeans", "SilentObserver"]


class Observer(Protocol):
    """Who watches a run: the command line's progress bar, or nobody."""

    def note(self, message: str) -> None:
        """A sentence worth reading: what was resolved, chosen or found odd."""

    def step(self, stage: str, done: int, total: int) -> None:
        """``done`` of the stage's ``total`` steps are made."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""


class SilentObserver:
    """Watches and says nothing."""

    def note(self, message: str) -> None:
        """Nothing."""

    def step(self, stage: str, done: int, total: int) -> None:
        """Nothing."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Nothing."""


class RunningMeans:
    """Means over an epoch, summed on the device; reading them is the only wait for it.

    The names may differ from batch to batch; a mean is over the batches that had the name.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # (2,): weighted sum, weight

    def add(self, values: Mapping[str, Tensor], *, weight: int) -> None:
        """Add scalars, each standing for ``weight`` images."""
        for name, value in values.items():
            wide = value.detach().to(torch.float64)
            pair = torch.stack((wide, torch.ones_like(wide))) * weight
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self) -> dict[str, float]:
        """The means, on the host."""
        return {name: float(pair[0] / pair[1]) for name, pair in self._sums.items()}

    def sums(self) -> dict[str, Tensor]:
        """What :meth:`load` takes, and what ranks add up: ``(2,)`` sum and weight by name."""
        return dict(self._sums)

    def load(self, sums: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue from the sums of an interrupted epoch."""
        self._sums = {name: pair.to(device) for name, pair in sums.items()}


class Recorder:
    """Appends to a run folder's metrics; only the main process has a folder.

    Args:
        folder: the run folder, or None to write nothing.
        observer: told of every row as well.
        offset: bytes of metrics.jsonl that count; what follows was written after the checkpoint
            that the run resumes from, and is cut off.
        step: the first to come, counted from 1 over all stages, for TensorBoard's own way of
            cutting.

    Attributes:
        first_step: steps of the stages before this one; TensorBoard counts over all stages.

    Raises:
        RunFolderError: if metrics.jsonl has lost rows since that checkpoint.
    """

    def __init__(
        self, folder: Path | None, observer: Observer, *, offset: int = 0, step: int = 1
    ) -> None:
        self.observer = observer
        self.first_step = 0
        self._path = None if folder is None else folder / "metrics.jsonl"
        self._events: Any = None
        if self._path is not None and folder is not None:
            with self._path.open("ab") as file:
                size = file.tell()
                if size < offset:
                    raise RunFolderError(
                        f"{self._path} has {size} bytes and had {offset} when the checkpoint was "
                        "taken; put it back as it was, or start again in a new folder"
                    )
                file.truncate(offset)
            with warnings.catch_warnings():  # tensorboard's own imports warn of their future
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(str(folder), purge_step=step)

    def offset(self) -> int:
        """Bytes of metrics.jsonl so far, on disk for certain."""
        if self._path is None:
            return 0
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return self._path.stat().st_size

    def row(self, row: Mapping[str, Any]) -> None:
        """Append one line, to the file, to TensorBoard and to the observer."""
        self.observer.epoch(row)
        if self._path is None:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunFolderError(f"{self._path} could not be written: {error}") from None
        step = self.first_step + row["step"]
        for group in ("train", "val"):
            for name, value in (row.get(group) or {}).items():
                self._events.add_scalar(f"{row['stage']}/{group}/{name}", value, step)
        self._events.add_scalar(f"{row['stage']}/lr", row["lr"], step)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._events is not None:
            self._events.close()
