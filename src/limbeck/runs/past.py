"""What a finished run was on its way: its epochs on validation, and the networks that it kept."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from limbeck.core.errors import CheckpointError, RunFolderError
from limbeck.engine.checkpoint import CheckpointStore
from limbeck.runs.folder import RunFolder
from limbeck.runs.networks import load_student
from limbeck.runs.summary import read_summary

__all__ = ["PastEpoch", "best_epoch", "checkpoints", "load_checkpoint", "past_epochs"]

_LEARNER, _AVERAGE = "observed.network.", "module.observed.network."


class PastEpoch(NamedTuple):
    """A line of ``metrics.jsonl``.

    Attributes:
        number: counted from 1 over all stages.
        stage: its name.
        step: optimiser steps by its end, over all stages.
        top1: on validation, a fraction; None without a validation split.
        loss: the same, nats.
    """

    number: int
    stage: str
    step: int
    top1: float | None
    loss: float | None


def past_epochs(run: Path) -> tuple[PastEpoch, ...]:
    """Every epoch of a run.

    Raises:
        RunFolderError: if the file is missing or damaged.
    """
    path = run / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found: list[PastEpoch] = []
        before = 0  # steps of earlier stages: each stage counts its own
        for number, row in enumerate(rows, 1):
            if found and row["stage"] != found[-1].stage:
                before = found[-1].step
            val = row.get("val") or {}
            epoch = PastEpoch(
                number=number,
                stage=str(row["stage"]),
                step=before + int(row["step"]),
                top1=val.get("top1"),
                loss=val.get("loss"),
            )
            found.append(epoch)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path} is not what a run writes: {error}") from None
    return tuple(found)


def best_epoch(run: Path) -> int | None:
    """The epoch that validation chose, as :attr:`PastEpoch.number`; None without validation."""
    chosen = read_summary(run).best_on_validation
    if chosen is None or not RunFolder(run).student_best.exists():
        return None
    epochs = past_epochs(run)
    before = sum(epoch.stage != epochs[-1].stage for epoch in epochs)
    return before + chosen.epoch + 1


def checkpoints(run: Path) -> dict[float, Path]:
    """Epoch, counted from 1, to the checkpoints before the run's end; within an epoch, a fraction.

    A run keeps the newest ``train.checkpoint_hist`` of them.
    """
    epochs = past_epochs(run)
    if not epochs:
        return {}
    steps = [0, *(epoch.step for epoch in epochs)]
    numbers = [0, *(epoch.number for epoch in epochs)]
    found = {
        float(np.interp(step, steps, numbers)): path
        for path in CheckpointStore(RunFolder(run).checkpoints).paths()
        if (step := int(path.name.removeprefix("step-"))) < steps[-1]
    }
    return dict(sorted(found.items()))


def load_checkpoint(run: Path, path: Path, *, typed: Collection[str] = ()) -> nn.Module | None:
    """The student as it was at a checkpoint; None where that is of another network.

    Other networks are those of earlier stages. What a method puts behind its student at the end
    is not in a checkpoint, so that a student that reuses its teacher's classifier has none.

    Args:
        run: the run's folder.
        path: one of its :func:`checkpoints`.
        typed: as for :func:`~limbeck.runs.networks.load_student`.

    Raises:
        CheckpointError: if it is not whole, or the student cannot be built.
    """
    state = CheckpointStore(RunFolder(run).checkpoints).load(path)
    named, _ = load_student(run, typed=typed)
    try:
        loop = state["loop"]
        stepper = loop["stepper"]
        stage = loop["stage"]
        average = stepper["average"]
        kept: dict[str, Tensor] = stepper["learner"] if average is None else average
    except (KeyError, TypeError):
        raise CheckpointError(f"{path} is not what a run writes") from None
    prefix = _LEARNER if average is None else _AVERAGE
    weights = {
        name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)
    }
    own = named.network.state_dict()
    alike = weights.keys() == own.keys() and all(weights[n].shape == own[n].shape for n in own)
    if stage != past_epochs(run)[-1].stage or not alike:
        return None
    named.network.load_state_dict(weights)
    return named.network
