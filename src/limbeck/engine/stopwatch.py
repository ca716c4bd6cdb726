"""How long a part of the work takes, without making a GPU wait to find out."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the seconds inside its ``with`` blocks.

    On a CPU a block is timed by the clock. On a GPU, where a block only queues work, each is
    enclosed by two events in the queue; they are read by :meth:`seconds`, which waits.

    Args:
        device: where the work is done.

    Example:
        >>> watch = Stopwatch(torch.device("cpu"))
        >>> with watch:
        ...     _ = sum(range(1000))
        >>> watch.seconds() > 0
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._total = 0.0
        self._start: Any = None
        self._open: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._start = self._event() if self._cuda else time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._cuda:
            self._open.append((self._start, self._event()))
        else:
            self._total += time.perf_counter() - self._start

    def seconds(self) -> float:
        """All blocks so far; on a GPU this waits for the last of them."""
        if self._open:
            self._open[-1][1].synchronize()
            self._total += sum(start.elapsed_time(end) for start, end in self._open) / 1000
            self._open = []
        return self._total

    def start_from(self, seconds: float) -> None:
        """Go on from what an earlier sitting had measured."""
        self._total, self._open = seconds, []

    def _event(self) -> Any:  # noqa: ANN401  (a CUDA event)
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event
