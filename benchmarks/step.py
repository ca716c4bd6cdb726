"""Training speed of each method beside its floor, side by side in one process.

The floor is what nobody can leave out: the teacher's forward pass and the student's forward,
cross-entropy, backward and SGD update, in plain torch, on one batch that is already a tensor.
A method's own figure is that of a whole run as ``limbeck.distill`` makes it: reading, cropping and
mirroring real batches, normalisation, taps, loss, checks, recording; without evaluation.

    python benchmarks/step.py --steps 20 --rounds 3
    python benchmarks/step.py --teachers 3 --methods kd,multi_teacher,multi_teacher:aekd

With several teachers the floor has the forward passes of all. What follows a colon is the method's
``fusion``.

Each round times the floor and then every method; the first round warms up and is dropped. The
ratio is taken within a round, so that a machine whose speed drifts changes it little. VRM's
floor and MLKD's have the second view in them, which both networks see, and LONDON's its connectors.

Where the processor is shared, two options ask for less and see more:

    python benchmarks/step.py --methods rkd,sp,vrm,london --steps 1 --rehearse --processor-time

--rehearse times a method's whole step on one batch, as ``limbeck distill --dry-run`` does: taps,
loss and checks, but no reading and recording. --processor-time counts what this process computed,
not how long it waited for its turn; it takes one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import limbeck
from limbeck import RunConfig, create_model
from limbeck.core.normalization import Normalization
from limbeck.data import DataBundle, ImageSet
from limbeck.features import FeatureTap
from limbeck.runs.execute import Parts, rehearse
from limbeck.runs.networks import join_teachers, take_student, take_teacher

CLASSES = 100
BARE = "floor"
TWO_VIEWS = "floor, two views"
FLOORS = {
    "ce": "floor without teacher",
    "mlkd": TWO_VIEWS,
    "vrm": TWO_VIEWS,
    "london": "floor, connectors",
}
STAGES = ["pre_activation:stage*"]


def random_images(count: int) -> DataBundle:
    """As many training images as the steps take, shaped like CIFAR-100's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES
    names = tuple(f"{label:02d}" for label in range(CLASSES))
    train = ImageSet(images=images, labels=labels, class_names=names)
    normalization = Normalization(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return DataBundle(name="random", train=train, val=None, test=None, normalization=normalization)


def networks(options: argparse.Namespace) -> list[nn.Module]:
    """The teachers, each with other weights."""
    return [
        create_model(options.teacher, num_classes=CLASSES, in_chans=3, seed=seed)
        for seed in range(options.teachers)
    ]


def floor(options: argparse.Namespace, kind: str) -> float:
    """Images per second of the bare computation."""
    device = torch.device(options.device)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    student = create_model(options.student, num_classes=CLASSES, in_chans=3)
    student = student.to(device, memory_format=layout)
    teachers = [n.to(device, memory_format=layout).eval() for n in networks(options)]
    image = torch.rand(options.batch_size, 3, 32, 32).to(device, memory_format=layout)
    label = torch.arange(options.batch_size, device=device) % CLASSES
    tap = FeatureTap(student, STAGES)
    connectors = nn.ModuleList()
    if kind == FLOORS["london"]:
        with torch.no_grad(), FeatureTap(teachers[0], STAGES) as other:
            widths = [[f.shape[1] for f in t(image[:1]).features.values()] for t in (tap, other)]
        connectors += [
            nn.Sequential(nn.Conv2d(ours, theirs, 1, bias=False), nn.BatchNorm2d(theirs))
            for ours, theirs in zip(*widths, strict=True)
        ]
        connectors.to(device)
    else:
        tap.close()
    views = 2 if kind == TWO_VIEWS else 1
    parameters = [*student.parameters(), *connectors.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        for _ in range(views):
            if kind != FLOORS["ce"]:
                with torch.no_grad():
                    for teacher in teachers:
                        teacher(image)
            if connectors:
                found = tap(image)
                features = zip(connectors, found.features.values(), strict=True)
                # Next to nothing, but a whole backward pass.
                further = 1e-12 * sum(connect(feature).mean() for connect, feature in features)
                loss = F.cross_entropy(found.output, label) + further
            else:
                loss = F.cross_entropy(student(image), label)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()  # warms up
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    return options.steps * options.batch_size / (time.perf_counter() - start)


def method(name: str, options: argparse.Namespace, data: DataBundle) -> float:
    """Images per second of a run."""
    name, _, fusion = name.partition(":")
    teachers = networks(options) if name != "ce" else []
    student = create_model(options.student, num_classes=CLASSES, in_chans=3)
    settings = {
        "data": {"augment": {"crop_padding": 4, "flip": True}, "val_fraction": 0},
        # Two-stage methods need an epoch for each stage.
        "method": {"name": name, **({"fusion": fusion} if fusion else {})},
        "schedule": {"epochs": 2, "sched": "constant"},
        "train": {
            "batch_size": options.batch_size,
            "channels_last": options.channels_last,
            "device": options.device,
        },
    }
    if options.rehearse:
        return rehearsed(student, teachers, data, settings)
    with tempfile.TemporaryDirectory() as scratch:
        summary = limbeck.distill(
            student=student,
            teacher=teachers if len(teachers) > 1 else teachers[0] if teachers else None,
            method=name,
            data=data,
            output=Path(scratch) / "run",
            settings=settings,
        )
    return summary.images_per_second


def rehearsed(
    student: nn.Module,
    teachers: list[nn.Module],
    data: DataBundle,
    settings: dict[str, dict[str, object]],
) -> float:
    """Images per second of the steps that a dry run times, of all stages alike."""
    named = {"student": {"name": "python:student"}}
    each = [{"name": "python:teacher"}] * len(teachers)
    if each:
        named["teacher"] = each if len(each) > 1 else each[0]
    config = RunConfig.read(
        {**settings, **named, "data": {**settings["data"], "dataset": "python"}}
    )
    master = None
    if config.teacher is not None:
        wanted = config.teacher.members or (config.teacher,)
        taken = [take_teacher(n, c, data) for n, c in zip(teachers, wanted, strict=True)]
        master = join_teachers(taken) if len(taken) > 1 else taken[0]
    parts = Parts(data, take_student(student, config.student, data, seed=0), master)
    found = rehearse(config, parts, judge=False)
    images = config.train.batch_size * sum(stage["steps"] for stage in found.stages)
    return images / found.estimated_seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--teachers", type=int, default=1, help="so many, of one architecture")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--methods", default="ce,kd,fitnet,fitnet_one_stage,rkd")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="of each of a run's two epochs")
    parser.add_argument("--rounds", type=int, default=3, help="that count")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rehearse", action="store_true", help="one batch, as a dry run does")
    parser.add_argument("--processor-time", action="store_true", help="and no waiting; one thread")
    options = parser.parse_args()
    if options.processor_time:
        torch.set_num_threads(1)
        time.perf_counter = time.process_time  # by which the library times its steps, too
    data = random_images(options.steps * options.batch_size)
    names = options.methods.split(",")
    floors = dict.fromkeys([BARE, *(FLOORS[name] for name in names if name in FLOORS)])
    speeds: dict[str, list[float]] = {}
    warm_up = 0 if options.rehearse else 1  # rounds; a rehearsal's first step is not counted
    for count in range(warm_up + options.rounds):
        measured = {kind: floor(options, kind) for kind in floors}
        measured |= {name: method(name, options, data) for name in names}
        for name, speed in measured.items() if count >= warm_up else ():
            speeds.setdefault(name, []).append(speed)
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor()
    print(
        f"{options.teachers} x {options.teacher} -> {options.student}, "
        f"batch {options.batch_size}, {options.device} "
        f"({device or platform.machine()}, {torch.get_num_threads()} threads), "
        f"torch {torch.__version__}, channels_last {options.channels_last}; "
        f"medians of {options.rounds} rounds"
    )
    print(f"{'':<24}{'images/s':>10}{'of its floor':>14}")
    for name, values in speeds.items():
        base = speeds[FLOORS.get(name, BARE)]
        share = statistics.median(v / b for v, b in zip(values, base, strict=True))
        shown = "" if name in floors else f"{share:>13.1%}"
        print(f"{name:<24}{statistics.median(values):>10.0f}{shown:>14}")
    print(json.dumps(speeds))


if __name__ == "__main__":
    main()
