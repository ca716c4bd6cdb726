"""What a training step of each feature method takes beyond the floor: time, and memory.

The floor is what nobody can leave out: the teacher's forward pass, and the student's forward pass,
cross-entropy, backward pass and SGD update, in plain torch on one batch. A method's step is the
same with its taps, adapters and loss, by limbeck's own learner. Adapters are run alone in the same
process, forward, backward and update on the inputs they had in the step, and counted apart: what
is left over the floor is what limbeck and the loss cost.

    python benchmarks/feature_memory.py --output results/feature_steps.csv

A method of several stages has a row for each; where a stage stops the student's pass early, it
takes less than the floor. What was measured, and what it means, is in docs/features.md.

Time is the median over rounds, in each of which every method takes its turn right after the floor;
on a CPU it is this process's own processor time, so that others at work on the machine change it
little.
Memory is the most that all tensors together take during a step, less the same of the floor, and
what the method keeps between steps: weights, gradients, momentum, buffers. On a CPU live tensors
are counted one by one, and what kernels take inside an operation is not seen; on CUDA it is the
allocator's own count.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Progress
from limbeck.engine.learner import Learner
from limbeck.engine.probe import build_learner, freeze_idle
from limbeck.methods import METHODS, find_method
from limbeck.methods.base import Stage
from limbeck.models import create_model
from limbeck.runs.provenance import code_commit
from limbeck.teacher import Teacher

CLASSES = 100
HEADS = ("step/floor", "adapters/floor", "left/floor", "extra MiB", "kept MiB")
MIB = 2**20
NORMALIZATION = Normalization(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class LiveTensors(TorchDispatchMode):
    """Bytes of all tensors that operations make and that are still there; and the most of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.bytes += size
        self.most = max(self.most, self.bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


class Clock:
    """Seconds of work, whatever else the machine does."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def __call__(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def of(self, action: Callable[[], None]) -> float:
        start = self()
        action()
        return self() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    family = [name for name, entry in METHODS.items() if entry.family == "feature"]
    parser.add_argument("--methods", default=",".join(family))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=50_000, help="in the training set (CRD)")
    parser.add_argument("--rounds", type=int, default=5, help="each is printed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="a CSV file, written anew")
    options = parser.parse_args()
    device = torch.device(options.device)
    floor = Floor(options, device)
    steps = {
        key: step for name in options.methods.split(",") for key, step in stages(name, options)
    }
    memory = {name: step.memory() for name, step in {"floor": floor, **steps}.items()}
    for step in steps.values():
        step.adapter_seconds()  # all else is warm by now
    ratios: dict[str, list[tuple[float, float]]] = {key: [] for key in steps}
    seconds = []
    for count in range(1, options.rounds + 1):
        for key, step in steps.items():
            seconds.append(floor.seconds())
            measured = step.seconds(), step.adapter_seconds()
            ratios[key].append((measured[0] / seconds[-1], measured[1] / seconds[-1]))
        print(f"{described(options)}, medians of {count} rounds", flush=True)
        print(f"floor: {1000 * statistics.median(seconds):.1f} ms, {memory['floor'] / MIB:.1f} MiB")
        print(f"{'':<28}" + "".join(f"{head:>16}" for head in HEADS))
        rows = {}
        for key, step in steps.items():
            whole, apart = map(statistics.median, zip(*ratios[key], strict=True))
            extra = (memory[key] - memory["floor"]) / MIB
            rows[key] = (whole, apart, whole - apart, extra, step.kept() / MIB)
            print(f"{key:<28}" + "".join(f"{value:>16.2f}" for value in rows[key]), flush=True)
        if options.output is not None:
            write(options.output, rows, described(options))


def described(options: argparse.Namespace) -> str:
    """What was measured on what."""
    where = platform.processor() or platform.machine()
    if options.device.startswith("cuda"):
        where = torch.cuda.get_device_name()
    return (
        f"{options.teacher} -> {options.student}, batch {options.batch_size}, "
        f"{options.images:,} images, {where}, {torch.get_num_threads()} threads"
    )


def write(path: Path, rows: Mapping[str, tuple[float, ...]], setting: str) -> None:
    """A line for each number, in the columns that docs/generate.py reads."""
    commit = code_commit() or ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["method", "stage", "setting", "measure", "seed", "value", "commit", "torch"]
        )
        for key, values in rows.items():
            name, _, stage = key.partition(" ")
            for measure, value in zip(HEADS, values, strict=True):
                number = f"{value:.3f}"
                writer.writerow(
                    [name, stage, setting, measure, 0, number, commit, torch.__version__]
                )


class Timed:
    """A step that can be timed, and whose memory can be counted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = Clock(device)

    def step(self) -> None:
        raise NotImplementedError

    def seconds(self) -> float:
        return self.clock.of(self.step)

    def memory(self) -> int:
        """The most bytes of a step, the networks and what is kept not among them."""
        self.step()  # the optimiser's state is there now
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated() - before
        with LiveTensors() as live:
            self.step()
        return live.most


class Floor(Timed):
    """Teacher and student in plain torch."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        super().__init__(device)
        self.teacher, self.student = networks(options, device)
        self.batch = make_batch(options, device)
        self.optimizer = sgd(self.student)

    def step(self) -> None:
        image = (self.batch.image - 0.5) / 0.25
        with torch.no_grad():
            self.teacher(image)
        F.cross_entropy(self.student(image), self.batch.label).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class MethodStep(Timed):
    """A method's step, by limbeck's learner."""

    def __init__(self, learner: Learner, teacher: Teacher, batch: Batch) -> None:
        super().__init__(batch.image.device)
        self.learner, self.teacher, self.batch = learner.train(), teacher, batch
        self.optimizer = sgd(learner)
        self.calls = self._watch()
        if self.calls:
            self.adapter_optimizer = sgd(learner.method)

    def step(self) -> None:
        answers = self.teacher(self.batch.image, self.batch.views)
        progress = Progress(num_epochs=240, num_steps=240 * 781)
        self.learner(self.batch, answers, progress).terms.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _watch(self) -> list[tuple[nn.Module, tuple[Any, ...]]]:
        """The method's outermost modules with weights, and what they were given in one step."""
        found: list[tuple[nn.Module, tuple[Any, ...]]] = []
        depth = 0

        def enter(module: nn.Module, given: tuple[Any, ...]) -> None:
            nonlocal depth
            if depth == 0:
                found.append((module, tuple(map(_alone, given))))
            depth += 1

        def leave(*_: Any) -> None:
            nonlocal depth
            depth -= 1

        inner = [
            module
            for module in self.learner.method.modules()
            if module is not self.learner.method and any(True for _ in module.parameters())
        ]
        handles = [module.register_forward_pre_hook(enter) for module in inner]
        handles += [module.register_forward_hook(leave) for module in inner]
        self.step()
        for handle in handles:
            handle.remove()
        return found

    def adapter_seconds(self) -> float:
        """Of the method's modules alone: forward, backward and update."""
        if not self.calls:
            return 0.0
        return self.clock.of(self._run_adapters)

    def _run_adapters(self) -> None:
        for module, given in self.calls:
            made = [t for t in tree_leaves(module(*given)) if isinstance(t, Tensor)]
            total = sum((t.sum() for t in made if t.requires_grad), torch.zeros(()))
            if total.requires_grad:
                total.backward()
        self.adapter_optimizer.step()
        self.adapter_optimizer.zero_grad(set_to_none=True)

    def kept(self) -> int:
        """Bytes that the method keeps from step to step."""
        method = self.learner.method
        weights = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
        buffers = sum(b.numel() * b.element_size() for b in method.buffers())
        return 2 * weights + buffers  # and momentum; gradients are of the step


def stages(name: str, options: argparse.Namespace) -> Iterator[tuple[str, MethodStep]]:
    """Each stage of a method, built for the two networks."""
    entry = find_method(name)
    made = entry.stages(entry.config())
    for stage in made:
        yield f"{name} {stage.name}" if len(made) > 1 else name, build(stage, options)


def build(stage: Stage, options: argparse.Namespace) -> MethodStep:
    """One stage for the two networks."""
    device = torch.device(options.device)
    needs = stage.method.needs(stage.config)
    teacher, student = networks(options, device)
    batch = make_batch(options, device, needs.views)
    sealed = Teacher(
        teacher,
        normalization=NORMALIZATION,
        layers=needs.teacher_layers,
        classifier=needs.teacher_classifier,
        scores=needs.teacher_scores,
    ).to(device)
    learner = build_learner(
        stage,
        student,
        sealed,
        batch,
        normalization=NORMALIZATION,
        num_images=options.images,
        num_classes=CLASSES,
        labels=torch.arange(options.images) % CLASSES,
        seed=0,
    )
    answers = sealed(batch.image, batch.views)
    freeze_idle(learner, answers, batch, num_epochs=240, num_steps=240, seed=0)
    return MethodStep(learner, sealed, batch)


def networks(options: argparse.Namespace, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Teacher and student with weights of their own."""
    made = (create_model(n, num_classes=CLASSES) for n in (options.teacher, options.student))
    teacher, student = (network.to(device) for network in made)
    return teacher.eval().requires_grad_(False), student.train()


def make_batch(
    options: argparse.Namespace, device: torch.device, views: tuple[str, ...] = ()
) -> Batch:
    """Random images."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(options.batch_size, 3, 32, 32, generator=generator).to(device)
    return Batch(
        index=torch.arange(options.batch_size, device=device),
        image=image,
        label=torch.arange(options.batch_size, device=device) % CLASSES,
        views=dict.fromkeys(views, image),
    )


def sgd(network: nn.Module) -> torch.optim.SGD:
    """The benchmark's optimiser."""
    learning = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.SGD(learning, lr=0.05, momentum=0.9, weight_decay=5e-4)


def _alone(value: Any) -> Any:
    """A tensor apart from its graph, which takes a gradient if it had one."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    return value


if __name__ == "__main__":
    main()
