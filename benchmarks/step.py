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
ratio is taken within a round, so that a machine whose speed drifts changes it little.
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

import limbeck
from limbeck import create_model
from limbeck.core.normalization import Normalization
from limbeck.data import DataBundle, ImageSet

CLASSES = 100


def random_images(count: int) -> DataBundle:
    """As many training images as the steps take, shaped like CIFAR-100's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES
    names = tuple(f"{label:02d}" for label in range(CLASSES))
    train = ImageSet(images=images, labels=labels, class_names=names)
    normalization = Normalization(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return DataBundle(name="random", train=train, val=None, test=None, normalization=normalization)


def networks(options: argparse.Namespace) -> list[torch.nn.Module]:
    """The teachers, each with other weights."""
    return [
        create_model(options.teacher, num_classes=CLASSES, in_chans=3, seed=seed)
        for seed in range(options.teachers)
    ]


def floor(options: argparse.Namespace, *, with_teacher: bool) -> float:
    """Images per second of the bare computation."""
    device = torch.device(options.device)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    student = create_model(options.student, num_classes=CLASSES, in_chans=3)
    student = student.to(device, memory_format=layout)
    teachers = [n.to(device, memory_format=layout).eval() for n in networks(options)]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    image = torch.rand(options.batch_size, 3, 32, 32).to(device, memory_format=layout)
    label = torch.arange(options.batch_size, device=device) % CLASSES
    start = time.perf_counter()
    for _ in range(options.steps):
        if with_teacher:
            with torch.no_grad():
                for teacher in teachers:
                    teacher(image)
        F.cross_entropy(student(image), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return options.steps * options.batch_size / (time.perf_counter() - start)


def method(name: str, options: argparse.Namespace, data: DataBundle) -> float:
    """Images per second of a run."""
    name, _, fusion = name.partition(":")
    teachers = networks(options) if name != "ce" else [None]
    with tempfile.TemporaryDirectory() as scratch:
        summary = limbeck.distill(
            student=create_model(options.student, num_classes=CLASSES, in_chans=3),
            teacher=teachers if len(teachers) > 1 else teachers[0],
            method=name,
            data=data,
            output=Path(scratch) / "run",
            settings={
                "data": {"augment": {"crop_padding": 4, "flip": True}, "val_fraction": 0},
                # Two-stage methods need an epoch for each stage.
                "method": {"fusion": fusion} if fusion else {},
                "schedule": {"epochs": 2, "sched": "constant"},
                "train": {
                    "batch_size": options.batch_size,
                    "channels_last": options.channels_last,
                    "device": options.device,
                },
            },
        )
    return summary.images_per_second


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--teachers", type=int, default=1, help="so many, of one architecture")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--methods", default="ce,kd,fitnet,fitnet_one_stage,rkd")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="of each of a run's two epochs")
    parser.add_argument("--rounds", type=int, default=3, help="counted, after one to warm up")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    data = random_images(options.steps * options.batch_size)
    speeds: dict[str, list[float]] = {}
    for count in range(options.rounds + 1):
        measured = {"floor": floor(options, with_teacher=True)}
        measured["floor without teacher"] = floor(options, with_teacher=False)
        for name in options.methods.split(","):
            measured[name] = method(name, options, data)
        for name, speed in measured.items() if count else ():
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
        base = speeds["floor without teacher" if name == "ce" else "floor"]
        share = statistics.median(v / b for v, b in zip(values, base, strict=True))
        shown = "" if name.startswith("floor") else f"{share:>13.0%}"
        print(f"{name:<24}{statistics.median(values):>10.0f}{shown:>14}")
    print(json.dumps(speeds))


if __name__ == "__main__":
    main()
