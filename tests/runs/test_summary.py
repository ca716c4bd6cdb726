import json

import pytest

from limbeck.core.errors import RunFolderError, SettingsError
from limbeck.runs.summary import EpochResult, RunSummary, TeacherResult, TestResult, read_summary

SCORES = {"top1": 0.5, "loss": 1.0}
TEACHERS = (TeacherResult(name="vgg13", state_hash="e", val=SCORES, test=None),)


def summary(**fields):
    values = {
        "version": "0.1.0",
        "method": "kd",
        "seed": 0,
        "student": "resnet8",
        "teacher": "resnet56",
        "config_hash": "a",
        "data_hash": "b",
        "student_hash": "c",
        "teacher_hash": "d",
        "num_parameters": 10,
        "num_macs": 20,
        "last": EpochResult(epoch=1, val=SCORES),
        "best_on_validation": EpochResult(epoch=0, val=SCORES),
        "test": TestResult(last=SCORES, best_on_validation=SCORES),
        "teacher_val": SCORES,
        "teacher_test": SCORES,
        "seconds": 1.5,
        "images_per_second": 100.0,
        "notices": ("one", "two"),
    }
    return RunSummary(**values | fields)


@pytest.mark.parametrize(
    "fields", [{}, {"test": None, "best_on_validation": None}, {"teachers": TEACHERS}], ids=str
)
def test_a_summary_comes_back_from_its_file(tmp_path, fields):
    written = summary(**fields)
    (tmp_path / "summary.json").write_text(json.dumps(written.plain()))
    assert read_summary(tmp_path) == written


def test_an_unfinished_run_has_none(tmp_path):
    with pytest.raises(RunFolderError, match="not a finished one"):
        read_summary(tmp_path)


def test_a_summary_that_lacks_something_is_refused(tmp_path):
    values = summary().plain()
    del values["student_hash"]
    (tmp_path / "summary.json").write_text(json.dumps(values))
    with pytest.raises(SettingsError, match="student_hash: required"):
        read_summary(tmp_path)
