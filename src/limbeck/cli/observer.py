"""What a person, a log file or a machine sees of a run while it trains."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from limbeck.cli.terminal import make_console, printable, printable_lines
from limbeck.engine.recorder import Observer, SilentObserver

__all__ = ["JsonObserver", "TextObserver", "observing"]

_REFRESH = 0.2  # seconds between two updates of the bar


@contextmanager
def observing(*, quiet: bool, as_json: bool) -> Iterator[Observer]:
    """The observer for this terminal: a bar, a line an epoch, JSON lines, or silence.

    The bar is gone after the block, whatever ended it.
    """
    if as_json:
        yield JsonObserver()
    elif quiet:
        yield SilentObserver()
    else:
        observer = TextObserver(make_console(stderr=True))
        try:
            yield observer
        finally:
            observer.stop()


class JsonObserver:
    """One JSON object a line on standard output, each with its ``event``."""

    def note(self, message: str) -> None:
        """A sentence."""
        self._print({"event": "note", "message": message})

    def step(self, stage: str, done: int, total: int) -> None:
        """Nothing: epochs are enough for a machine."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One evaluated epoch."""
        self._print({"event": "epoch", **row})

    def _print(self, value: Mapping[str, Any]) -> None:
        print(json.dumps(value), flush=True)  # noqa: T201


class TextObserver:
    """A progress bar on a terminal, one line an epoch elsewhere.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._stage = ""
        self._num_steps = 0
        self._updated = 0.0

    def note(self, message: str) -> None:
        """A sentence; the terminal wraps it, so that a path in it can be copied whole."""
        self.console.print(printable_lines(message), soft_wrap=True)

    def step(self, stage: str, done: int, total: int) -> None:
        """Move the bar."""
        self._num_steps = total
        if not self.console.is_terminal:
            return
        if stage != self._stage:
            self.stop()
            self._stage = stage
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[last]}", markup=False),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task(printable(stage), total=total, last="")
            self._bar.start()
        now = time.monotonic()
        if self._bar is not None and (now - self._updated > _REFRESH or done == total):
            self._updated = now
            self._bar.update(self._task, completed=done)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print the epoch, or show it beside the bar."""
        epoch, val = row["epoch"] + 1, row["val"]
        num_epochs = self._num_steps * epoch // row["step"]
        judged = f"  val {val['top1']:.2%}" if val else ""
        text = f"epoch {epoch}/{num_epochs}  loss {row['train']['loss']:.4f}{judged}"
        if self._bar is not None:
            self._bar.update(self._task, last=text)
        else:
            self.console.print(
                f"{printable(row['stage'])}  {text}  lr {row['lr']:.2g}  "
                f"{row['images_per_second']:,.0f} images/s"
            )

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
