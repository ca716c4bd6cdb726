"""A small world to train in: a method with its own weights, a student, a teacher, batches."""

import pytest
import torch
from torch import nn

from limbeck.core.types import Batch, LossTerms
from limbeck.engine.learner import Learner
from limbeck.methods.base import Method, MethodConfig, Needs
from limbeck.teacher import Teacher


class MimicConfig(MethodConfig):
    weight: float = 1.0
    layer: str = "0"
    stop: bool = False


class Mimic(Method[MimicConfig]):
    """Cross-entropy plus the squared distance of an adapted student layer to the teacher's."""

    def __init__(self, config, *, channels=(3, 3)):
        super().__init__(config)
        self.adapter = nn.Conv2d(*channels, kernel_size=1)

    @classmethod
    def needs(cls, config):
        layers = (config.layer,)
        return Needs(student_layers=layers, teacher_layers=layers, stop_student=config.stop)

    @classmethod
    def from_probe(cls, config, probe):
        sizes = [probe.feature(who, config.layer).shape[1] for who in ("student", "teacher")]
        return cls(config, channels=tuple(sizes))

    def forward(self, batch, student, teacher, progress):
        name = self.config.layer
        gap = self.adapter(student.features[name]) - teacher.features[name]
        near = gap.square().mean()
        total, parts = self.config.weight * near, {"near": near}
        if student.has_logits:
            ce = self.cross_entropy(student.logits, batch.label)
            total, parts = total + ce, {"ce": ce, **parts}
        return LossTerms(total, parts)


def make_network(width, *, seed, dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(16 * width, 4),
        )


def make_batch(size=6, *, seed=0, start=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        index=torch.arange(start, start + size),
        image=torch.rand(size, 1, 4, 4, generator=generator),
        label=torch.randint(4, (size,), generator=generator),
    )


class FixedLoader:
    """``num_steps`` batches an epoch, the same ones for the same (epoch, step)."""

    def __init__(self, num_steps=5, size=6):
        self.num_steps = num_steps
        self.size = size

    def epoch(self, epoch, start_step=0):
        for step in range(start_step, self.num_steps):
            yield make_batch(self.size, seed=100 * epoch + step, start=step * self.size)


@pytest.fixture
def teacher():
    return Teacher(make_network(5, seed=1), layers=["0"])


@pytest.fixture
def learner():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Learner(make_network(3, seed=2), Mimic(MimicConfig(), channels=(3, 5)))


class World:
    """What tests need of this file, since test modules cannot import it."""

    Mimic, MimicConfig, FixedLoader = Mimic, MimicConfig, FixedLoader
    make_network, make_batch = staticmethod(make_network), staticmethod(make_batch)


@pytest.fixture(scope="session")
def small():
    return World
