import numpy as np
import pytest

from limbeck.reports.compared import read_comparison
from limbeck.reports.evidence import Evidence
from limbeck.reports.results import epochs, gains, overview


def column(table, title):
    place = [column.title for column in table.columns].index(title)
    return [row[place] for row in table.rows]


def test_the_table_has_a_line_for_every_row(evidence):
    (table,) = overview(evidence).tables
    assert [cell.text for cell in column(table, "taught by")] == [
        "ce",
        "kd",
        "fitnet",
        "rkd",
        "full",
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [cell.value for cell in column(table, "n")] == [3] * 5
    assert {cell.text for cell in column(table, "settings")} == {"published defaults"}


def test_accuracy_is_mean_and_deviation_by_numpy_and_each_seed_stands_beside(evidence):
    (table,) = overview(evidence).tables
    hits = np.array([96, 98, 103]) / 120
    cell = column(table, "test %, last epoch")[1]
    assert cell.value == pytest.approx(hits.mean())
    assert cell.text == f"{100 * hits.mean():.1f} ± {100 * hits.std(ddof=1):.1f}"
    assert column(table, "each seed")[1].text == "80.0 81.7 85.8"


def test_a_gain_has_its_interval_and_verdict(evidence):
    (table,) = overview(evidence).tables
    over = evidence.rows["kd"].over_baseline
    cell = column(table, "gain, points")[1]
    assert cell.value == over.mean
    assert f"[+{100 * over.interval.low:.1f}, +{100 * over.interval.high:.1f}]" in cell.text
    assert [cell.mark for cell in column(table, "verdict")][:2] == [None, "better"]
    assert [cell.text for cell in column(table, "gain, points")][::4] == ["baseline", "reference"]
    assert column(table, "over kd")[2].value == evidence.rows["fitnet"].over_kd.mean


def test_a_row_all_of_whose_runs_failed_is_there_without_numbers(write_full):
    hits = {"ce": {0: 78, 1: 81}, "kd": {0: "it failed", 1: "it failed"}}
    (table,) = overview(Evidence(compared=read_comparison(write_full(hits)))).tables
    assert len(table.rows[1]) == len(table.columns)
    assert [cell.text for cell in table.rows[1] if cell.text] == [
        "kd",
        "output",
        "0",
        "no run",
        "published defaults",
    ]


def test_many_seeds_are_told_by_their_ends(write_full):
    hits = {"ce": {seed: 70 + seed for seed in range(8)}}
    (table,) = overview(Evidence(compared=read_comparison(write_full(hits)))).tables
    assert column(table, "each seed")[0].text == "58.3 to 64.2"


def test_gains_are_drawn_and_told_with_their_n(evidence):
    section = gains(evidence)
    (picture,) = section.pictures
    assert "3 seeds" in picture.caption
    assert "95 % interval" in picture.caption
    assert "kd +15.0" in picture.alt
    assert evidence.rows["kd"].over_baseline.sentence in section.items


def test_without_a_spread_the_picture_says_that_there_are_no_intervals(write_full):
    found = gains(Evidence(compared=read_comparison(write_full({"ce": {0: 78}, "kd": {0: 96}}))))
    assert "no intervals" in found.pictures[0].caption
    assert "1 seed" in found.pictures[0].caption


def test_images_are_another_question_and_the_same_every_time(evidence):
    """The bootstrap's interval is near the normal one: half width 1.96 sqrt(p (1 - p) / N)."""
    (table,) = gains(evidence).tables
    assert "Other seeds are not in it" in table.caption
    assert [cell.value for cell in column(table, "n")] == [120] * 5
    cell = column(table, "test % [95 %]")[1]
    p = 96 / 120
    low = 100 * (p - 1.96 * (p * (1 - p) / 120) ** 0.5)
    assert float(cell.text.partition("[")[2].partition(",")[0]) == pytest.approx(low, abs=1.5)
    (again,) = gains(evidence).tables
    assert again == table


def test_epochs_are_drawn_for_every_row_that_has_some(evidence, write_full):
    section = epochs(evidence)
    assert "50 validation images" in section.pictures[0].caption
    assert "kd from 20.0 to 60.0 %" in section.pictures[0].alt
    folder = write_full(name="without")
    for path in (folder / "runs").glob("*/metrics.jsonl"):
        path.write_text(path.read_text().replace('"val"', '"other"'))
    assert epochs(Evidence(compared=read_comparison(folder))) is None


def test_nothing_finished_has_a_table_and_no_pictures(write_full):
    nothing = Evidence(compared=read_comparison(write_full({"ce": {0: None}, "kd": {0: None}})))
    assert len(overview(nothing).tables[0].rows) == 2
    assert gains(nothing) is None
    assert epochs(nothing) is None
