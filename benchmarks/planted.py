"""Planted truth: does an analysis find what a teacher is known to have passed on, and only that?

Digits of scikit-learn in colour. In each plant a teacher knows what its students are never shown:

    colour   the digits are noisy, and most of the student's have their class's colour, which
             pays; the teacher's have any colour
    domains  the student's digits are plain; the teacher has also seen them before coloured and
             textured backgrounds

Three kinds of student learn from the student's images alone, some seeds each: distilled from that
teacher (KD, no label), independent, and "unrelated": distilled just so, but from a teacher of the
same size that learnt from the student's images. Where the experiment finds the first nearer to the
teacher than the second, it must not find it of the third.

    python benchmarks/planted.py --out planted --seeds 3

Prints a sentence for each, and writes ``planted.json`` and ``planted.svg``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import limbeck
from limbeck.analysis import EXPERIMENTS
from limbeck.analysis.base import Case, Contrast, Finding, Given, Reading, Subject, examine
from limbeck.data import DataBundle, ImageSet, load_digits, measure_normalization

TEACHER, STUDENT = "digits_cnn", "digits_cnn_tiny"
COPIES = 4  # of each training image for the teacher, each changed by its own draw
EPOCHS = 10
NOISE = 0.6  # standard deviation
CLASS_COLOURS = 0.9  # share of the student's digits in their class's colour


def coloured(images: Tensor, hue: Tensor) -> Tensor:
    """Grey images (N, 1, H, W) in [0, 1] in the light of a hue (N,) in [0, 1]."""
    corner = hue[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])
    light = ((corner % 6 - 3).abs() - 1).clamp(0, 1)
    return images * (0.3 + 0.7 * light)[:, :, None, None]


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """So much noise that shape alone does not tell all classes apart."""
    return (images + NOISE * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def class_coloured(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Most digits in the colour of their class, the others in any: a cue that pays."""
    any_hue = torch.rand(len(images), generator=generator)
    own = torch.rand(len(images), generator=generator) < CLASS_COLOURS
    return coloured(noisy(images, generator), torch.where(own, labels / 10, any_hue))


def any_coloured(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    del labels
    return coloured(noisy(images, generator), torch.rand(len(images), generator=generator))


def plain(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    del labels, generator
    return images.expand(-1, 3, -1, -1)


def before_colour(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """White on a background of a random colour."""
    del labels
    background = 0.7 * torch.rand(len(images), 3, 1, 1, generator=generator)
    return background + (1 - background) * images


def before_texture(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """White on a background of four other digits, turned, in random faint colours."""
    del labels
    background = torch.zeros(len(images), 3, *images.shape[2:])
    for turns in range(4):
        others = images[torch.randperm(len(images), generator=generator)].rot90(turns, (2, 3))
        background += 0.4 * others * torch.rand(len(images), 3, 1, 1, generator=generator)
    background = background.clamp(max=0.7)
    return background + (1 - background) * images


View = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class Plant(NamedTuple):
    """What is planted.

    Attributes:
        student: how the students' images are made, and the ones that are analysed.
        teacher: the further views that the teacher learns from.
        experiment: that must find it.
        reading: its reading, by a part of the name.
        other: a view that the experiment is shown as another folder; None for none.
    """

    student: View
    teacher: Sequence[View]
    experiment: str
    reading: str
    other: View | None = None


PLANTS = {
    "colour": Plant(class_coloured, [any_coloured], "invariance", "colour jitter"),
    "domains": Plant(plain, [before_colour, before_texture], "domains", "accuracy", before_colour),
}


def images_of(source: ImageSet, views: Sequence[View], *, seed: int) -> ImageSet:
    """A set of every view of every image, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    grey = source.images.float() / 255
    made = torch.cat([view(grey, source.labels, generator) for view in views])
    return ImageSet(
        images=(made * 255).round().byte(),
        labels=source.labels.repeat(len(views)),
        class_names=source.class_names,
    )


def bundle(train: ImageSet, test: ImageSet) -> DataBundle:
    return DataBundle(
        name="digits in colour",
        train=train,
        val=None,
        test=test,
        normalization=measure_normalization(train),
    )


def trained(
    name: str,
    data: DataBundle,
    *,
    seed: int,
    epochs: int,
    teacher: Subject | None = None,
    label: str = "",
) -> Subject:
    """A network trained on all of it, by its labels or by a teacher alone."""
    torch.manual_seed(seed)
    network = limbeck.create_model(name, num_classes=10, in_chans=3)
    with tempfile.TemporaryDirectory() as folder:
        limbeck.distill(
            student=network,
            teacher=None if teacher is None else teacher.network,
            teacher_normalization=None if teacher is None else teacher.normalization,
            data=data,
            output=Path(folder) / "run",
            method="ce" if teacher is None else "kd",
            seed=seed,
            settings={
                "method": {} if teacher is None else {"ce_weight": 0.0, "kd_weight": 1.0},
                "optim": {"lr": 0.1, "weight_decay": 5e-4},
                "schedule": {"epochs": epochs, "sched": "onecycle"},
                "train": {"batch_size": 64, "device": "cpu", "eval_every": epochs},
            },
        )
    return Subject(name=label, network=network, normalization=data.normalization)


class Outcome(NamedTuple):
    """What an experiment says of the students of one kind."""

    planted: Finding
    unrelated: Finding


def analyse(plant: Plant, *, seeds: int, epochs: int = EPOCHS, folder: Path) -> Outcome:
    """Train everybody, and ask the experiment of both kinds of distilled student."""
    train, test = load_digits()
    shown = bundle(
        images_of(train, [plant.student], seed=1), images_of(test, [plant.student], seed=2)
    )
    views = [plant.student, *plant.teacher] * COPIES
    known = bundle(images_of(train, views, seed=3), shown.test)
    teacher = trained(TEACHER, known, seed=0, epochs=max(2, epochs // 3), label="teacher")
    stranger = trained(TEACHER, shown, seed=0, epochs=epochs, label="unrelated teacher")
    kinds: dict[str, dict[int, Subject]] = {"distilled": {}, "unrelated": {}, "independent": {}}
    for kind, master in zip(kinds, (teacher, stranger, None), strict=True):
        for seed in range(seeds):
            kinds[kind][seed] = trained(
                STUDENT,
                shown,
                seed=seed,
                epochs=epochs,
                teacher=master,
                label=f"{kind} student, seed {seed}",
            )
    given = Given()
    if plant.other is not None:
        given = Given(other_images=write_pictures(images_of(test, [plant.other], seed=4), folder))
    assert isinstance(shown.test, ImageSet)
    case = Case(
        teacher=teacher,
        distilled=kinds["distilled"],
        independent=kinds["independent"],
        images=shown.test.images,
        labels=shown.test.labels,
        class_names=shown.test.class_names,
        method="kd",
        given=given,
    )
    other = Case(
        teacher=teacher,
        distilled=kinds["unrelated"],
        independent=kinds["independent"],
        images=case.images,
        labels=case.labels,
        class_names=case.class_names,
        method="kd from an unrelated teacher",
        given=given,
    )
    experiment = EXPERIMENTS[plant.experiment]
    return Outcome(*(examine(experiment, c, clock=time.monotonic) for c in (case, other)))


def write_pictures(source: ImageSet, folder: Path) -> Path:
    """As class folders."""
    root = folder / "other domain"
    for place, (image, label) in enumerate(zip(source.images, source.labels, strict=True)):
        path = root / source.class_names[int(label)] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


def headline(finding: Finding, plant: Plant) -> tuple[Reading, Contrast]:
    """The reading that the plant is about, and what it comes to."""
    assert finding.measured is not None, finding.skipped
    pairs = zip(finding.measured.readings, finding.contrasts, strict=True)
    return next(pair for pair in pairs if plant.reading in pair[0].name)


def draw(table: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """A panel for each plant: every student a dot, the teacher a line."""
    figure = Figure(figsize=(4.5 * len(table), 2.6), layout="constrained")
    panels = figure.subplots(1, len(table), squeeze=False)[0]
    for axes, (name, kinds) in zip(panels, table.items(), strict=True):
        planted = kinds["planted"]
        rows = {
            "independent": planted["independent_students"],
            "unrelated teacher": kinds["unrelated"]["students"],
            "distilled": planted["students"],
        }
        for row, values in enumerate(rows.values()):
            axes.plot([100 * value for value in values], [row] * len(values), "o")
        axes.axvline(100 * planted["teacher"], color="black", linestyle="--")
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_title(name)
        axes.set_xlabel(f"{planted['reading']}, % (dashed: the teacher)")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Planted truth.")
    parser.add_argument("--out", type=Path, default=Path("planted"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plants", default=",".join(PLANTS), help="some of them, with commas")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name in options.plants.split(","):
        outcome = analyse(PLANTS[name], seeds=options.seeds, folder=options.out)
        table[name] = {}
        for kind, finding in outcome._asdict().items():
            reading, contrast = headline(finding, PLANTS[name])
            print(f"{name}, students of the {kind} teacher\n  {contrast.sentence}", flush=True)
            table[name][kind] = contrast._asdict() | {
                "reading": reading.name,
                "teacher": reading.teacher,
                "students": [float(v.mean()) for v in reading.distilled.values()],
                "independent_students": [float(v.mean()) for v in reading.independent.values()],
            }
    (options.out / "planted.json").write_text(json.dumps(table, indent=1) + "\n")
    draw(table, options.out / "planted.svg")


if __name__ == "__main__":
    main()
