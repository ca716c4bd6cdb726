import json
import shutil
import subprocess
import sys

import pytest


def test_runs_are_listed_with_their_numbers(limbeck, runs):
    answer = limbeck("runs", runs)
    assert answer.code == 0
    heading, student, teacher, total = answer.out.splitlines()
    assert heading.split() == ["run", "method", "seed", "epochs", "val", "%", "test", "%", "state"]
    assert student.split()[:4] == ["student", "kd", "0", "1/1"]
    summary = json.loads((runs / "teacher" / "summary.json").read_text())
    assert f"{100 * summary['test']['last']['top1']:.2f}" in teacher
    assert teacher.split()[-1] == "finished"
    assert total == "2 runs"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--method", "kd"], ["student"]),
        (["--method", "rkd"], []),
        (["--seed", "0", "--state", "finished"], ["student", "teacher"]),
        (["--state", "failed"], []),
        (["--sort", "method"], ["teacher", "student"]),
        (["--sort", "run", "-r"], ["teacher", "student"]),
    ],
    ids=str,
)
def test_runs_are_filtered_and_sorted(limbeck, runs, options, names):
    found = json.loads(limbeck("runs", runs, *options, "--json").out)
    assert [run["name"] for run in found] == names


def test_sorting_by_accuracy_puts_those_without_any_last(limbeck, runs, tmp_path):
    (tmp_path / "bad").mkdir()
    for name in ("config.json", "environment.json"):
        (tmp_path / "bad" / name).write_text("[]")
    shutil.copytree(runs / "student", tmp_path / "good")
    for order in ((), ("-r",)):
        found = json.loads(limbeck("runs", tmp_path, "--sort", "test", *order, "--json").out)
        assert [run["state"] for run in found] == ["finished", "damaged"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--state", "done"], "no state of a run called 'done'"),
        (["--sort", "accuracy"], "no column to sort by called 'accuracy'"),
    ],
)
def test_unknown_names_are_answered(limbeck, runs, options, message):
    answer = limbeck("runs", runs, *options)
    assert (answer.code, message in answer.err) == (2, True)


def test_a_folder_that_is_not_there_is_the_users_to_mend(limbeck, tmp_path):
    assert limbeck("runs", tmp_path / "nowhere").code == 2


def test_names_cannot_steer_the_terminal(limbeck, runs, tmp_path):
    shutil.copytree(runs / "student", tmp_path / "[red]\x1b[2J")
    answer = limbeck("runs", tmp_path)
    assert "\x1b" not in answer.out
    assert "[red]\\x1b[2J" in answer.out


def test_curves_are_drawn_and_told(limbeck, runs, tmp_path):
    picture = tmp_path / "new.svg"
    answer = limbeck("curves", runs / "teacher", runs / "student", "--output", picture)
    assert answer.code == 0
    assert picture.read_text().count("<svg") == 1
    row = json.loads((runs / "student" / "metrics.jsonl").read_text())
    assert f"student: {row['val']['top1']:.4g} at epoch 1" in answer.out
    found = json.loads(
        limbeck("curves", runs / "student", "-o", picture, "--metric", "train.loss", "--json").out
    )
    assert list(found["curves"].values()) == [[[1, row["train"]["loss"]]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x.gif"], "should end in .png, .svg or .pdf"),
        (["--metric", "val.top"], "did you mean 'val.top5' or 'val.top1'"),
        (["--output", "nowhere/x.png"], "could not be written"),
    ],
)
def test_what_cannot_be_drawn_is_said(limbeck, runs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    answer = limbeck("curves", runs / "student", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [["runs", "{runs}"], ["curves", "{runs}/teacher", "-o", "{out}"]]
)
def test_browsing_does_not_import_torch(runs, tmp_path, command):
    arguments = [part.format(runs=runs, out=tmp_path / "x.png") for part in command]
    code = (
        "import sys\nfrom limbeck.cli import main\n"
        f"sys.argv = {['limbeck', *arguments]!r}\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
