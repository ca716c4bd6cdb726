import json
import re
import shutil
import subprocess
import sys

import pytest

TINY = ("--student", "digits_cnn_tiny", "--threads", "1")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, runs, quick):
    """A comparison of two seeds of KD, made by the command line; to be read alone."""
    folder = tmp_path_factory.mktemp("reported") / "table"
    command = ("compare", *TINY, "--teacher", runs / "teacher", "--methods", "kd", "--seeds", "2")
    subprocess.run(
        [sys.executable, "-m", "limbeck", *map(str, (*command, *quick, "--output", folder, "-q"))],
        check=True,
        timeout=300,
    )
    return folder


def test_a_report_is_written_anew_with_its_tables_and_says_what_it_says(
    limbeck, comparison, tmp_path
):
    folder = tmp_path / "[red] copy"
    shutil.copytree(comparison, folder)
    files = ("report.html", "comparison.csv", "comparison.md", "runs.csv", "comparison.png")
    for name in files:
        (folder / name).unlink()
    answer = limbeck("report", folder)
    assert answer.code == 0, answer.err
    asked, answered, basis, others, path = answer.out.splitlines()
    assert asked.startswith("Does kd make digits_cnn_tiny more accurate on digits")
    assert "n = 2 seeds" in answered
    assert "test images" in basis
    assert path == f"Report: {folder / 'report.html'}"
    assert all((folder / name).is_file() for name in files)
    assert all(name in others for name in files[1:])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert answered in page


def test_a_page_alone_goes_where_it_is_sent(limbeck, comparison, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in comparison.rglob("*")}
    out = tmp_path / "page.html"
    found = json.loads(limbeck("report", comparison, "--out", out, "--json").out)
    assert found["files"] == [found["report"]] == [str(out)]
    assert found["answer"]
    assert {path: path.stat().st_mtime_ns for path in comparison.rglob("*")} == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_report_needs_no_torch(comparison, tmp_path):
    page = tmp_path / "page.html"
    code = f"""
import sys
from pathlib import Path
from limbeck.cli.report import write_report
write_report(Path({str(comparison)!r}), Path({str(page)!r}), as_json=True)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("out", "message"),
    [(".", "could not be written"), ("nowhere/a.html", "could not be written")],
)
def test_a_place_that_cannot_be_written_is_the_users_to_mend(
    limbeck, comparison, tmp_path, out, message
):
    answer = limbeck("report", comparison, "--out", tmp_path / out)
    assert (answer.code, message in answer.err) == (2, True)


def test_another_folder_is_no_comparison(limbeck, runs, tmp_path):
    for folder in (runs, runs / "student", tmp_path / "nowhere"):
        answer = limbeck("report", folder)
        assert answer.code == 2
        assert "holds no comparison" in answer.err


def test_a_damaged_file_is_named_and_the_old_page_stays(limbeck, comparison, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(comparison, folder)
    (folder / "runs" / "kd-seed1" / "predictions.safetensors").write_bytes(b"nonsense")
    before = (folder / "report.html").read_bytes()
    answer = limbeck("report", folder)
    assert answer.code == 2
    assert re.search(r"kd-seed1/predictions\.safetensors is not what a run writes", answer.err)
    assert (folder / "report.html").read_bytes() == before


def test_names_from_right_to_left_are_spelt_without_marks(limbeck, comparison, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(comparison, folder)
    record = json.loads((folder / "comparison.json").read_text())
    record["rows"]["kd"]["title"] = "\u05e9\u05dc\u05d5\u05dd\u202eabc"
    (folder / "comparison.json").write_text(json.dumps(record))
    said = limbeck("report", folder).out
    assert "\u05e9\u05dc\u05d5\u05dd\\u202eabc" in said
    assert "u2068" not in said
    assert all(char.isprintable() or char == "\n" for char in said)
