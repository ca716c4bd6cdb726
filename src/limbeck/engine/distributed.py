"""The processes of one run under torchrun; one process alone is the ordinary case."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.core.errors import DeviceError, LimbeckError
from limbeck.teacher import state_hash

__all__ = [
    "World",
    "check_ranks_agree",
    "join_ranks",
    "pick_device",
    "process_group",
    "share_buffers",
    "sum_over_ranks",
]

_TIMEOUT = timedelta(minutes=10)  # torch's default of 30 hides a dead rank for too long


@dataclass(frozen=True)
class World:
    """Which process of how many this is.

    Attributes:
        rank: 0-based over all machines.
        size: number of processes.
        local_rank: 0-based on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0


@contextmanager
def process_group(device_type: str) -> Iterator[World]:
    """The world that torchrun set up in the environment, joined; or a world of one.

    Once joined it stays, for further runs of this program: joining anew reads addresses that the
    first group left in torchrun's store, and fails or hangs. A group that the caller made is used
    as it is.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield World()
            return
        if device_type == "cuda":  # or NCCL would gather objects on the first GPU, for all ranks
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=_TIMEOUT)
        atexit.register(dist.destroy_process_group)
    dist.barrier()  # what a process looks up before, no other has changed meanwhile
    yield World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


def pick_device(asked: str, *, local_rank: int = 0) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: if it was asked for by name and is not there, or the name is unknown.
    """
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return torch.device("cpu")
    kind, _, number = asked.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise DeviceError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {asked!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number) if number else local_rank
    if index >= count:
        raise DeviceError(
            f"device {asked!r} was asked for and this machine has {count} CUDA devices; use "
            "--device cpu, or see `limbeck doctor`"
        )
    return torch.device("cuda", index)


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """The sum of one tensor over all processes; in one process, the tensor itself."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def join_ranks(rows: Tensor, world: World) -> Tensor:
    """Every process's rows on the host, one below the other in the order of the ranks.

    A process may have none: the last axes are then those of the others.
    """
    if world.size == 1:
        return rows
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, rows.cpu())
    return torch.cat([part for part in everyone if len(part)] or [rows])


def share_buffers(network: nn.Module, world: World) -> None:
    """Give every process rank 0's buffers.

    In training each process moves its own batch-norm statistics; what is judged must be one
    network, and the one that is saved.
    """
    if world.size > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def check_ranks_agree(learner: nn.Module, settings: dict[str, Any], world: World) -> None:
    """Compare parameters, buffers and settings over all processes.

    Raises:
        LimbeckError: naming the ranks that differ from rank 0.
    """
    if world.size == 1:
        return
    text = json.dumps(settings, sort_keys=True) + state_hash(learner)
    mine = hashlib.sha256(text.encode()).hexdigest()
    everyone: list[str | None] = [None] * world.size
    dist.all_gather_object(everyone, mine)
    different = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    if different:
        raise LimbeckError(
            f"ranks {different} differ from rank 0 in parameters or settings; start every process "
            "with the same command, files and code version"
        )
