import json

import pytest

from limbeck.reports.compared import read_comparison
from limbeck.reports.costs import costs, families
from limbeck.reports.evidence import Evidence


def cell(table, row, title):
    place = [column.title for column in table.columns].index(title)
    return next(found for found in table.rows if found[0].text == row)[place]


def test_costs_are_those_of_the_runs(evidence):
    """A run takes 2 s and one more for each seed; 9,000 images/s of a floor of 12,000."""
    (table,) = costs(evidence).tables
    assert cell(table, "kd", "training, s").value == 3
    assert cell(table, "kd", "parameters").text == "1,702"
    assert cell(table, "kd", "size, KiB").text == "6.9"
    assert cell(table, "kd", "step over floor").value == pytest.approx(12000 / 9000)
    assert cell(table, "kd", "step over floor").text == "1.33 ± 0.00"
    assert cell(table, "kd", "peak memory, MiB").text == "102"


def test_what_all_students_share_is_said_and_what_differs_is_drawn(evidence):
    section = costs(evidence)
    assert "all students have 1,702 parameters" in section.text[1]
    assert section.pictures == ()  # every run takes as long, and there is no teacher trained here


def test_who_has_most_for_least_is_on_the_front(write_full):
    """kd takes 1 s and has more than all that take longer; ce and rkd are beaten by it."""
    folder = write_full()
    for path in (folder / "runs").glob("kd-*/summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1.0}))
    (picture,) = costs(Evidence(compared=read_comparison(folder))).pictures
    assert "On the Pareto front by training time of a run, s: kd." in picture.alt
    assert "3 seeds" in picture.caption


def test_a_teacher_trained_here_is_drawn_for_orientation(write_full, write_run):
    folder = write_full()
    values = {"num_parameters": 162_562, "num_macs": 1_300_000}
    write_run("comparison/teacher", method="none", top1=0.97, summary=values)
    section = costs(Evidence(compared=read_comparison(folder)))
    assert "that took 2 s" in section.text[0]
    assert "by parameters: kd" in section.pictures[0].alt
    assert ">teacher<" in section.pictures[0].svg


def test_families_are_their_methods_and_nothing_else(evidence):
    section = families(evidence)
    (table,) = section.tables
    assert [row[0].text for row in table.rows] == ["output", "feature", "relation"]
    gain = cell(table, "output", "gain, points (from, to)")
    assert gain.value == evidence.rows["kd"].gain.mean
    assert cell(table, "feature", "verdicts").text == "1 cannot tell"
    assert cell(table, "output", "n").value == 3
    spread = cell(table, "relation", "spread over seeds, points")
    assert spread.value == evidence.rows["rkd"].accuracy.sd
    memory = cell(table, "feature", "peak memory, MiB (over the baseline's)")
    assert memory.text == f"106 ({106 / 102:.2f})"
    assert "where it has one method, the line is that method's" in section.text[0]


def test_a_family_is_the_mean_of_its_methods(write_full, monkeypatch):
    monkeypatch.setattr("limbeck.reports.costs._FAMILIES", ("output",))
    folder = write_full()
    record = json.loads((folder / "comparison.json").read_text())
    record["rows"]["rkd"]["family"] = "output"
    (folder / "comparison.json").write_text(json.dumps(record))
    found = Evidence(compared=read_comparison(folder))
    (table,) = families(found).tables
    kd, rkd = (found.rows[label].gain.mean for label in ("kd", "rkd"))
    gain = cell(table, "output", "gain, points (from, to)")
    assert gain.value == pytest.approx((kd + rkd) / 2)
    assert gain.text == f"+{50 * (kd + rkd):.1f} (+{100 * rkd:.1f}, +{100 * kd:.1f})"
    assert cell(table, "output", "n").value == 6


def test_without_methods_there_are_no_families_and_without_runs_no_costs(write_full):
    alone = Evidence(compared=read_comparison(write_full({"ce": {0: 78}})))
    assert families(alone) is None
    nothing = Evidence(compared=read_comparison(write_full({"ce": {0: None}}, name="nothing")))
    assert costs(nothing) is None
