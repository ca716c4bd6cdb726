import pytest
import torch

from limbeck.engine import stopwatch
from limbeck.engine.stopwatch import Stopwatch


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


def test_blocks_are_added_up_and_what_lies_between_is_not(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    watch = Stopwatch(torch.device("cpu"))
    for seconds in (1.0, 2.0):
        with watch:
            clock.now += seconds
        clock.now += 10
    assert watch.seconds() == 3.0


def test_it_goes_on_from_an_earlier_sitting(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    watch = Stopwatch(torch.device("cpu"))
    watch.start_from(5.0)
    with watch:
        clock.now += 1
    assert watch.seconds() == 6.0


def test_an_error_inside_ends_the_block(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    watch = Stopwatch(torch.device("cpu"))

    def fail():
        with watch:
            clock.now += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert watch.seconds() == 1.0


@pytest.mark.gpu
def test_on_a_gpu_the_queue_is_timed_and_not_the_host():
    device = torch.device("cuda")
    work = torch.rand(4096, 4096, device=device)
    watch = Stopwatch(device)
    with watch:
        for _ in range(20):
            work = work @ work / 2048
    queued = watch.seconds()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        work = work @ work / 2048
    end.record()
    end.synchronize()
    assert queued == pytest.approx(start.elapsed_time(end) / 1000, rel=0.5)
