import unicodedata

import pytest

from limbeck.metrics.info import METRICS
from limbeck.reports.layout import (
    ISOLATES,
    amount,
    count,
    isolated,
    listed,
    metric_cell,
    points,
)
from limbeck.reports.statistics import Interval


def test_numbers_are_rounded_and_have_no_negative_zero():
    assert amount(0.12345, 1, scale=100) == "12.3"
    assert amount(-0.0001, 1, scale=100, sign="+") == "+0.0"
    assert amount(1234.5, 0) == "1,234"
    assert amount(None, 2) == ""


def test_a_minus_is_one():
    assert amount(-1.25, 2) == f"{unicodedata.lookup('MINUS SIGN')}1.25"


def test_a_difference_has_its_interval_only_where_there_is_one():
    assert points(0.01, None, 1) == "+1.0"
    assert points(0.01, Interval(0.005, 0.015), 1) == "+1.0 [+0.5, +1.5]"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 seeds"), (1, "1 seed"), (2, "2 seeds"), (1000, "1,000 seeds")]
)
def test_nouns_follow_their_number(number, text):
    assert count(number, "seed") == text


def test_names_are_joined_as_in_a_sentence():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]


def test_fractions_become_percent_and_other_units_stay():
    assert metric_cell("ece", 0.0213, 0.004).text == "2.1 ± 0.4"
    assert metric_cell("nll", 0.0213, None).text == "0.021"
    assert metric_cell("ece", None, None).text == ""
    assert metric_cell("ece", 0.5, None, note=" (n = 1)").text == "50.0 (n = 1)"
    assert METRICS["ece"].unit == "fraction"


def test_a_cell_keeps_the_number_at_full_precision():
    assert metric_cell("ece", 1 / 3, None).value == 1 / 3


def test_text_from_right_to_left_is_kept_apart_and_other_text_is_left_alone():
    hebrew = "\u05e9\u05dc\u05d5\u05dd"
    assert isolated(hebrew) == f"{ISOLATES[0]}{hebrew}{ISOLATES[1]}"
    assert isolated("kd, T = 4") == "kd, T = 4"


def test_what_overrides_the_order_or_breaks_the_line_is_spelt_out():
    assert isolated("\u202eab\ncd") == "\\u202eab\\ncd"
    assert isolated("\u2069ab") == "\\u2069ab"
