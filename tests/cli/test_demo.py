import csv

from limbeck.cli import demo
from limbeck.recipes import demo as recipes
from limbeck.reports.runs import read_run


def test_the_demo_trains_compares_and_writes_what_it_says(limbeck, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SEEDS", (0, 1))
    monkeypatch.setattr(demo, "DEMO_METHODS", ("kd",))
    monkeypatch.setattr(recipes, "EPOCHS", 1)
    out = tmp_path / "[red]demo"
    answer = limbeck("demo", "--out", out)
    assert answer.code == 0, answer.err
    with (out / "comparison.csv").open(newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["cross-entropy", "kd", "cross-entropy, all labels"]
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for label, folder in (("cross-entropy", "ce"), ("kd", "kd")):
        for seed in (0, 1):
            run = read_run(out / f"{folder}-seed{seed}")
            assert float(rows[label][f"test_top1_seed_{seed}"]) == run.test.last.top1
            assert f"{run.test.last.top1:.2%}" in answer.out
    assert "[red]demo" in answer.out
    teacher = read_run(out / "teacher")
    assert f"Teacher: top-1 {teacher.test.last.top1:.2%} on the test split" in answer.out


def test_a_quiet_demo_says_nothing(limbeck, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SEEDS", (0,))
    monkeypatch.setattr(demo, "DEMO_METHODS", ())
    monkeypatch.setattr(recipes, "EPOCHS", 1)
    assert limbeck("demo", "--out", tmp_path / "demo", "--quiet") == (0, "", "")
