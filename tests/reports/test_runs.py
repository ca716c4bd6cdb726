import json

import pytest

from limbeck.core.errors import RunFolderError
from limbeck.reports.runs import Score, find_runs, read_run


def test_a_finished_run_is_read_as_it_was_written(write_run):
    folder = write_run(seed=3, top1=0.875, best=0.9, summary={"notices": ["near chance"]})
    run = read_run(folder)
    assert (run.folder, run.method, run.seed) == (folder, "kd", 3)
    assert (run.student, run.teacher) == ("digits_cnn_tiny", "digits_cnn")
    assert run.test.last == Score(top1=0.875, loss=0.25)
    assert run.test.best_on_validation.top1 == 0.9
    assert (run.last.epoch, run.best_on_validation.epoch) == (29, 7)
    assert run.config["method"] == {"name": "kd"}
    assert run.notices == ("near chance",)


def test_what_a_run_without_teacher_validation_and_test_lacks_is_none(write_run):
    absent = {"test": None, "teacher_test": None, "last": {"epoch": 29, "val": None}}
    run = read_run(write_run(method="none", summary=absent))
    assert run.teacher is None
    assert run.test is None
    assert run.teacher_test is None
    assert run.last.val is None


def test_a_step_is_measured_against_its_floor(write_run):
    """9,000 images a second of the 12,000 that the floor allows: a third more time."""
    run = read_run(write_run(summary={"floor_images_per_second": 12000.0}))
    assert run.step_over_floor == pytest.approx(4 / 3)
    assert read_run(write_run("none")).step_over_floor is None
    halted = {"floor_images_per_second": 12000.0, "images_per_second": 0.0}
    assert read_run(write_run("halted", summary=halted)).step_over_floor is None


def test_keys_of_a_newer_version_are_no_fault(write_run):
    assert read_run(write_run(summary={"energy_joules": 12.0})).seed == 0


def test_every_wrong_field_is_named_at_once(write_run):
    folder = write_run(
        summary={
            "seed": "many",
            "seconds": float("nan"),
            "test": {"last": {"top1": 95.0, "loss": 0.1}},
        }
    )
    with pytest.raises(RunFolderError) as error:
        read_run(folder)
    for field in ("seed", "seconds", "test.last.top1", "summary.json"):
        assert field in str(error.value)


@pytest.mark.parametrize("text", ["", "not json", "[1, 2]", '{"seed": 0', "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_damaged_file_is_named(write_run, name, text):
    folder = write_run()
    (folder / name).write_text(text)
    with pytest.raises(RunFolderError, match=name):
        read_run(folder)


def test_bytes_that_are_no_text_are_refused(write_run):
    folder = write_run()
    (folder / "summary.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_run(folder)


def test_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(RunFolderError, match=r"no config\.json"):
        read_run(tmp_path)
    with pytest.raises(RunFolderError, match="not a folder"):
        read_run(tmp_path / "absent")


def test_an_unfinished_run_is_answered_with_resume(write_run):
    folder = write_run()
    (folder / "summary.json").unlink()
    with pytest.raises(RunFolderError, match=f"limbeck resume {folder}"):
        read_run(folder)


def test_runs_are_found_at_any_depth_in_the_order_of_their_paths(write_run, tmp_path):
    write_run("b/seed1", seed=1)
    write_run("a", seed=2)
    write_run("b/seed0", seed=0)
    (tmp_path / "pictures").mkdir()
    assert [run.seed for run in find_runs(tmp_path)] == [2, 0, 1]
    assert [run.seed for run in find_runs(tmp_path / "a")] == [2]


def test_a_search_never_loses_an_unfinished_seed(write_run, tmp_path):
    write_run("seed0")
    (write_run("seed1", seed=1) / "summary.json").unlink()
    with pytest.raises(RunFolderError, match="seed1"):
        find_runs(tmp_path)


def test_a_search_that_finds_nothing_is_an_error(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({}))
    with pytest.raises(RunFolderError, match="no run"):
        find_runs(tmp_path)
    with pytest.raises(RunFolderError, match="not a folder"):
        find_runs(tmp_path / "absent")
