"""Over training: when did the student come to answer as its teacher does, and as sure as it?

From the networks that a run kept: its checkpoints, and the epoch that validation chose. Each is
held against the teacher as it is now, on the test images: agreement, divergence at temperature 1,
and calibration error. Accuracy and loss on validation are of every epoch, as they were recorded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from limbeck.analysis.background import RunFacts, Snapshot
from limbeck.analysis.base import (
    Case,
    Experiment,
    Measured,
    NotApplicableError,
    Picture,
    Reading,
    Subject,
)
from limbeck.analysis.drawing import Panel, lines_svg
from limbeck.metrics.calibration import expected_calibration_error
from limbeck.metrics.fidelity import kl_from_teacher
from limbeck.metrics.scores import top_k_accuracy

__all__ = ["TRAINING"]

Kind = Literal["distilled", "independent"]
_FEW = 3  # points of a curve


class _Point(NamedTuple):
    """A student after some epochs, against its teacher."""

    epoch: float
    best: bool
    agrees: NDArray[np.bool_]
    divergence: float
    top1: float
    ece: float


def _measure(case: Case) -> Measured:
    if case.background is None:
        raise NotApplicableError("the course of training is in run folders, and none was given")
    facts = {"distilled": case.background.distilled, "independent": case.background.independent}
    points = {
        kind: {
            seed: _points(case, student, facts[kind].get(seed))
            for seed, student in getattr(case, kind).items()
        }
        for kind in facts
    }
    readings = []
    chosen = {kind: _best(by_seed) for kind, by_seed in points.items()}
    if all(chosen.values()):
        readings.append(
            _reading("agreement with the teacher at the epoch best on validation", chosen)
        )
    shared = _shared_epochs(points)
    if shared:
        early = {
            kind: {seed: _at(found, shared[0]) for seed, found in by_seed.items()}
            for kind, by_seed in points.items()
        }
        readings.insert(0, _reading(f"agreement with the teacher after epoch {shared[0]:g}", early))
    panels = _panels(facts, points)
    if not readings and not panels:
        raise NotApplicableError(
            "the runs kept neither an earlier network nor scores on validation; train with a "
            "validation split, or keep checkpoints with --set train.checkpoint_steps=N --set "
            "train.checkpoint_hist=M"
        )
    notes = []
    if not shared:
        notes.append(
            "No epoch before the last was kept by all runs: of fidelity and calibration over "
            "training there is only the epoch that validation chose beside the last. To have "
            "more, train with --set train.checkpoint_steps=N --set train.checkpoint_hist=M."
        )
    return Measured(
        readings=tuple(readings),
        pictures=_pictures(panels),
        tables={"Kept networks against the teacher, means over seeds": _table(points)},
        notes=tuple(notes),
        settings={"images": len(case.images)},
    )


def _points(case: Case, student: Subject, facts: RunFacts | None) -> list[_Point]:
    """Of every kept network and, at the end, the last one."""
    snapshots: Sequence[Snapshot] = () if facts is None else facts.snapshots
    found = []
    for snapshot in snapshots:
        network = snapshot.load()
        if network is None:
            continue
        then = dataclasses.replace(student, network=network)
        logits = case.forward(then, case.images)
        found.append(_point(case, logits, epoch=snapshot.epoch, best=snapshot.best))
    last = facts.epochs[-1].number if facts is not None and facts.epochs else float("inf")
    found.append(_point(case, case.answers(student), epoch=last, best=False))
    return found


def _point(case: Case, logits: NDArray[np.float32], *, epoch: float, best: bool) -> _Point:
    theirs = case.answers(case.teacher)
    known = case.labels.numpy() >= 0
    label = case.labels.numpy()[known]
    return _Point(
        epoch=epoch,
        best=best,
        agrees=logits.argmax(axis=1) == theirs.argmax(axis=1),
        divergence=kl_from_teacher(logits, theirs),
        top1=top_k_accuracy(logits[known], label, k=1) if known.any() else float("nan"),
        ece=expected_calibration_error(logits[known], label) if known.any() else float("nan"),
    )


def _best(by_seed: Mapping[int, Sequence[_Point]]) -> dict[int, _Point]:
    """Of every seed; empty where one of them kept none."""
    found = {s: next((p for p in points if p.best), None) for s, points in by_seed.items()}
    kept = {seed: point for seed, point in found.items() if point is not None}
    return kept if len(kept) == len(by_seed) else {}


def _shared_epochs(points: Mapping[str, Mapping[int, Sequence[_Point]]]) -> list[float]:
    """Before the last, of which every run has a checkpoint, ascending."""
    runs = [found for by_seed in points.values() for found in by_seed.values()]
    kept = [{point.epoch for point in found[:-1] if not point.best} for found in runs]
    ends = [found[-1].epoch for found in runs]
    return sorted(epoch for epoch in set.intersection(*kept) if epoch < min(ends))


def _at(points: Sequence[_Point], epoch: float) -> _Point:
    return next(point for point in points if point.epoch == epoch and not point.best)


def _reading(name: str, chosen: Mapping[str, Mapping[int, _Point]]) -> Reading:
    return Reading(
        name=name,
        items="images",
        independent={seed: point.agrees for seed, point in chosen["independent"].items()},
        distilled={seed: point.agrees for seed, point in chosen["distilled"].items()},
    )


def _table(points: Mapping[str, Mapping[int, Sequence[_Point]]]) -> tuple[tuple[str, ...], ...]:
    """A line for each network that all seeds kept."""
    rows: list[tuple[str, ...]] = [
        ("student", "epoch", "accuracy", "agreement", "divergence, nats", "calibration error")
    ]
    for kind, by_seed in points.items():
        groups: list[tuple[str, list[_Point]]] = [
            (f"{epoch:g}", [_at(found, epoch) for found in by_seed.values()])
            for epoch in _shared_epochs({kind: by_seed})
        ]
        best = _best(by_seed)
        if best:
            epochs = sorted({point.epoch for point in best.values()})
            span = " to ".join(f"{epoch:g}" for epoch in dict.fromkeys((epochs[0], epochs[-1])))
            groups.append((f"best on validation ({span})", list(best.values())))
        groups.append(("last", [found[-1] for found in by_seed.values()]))
        for name, group in groups:
            rows.append(
                (
                    kind,
                    name,
                    f"{np.mean([point.top1 for point in group]):.1%}",
                    f"{np.mean([point.agrees.mean() for point in group]):.1%}",
                    f"{np.mean([point.divergence for point in group]):.3f}",
                    f"{np.mean([point.ece for point in group]):.1%}",
                )
            )
    return tuple(rows)


def _panels(
    facts: Mapping[str, Mapping[int, RunFacts]],
    points: Mapping[str, Mapping[int, Sequence[_Point]]],
) -> list[Panel]:
    recorded = {
        kind: [facts[kind][seed].epochs for seed in by_seed if seed in facts[kind]]
        for kind, by_seed in points.items()
    }
    kept = {
        kind: [[p for p in found if not p.best] for found in by_seed.values()]
        for kind, by_seed in points.items()
    }
    panels = [
        Panel(
            title="loss on validation, nats",
            lines={
                kind: [[(e.number, e.loss) for e in run] for run in runs]
                for kind, runs in recorded.items()
            },
            log=True,
        ),
        Panel(
            title="accuracy on validation, %",
            lines={
                kind: [[(e.number, 100 * e.top1) for e in run] for run in runs]
                for kind, runs in recorded.items()
            },
        ),
        Panel(
            title="agreement with the teacher, %",
            lines={
                kind: [[(p.epoch, 100 * p.agrees.mean()) for p in run] for run in runs]
                for kind, runs in kept.items()
            },
        ),
        Panel(
            title="calibration error, %",
            lines={
                kind: [[(p.epoch, 100 * p.ece) for p in run] for run in runs]
                for kind, runs in kept.items()
            },
        ),
    ]
    return [
        panel
        for panel in panels
        if all(runs and min(map(len, runs)) >= _FEW for runs in panel.lines.values())
    ]


def _pictures(panels: Sequence[Panel]) -> tuple[Picture, ...]:
    if not panels:
        return ()
    ends = [
        f"{panel.title}: "
        + ", ".join(
            f"{kind} {np.mean([run[0][1] for run in runs]):.3g} to "
            f"{np.mean([run[-1][1] for run in runs]):.3g}"
            for kind, runs in panel.lines.items()
        )
        for panel in panels
    ]
    return (
        Picture(
            name="epochs",
            caption="Over epochs; thin: each seed, thick: their mean. Solid: distilled, dashed: "
            "independent.",
            alt=f"Curves over training, from the first to the last epoch. {'; '.join(ends)}.",
            svg=lines_svg("training", panels, xlabel="epoch"),
        ),
    )


TRAINING = Experiment(
    key="training",
    title="Over training",
    question="When did the student come to answer as its teacher does, and as sure as it?",
    source="Stanton et al., 'Does Knowledge Distillation Really Work?', NeurIPS 2021, "
    "https://arxiv.org/abs/2106.05945, section 6",
    measure=_measure,
    quick=True,
)
