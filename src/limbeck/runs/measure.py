"""What a run costs: memory while it trains, size and speed of what is deployed, and the floor.

B batch, C channels, H W spatial.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.types import keyed_generator
from limbeck.engine.config import TrainConfig
from limbeck.engine.optim import OptimConfig, build_optimizer

__all__ = [
    "SPEED_BATCH",
    "PeakMemory",
    "deployed_bytes",
    "floor_images_per_second",
    "images_per_second",
]

SPEED_BATCH = 64  # images of the batch whose time is taken
_WARM_UP, _FEWEST, _MOST = 3, 5, 50  # passes
_ENOUGH_SECONDS = 0.5


class PeakMemory:
    """The most memory in use since this was made.

    On CUDA it is what torch had allocated on the device. Elsewhere it is the resident size of
    the whole process, torch itself included; where the system cannot start counting anew (it can
    on Linux), that of the process since it began, which is then an upper bound.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):  # no /proc, or not allowed
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int:
        """Bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        try:
            import resource
        except ImportError:  # not on Windows
            return 0
        # Kilobytes on Linux, bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def deployed_bytes(network: nn.Module) -> int:
    """Bytes of all weights and buffers, as they are stored.

    Example:
        >>> deployed_bytes(nn.Linear(3, 2))  # six weights and two biases of four bytes
        32
    """
    state = network.state_dict().values()
    return sum(value.numel() * value.element_size() for value in state)


@torch.no_grad()
def images_per_second(
    network: nn.Module, image_shape: tuple[int, int, int], *, config: TrainConfig
) -> float:
    """Images a second through ``network``, the median over passes of one fixed batch.

    Args:
        network: in eval mode, on its device, from images in [0, 1].
        image_shape: ``(C, H, W)``.
        config: precision and memory format.

    Returns:
        Images a second, of a batch of :data:`SPEED_BATCH`, after some passes to warm up.
    """
    device = _device_of(network)
    batch = _random_batch(SPEED_BATCH, image_shape, config=config, device=device)

    def forward() -> None:
        with config.autocast(device):
            network(batch)

    return SPEED_BATCH / statistics.median(_seconds(forward, device))


def floor_images_per_second(
    student: nn.Module,
    teacher: nn.Module | None,
    image_shape: tuple[int, int, int],
    *,
    optim: OptimConfig,
    config: TrainConfig,
) -> float:
    """Training images a second of what no method can leave out.

    That is the teacher's forward pass, and the student's forward pass, cross-entropy, backward
    pass and update, in plain eager torch on one batch that lies on the device: no data, taps,
    loss of the method, checks or records. The quickest of some steps counts: whatever else the
    machine does can only make one slower.

    Args:
        student: in training mode, on its device, from images in [0, 1]; a copy, since its
            statistics change. Its weights stay, at a rate of next to nothing.
        teacher: in eval mode, from the same images; None where nobody teaches.
        image_shape: ``(C, H, W)``.
        optim: of the run.
        config: precision, memory format and batch size, which are the run's too.

    Returns:
        Images a second of one process.
    """
    device = _device_of(student)
    batch = _random_batch(config.batch_size, image_shape, config=config, device=device)
    optimizer = build_optimizer([student], optim.changed(lr=1e-12))
    label = torch.zeros(config.batch_size, dtype=torch.int64, device=device)

    def step() -> None:
        with config.autocast(device):
            if teacher is not None:
                with torch.no_grad():
                    teacher(batch)
            loss = F.cross_entropy(student(batch), label)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return config.batch_size / min(_seconds(step, device))


def _device_of(network: nn.Module) -> torch.device:
    tensors = (*network.parameters(), *network.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _random_batch(
    size: int, image_shape: tuple[int, int, int], *, config: TrainConfig, device: torch.device
) -> Tensor:
    generator = keyed_generator("images per second")
    batch = torch.rand(size, *image_shape, generator=generator)
    return batch.to(device, memory_format=config.memory_format)


def _seconds(work: Callable[[], None], device: torch.device) -> list[float]:
    """Of several passes, after some to warm up."""
    seconds: list[float] = []
    for number in range(-_WARM_UP, _MOST):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 0:
            seconds.append(max(time.perf_counter() - start, 1e-9))
        if len(seconds) >= _FEWEST and sum(seconds) > _ENOUGH_SECONDS:
            break
    return seconds
