import csv

import pytest
from PIL import Image

from limbeck.reports.compared import read_comparison
from limbeck.reports.files import comparison_title, write_comparison

RESULTS = {"ce": {0: 0.84, 1: 0.88}, "kd": {0: 0.95, 1: 0.96}, "full": {0: 0.97, 1: 0.975}}
ROWS = {"full": {"role": "reference", "method": "ce"}}


@pytest.fixture
def compared(write_compared):
    return read_comparison(write_compared(RESULTS, rows=ROWS))


def test_from_run_folders_to_tables_of_numbers_and_a_picture(compared, tmp_path):
    files = write_comparison(compared, title="digits", out_dir=tmp_path / "new" / "out")
    lines = list(csv.DictReader(files.csv.read_text(encoding="utf-8").splitlines()))
    assert [line["label"] for line in lines] == ["ce", "kd", "full"]
    assert float(lines[1]["gain_mean"]) == pytest.approx(((0.95 - 0.84) + (0.96 - 0.88)) / 2)
    runs = list(csv.DictReader(files.runs.read_text(encoding="utf-8").splitlines()))
    assert [(run["row"], run["seed"]) for run in runs[:3]] == [
        ("ce", "0"),
        ("ce", "1"),
        ("kd", "0"),
    ]
    assert files.markdown.read_text(encoding="utf-8").startswith("# digits\n")
    with Image.open(files.figure) as picture:
        assert picture.format == "PNG"
    assert files.report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_title_names_data_and_student(compared, write_compared):
    assert (
        comparison_title(compared) == "digits, digits_cnn_tiny: test accuracy after the last epoch"
    )
    shared = {"data": {"dataset": "digits", "num_labels": 100}, "student": {"name": "net"}}
    settings = {"seeds": [0, 1], "shared": shared}
    few = read_comparison(write_compared(RESULTS, rows=ROWS, name="few", settings=settings))
    title = "digits with 100 labels, net: test accuracy after the last epoch"
    assert comparison_title(few) == title
    written = write_comparison(few).markdown.read_text(encoding="utf-8")
    assert written.startswith(f"# {title}\n")


def test_they_lie_in_the_comparison_and_replace_earlier_ones(compared, write_compared):
    first = write_comparison(compared, title="digits")
    assert first.csv.parent == compared.folder
    before = first.csv.read_text()
    (compared.folder / "runs" / "kd-seed1" / "summary.json").unlink()
    second = write_comparison(read_comparison(compared.folder), title="digits")
    assert second == first
    assert second.csv.read_text() != before


def test_the_teacher_and_every_reference_are_lines_in_the_picture(compared, drawn):
    write_comparison(compared, title="digits")
    axes = drawn[0]
    labels = [text.get_label() for text in axes.lines]
    named = [label for label in labels if not label.startswith("_")]
    assert named == ["teacher 99.0", "full 97.2"]


def test_without_any_run_there_is_no_picture(write_compared):
    files = write_comparison(read_comparison(write_compared({"ce": {0: None}})), title="digits")
    assert files.figure is None
    assert files.csv.exists()
    assert files.report.exists()
