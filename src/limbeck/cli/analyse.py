"""``analyse``: what was distilled into a finished student?"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from limbeck.analysis import EXPERIMENTS
from limbeck.analysis.background import Background, Epoch, RunFacts, Snapshot, Stretch
from limbeck.analysis.base import Case, Experiment, Finding, Given, Subject, examine
from limbeck.analysis.files import fingerprint, is_finished, write_finding
from limbeck.cli.observer import observing
from limbeck.cli.terminal import duration, make_console, printable, printable_lines
from limbeck.core.errors import DataError, RunFolderError, UnknownNameError
from limbeck.core.sources import source_hash
from limbeck.data import ImageSource, build_data
from limbeck.engine.distributed import pick_device
from limbeck.engine.loop import InterruptedRun
from limbeck.runs.compare import BASELINE, run_differences
from limbeck.runs.comparison import COMPARISON_FILE, ComparisonFolder
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import execute, prepare_parts, resume
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.lipschitz import lipschitz_profile
from limbeck.runs.networks import NamedNetwork, StudentCard, build_teacher, load_student
from limbeck.runs.past import best_epoch, checkpoints, load_checkpoint, past_epochs
from limbeck.runs.provenance import sources_hash
from limbeck.runs.summary import RunSummary, read_summary

__all__ = ["analyse_runs"]

_QUICK_IMAGES = 500
_MOST_IMAGES = 5000


@dataclass(frozen=True)
class _Chosen:
    """Run folders by seed, and the place that they belong to."""

    distilled: dict[int, Path]
    independent: dict[int, Path]
    method: str
    controls: dict[int, Path] = field(default_factory=dict)


def analyse_runs(
    place: Path,
    *,
    method: str | None,
    independent: Sequence[Path],
    experiments: str | None,
    quick: bool,
    num_images: int | None,
    given: Given,
    soft_label_control: bool,
    out: Path | None,
    device: str,
    typed: Collection[str],
    as_json: bool,
    quiet: bool,
) -> None:
    """Ask every experiment of a comparison or a run, and write what each finds.

    What is there already, of the same networks, images and settings, is not asked again.

    Args:
        place: a comparison's folder or a run's.
        method: which row of a comparison; None takes the first.
        independent: runs of students that the teacher did not teach; empty finds them in the
            comparison.
        experiments: names with commas; None takes all, or the quick ones.
        quick: the quick selection, of fewer images.
        num_images: of the test split; None is a sensible number.
        given: files for single experiments.
        soft_label_control: train students of noise targets first, or take them where they are.
        out: where findings go; None is ``analysis/METHOD`` within ``place``.
        device: where to compute.
        typed: names of models that stand on the command line; these alone may run code.
        as_json: print one JSON object a line, one for each experiment.
        quiet: print errors alone.
    """
    wanted = _experiments(experiments, quick=quick)
    chosen = _choose(place, method, independent)
    folder = out or place / "analysis" / chosen.method
    if soft_label_control:
        runs = _train_controls(chosen, folder / "controls", typed=typed, quiet=quiet or as_json)
        chosen = replace(chosen, controls=runs)
    wanted_images = num_images or (_QUICK_IMAGES if quick else _MOST_IMAGES)
    case, facts = _open_case(
        chosen, typed=typed, device=device, quick=quick, num_images=wanted_images, given=given
    )
    console = make_console(quiet=quiet or as_json)
    case.tell = lambda line: console.print(printable(line), style="dim")
    console.print(
        printable(
            f"{case.teacher.name} taught {len(case.distilled)} students by {case.method}; "
            f"{len(case.independent)} independent ones; {len(case.images):,} test images"
        )
    )
    further: dict[str, object] = {name: fingerprint(path) for name, path in vars(given).items()}
    further["controls"] = facts.pop("controls")
    for number, experiment in enumerate(wanted, 1):
        path = folder / f"{experiment.key}.json"
        own = {name: further[name] for name in experiment.reads}
        inputs = hashlib.sha256(json.dumps(facts | own, sort_keys=True).encode()).hexdigest()
        if not is_finished(folder, experiment.key, inputs=inputs):
            head = f"{number}/{len(wanted)} {experiment.title}"
            try:
                finding = _examine(experiment, case, console, head)
            except KeyboardInterrupt:
                console.print(
                    f"{number - 1} of {len(wanted)} are answered and kept; the same command goes "
                    "on from there"
                )
                raise
            path = write_finding(
                finding,
                folder,
                inputs=inputs,
                about=facts,
                place=list(EXPERIMENTS).index(experiment.key),
            )
        found = read_json(path)
        if as_json:
            print(json.dumps(found), flush=True)  # noqa: T201
            continue
        _show(found, console)
    console.print(printable(str(folder)))


def _examine(experiment: Experiment, case: Case, console: Console, head: str) -> Finding:
    """Ask, and show that something is going on: each batch through a network counts."""
    begun, batches = time.monotonic(), 0
    console.print(f"{head} ...", style="dim")
    with console.status(head) as status:

        def tick() -> None:
            nonlocal batches
            batches += 1
            seconds = duration(time.monotonic() - begun)
            status.update(f"{head}: {batches:,} batches through networks, {seconds}")

        case.tick = tick
        return examine(experiment, case, clock=time.monotonic)


def _show(found: Mapping[str, Any], console: Console) -> None:
    console.print(f"{found['title']}: {found['question']}", style="bold")
    if found["skipped"] is not None:
        console.print(printable_lines(f"  not asked: {found['skipped']}"))
        return
    sentences = [reading["sentence"] for reading in found["readings"]]
    for sentence in sentences or found["notes"]:
        console.print(printable_lines(f"  {sentence}"))


def _experiments(names: str | None, *, quick: bool) -> tuple[Experiment, ...]:
    if names is None:
        return tuple(e for e in EXPERIMENTS.values() if e.quick or not quick)
    for name in names.split(","):
        if name not in EXPERIMENTS:
            raise UnknownNameError("experiment", name, EXPERIMENTS)
    return tuple(EXPERIMENTS[name] for name in dict.fromkeys(names.split(",")))


def _choose(place: Path, method: str | None, independent: Sequence[Path]) -> _Chosen:
    """The run folders to load."""
    given = {_seed(path): path for path in independent}
    if len(given) < len(independent):
        raise RunFolderError("two of the independent runs have one seed; give each once")
    if (place / COMPARISON_FILE).is_file():
        folder = ComparisonFolder(place)
        rows = folder.read().settings.contenders
        methods = [label for label, row in rows.items() if row.role == "method"]
        label = method or (methods[0] if methods else "")
        if label not in methods:
            raise UnknownNameError("method of the comparison", label, methods)
        seeds = folder.read().settings.seeds
        return _Chosen(
            {seed: path for seed in seeds if _is_finished(path := folder.run(label, seed))},
            given
            or {seed: path for seed in seeds if _is_finished(path := folder.run(BASELINE, seed))},
            label,
        )
    if method is not None:
        raise RunFolderError(f"--method is for a comparison's folder; {place} has none")
    summary = read_summary(place)
    above = ComparisonFolder(place.resolve().parent.parent)
    beside = above.run(BASELINE, summary.seed)
    if not given and above.exists and _is_finished(beside):
        given = {summary.seed: beside}
    return _Chosen({summary.seed: place}, given, summary.method)


def _train_controls(
    chosen: _Chosen, folder: Path, *, typed: Collection[str], quiet: bool
) -> dict[int, Path]:
    """Runs of students of noise targets by seed, trained as the distilled ones were."""
    found = {}
    for seed, run in chosen.distilled.items():
        values = RunConfig.read(read_json(RunFolder(run).config)).plain()
        config = RunConfig.read(values | {"teacher": None, "method": {"name": "noise_label"}})
        output = RunFolder(folder / f"noise_label-seed{seed}")
        found[seed] = output.path
        if output.config.exists():
            differences = run_differences(RunConfig.read(read_json(output.config)), config)
            if differences:
                raise RunFolderError(
                    f"{output.path} holds a control trained otherwise: {'; '.join(differences)}; "
                    "remove it"
                )
        if output.summary.exists():
            continue
        with observing(quiet=quiet, as_json=False) as observer:
            observer.note(f"a student of noise targets, seed {seed}")
            parts = prepare_parts(config, typed=typed)
            try:
                if output.config.exists():
                    resume(output.path, parts, config, observer=observer)
                else:
                    execute(config, output.path, parts, observer=observer)
            except InterruptedRun as stop:
                stop.args = (f"{stop}; the same command continues it",)
                raise
    return found


def _seed(run: Path) -> int:
    return read_summary(run).seed


def _is_finished(run: Path) -> bool:
    return RunFolder(run).summary.exists()


def _open_case(
    chosen: _Chosen,
    *,
    typed: Collection[str],
    device: str,
    quick: bool,
    num_images: int,
    given: Given,
) -> tuple[Case, dict[str, object]]:
    """The networks and images; and what the findings depend on, for their hash."""
    first = next(iter(chosen.distilled.values()), None)
    if first is None:
        raise RunFolderError("no run of this method has finished; continue the comparison first")
    config = RunConfig.read(read_json(RunFolder(first).config))
    if config.teacher is None:
        raise RunFolderError(f"{first} had no teacher; analyse the run of a distilled student")
    summary = read_summary(first)
    card: StudentCard | None = None
    named: dict[str, NamedNetwork] = {}
    students: dict[str, dict[int, Subject]] = {}
    hashes: dict[str, dict[int, str]] = {}
    for kind in ("distilled", "independent", "controls"):
        hashes[kind] = {}
        students[kind] = {}
        for seed, path in getattr(chosen, kind).items():
            network, own = load_student(path, typed=typed)
            other = read_summary(path)
            card = card or own
            _check_alike(first, card, summary, path, own, other)
            _check_teacher(kind, first, summary, path, other)
            name = f"{kind} student, seed {seed}"
            named[name] = network
            students[kind][seed] = _subject(network, name)
            hashes[kind][seed] = other.student_hash
    data = build_data(config.data, seed=config.seed)
    if data.test is None:
        raise DataError(
            f"{config.data.dataset} has no test images; an analysis is of images that nobody "
            "learnt from"
        )
    teacher = build_teacher(config.teacher, data, typed=typed)
    positions = torch.arange(len(data.test))
    if len(positions) > num_images:
        drawn = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
        positions = drawn[:num_images].sort().values
    images = data.test.subset(positions)
    where = pick_device(device)
    name = f"teacher {teacher.name}"
    named[name] = teacher
    pixels = images.gather(torch.arange(len(images)))
    train = _sample(data.train, num_images)
    background = Background(
        train_images=train.gather(torch.arange(len(train))),
        train_labels=train.labels,
        num_train=len(data.train),
        num_labelled=int((data.train.labels >= 0).sum()),
        distilled={s: _facts(path, typed) for s, path in chosen.distilled.items()},
        independent={s: _facts(path, typed) for s, path in chosen.independent.items()},
        stretches=lambda name: _stretches(named[name], pixels, config, where),
    )
    case = Case(
        teacher=_subject(teacher, name),
        distilled=students["distilled"],
        independent=students["independent"],
        images=pixels,
        labels=images.labels,
        class_names=images.class_names,
        method=chosen.method,
        quick=quick,
        batch_size=config.train.eval_batch_size,
        device=where,
        positions=positions,
        given=given,
        controls=students["controls"],
        background=background,
    )
    facts: dict[str, object] = {
        "controls": hashes.pop("controls"),
        "method": chosen.method,
        "num_images": len(images),
        "students": {
            f"{kind} {seed}": found for kind, each in hashes.items() for seed, found in each.items()
        },
        "teacher": summary.teacher_hash,
        "images": images.fingerprint(),
        "quick": quick,
        "code": [sources_hash(), source_hash("limbeck.analysis")],
    }
    return case, facts


def _sample(images: ImageSource, count: int) -> ImageSource:
    """All of them, or as many as asked for, drawn; in their order."""
    if len(images) <= count:
        return images
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.subset(drawn[:count].sort().values)


def _facts(run: Path, typed: Collection[str]) -> RunFacts:
    """What a run left beside its last weights."""
    summary = read_summary(run)
    epochs = past_epochs(run)
    kept = [
        Snapshot(epoch, False, partial(load_checkpoint, run, path, typed=typed))
        for epoch, path in checkpoints(run).items()
    ]
    best = best_epoch(run)
    if best is not None:
        kept.append(Snapshot(best, True, partial(_best, run, typed)))
    return RunFacts(
        seconds=summary.seconds,
        teacher_seconds=summary.teacher_seconds,
        images_per_second=summary.inference_images_per_second,
        epochs=[
            Epoch(epoch.number, epoch.top1, epoch.loss)
            for epoch in epochs
            if epoch.top1 is not None and epoch.loss is not None
        ],
        snapshots=kept,
    )


def _best(run: Path, typed: Collection[str]) -> nn.Module:
    return load_student(run, best=True, typed=typed)[0].network


def _stretches(
    named: NamedNetwork, images: torch.Tensor, config: RunConfig, device: torch.device
) -> list[Stretch]:
    """The profile that ``limbeck inspect --lipschitz`` shows."""
    size = config.train.eval_batch_size
    batches = (images[at : at + size].float() / 255 for at in range(0, len(images), size))
    return [
        Stretch(
            f"{part.first} to {part.second}".replace("pre_activation:", ""),
            part.sigma_mean,
            part.log10_layer_product,
        )
        for part in lipschitz_profile(named, batches, device=device).parts
    ]


def _subject(named: NamedNetwork, name: str) -> Subject:
    return Subject(
        name=name,
        network=named.network,
        normalization=named.normalization,
        classes=named.classes,
    )


def _check_alike(
    first: Path,
    card: StudentCard,
    summary: RunSummary,
    path: Path,
    own: StudentCard,
    other: RunSummary,
) -> None:
    """Refuse a run whose student cannot be held against the first one's."""
    differing = [
        what
        for what, one, two in (
            ("the network", card.model, own.model),
            ("the classes or their order", card.class_names, own.class_names),
            ("the test images", summary.split_hashes.get("test"), other.split_hashes.get("test")),
        )
        if one != two
    ]
    if differing:
        raise RunFolderError(
            f"{path} cannot be held against {first}; what differs: {', '.join(differing)}"
        )


def _check_teacher(
    kind: str, first: Path, summary: RunSummary, path: Path, other: RunSummary
) -> None:
    """Distilled students have one teacher; what it taught as well is no independent student."""
    same = summary.teacher_hash == other.teacher_hash
    if kind == "distilled" and not same:
        raise RunFolderError(
            f"{path} cannot be held against {first}; what differs: the teacher. Analyse runs of "
            "one teacher"
        )
    if kind == "independent" and same and other.teacher_hash is not None:
        raise RunFolderError(
            f"{path} learnt from the same teacher as {first}, so it is no independent student; "
            "give a run without the teacher, as `limbeck train` makes it"
        )
