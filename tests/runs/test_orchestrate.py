import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.core.errors import DataError, RunFolderError, SettingsError, TapError
from limbeck.engine.loop import InterruptedRun
from limbeck.reports.compared import read_comparison
from limbeck.reports.export import MACHINE_COLUMNS
from limbeck.reports.files import write_comparison
from limbeck.runs.comparison import ComparisonFolder
from limbeck.runs.execute import execute
from limbeck.runs.orchestrate import (
    SilentAudience,
    compare,
    describe,
    parts_before_training,
    torch_threads,
)
from limbeck.runs.summary import read_summary
from limbeck.runs.tasks import PreparedData


class Hearer(SilentAudience):
    """Remembers which tasks began, ended and failed; and may act in a step of one."""

    def __init__(self, task=None, step=0, action=lambda: None):
        self.began, self.ended, self.reasons = [], [], {}
        self.task, self.at, self.action = task, step, action

    def started(self, task, number, total):
        self.began.append((task.name, number, total))

    def finished(self, task, found):
        self.ended.append(task.name)

    def failed(self, task, reason):
        self.reasons[task.name] = reason

    def observer(self, task):
        observer = super().observer(task)
        if task.name == self.task:
            observer.step = lambda stage, done, total: done == self.at and self.action()
        return observer


def tables(folder):
    """Every column of the tables that does not depend on the machine and the hour."""
    files = write_comparison(read_comparison(folder), title="t")
    found = []
    for path in (files.csv, files.runs):
        found += [
            {k: v for k, v in line.items() if k not in MACHINE_COLUMNS}
            for line in csv.DictReader(path.read_text().splitlines())
        ]
    return found


def equal_weights(one, other):
    for path in one.glob("runs/*/student*.safetensors"):
        theirs = load_file(other / path.relative_to(one))
        for name, value in load_file(path).items():
            assert torch.equal(value, theirs[name]), path


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """An undisturbed comparison: two seeds of the baseline and KD. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "c"
    ear = Hearer()
    compare(small.comparison(), folder, audience=ear)
    return folder, ear


@pytest.fixture
def copied(whole, tmp_path):
    """The same, to be changed."""
    shutil.copytree(whole[0], tmp_path / "c")
    return tmp_path / "c"


def test_every_row_and_seed_is_an_ordinary_run_folder(whole):
    folder, ear = whole
    assert sorted(path.name for path in (folder / "runs").iterdir()) == [
        "ce-seed0", "ce-seed1", "kd-seed0", "kd-seed1"
    ]  # fmt: skip
    for path in (folder / "runs").iterdir():
        summary = read_summary(path)
        assert path.name == f"{summary.method}-seed{summary.seed}"
        assert (path / "predictions.safetensors").exists()
    assert [name for name, _, _ in ear.began] == ear.ended
    assert ear.began[-1] == ("kd-seed1", 4, 4)
    assert ear.reasons == {}


def test_its_record_names_settings_code_data_and_teacher(whole, small):
    record = ComparisonFolder(whole[0]).read()
    assert record.settings == small.comparison().resolved()
    assert record.teacher_hash == read_summary(small.teacher).student_hash
    assert record.data["kd"] == read_summary(whole[0] / "runs" / "kd-seed1").split_hashes
    assert record.code.sources
    assert record.looks == (2,)


def test_all_runs_of_all_seeds_are_judged_on_one_split(whole):
    hashes = {read_summary(path).data_hash for path in (whole[0] / "runs").iterdir()}
    assert len(hashes) == 1


def test_a_run_of_a_comparison_is_the_run_it_would_be_alone(whole, small, tmp_path):
    config = small.comparison().resolved().run_config("kd", 1)
    with torch_threads(1):
        alone = execute(config, tmp_path / "alone", small.parts(config))
    assert alone.student_hash == read_summary(whole[0] / "runs" / "kd-seed1").student_hash


def test_the_callers_threads_stay_as_they_were(small, tmp_path):
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    compare(small.comparison([], seeds=[0], threads=other), tmp_path / "c")
    assert torch.get_num_threads() == before
    environment = json.loads((tmp_path / "c/runs/ce-seed0/environment.json").read_text())
    assert environment["threads"] == other


# -- going on ------------------------------------------------------------------------------------


def test_only_what_is_missing_is_made(copied, small):
    shutil.rmtree(copied / "runs" / "kd-seed0")
    before = tables(copied)
    ear = Hearer()
    compare(small.comparison(), copied, audience=ear)
    assert ear.began == [("kd-seed0", 4, 4)]
    assert tables(copied) != before
    ear = Hearer()
    compare(small.comparison(), copied, audience=ear)
    assert ear.began == []


def test_an_interrupted_run_goes_on_where_it_stopped(whole, small, tmp_path):
    """Ctrl-C in the second epoch of a run in the middle; then to the same end."""
    action = partial(os.kill, os.getpid(), signal.SIGINT)
    with pytest.raises(InterruptedRun):
        compare(small.comparison(), tmp_path / "c", audience=Hearer("kd-seed0", 14, action))
    assert not (tmp_path / "c/runs/ce-seed1").exists()
    seen = []
    ear = Hearer("kd-seed0")
    ear.observer = lambda task: Counting(seen, task.name)
    compare(small.comparison(), tmp_path / "c", audience=ear)
    assert seen.count("kd-seed0") == 20 - 14
    assert tables(tmp_path / "c") == tables(whole[0])
    equal_weights(whole[0], tmp_path / "c")


class Counting:
    """Notes the name of a task at every step."""

    def __init__(self, seen, name):
        self.seen, self.name = seen, name

    def note(self, message):
        pass

    def step(self, stage, done, total):
        self.seen.append(self.name)

    def epoch(self, row):
        pass


def test_what_a_run_left_that_was_killed_at_birth_is_in_nobodys_way(copied, small):
    run = copied / "runs" / "kd-seed1"
    shutil.rmtree(run)
    run.mkdir()
    for name in (".lock", ".owner.json", "environment.json"):
        (run / name).touch()
    compare(small.comparison(), copied)
    assert (run / "summary.json").exists()


def test_seeds_and_rows_may_be_added_and_a_second_look_is_remembered(copied, small):
    ear = Hearer()
    compare(small.comparison(["kd", "rkd"], seeds=[0, 1, 2]), copied, audience=ear)
    assert [name for name, _, _ in ear.began] == [
        "rkd-seed0", "rkd-seed1", "ce-seed2", "kd-seed2", "rkd-seed2"
    ]  # fmt: skip
    compared = read_comparison(copied)
    assert compared.looks == (2, 3)
    assert [row.label for row in compared.rows] == ["ce", "kd", "rkd"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shared": {"optim": {"lr": 0.2}}}, r"shared\.optim\.lr \(0\.1 then, 0\.2 now\)"),
        ({"shared": {"data": {"fraction": 0.3}}}, "the train and val images"),
        ({"seeds": [0]}, r"seeds \(1 left out\)"),
        ({"methods": ["rkd"]}, r"contenders \(kd left out\)"),
        ({"threads": 2}, r"threads \(1 then, 2 now\)"),
    ],
    ids=str,
)
def test_a_comparison_with_anything_else_in_it_is_refused_and_stays(copied, small, change, named):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    with pytest.raises(RunFolderError, match=named):
        compare(small.comparison(**change), copied)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_another_teacher_under_the_same_path_is_refused(copied, small, tmp_path):
    other = tmp_path / "other"
    small.run(small.config("ce", student="digits_cnn_tiny", seed=3), other)
    config = small.comparison()
    assert config.teacher is not None
    with pytest.raises(RunFolderError, match="the weights of the teacher"):
        compare(config.changed(teacher={"run": str(other)}), copied)


def test_code_that_was_edited_meanwhile_is_refused(copied, small):
    path = copied / "comparison.json"
    values = json.loads(path.read_text())
    values["code"]["sources"]["engine/loop.py"] = "edited"
    path.write_text(json.dumps(values))
    with pytest.raises(RunFolderError, match=r"limbeck's engine/loop\.py"):
        compare(small.comparison(), copied)


def test_another_commit_of_the_same_files_is_not_refused(copied, small):
    path = copied / "comparison.json"
    values = json.loads(path.read_text())
    values["code"]["commit"] = "0" * 40
    path.write_text(json.dumps(values))
    compare(small.comparison(), copied)


# -- what does not fit, and what fails -------------------------------------------------------------


def test_a_row_that_does_not_fit_the_networks_is_refused_before_anything_runs(small, tmp_path):
    rows = {
        "kd": {"method": {"name": "kd"}},
        "bad": {"method": {"name": "fitnet", "student_layer": "stage9"}},
    }
    with pytest.raises(SettingsError, match=r"bad: .*stage9") as error:
        compare(small.comparison(rows), tmp_path / "c")
    assert isinstance(error.value.__cause__, TapError | KeyError)
    assert list(tmp_path.iterdir()) == []


def test_data_without_a_test_split_are_refused(small, tmp_path, monkeypatch):
    data = PreparedData()
    config = small.comparison().resolved()
    bundle = data.get(config.run_config("ce", 0))
    object.__setattr__(bundle, "test", None)
    with pytest.raises(DataError, match="judged on the test split"):
        describe(config, data=data)


def test_a_run_that_diverges_is_marked_and_the_others_go_on(small, tmp_path):
    rows = {
        "wild": {"method": {"name": "kd"}, "changes": {"optim.lr": 1e30}},
        "rkd": {"method": {"name": "rkd"}},
    }
    ear = Hearer()
    folder = compare(small.comparison(rows), tmp_path / "c", audience=ear)
    assert set(ear.reasons) == {"wild-seed0", "wild-seed1"}
    assert set(ear.ended) == {"ce-seed0", "ce-seed1", "rkd-seed0", "rkd-seed1"}
    failed = folder.read_failure("wild-seed0")
    assert "NonFiniteError" in failed.reason
    assert "Lower the learning rate" in failed.reason
    assert "Traceback" in failed.traceback
    compared = read_comparison(folder.path)
    assert [row.label for row in compared.rows] == ["ce", "rkd"]
    assert sum("wild, seed" in remark for remark in compared.remarks()) == 2


def test_a_failed_run_is_tried_again_and_its_mark_goes_away(copied, small):
    run = copied / "runs" / "kd-seed1"
    shutil.rmtree(run)
    run.mkdir()
    (run / "thesis.tex").touch()
    ear = Hearer()
    compare(small.comparison(), copied, audience=ear)
    assert "thesis.tex" in ear.reasons["kd-seed1"]
    (run / "thesis.tex").unlink()
    compare(small.comparison(), copied)
    assert ComparisonFolder(copied).read_failure("kd-seed1") is None
    assert (run / "summary.json").exists()


def test_without_its_teacher_no_method_runs_and_each_says_why(small, tmp_path):
    training = small.config("ce", student="digits_cnn_tiny", optim={"lr": 1e30}).plain()
    ear = Hearer()
    folder = compare(
        small.comparison(teacher_training=training, seeds=[0]), tmp_path / "c", audience=ear
    )
    assert ear.ended == []
    reason = folder.read_failure("kd-seed0").reason
    assert reason.startswith("teacher failed, and this waits for it: NonFiniteError")


def test_a_teacher_is_trained_first_by_the_same_recipe(small, tmp_path):
    training = small.config("ce", student="digits_cnn").plain()
    config = small.comparison(teacher_training=training, seeds=[0])
    compare(config, tmp_path / "c")
    teacher = read_summary(tmp_path / "c" / "teacher")
    taught = read_summary(tmp_path / "c" / "runs" / "kd-seed0")
    assert taught.teacher_hash == teacher.student_hash
    assert taught.teacher == "digits_cnn"
    ear = Hearer()
    compare(config, tmp_path / "c", audience=ear)
    assert ear.began == []


def test_several_teachers_teach_every_row_and_are_known_by_their_weights(small, tmp_path):
    """Also read again, and beside the baseline."""
    config = small.comparison(["kd", "multi_teacher"], seeds=[0], teacher=small.several)
    compare(config, tmp_path / "c")
    record = ComparisonFolder(tmp_path / "c").read()
    runs = {label: read_summary(tmp_path / f"c/runs/{label}-seed0") for label in config.contenders}
    assert runs["kd"].teacher_hash == runs["multi_teacher"].teacher_hash == record.teacher_hash
    assert len(runs["kd"].teachers) == 2
    assert runs["ce"].scores["teacher"] == runs["kd"].scores["teacher"]
    ear = Hearer()
    compare(config, tmp_path / "c", audience=ear)
    assert ear.began == []
    changed = small.comparison(["kd"], seeds=[0], teacher=small.several[::-1])
    with pytest.raises(RunFolderError, match="differs"):
        compare(changed, tmp_path / "c")


def test_a_row_that_reads_one_teachers_layers_is_named_where_there_are_several(small):
    with pytest.raises(SettingsError, match="fitnet: method 'fitnet' reads layers of one teacher"):
        small.comparison(["kd", "fitnet"], teacher=small.several)


def test_before_it_is_trained_a_teacher_of_the_right_shape_stands_in(small):
    training = small.config("ce", student="digits_cnn").plain()
    config = small.comparison(teacher_training=training).resolved()
    run = config.run_config("kd", 0, teacher_run="not there yet")
    parts = parts_before_training(config, run, typed=(), data=PreparedData())
    assert parts.teacher.name == "digits_cnn"


def test_jobs_are_at_least_one(small, tmp_path):
    with pytest.raises(SettingsError, match="jobs must be at least 1"):
        compare(small.comparison(), tmp_path / "c", jobs=0)


def test_a_second_process_is_refused(copied, small):
    held = ComparisonFolder(copied)
    with held.locked(), pytest.raises(RunFolderError, match="in use by process"):
        compare(small.comparison(), copied)


# -- workers ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_give_the_weights_of_one_process(whole, copied, small):
    """The runs of the first seed anew, both at once."""
    for label in ("ce", "kd"):
        shutil.rmtree(copied / "runs" / f"{label}-seed0")
    ear = Hearer()
    compare(small.comparison(), copied, jobs=2, devices=["cpu"], audience=ear)
    assert sorted(ear.ended) == ["ce-seed0", "kd-seed0"]
    equal_weights(whole[0], copied)
    assert tables(copied) == tables(whole[0])
    log = (copied / "logs" / "kd-seed0.log").read_text().splitlines()
    assert [json.loads(line)["event"] for line in log].count("epoch") == 2


@pytest.mark.slow
def test_a_worker_that_is_killed_is_marked_and_the_others_go_on(copied, small, monkeypatch):
    for label in ("ce", "kd"):
        shutil.rmtree(copied / "runs" / f"{label}-seed0")
    started = subprocess.Popen

    def popen(command, **settings):
        process = started(command, **settings)
        if '"kd"' in command[4]:
            process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    ear = Hearer()
    compare(small.comparison(), copied, jobs=2, audience=ear)
    assert ear.ended == ["ce-seed0"]
    assert "ended by SIGKILL" in ear.reasons["kd-seed0"]
    assert "memory" in ear.reasons["kd-seed0"]
    monkeypatch.undo()
    compare(small.comparison(), copied)
    assert read_comparison(copied).num_missing == 0


SCRIPT = """
import json, os, signal, sys, threading
from limbeck.runs.compare import CompareConfig
from limbeck.runs.orchestrate import SilentAudience, compare

settings, folder, jobs, seconds = sys.argv[1:]

class Bomb(SilentAudience):
    def started(self, task, number, total):
        if not threading.active_count() > 1 and float(seconds):
            timer = threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()

compare(CompareConfig.read(json.load(open(settings))), folder, jobs=int(jobs), audience=Bomb())
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_three_times_it_ends_in_the_same_table(small, tmp_path, jobs):
    """At seeded random moments, each counted from the first task of its sitting."""
    shared = {"epochs": 6, "train": {"checkpoint_steps": 7, "batch_size": 32, "device": "cpu"}}
    config = small.comparison(["kd", "rkd"], shared=shared)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(config.plain()))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def sit(folder, seconds):
        command = [sys.executable, str(script), str(settings), str(folder), str(jobs)]
        return subprocess.run(
            [*command, str(seconds)], capture_output=True, text=True, timeout=300, check=False
        )

    done = sit(tmp_path / "whole", 0)
    assert done.returncode == 0, done.stderr
    moments = random.Random(jobs)
    killed = 0
    for _ in range(3):
        longest = 2.0 if jobs == 1 else 9.0  # workers take seconds to start
        done = sit(tmp_path / "killed", moments.uniform(0.05, longest))
        killed += done.returncode == -signal.SIGKILL
    assert killed == 3
    done = sit(tmp_path / "killed", 0)
    assert done.returncode == 0, done.stderr
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    equal_weights(tmp_path / "whole", tmp_path / "killed")


def test_chains_generations_and_peers_are_compared_like_others(small, tmp_path):
    """With an assistant that is a finished run's student, known by its hash from then on."""
    one = small.config({"name": "takd", "assistants": ["digits_cnn"]}, epochs=1)
    small.run(one, tmp_path / "one")
    assistant = tmp_path / "one" / "stages" / "assistant1"
    rows = {
        "takd": {"method": {"name": "takd", "assistants": [str(assistant)]}},
        "dgkd": {"method": {"name": "dgkd", "assistants": ["digits_cnn"]}},
        "dml": {"method": {"name": "dml", "peers": ["digits_cnn"]}},
        "ban": {"method": {"name": "born_again", "generations": 2}},
    }
    config = small.comparison(rows, seeds=(0,))
    found = tmp_path / "compared"
    hearer = Hearer()
    compare(config, found, audience=hearer)
    assert hearer.reasons == {}
    record = ComparisonFolder(found).read()
    trained = read_summary(tmp_path / "one").further["assistant1"].state_hash
    assert record.own_hashes == {"takd": {"assistant1": trained}}
    # Mutual learning hears no teacher, and is judged against it all the same.
    scores = read_summary(found / "runs" / "dml-seed0").scores
    assert {"last", "teacher", "peer1", "ensemble"} <= scores.keys()
    assert scores["last"]["agreement"] is not None
    compare(config, found)  # finished: nothing is made again
    weights = load_file(assistant / "student.safetensors")
    weights["fc.bias"][0] += 1
    save_file(weights, assistant / "student.safetensors")
    with pytest.raises(RunFolderError, match="the weights of takd's assistant1"):
        compare(config, found)
