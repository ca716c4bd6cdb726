import csv

import pytest
from PIL import Image

from limbeck.reports.comparison import compare_runs
from limbeck.reports.files import write_comparison
from limbeck.reports.runs import find_runs


@pytest.fixture
def rows(write_run, tmp_path):
    accuracies = {"none": (0.84, 0.88), "kd": (0.95, 0.96), "full": (0.97, 0.975)}
    for method, values in accuracies.items():
        for seed, top1 in enumerate(values):
            write_run(f"runs/{method}/{seed}", method=method, seed=seed, top1=top1)
    groups = {method: find_runs(tmp_path / "runs" / method) for method in accuracies}
    return compare_runs(groups, baseline="none", references=["full"])


def test_from_run_folders_to_a_table_of_numbers_and_a_picture(rows, tmp_path):
    files = write_comparison(rows, tmp_path / "new" / "out", title="digits", teacher_top1=0.99)
    lines = list(csv.DictReader(files.csv.read_text(encoding="utf-8").splitlines()))
    assert [line["label"] for line in lines] == ["none", "kd", "full"]
    assert float(lines[1]["gain_mean"]) == pytest.approx(((0.95 - 0.84) + (0.96 - 0.88)) / 2)
    with Image.open(files.figure) as picture:
        assert picture.format == "PNG"


def test_writing_again_replaces_the_files(rows, tmp_path):
    first = write_comparison(rows, tmp_path, title="digits")
    before = first.csv.read_text()
    second = write_comparison(rows[:1], tmp_path, title="digits")
    assert second == first
    assert second.csv.read_text() != before


def test_the_teacher_and_every_reference_are_lines_in_the_picture(rows, tmp_path, drawn):
    write_comparison(rows, tmp_path, title="digits", teacher_top1=0.99)
    write_comparison(rows[:2], tmp_path, title="digits")
    labels = [[text.get_label() for text in axes.lines] for axes in drawn]
    named = [[label for label in found if not label.startswith("_")] for found in labels]
    assert named == [["teacher 99.0", "full 97.2"], []]


def test_nothing_is_written_for_no_rows(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        write_comparison([], tmp_path / "out", title="digits")
    assert not (tmp_path / "out").exists()
