"""Fixtures that every test may use."""

import os

# Before torch is imported, here and in every process that a test starts: one thread gives the
# same sums on every machine, and is the quickest for tensors as small as these.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
