"""The program run in this process, and two finished runs to work on."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from limbeck.cli import main

# A run of a second: digits, a fifth of them, one epoch.
QUICK = (
    *("--epochs", "1", "--sched", "constant", "--fraction", "0.2"),
    *("--batch-size", "32", "--device", "cpu"),
)


@pytest.fixture(scope="session")
def quick():
    """Options that make a run one of a second."""
    return QUICK


class Answer(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def call(*arguments) -> int:
    """The exit code of ``limbeck ARGUMENTS``, run here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["limbeck", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return stop.value.code or 0


@pytest.fixture
def limbeck(capsys):
    """``limbeck(*arguments)``: what the command line answers."""

    def run(*arguments) -> Answer:
        capsys.readouterr()
        code = call(*arguments)
        return Answer(code, *capsys.readouterr())

    return run


def train(*arguments):
    """A run that later tests only read."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert call(*arguments) == 0, said.getvalue()


@pytest.fixture(scope="session")
def finished():
    """``finished(*arguments)``: a command that must succeed, said nothing of."""
    return train


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with two finished runs: "teacher", and "student" that it taught by KD."""
    folder = tmp_path_factory.mktemp("runs")
    teacher, student = folder / "teacher", folder / "student"
    train("train", "--student", "digits_cnn_tiny", "--output", teacher, *QUICK)
    model = ("--student", "digits_cnn_tiny")
    train("distill", "--teacher", teacher, *model, "--output", student, *QUICK)
    return folder


@pytest.fixture(scope="session")
def picture():
    """``picture(path, size=(8, 8))``: write one random grey picture."""

    def write(path, *, size=(8, 8), seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write
