"""A process that carries out one task of a comparison: ``python -m limbeck.runs.worker``.

It ends with exit code 0 once the task's result is there; 3 when it failed and has said why in the
comparison's folder; 128 and the signal's number when it was asked to stop. When its standard input
ends, the process that started it is gone, and it ends at once: its run goes on from the newest
checkpoint another time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from limbeck.core.errors import RunFolderError
from limbeck.engine.loop import InterruptedRun
from limbeck.runs.comparison import ComparisonFolder, FailedTask
from limbeck.runs.provenance import code_differences, code_version
from limbeck.runs.tasks import Task, carry_out

__all__ = ["FAILED", "main"]

FAILED = 3


class _Log:
    """Prints what a run says, a JSON object a line."""

    def note(self, message: str) -> None:
        """A sentence."""
        self._print({"event": "note", "message": message})

    def step(self, stage: str, done: int, total: int) -> None:
        """Nothing."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One evaluated epoch."""
        self._print({"event": "epoch", **row})

    def _print(self, value: Mapping[str, Any]) -> None:
        print(json.dumps(value), flush=True)  # noqa: T201


def main(arguments: Sequence[str]) -> int:
    """Carry out the task that the arguments name; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m limbeck.runs.worker")
    parser.add_argument("folder")
    parser.add_argument("task")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--typed", action="append", default=[])
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    folder = ComparisonFolder(options.folder)
    task = Task.read(options.task)
    try:
        _check_code(folder)
        carry_out(folder, task, device=options.device, typed=options.typed, observer=_Log())
    except InterruptedRun as stop:
        return 128 + stop.signum
    except Exception as error:  # noqa: BLE001  (the border of the process)
        folder.fail(FailedTask.of(task.name, error))
        return FAILED
    return 0


def _check_code(folder: ComparisonFolder) -> None:
    """Refuse files that were edited since the comparison was taken up."""
    begun = folder.read().code
    differing = code_differences(begun, code_version(begun.models))
    if differing:
        raise RunFolderError(f"the code has changed meanwhile: {'; '.join(differing)}")


def _end_with_the_parent() -> None:
    # Not sys.stdin: Python takes that away when it ends, and does not like a thread inside.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
