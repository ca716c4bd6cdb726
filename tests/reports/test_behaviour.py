import json

import numpy as np
import pytest

from limbeck.reports.behaviour import agreement, calibration, classes
from limbeck.reports.compared import read_comparison
from limbeck.reports.evidence import Evidence


def cell(table, row, title):
    place = [column.title for column in table.columns].index(title)
    return next(found for found in table.rows if found[0].text == row)[place]


def without_answers(folder):
    for path in (folder / "runs").glob("*/predictions.safetensors"):
        path.unlink()
    return Evidence(compared=read_comparison(folder))


def test_calibration_is_drawn_for_every_row_and_the_teacher(evidence):
    section = calibration(evidence)
    (picture,) = section.pictures
    assert picture.svg.count("ECE") == 5
    assert ">teacher<" in picture.svg
    assert "3 seeds" in picture.caption
    assert "120 test images" in picture.caption
    scores = [run.scores["last"]["ece"] for run in evidence.rows["kd"].records.values()]
    assert cell(section.tables[0], "kd", "ECE, %").value == pytest.approx(np.mean(scores))
    assert f"kd {100 * np.mean(scores):.1f} %" in picture.alt


def test_the_numbers_stand_also_where_no_answers_were_kept(write_full):
    section = calibration(without_answers(write_full()))
    assert section.pictures == ()
    assert cell(section.tables[0], "kd", "NLL, nats").text


def test_agreement_stands_beside_what_it_must_be_compared_with(evidence):
    section = agreement(evidence)
    assert "No independent teacher was given" in section.text[0]
    assert "The teacher errs on 4 test images of 120" in section.text[1]
    scores = [run.scores["last"]["agreement"] for run in evidence.rows["kd"].records.values()]
    assert cell(section.tables[0], "kd", "agreement, %").value == pytest.approx(np.mean(scores))
    assert {row[0].text for row in section.tables[0].rows} == {"ce", "kd", "fitnet", "rkd", "full"}


def test_an_independent_teacher_is_drawn_as_the_control(write_full):
    folder = write_full()
    for path in (folder / "runs").glob("*/summary.json"):
        values = json.loads(path.read_text())
        values["scores"]["last"] |= {"agreement_independent": 0.5, "agreement_excess": 0.25}
        path.write_text(json.dumps(values))
    section = agreement(Evidence(compared=read_comparison(folder)))
    assert "independent teacher that taught nobody here" in section.text[0]
    assert "independent teacher" in section.pictures[0].caption
    assert cell(section.tables[0], "kd", "excess, points").text == "25.0 ± 0.0"


def test_a_share_of_no_image_in_some_seeds_says_of_how_many_it_is(write_full):
    folder = write_full()
    path = folder / "runs" / "kd-seed1" / "summary.json"
    values = json.loads(path.read_text())
    values["scores"]["last"]["agreement_on_teacher_errors"] = None
    path.write_text(json.dumps(values))
    section = agreement(Evidence(compared=read_comparison(folder)))
    found = cell(section.tables[0], "kd", "where the teacher errs, %")
    assert found.text.endswith("(n = 2)")


def test_a_class_gains_what_its_images_say(evidence):
    """By plain counting over images and seeds."""
    section = classes(evidence)
    (table,) = section.tables
    label = np.arange(120) % 6
    for k in range(6):
        means = [
            np.mean([evidence.answers[row][seed].correct[label == k].mean() for seed in range(3)])
            for row in ("ce", "kd")
        ]
        assert cell(table, f"class {k}", "baseline, %").value == pytest.approx(means[0])
        assert cell(table, f"class {k}", "kd").value == pytest.approx(means[1] - means[0])
        assert cell(table, f"class {k}", "n").value == 20
    assert "20 test images" in section.text[0]
    assert "one image more or less is 5.0 points" in section.text[0]
    assert "full" not in [column.title for column in table.columns]


def test_of_many_classes_those_that_change_most_are_listed(evidence, monkeypatch):
    (whole,) = classes(evidence).tables
    monkeypatch.setattr("limbeck.reports.behaviour._MOST_CLASSES", 2)
    (table,) = classes(evidence).tables
    largest = sorted(whole.rows, key=lambda row: -max(abs(cell.value) for cell in row[3:]))[:2]
    assert {row[0].text for row in table.rows} == {row[0].text for row in largest}
    assert "4 others change less" in table.caption


def test_where_nothing_was_kept_nothing_is_claimed(write_full):
    folder = write_full()
    for path in (folder / "runs").glob("*/summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": {}}))
    found = without_answers(folder)
    assert (calibration(found), agreement(found), classes(found)) == (None, None, None)
