"""Fixtures that every test may use."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# Before torch is imported, here and in every process that a test starts: one thread gives the
# same sums on every machine, and is the quickest for tensors as small as these.
os.environ["OMP_NUM_THREADS"] = "1"
# Output is compared as it is without a terminal; parallel test workers set a width.
os.environ.pop("COLUMNS", None)
# What runs find once for all is kept by the tests of that alone, in folders of their own.
os.environ["LIMBECK_CACHE"] = ""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Whatever a test draws without a generator of its own, it draws the same every time."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@contextmanager
def no_room() -> Iterator[None]:
    """No file may grow beyond 4 KiB, as if the disk were full; pytest's own output neither.

    So it holds around the write alone, and is over before a test's result is printed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


@pytest.fixture
def full_disk():
    """A context manager within which every larger write fails."""
    return no_room
