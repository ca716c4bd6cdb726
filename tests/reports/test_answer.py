import re

import pytest

from limbeck.reports.answer import answer, basis, question
from limbeck.reports.compared import read_comparison
from limbeck.reports.evidence import Evidence

CE = {0: 78, 1: 81, 2: 84}


@pytest.fixture
def said(write_full):
    """The sentences about these hits of 120 test images."""

    def say(hits, **fields):
        found = Evidence(compared=read_comparison(write_full(hits, **fields)))
        return question(found), answer(found), basis(found)

    return say


def test_two_sentences_say_what_was_asked_and_what_the_intervals_allow(said):
    """kd gains 15, 14.2 and 15.8 points; fitnet 8.3, -1.7 and 10.8."""
    hits = {"ce": CE, "kd": {0: 96, 1: 98, 2: 103}, "fitnet": {0: 88, 1: 79, 2: 97}}
    asked, answered, rests_on = said(hits)
    assert asked == (
        "Do kd and fitnet make digits_cnn_tiny more accurate on digits than the same training "
        "without a teacher, with 3 seeds each?"
    )
    assert re.fullmatch(
        r"Yes with kd \(\+15\.0 \[\+12\.9, \+17\.1\] points, n = 3 seeds\); it cannot be told with "
        r"fitnet \(\+5\.8 \[\u221210\.6, \+22\.3\] points, n = 3 seeds\)\.",
        answered,
    )
    assert "120 test images" in rests_on
    assert "Holm-corrected for 2 tests" in rests_on


def test_a_loss_is_no_yes(said):
    _, answered, _ = said({"ce": CE, "kd": {0: 60, 1: 62, 2: 66}})
    assert answered.startswith("It loses accuracy with kd (\u2212")
    assert "es with" not in answered.split("loses")[0]


def test_one_seed_has_no_interval_and_no_verdict(said):
    asked, answered, rests_on = said({"ce": {0: 78}, "kd": {0: 96}})
    assert "with 1 seed each" in asked
    assert answered == "It cannot be told with kd (+15.0 points, n = 1 seed)."
    assert "no interval" in rests_on


def test_equal_gains_in_every_seed_are_no_proof(said):
    _, answered, rests_on = said({"ce": CE, "kd": {s: n + 6 for s, n in CE.items()}})
    assert answered == "It cannot be told with kd (+5.0 points, n = 3 seeds)."
    assert "no interval" in rests_on


def test_every_claim_has_its_own_number_of_seeds(said):
    hits = {"ce": CE, "kd": {0: 96, 1: 98, 2: 103}, "rkd": {0: 90, 1: 92, 2: "it failed"}}
    _, answered, _ = said(hits)
    assert answered.count("n = 3 seeds") == 1
    assert answered.count("n = 2 seeds") == 1


def test_a_method_without_any_run_is_named(said):
    hits = {"ce": CE, "kd": {0: 96, 1: 98, 2: 103}, "rkd": dict.fromkeys(range(3), "it failed")}
    assert said(hits)[1].endswith("; there is no paired run of rkd.")


@pytest.mark.parametrize(
    "hits",
    [
        {"ce": dict.fromkeys(range(2), "it failed"), "kd": {0: 96, 1: 98}},
        {"ce": {0: None}, "kd": {0: None}},
        {"ce": {0: 78}},
    ],
)
def test_where_nothing_can_be_said_there_is_no_answer(said, hits):
    assert said(hits)[1].startswith("There is no answer")


def test_many_methods_are_counted_and_the_largest_gains_named(evidence, monkeypatch):
    monkeypatch.setattr("limbeck.reports.answer._MOST", 1)
    assert question(evidence).startswith("Do 3 methods make")
    assert re.search(r"cannot be told with \w+ \([^)]*\) and 1 more|^Yes with", answer(evidence))
