import csv

import pytest

from limbeck.recipes import demo as recipes
from limbeck.reports.runs import read_run


@pytest.fixture
def brief(monkeypatch):
    """One epoch, two seeds, one method."""
    monkeypatch.setattr(recipes, "SEEDS", (0, 1))
    monkeypatch.setattr(recipes, "DEMO_METHODS", ("kd",))
    monkeypatch.setattr(recipes, "EPOCHS", 1)


@pytest.mark.usefixtures("brief")
def test_the_demo_is_a_comparison_and_writes_what_it_says(limbeck, tmp_path):
    out = tmp_path / "[red]demo"
    answer = limbeck("demo", "--out", out)
    assert answer.code == 0, answer.err
    with (out / "comparison.csv").open(newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["cross-entropy", "kd", "cross-entropy, all labels"]
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "comparison.json").exists()
    for label, folder in (("cross-entropy", "ce"), ("kd", "kd")):
        for seed in (0, 1):
            run = read_run(out / "runs" / f"{folder}-seed{seed}")
            assert float(rows[label][f"test_top1_seed_{seed}"]) == run.test.last.top1
            assert f"{run.test.last.top1:.2%}" in answer.out
    assert "[red]demo" in answer.out
    teacher = read_run(out / "teacher")
    assert f"{teacher.test.last.top1:.2%}" in answer.out.splitlines()[1]
    assert "95 % interval" in answer.out
    assert f"Report: {out / 'report.html'}" in answer.out
    assert "cross-entropy, all labels" in (out / "report.html").read_text(encoding="utf-8")
    assert "with 2 seeds" in answer.out or "n = 2 seeds" in answer.out


@pytest.mark.usefixtures("brief")
def test_a_quiet_demo_says_nothing_and_a_second_one_makes_nothing_again(limbeck, tmp_path):
    out = tmp_path / "demo"
    assert limbeck("demo", "--out", out, "--quiet") == (0, "", "")
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert limbeck("demo", "--out", out, "--quiet") == (0, "", "")
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == before
