import gc
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from limbeck.engine.config import TrainConfig
from limbeck.engine.optim import OptimConfig
from limbeck.runs.measure import (
    SPEED_BATCH,
    PeakMemory,
    deployed_bytes,
    floor_images_per_second,
    images_per_second,
)


def test_deployed_bytes_are_those_of_weights_and_buffers_as_they_are_stored():
    """Batch-norm of 4: weight, bias, mean, variance in float32, and an int64 counter."""
    assert deployed_bytes(nn.BatchNorm2d(4)) == 4 * 4 * 4 + 8
    assert deployed_bytes(nn.Linear(3, 2).half()) == (6 + 2) * 2


class Slow(nn.Module):
    """Counts its passes, and waits in some of them."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.passes, self.shapes = clock, seconds, 0, set()

    def forward(self, image):
        self.clock.now += self.seconds(self.passes)
        self.passes += 1
        self.shapes.add(tuple(image.shape))
        return image


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


def test_speed_is_the_median_of_one_batch_after_warming_up(monkeypatch):
    """The first passes take long, and so does every fifth: neither is seen."""
    clock = Clock()
    monkeypatch.setattr("limbeck.runs.measure.time", clock)
    network = Slow(clock, lambda number: 9.0 if number < 3 or number % 5 == 4 else 0.25)
    found = images_per_second(network, (1, 8, 8), config=TrainConfig())
    assert found == SPEED_BATCH / 0.25
    assert network.shapes == {(SPEED_BATCH, 1, 8, 8)}


def test_speed_takes_no_longer_than_it_must(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("limbeck.runs.measure.time", clock)
    slow = Slow(clock, lambda number: 2.0)
    images_per_second(slow, (1, 8, 8), config=TrainConfig())
    assert slow.passes == 3 + 5


class SlowStudent(Slow):
    """With weights, and a backward pass that takes a second."""

    def __init__(self, clock, seconds):
        super().__init__(clock, seconds)
        self.layer = nn.Linear(64, 3)
        self.layer.weight.register_hook(self._backward)

    def _backward(self, gradient):
        self.clock.now += 1.0

    def forward(self, image):
        return self.layer(super().forward(image).flatten(1))


@pytest.mark.parametrize("taught", [True, False])
def test_the_floor_is_the_teachers_forward_and_the_students_step(monkeypatch, taught):
    clock = Clock()
    monkeypatch.setattr("limbeck.runs.measure.time", clock)
    # Something else holds up most passes: the quickest is the floor.
    student = SlowStudent(clock, lambda number: 0.25 if number % 5 == 4 else 3.0)
    teacher = Slow(clock, lambda number: 0.5)
    before = student.layer.weight.detach().clone()

    def update(*args):
        clock.now += 2.0

    hook = register_optimizer_step_post_hook(update)
    found = floor_images_per_second(
        student,
        teacher if taught else None,
        (1, 8, 8),
        optim=OptimConfig(lr=0.1),
        config=TrainConfig(batch_size=16),
    )
    hook.remove()
    assert found == 16 / (3.25 + 0.5 * taught)
    assert teacher.passes == (student.passes if taught else 0)
    assert student.shapes == {(16, 1, 8, 8)}
    torch.testing.assert_close(student.layer.weight.detach(), before, rtol=0, atol=1e-6)


def test_peak_memory_sees_what_was_in_use_meanwhile():
    gc.collect()  # or what other tests left behind may go in between
    memory = PeakMemory(torch.device("cpu"))
    before = memory.read()
    block = np.ones(200_000_000, dtype=np.uint8)
    assert memory.read() - before > 100_000_000
    del block


ANEW = """
import numpy as np, torch
from limbeck.runs.measure import PeakMemory

cpu = torch.device("cpu")
block = np.ones(300_000_000, dtype=np.uint8)
high = PeakMemory(cpu).read()
del block
print(high - PeakMemory(cpu).read())
"""


@pytest.mark.skipif(not PeakMemory(torch.device("cpu")).read(), reason="not on this system")
def test_peak_memory_starts_anew():
    """In a process of its own, where nothing else comes and goes."""
    done = subprocess.run([sys.executable, "-c", ANEW], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 200_000_000
