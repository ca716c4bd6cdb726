import dataclasses
import json
import shutil

import pytest
import torch

from limbeck.core.errors import RunFolderError
from limbeck.data import TrainLoader
from limbeck.runs.comparison import ComparisonFolder
from limbeck.runs.orchestrate import compare, describe
from limbeck.runs.summary import read_summary
from limbeck.runs.tasks import (
    PreparedData,
    Task,
    carry_out,
    check_data,
    check_finished,
    is_done,
    tasks_of,
)


@pytest.fixture
def begun(small, tmp_path):
    """A comparison's folder in which nothing has been carried out."""

    def make(**fields):
        folder = ComparisonFolder(tmp_path / "comparison")
        folder.begin(describe(small.comparison(**fields).resolved()))
        return folder

    return make


def test_a_task_comes_back_from_its_text():
    for task in (Task("teacher"), Task("tune", "kd"), Task("run", "kd", 3)):
        assert Task.read(task.text()) == task
    assert Task("run", "kd", 3).name == "kd-seed3"


def test_all_rows_of_a_seed_come_before_the_next_seed(small):
    names = [task.name for task in tasks_of(small.comparison())]
    assert names == ["ce-seed0", "kd-seed0", "ce-seed1", "kd-seed1"]


def test_teacher_and_tuning_come_before_what_waits_for_them(small):
    teacher = small.config("ce").plain()
    config = small.comparison(teacher_training=teacher, tuning={"trials": 2}, seeds=[0])
    tasks = tasks_of(config)
    assert [task.name for task in tasks] == [
        "teacher",
        "tune-ce",
        "tune-kd",
        "ce-seed0",
        "kd-seed0",
    ]
    for place, task in enumerate(tasks):
        assert set(task.waits_for(config)) <= set(tasks[:place])
    assert Task("tune", "ce").waits_for(config) == ()
    assert Task("teacher") in Task("tune", "kd").waits_for(config)


def test_rows_of_a_seed_see_the_same_images_in_the_same_order(small):
    """Paired: order and augmentation are keyed by the seed, the initial weights too."""
    config = small.comparison(
        ["kd", "rkd"], shared={"data": {"augment": {"crop_padding": 1, "flip": True}}}
    ).resolved()
    data = PreparedData()

    def epoch(label, seed):
        run = config.run_config(label, seed)
        loader = TrainLoader(
            data.get(run).train,
            batch_size=run.train.batch_size,
            seed=run.seed,
            augment=run.data.augment,
        )
        batches = list(loader.epoch(1))
        return torch.cat([b.index for b in batches]), torch.cat([b.image for b in batches])

    index, image = epoch("ce", 0)
    for label in ("kd", "rkd"):
        ours = epoch(label, 0)
        assert torch.equal(ours[0], index)
        assert torch.equal(ours[1], image)
    assert not torch.equal(epoch("kd", 1)[0], index)
    weights = [
        small.network(config.run_config(label, 0)).state_dict() for label in ("ce", "kd", "rkd")
    ]
    assert all(torch.equal(w[name], weights[0][name]) for w in weights for name in w)


def test_data_are_read_once_for_all_rows_and_seeds(small):
    config = small.comparison(seeds=[0, 1]).resolved()
    data = PreparedData()
    runs = [config.run_config(label, seed) for label in ("ce", "kd") for seed in (0, 1)]
    assert len({id(data.get(run)) for run in runs}) == 1


def test_a_run_is_made_once_and_then_read(begun):
    folder = begun(seeds=[0])
    task = Task("run", "kd", 0)
    assert not is_done(folder, task)
    first = carry_out(folder, task)
    assert is_done(folder, task)
    place = folder.run("kd", 0)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert carry_out(folder, task) == first
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_the_baseline_keeps_the_teachers_answers_and_has_no_teacher(begun):
    folder = begun(seeds=[0])
    summary = carry_out(folder, Task("run", "ce", 0))
    assert summary.teacher is None
    assert summary.teacher_test is None
    assert "agreement" in summary.scores["last"]
    taught = carry_out(folder, Task("run", "kd", 0))
    assert taught.scores["teacher"] == summary.scores["teacher"]


def test_an_independent_teacher_is_the_control_of_fidelity(small, begun, tmp_path):
    independent = tmp_path / "independent"
    small.run(small.config("ce", student="digits_cnn_tiny", seed=5), independent)
    folder = begun(seeds=[0], independent_teacher={"run": str(independent)})
    scores = carry_out(folder, Task("run", "kd", 0)).scores
    assert "agreement_excess" in scores["last"]
    assert scores["independent"]["top1"] == read_summary(independent).test.last["top1"]


def test_tuning_never_reads_the_test_images(begun, small):
    """Every trial's data lack the test split, and no image of it is read."""
    folder = begun(seeds=[0], tuning={"trials": 3})
    config = folder.read().settings
    data = PreparedData()
    bundle = data.get(config.run_config("ce", 0))
    counting = small.CountingImages(bundle.test)
    watched = dataclasses.replace(bundle, test=counting)
    data._found = dict.fromkeys(data._found, watched)
    for label in ("ce", "kd"):
        tuned = carry_out(folder, Task("tune", label), data=data)
        assert len(tuned.trials) == 3
        for number in range(3):
            summary = read_summary(folder.tuning(label) / f"trial{number}")
            assert summary.test is None
            assert "test" not in summary.split_hashes
            assert summary.last.val["top1"] == tuned.trials[number].val_top1
    assert sum(counting.reads.values()) == 0
    carry_out(folder, Task("run", "kd", 0), data=data)
    assert set(counting.reads.values()) == {1}


def test_runs_have_what_tuning_chose(begun):
    folder = begun(seeds=[0], tuning={"trials": 3})
    tuned = carry_out(folder, Task("tune", "kd"))
    carry_out(folder, Task("run", "kd", 0))
    config = json.loads((folder.run("kd", 0) / "config.json").read_text())
    assert config["optim"]["lr"] == tuned.values["optim.lr"]
    assert config["method"]["temperature"] == tuned.values["method.temperature"]
    assert config["seed"] == 0


def test_a_search_that_was_interrupted_goes_on_to_the_same_end(begun, small):
    folder = begun(seeds=[0], tuning={"trials": 4})
    whole = carry_out(folder, Task("tune", "kd"))
    folder.tuned("kd").unlink()
    for number in (2, 3):
        shutil.rmtree(folder.tuning("kd") / f"trial{number}")
    again = carry_out(folder, Task("tune", "kd"))
    assert again.values == whole.values
    assert [t.values for t in again.trials] == [t.values for t in whole.trials]
    assert again.trials[:2] == whole.trials[:2]


# -- never another's run -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A whole comparison of one seed, not to be changed."""
    return compare(small.comparison(seeds=[0]), tmp_path_factory.mktemp("finished") / "c")


@pytest.fixture
def copied(finished, tmp_path):
    """The same, to be tampered with."""
    shutil.copytree(finished.path, tmp_path / "c")
    return ComparisonFolder(tmp_path / "c")


def test_finished_runs_are_this_comparisons(finished):
    for task in tasks_of(finished.read().settings):
        check_finished(finished, finished.read(), task)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.json", {"seed": 9}, r"seed \(9 then, 0 now\)"),
        ("environment.json", {"sources": "other"}, "limbeck's own files"),
        ("summary.json", {"data_hash": "other"}, "data_hash"),
        ("summary.json", {"teacher_hash": "other"}, "teacher_hash"),
    ],
)
def test_a_finished_run_of_another_kind_is_refused(copied, file, change, named):
    path = copied.run("kd", 0) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunFolderError, match=named):
        check_finished(copied, copied.read(), Task("run", "kd", 0))


def test_an_unfinished_run_of_another_kind_is_refused(copied):
    place = copied.run("kd", 0)
    (place / "summary.json").unlink()
    config = json.loads((place / "config.json").read_text())
    config["method"]["temperature"] = 2.0
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunFolderError, match=r"method\.temperature"):
        carry_out(copied, Task("run", "kd", 0))


def test_data_that_have_changed_meanwhile_are_refused(finished, small):
    record = finished.read()
    bundle = PreparedData().get(record.settings.run_config("ce", 0))
    check_data(record, "ce", bundle)
    wrong = bundle.val.with_labels((bundle.val.labels + 1) % 10)
    with pytest.raises(RunFolderError, match="the val images, labels or classes of ce"):
        check_data(record, "ce", dataclasses.replace(bundle, val=wrong))
