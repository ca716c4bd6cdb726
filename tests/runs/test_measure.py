import gc

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.engine.config import TrainConfig
from limbeck.runs.measure import SPEED_BATCH, PeakMemory, deployed_bytes, images_per_second


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


def test_peak_memory_sees_what_was_in_use_meanwhile():
    gc.collect()  # or what other tests left behind may go in between
    memory = PeakMemory(torch.device("cpu"))
    before = memory.read()
    block = np.ones(200_000_000, dtype=np.uint8)
    assert memory.read() - before > 100_000_000
    del block


@pytest.mark.skipif(not PeakMemory(torch.device("cpu")).read(), reason="not on this system")
def test_peak_memory_starts_anew():
    block = np.ones(80_000_000, dtype=np.uint8)
    high = PeakMemory(torch.device("cpu")).read()
    del block
    assert PeakMemory(torch.device("cpu")).read() < high - 40_000_000
