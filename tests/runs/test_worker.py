import json
import os
import subprocess
import sys
import time

import pytest
import torch

from limbeck.runs.comparison import ComparisonFolder
from limbeck.runs.folder import RunFolder
from limbeck.runs.orchestrate import describe
from limbeck.runs.summary import read_summary
from limbeck.runs.tasks import Task
from limbeck.runs.worker import FAILED, main


@pytest.fixture
def begun(small, tmp_path):
    """A comparison in which nothing has been carried out."""

    def make(typed=(), **fields):
        folder = ComparisonFolder(tmp_path / "c")
        folder.begin(describe(small.comparison(seeds=[0], **fields).resolved(), typed=typed))
        return folder

    return make


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def work(folder, task, *more):
    return main([str(folder.path), task.text(), "--threads", "1", *more])


def test_it_carries_out_its_task_and_says_how_it_goes(begun, capsys):
    folder = begun()
    assert work(folder, Task("run", "kd", 0)) == 0
    assert read_summary(folder.run("kd", 0)).method == "kd"
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events.count("epoch") == 2


def test_it_writes_down_why_it_failed(begun):
    rows = {"wild": {"method": {"name": "kd"}, "changes": {"optim.lr": 1e30}}}
    folder = begun(methods=rows)
    assert work(folder, Task("run", "wild", 0)) == FAILED
    assert "NonFiniteError" in folder.read_failure("wild-seed0").reason


def test_only_what_was_typed_may_run_code(begun, small):
    folder = begun(student=small.student, typed=small.typed)
    assert work(folder, Task("run", "kd", 0)) == FAILED
    assert "networks.py" in folder.read_failure("kd-seed0").reason
    assert work(folder, Task("run", "kd", 0), "--typed", small.student) == 0


def test_it_refuses_files_that_were_edited_since_the_comparison_began(begun):
    folder = begun()
    record = folder.read()
    sources = record.code.sources | {"engine/step.py": "edited"}
    folder.write(record.changed(code=record.code.changed(sources=sources)))
    assert work(folder, Task("run", "kd", 0)) == FAILED
    assert "engine/step.py" in folder.read_failure("kd-seed0").reason


@pytest.mark.slow
def test_it_ends_when_nobody_waits_for_it_any_more(begun):
    """Its input ends, as it does when the process that started it is killed."""
    folder = begun(shared={"epochs": 2000})
    command = [sys.executable, "-m", "limbeck.runs.worker", str(folder.path)]
    process = subprocess.Popen(
        [*command, Task("run", "kd", 0).text(), "--threads", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ,
    )
    metrics = folder.run("kd", 0) / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=10) == 1
    with RunFolder(folder.run("kd", 0)).locked():
        pass
