"""Small whole runs: a quarter of the digits, tiny networks, a teacher trained in a second."""

import dataclasses
import json
from collections import Counter

import pytest
import torch

from limbeck.core.normalization import Normalization
from limbeck.data import DataBundle, ImageSet
from limbeck.engine.recorder import SilentObserver
from limbeck.models import create_model, save_weights
from limbeck.runs.compare import CompareConfig
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import execute, prepare_parts, resume

# Named by file, so that other processes build the same networks.
NETWORKS = """
import torch
from torch import nn


class Small(nn.Module):
    layer_aliases = {"penultimate": "fc:input"}

    def __init__(self, width, num_classes, in_chans, *, norm, dropout=0.0):
        super().__init__()
        make = nn.BatchNorm2d if norm else nn.Identity
        self.stage1 = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, padding=1), make(width), nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.stage2 = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), make(width), nn.Dropout(dropout),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(width, num_classes)

    def forward(self, image):
        return self.fc(self.stage2(self.stage1(image)).mean((2, 3)))


def student(num_classes, in_chans):
    return Small(6, num_classes, in_chans, norm=True, dropout=0.3)


def without_norm(num_classes, in_chans):
    return Small(6, num_classes, in_chans, norm=False)
"""


class Ear(SilentObserver):
    """Remembers what a run says, in order."""

    def __init__(self):
        self.notes, self.rows, self.said = [], [], []

    def note(self, message):
        self.notes.append(message)
        self.said.append("note")

    def step(self, stage, done, total):
        self.said.append("step")

    def epoch(self, row):
        self.rows.append(row)
        self.said.append("epoch")


class Act(SilentObserver):
    """Does something once, after a step of a stage."""

    def __init__(self, stage, step, action):
        self.stage, self.at, self.action = stage, step, action

    def step(self, stage, done, total):
        if (stage, done) == (self.stage, self.at):
            self.action()


class CountingImages:
    """An image set that counts how often each image is read, and calls back."""

    def __init__(self, inner, on_read=lambda: None):
        self.inner, self.on_read, self.reads = inner, on_read, Counter()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __len__(self):
        return len(self.inner)

    def gather(self, index):
        self.reads.update(index.tolist())
        self.on_read()
        return self.inner.gather(index)


class Small:
    """What the tests need of this file, since test modules cannot import it."""

    Ear, Act, CountingImages = Ear, Act, CountingImages

    def __init__(self, folder):
        networks = folder / "networks.py"
        networks.write_text(NETWORKS)
        self.student = f"{networks}:student"
        self.without_norm = f"{networks}:without_norm"
        self.typed = (self.student, self.without_norm)
        self.teacher = str(folder / "teacher")
        # Two of different shapes; the second has learnt nothing.
        second = folder / "second.safetensors"
        save_weights(
            create_model("digits_cnn", num_classes=10, in_chans=1, seed=1).state_dict(), second
        )
        self.several = [
            {"run": self.teacher},
            {"name": "digits_cnn", "checkpoint": str(second)},
        ]

    def config(self, method="kd", *, student=None, epochs=2, seed=0, teacher=None, **fields):
        """303 training images: ten steps an epoch, the last one short."""
        method = method if isinstance(method, dict) else {"name": method}
        if teacher is None and method["name"] not in ("ce", "dml"):
            teacher = {"run": self.teacher}
        data = {"fraction": 0.25, "split_seed": 0, **fields.pop("data", {})}
        schedule = {"epochs": epochs, "sched": "cosine", **fields.pop("schedule", {})}
        train = {"batch_size": 32, "device": "cpu", **fields.pop("train", {})}
        return RunConfig(
            seed=seed,
            data=data,
            student={"name": student or self.student},
            teacher=teacher,
            method=method,
            optim={"lr": 0.1, **fields.pop("optim", {})},
            schedule=schedule,
            train=train,
            **fields,
        )

    def comparison(self, methods=("kd",), *, seeds=(0, 1), student="digits_cnn_tiny", **fields):
        """Of a quarter of the digits and two epochs; ``methods`` may be label to row."""
        shared = self.config("ce", student=student, **fields.pop("shared", {})).plain()
        rows = (
            methods if isinstance(methods, dict) else {m: {"method": {"name": m}} for m in methods}
        )
        values = {"shared": shared, "contenders": rows, "seeds": seeds, "threads": 1}
        if not {"teacher", "teacher_training"} & fields.keys():
            values["teacher"] = {"run": self.teacher}
        return CompareConfig.read(values | fields)

    def parts(self, config):
        return prepare_parts(config, typed=self.typed)

    def run(self, config, folder, *, parts=None, observer=None):
        return execute(config, folder, parts or self.parts(config), observer=observer)

    def resume(self, folder, *, parts=None, observer=None):
        config = RunConfig.read(json.loads((folder / "config.json").read_text()))
        return resume(folder, parts or self.parts(config), config, observer=observer)

    def network(self, config, **changes):
        """A fresh student, as a module."""
        return prepare_parts(config.changed(**changes), typed=self.typed).student.network

    @staticmethod
    def with_test(parts, test):
        """The same parts with another test split."""
        return dataclasses.replace(parts, data=dataclasses.replace(parts.data, test=test))

    @staticmethod
    def rows(folder):
        """metrics.jsonl without times."""
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in rows
        ]

    @staticmethod
    def bundle(num_classes=4, *, size=40):
        """Random images whose class is where the bright quarter lies."""
        generator = torch.Generator().manual_seed(0)

        def images(count):
            labels = torch.arange(count) % num_classes
            pixels = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
            for image, label in zip(pixels, labels, strict=True):
                row, column = divmod(int(label), 2)
                image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
            names = tuple(f"class {k}" for k in range(num_classes))
            return ImageSet(images=pixels.to(torch.uint8), labels=labels, class_names=names)

        return DataBundle(
            name="python",
            train=images(size),
            val=images(16),
            test=images(24),
            normalization=Normalization(mean=(0.3,), std=(0.25,)),
        )


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    world = Small(tmp_path_factory.mktemp("runs"))
    teacher = world.config("ce", student="digits_cnn_tiny", epochs=4, optim={"lr": 0.3})
    world.run(teacher, world.teacher)
    return world
