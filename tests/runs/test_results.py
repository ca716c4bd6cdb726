import csv
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from limbeck import distill
from limbeck.core.errors import RunFolderError
from limbeck.core.sources import source_hash
from limbeck.runs.results import RESULT_COLUMNS, add_result, result_row

QUICK = {"schedule": {"epochs": 1, "sched": "constant"}, "data": {"fraction": 0.2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    shared = {"student": "digits_cnn_tiny", "data": "digits", "settings": QUICK}
    distill(teacher=None, method="ce", output=folder / "teacher", **shared)
    distill(teacher=str(folder / "teacher"), output=folder / "kd", seed=4, **shared)
    return folder / "kd"


def row(seed, student="a"):
    values = dict.fromkeys(RESULT_COLUMNS, "")
    return values | {"recipe": "r", "protocol": "p", "seed": str(seed), "student": student}


def lines(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_line_says_what_the_run_folder_says(run):
    found = result_row(run, recipe="digits/kd", protocol="held-out")
    summary = json.loads((run / "summary.json").read_text())
    machine = json.loads((run / "environment.json").read_text())
    assert tuple(found) == RESULT_COLUMNS
    assert (found["recipe"], found["protocol"], found["seed"]) == ("digits/kd", "held-out", "4")
    assert float(found["top1"]) == pytest.approx(summary["test"]["last"]["top1"], abs=5e-5)
    assert float(found["teacher_top1"]) == pytest.approx(summary["teacher_test"]["top1"], abs=5e-5)
    assert found["epochs"] == "1"
    assert found["settings"] == summary["config_hash"]
    assert found["data"] == summary["data_hash"]
    assert found["student"] == summary["student_hash"]
    assert found["teacher"] == summary["teacher_hash"]
    assert found["commit"] == (machine["commit"] or "")
    assert found["torch"] == machine["packages"]["torch"]
    assert found["method_sources"] == source_hash("limbeck.methods.output.kd")


def test_a_run_that_was_never_judged_on_test_images_is_no_result(run, tmp_path):
    for name in ("config.json", "environment.json", "summary.json"):
        values = json.loads((run / name).read_text())
        if name == "summary.json":
            values["test"] = None
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(RunFolderError, match="has no test images"):
        result_row(tmp_path, recipe="r", protocol="p")


def test_lines_are_added_and_the_same_run_only_once(tmp_path):
    path = tmp_path / "results" / "file.csv"
    assert add_result(path, row(0))
    assert add_result(path, row(1))
    assert not add_result(path, row(1))
    assert add_result(path, row(1, student="b"))
    assert [(line["seed"], line["student"]) for line in lines(path)] == [
        ("0", "a"),
        ("1", "a"),
        ("1", "b"),
    ]


def test_lines_added_at_once_are_all_there(tmp_path):
    path = tmp_path / "file.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: add_result(path, row(seed)), range(40)))
    assert sorted(int(line["seed"]) for line in lines(path)) == list(range(40))


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunFolderError, match="has the columns a, b; wanted recipe"):
        add_result(path, row(0))
    assert path.read_text() == "a,b\n1,2\n"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, full_disk):
    path = tmp_path / "file.csv"
    for seed in range(60):
        add_result(path, row(seed))
    before = path.read_bytes()
    assert len(before) > 1000
    with full_disk(), pytest.raises(OSError, match="large"):
        add_result(path, row(99, student="x" * 5000))
    assert path.read_bytes() == before
