"""Training from cached logits, and several students by one teacher, beside training alone.

A run's own speed is that of ``limbeck.distill``: reading, cropping and mirroring real batches,
normalisation, loss, checks, recording; without evaluation. What cannot be left out bounds the gain:
with a teacher whose forward pass takes T and a student whose step takes S, it is (T + S) / S for
a cache, and n (T + S) / (T + n S) for a cohort of n. Both are timed in the same round, in plain
torch, on a batch that is already a tensor. A cohort is timed by the clock from the first run's
start to the last one's end, and so are the same runs one after the other.

    python benchmarks/cache.py --data-dir cifar100 --steps 20 --rounds 5
    python benchmarks/cache.py --accuracy

Each round times everything once; the first warms up and is dropped. Ratios are taken within a
round, so that a machine whose speed drifts changes them little; the load of the machine is printed
beside them. ``--accuracy`` instead trains on the digits, three seeds each, from logits stored in
several ways.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import limbeck
from limbeck import create_model
from limbeck.core.normalization import Normalization
from limbeck.data import DataBundle, ImageSet, load_image_folder
from limbeck.engine.loop import Interruption, drive
from limbeck.models import save_weights
from limbeck.runs.caching import CacheConfig, make_cache, plan_cache
from limbeck.runs.cohort import together
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import Asking, asking_run, prepare_parts

CLASSES = 100
CROPS = {"crop_padding": 4, "flip": True, "cycle": 1}


def images_of(options: argparse.Namespace, count: int) -> DataBundle:
    """As many training images: of a folder like CIFAR-100's, or random ones."""
    normalization = Normalization(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
    if options.data_dir is None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        names = tuple(f"{label:02d}" for label in range(CLASSES))
        train = ImageSet(images=pixels, labels=torch.arange(count) % CLASSES, class_names=names)
    else:
        whole = load_image_folder(options.data_dir).train
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
        train = whole.subset(order[:count])
    return DataBundle(name="python", train=train, val=None, test=None, normalization=normalization)


def bounds(options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a teacher's forward pass and of a student's step, per batch."""
    device = torch.device(options.device)
    student = create_model(options.student, num_classes=CLASSES, in_chans=3).to(device)
    teacher = create_model(options.teacher, num_classes=CLASSES, in_chans=3).to(device).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    image = torch.rand(options.batch_size, 3, 32, 32, device=device)
    label = torch.arange(options.batch_size, device=device) % CLASSES

    def teach() -> None:
        with torch.no_grad():
            teacher(image)

    def learn() -> None:
        F.cross_entropy(student(image), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = []
    for work in (teach, learn):
        start = time.perf_counter()
        for _ in range(options.steps):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / options.steps)
    return seconds[0], seconds[1]


def speed(
    options: argparse.Namespace, data: DataBundle, teacher: nn.Module | None, cache: Path | None
) -> float:
    """Images per second of a run of one epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        summary = limbeck.distill(
            student=create_model(options.student, num_classes=CLASSES, in_chans=3),
            teacher=teacher,
            method=options.method,
            data=data,
            output=Path(scratch) / "run",
            settings={
                "data": {"augment": CROPS, "val_fraction": 0},
                "teacher": None if cache is None else {"cache": str(cache)},
                "schedule": {"epochs": 1, "sched": "constant"},
                "train": {"batch_size": options.batch_size, "device": options.device},
            },
        )
    return summary.images_per_second


def run_all(options: argparse.Namespace, data: DataBundle, weights: Path, *, shared: bool) -> float:
    """Seconds of a run of each method of the cohort: in turns, or one after the other."""
    watch = Interruption()
    runs: dict[str, Asking] = {}
    teacher = None
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.cohort.split(","):
            config = RunConfig.read(
                {
                    "data": {"dataset": "python", "augment": CROPS, "val_fraction": 0},
                    "student": {"name": options.student},
                    "teacher": {"name": options.teacher, "checkpoint": str(weights)},
                    "method": {"name": name},
                    "schedule": {"epochs": 1, "sched": "constant"},
                    "train": {"batch_size": options.batch_size, "device": options.device},
                }
            )
            parts = prepare_parts(config, data=data, teacher=teacher)
            teacher = parts.teacher
            runs[name] = asking_run(config, Path(scratch) / name, parts, watch=watch)
        start = time.perf_counter()
        if shared:
            ended = dict(together(runs, watch))
        else:
            ended = {name: drive(run) for name, run in runs.items()}
        seconds = time.perf_counter() - start
    for end in ended.values():
        if isinstance(end, BaseException):
            raise end
    return seconds


def measure_speed(options: argparse.Namespace) -> None:
    """Online and cached, round by round."""
    data = images_of(options, options.steps * options.batch_size)
    teacher = create_model(options.teacher, num_classes=CLASSES, in_chans=3)
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        weights, cache = Path(scratch) / "teacher.safetensors", Path(scratch) / "cache"
        save_weights(teacher.state_dict(), weights)
        config = CacheConfig.read(
            {
                "data": {"dataset": "python", "augment": CROPS},
                "teacher": {"name": options.teacher, "checkpoint": str(weights)},
                "method": {"name": options.method},
                "train": {"device": options.device},
                "storage": {"dtype": options.store, "top_k": options.top_k},
            }
        )
        start = time.perf_counter()
        card = make_cache(plan_cache(config, cache, data=data))
        making = len(data.train) / (time.perf_counter() - start)
        for _ in range(options.rounds + 1):
            teach, learn = bounds(options)
            online = speed(options, data, teacher, None)
            cached = speed(options, data, None, cache)
            alone = run_all(options, data, weights, shared=False)
            cohort = run_all(options, data, weights, shared=True)
            count = len(options.cohort.split(","))
            rounds.append(
                {
                    "teacher_ms": teach * 1000,
                    "student_ms": learn * 1000,
                    "online": online,
                    "cached": cached,
                    "cache gain": cached / online,
                    "its bound": (teach + learn) / learn,
                    "alone s": alone,
                    "cohort s": cohort,
                    "cohort gain": alone / cohort,
                    "of at most": count * (teach + learn) / (teach + count * learn),
                    "load": os.getloadavg()[0],
                }
            )
            print(json.dumps({name: round(value, 2) for name, value in rounds[-1].items()}))
    counted = rounds[1:]
    print(
        f"{options.teacher} -> {options.student}, {options.method}, batch {options.batch_size}, "
        f"{options.steps} steps, {options.device}, {torch.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}; logits in "
        f"{card.storage.dtype}, top_k {card.storage.top_k}; medians of {len(counted)} rounds"
    )
    for name in counted[0]:
        values = [one[name] for one in counted]
        low, high = min(values), max(values)
        print(f"{name:<12}{statistics.median(values):>10.2f}   ({low:.2f} to {high:.2f})")
    print(f"{'making':<12}{making:>10.2f}   images/s, once")


def measure_accuracy(options: argparse.Namespace) -> None:
    """Test accuracy of students that learn from logits stored in several ways."""
    ways: dict[str, dict[str, object] | None] = {
        "online": None,
        "float32": {},
        "float16": {"dtype": "float16"},
        "top 5, float16": {"dtype": "float16", "top_k": 5},
        "top 3, float16": {"dtype": "float16", "top_k": 3},
        "top 2, float16": {"dtype": "float16", "top_k": 2},
        "top 2, right at T = 1": {"dtype": "float16", "top_k": 2, "temperature": 1.0},
        "top 1, float16": {"dtype": "float16", "top_k": 1},
    }
    seeds = range(options.seeds)
    augment = {"crop_padding": 1, "cycle": 10, "seed": 0}
    settings = {
        "optim": {"lr": 0.1},
        "schedule": {"epochs": options.epochs, "sched": "cosine"},
        "train": {"batch_size": 32, "device": options.device},
    }
    data = {"split_seed": 0, "augment": augment}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        teacher = limbeck.distill(
            student="digits_cnn",
            teacher=None,
            method="ce",
            data="digits",
            output=root / "teacher",
            settings={"data": data, **settings},
        )
        assert teacher.test is not None
        print(
            f"teacher: {teacher.test.last['top1']:.2%}; {options.method}, {options.epochs} epochs"
        )
        print(f"{'':<24}{'KiB':>7}  {'test top-1 by seed':<27}{'mean':>8}{'paired difference':>20}")
        found: dict[str, list[float]] = {}
        for way, storage in ways.items():
            source, kib = {"run": str(root / "teacher")}, 0.0
            if storage is not None:
                place = root / way
                plan = plan_cache(
                    CacheConfig.read(
                        {
                            "data": data,
                            "teacher": source,
                            "method": {"name": options.method},
                            "train": {"device": options.device},
                            "storage": storage,
                        }
                    ),
                    place,
                )
                make_cache(plan)
                source, kib = {"cache": str(place)}, plan.num_bytes / 1024
            found[way] = []
            for seed in seeds:
                summary = limbeck.distill(
                    student="digits_cnn_tiny",
                    teacher=None,
                    method=options.method,
                    data="digits",
                    output=root / f"{way}-{seed}",
                    seed=seed,
                    settings={"data": data, "teacher": source, **settings},
                )
                assert summary.test is not None
                found[way].append(summary.test.last["top1"])
            each = " ".join(f"{value:7.2%}" for value in found[way])
            gaps = [a - b for a, b in zip(found[way], found["online"], strict=True)]
            mean, gap = statistics.mean(found[way]), statistics.mean(gaps)
            spread = statistics.stdev(gaps) if len(gaps) > 1 else 0.0
            print(
                f"{way:<24}{kib:>7.0f}  {each:<27}{mean:>8.2%}{100 * gap:>+12.2f} +- "
                f"{100 * spread:.2f}",
                flush=True,
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--method", default="kd")
    parser.add_argument("--cohort", default="kd,dkd,dist,lskd", help="methods of one teacher")
    parser.add_argument("--data-dir", help="an image folder like CIFAR-100's; random without one")
    parser.add_argument("--store", default="float32")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="counted, after one to warm up")
    parser.add_argument("--accuracy", action="store_true", help="instead, on the digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.accuracy:
        measure_accuracy(options)
    else:
        measure_speed(options)


if __name__ == "__main__":
    main()
