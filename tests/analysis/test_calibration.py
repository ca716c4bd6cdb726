import numpy as np
import pytest
from scipy.special import softmax

from limbeck.analysis.base import NotApplicableError
from limbeck.analysis.calibration import CALIBRATION, largest_gap, overconfidence

# The inputs of the golden numbers: n = 12, C = 4, k = 4 i + j.
K = np.arange(48.0).reshape(12, 4)
STUDENT, TEACHER = 2 * np.sin(1.7 * K + 0.3), 2 * np.cos(1.1 * K)
LABEL = np.arange(12) // 3


def rows(case):
    (table,) = CALIBRATION.measure(case).tables.values()
    return {row[0]: row[1:] for row in table[1:]}


def test_the_largest_gap_of_a_bin_is_the_golden_number():
    # torchmetrics' MCE, 15 bins
    assert largest_gap(STUDENT, LABEL) == pytest.approx(0.6263392295, abs=1e-9)


def test_overconfidence_is_mean_confidence_less_accuracy():
    expected = softmax(STUDENT, axis=1).max(axis=1).mean() - 1 / 3
    assert overconfidence(STUDENT, LABEL) == pytest.approx(expected, abs=1e-12)
    assert overconfidence(np.eye(4)[LABEL], LABEL) < 0


def test_each_networks_numbers_are_the_golden_ones(given):
    found = rows(given(TEACHER, STUDENT, TEACHER, LABEL))
    # ECE of 15 bins 0.4171885711, MCE 0.6263392295, NLL 2.2593419668, Brier 0.9676624581
    assert found["expected calibration error"][1] == "41.7%"
    assert found["largest calibration error of a bin"][1] == "62.6%"
    assert found["negative log-likelihood, nats"][1] == "2.259"
    assert found["Brier score"][1] == "0.968"
    for cells in found.values():
        assert cells[0] == cells[2]  # the independent student is the teacher


def test_the_reading_is_the_distance_of_the_confidences(given):
    case = given(TEACHER, STUDENT, TEACHER, LABEL)
    (reading,) = CALIBRATION.measure(case).readings
    ours, theirs = (softmax(z, axis=1).max(axis=1) for z in (STUDENT, TEACHER))
    np.testing.assert_allclose(reading.distilled[0], np.abs(ours - theirs), atol=1e-6)
    assert not reading.independent[0].any()
    assert reading.nearer == "lower"


def test_the_diagram_shows_teacher_and_both_students(given):
    (picture,) = CALIBRATION.measure(given(TEACHER, STUDENT, STUDENT, LABEL)).pictures
    assert picture.svg.startswith("<svg")
    assert all(f">{name}" in picture.svg for name in ("teacher", "distilled", "independent"))
    assert "distilled 41.7%" in picture.alt


def test_images_without_labels_leave_the_confidence_alone(given):
    label = np.where(np.arange(12) < 6, LABEL, -1)
    found = CALIBRATION.measure(given(TEACHER, STUDENT, STUDENT, label))
    assert found.settings["images"] == 6
    assert len(found.readings[0].distilled[0]) == 12


def test_no_label_at_all_is_said(given):
    case = given(TEACHER, STUDENT, STUDENT, np.full(12, -1))
    with pytest.raises(NotApplicableError, match="needs labels"):
        CALIBRATION.measure(case)
