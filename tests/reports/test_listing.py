import json
import os
import socket

import pytest

from limbeck.core.errors import RunFolderError
from limbeck.reports.listing import list_runs, read_rows


def rows(*epochs, stage="train", top1=0.5):
    return [
        json.dumps({"stage": stage, "epoch": epoch, "step": 10, "val": {"top1": top1, "loss": 1}})
        for epoch in epochs
    ]


@pytest.fixture
def listed(write_run):
    """Writes a run with its epochs; ``finished`` False takes the summary away."""

    def make(name, *, epochs=(0, 1), finished=True, **fields):
        run = write_run(name, config={"student": {"name": "digits_cnn_tiny"}}, **fields)
        (run / "environment.json").write_text("{}")
        (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in rows(*epochs)))
        if not finished:
            (run / "summary.json").unlink()
        return run

    return make


def test_a_run_is_listed_with_all_that_is_known_of_it(listed, tmp_path):
    listed("a/kd", seed=3, top1=0.875)
    (run,) = list_runs(tmp_path)
    assert (run.name, run.state, run.method, run.seed) == ("a/kd", "finished", "kd", 3)
    assert (run.epochs, run.num_epochs) == (2, 30)
    assert (run.val_top1, run.test_top1) == (0.5, 0.875)


def test_a_run_with_further_networks_has_the_epochs_of_all_its_stages(listed, tmp_path):
    run = listed("chain", epochs=(0, 1, 2))
    (run / "environment.json").write_text('{"num_epochs": 60}')
    (found,) = list_runs(tmp_path)
    assert (found.epochs, found.num_epochs) == (3, 60)


def test_runs_come_in_the_order_of_their_paths(listed, tmp_path):
    for name in ("b", "a/z", "a/b"):
        listed(name)
    assert [run.name for run in list_runs(tmp_path)] == ["a/b", "a/z", "b"]


def test_an_unfinished_run_has_no_test_result(listed, tmp_path):
    listed("run", finished=False, epochs=(0,))
    (run,) = list_runs(tmp_path)
    assert (run.state, run.epochs, run.test_top1) == ("unfinished", 1, None)


@pytest.mark.parametrize(
    ("owner", "state"),
    [
        ({"pid": os.getpid(), "host": socket.gethostname()}, "running"),
        ({"pid": 2**22 + 1, "host": socket.gethostname()}, "unfinished"),  # above Linux's largest
        ({"pid": 1, "host": "another machine"}, "running"),
        ({}, "unfinished"),
    ],
    ids=["here", "gone", "elsewhere", "unknown"],
)
def test_a_run_is_at_work_while_its_process_lives(listed, tmp_path, owner, state):
    run = listed("run", finished=False)
    (run / ".owner.json").write_text(json.dumps(owner))
    assert list_runs(tmp_path)[0].state == state


def test_a_run_that_has_just_begun_has_no_epoch(listed, tmp_path):
    run = listed("run", finished=False)
    (run / "metrics.jsonl").unlink()
    (found,) = list_runs(tmp_path)
    assert (found.state, found.epochs, found.val_top1) == ("unfinished", 0, None)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"method": "kd", "seed": 0}'])
def test_a_damaged_run_is_listed_and_hides_no_other(listed, tmp_path, text):
    (listed("bad") / "config.json").write_text(text)
    listed("good")
    bad, good = list_runs(tmp_path)
    assert (bad.state, bad.method, good.state) == ("damaged", None, "finished")
    assert bad.reason


def test_another_programs_config_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert list_runs(tmp_path) == ()


def test_failed_runs_of_a_comparison_say_why_also_those_without_a_folder(write_compared, tmp_path):
    write_compared({"ce": {0: 0.5}, "kd": {0: "out of memory"}})
    failed = [run for run in list_runs(tmp_path) if run.state == "failed"]
    assert [(run.name, run.reason) for run in failed] == [
        ("comparison/runs/kd-seed0", "out of memory")
    ]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="is not a folder"):
        list_runs(tmp_path / "nowhere")


# -- epochs ----------------------------------------------------------------------------------------


def test_epochs_are_counted_over_all_stages(tmp_path):
    lines = rows(0, 2, stage="hint") + rows(0, 1, stage="distil")
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert [row["run_epoch"] for row in read_rows(tmp_path)] == [1, 3, 4, 5]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    first, second = rows(0, 1)
    (tmp_path / "metrics.jsonl").write_text(f"{first}\n{second[:20]}")
    assert len(read_rows(tmp_path)) == 1


@pytest.mark.parametrize("damaged", ["{}", "[1]", "nonsense", '{"stage": "a", "epoch": "b"}'])
def test_a_damaged_line_is_named(tmp_path, damaged):
    (tmp_path / "metrics.jsonl").write_text(f"{rows(0)[0]}\n{damaged}\n{rows(1)[0]}\n")
    with pytest.raises(RunFolderError, match="line 2"):
        read_rows(tmp_path)


def test_a_folder_without_epochs_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_rows(tmp_path)
