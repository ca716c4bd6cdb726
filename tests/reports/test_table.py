import io

import pytest
from rich.console import Console

from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.spread import spread
from limbeck.reports.statistics import compare_over_seeds
from limbeck.reports.table import comparison_table, printable

NAMES = ("no distillation", "KD", "FitNets", "RKD")


def row(label="KD", role="method", last=(0.5, 0.75), best=(), gain=None, **fields):
    return ComparisonRow(
        label=label,
        role=role,
        last=dict(enumerate(last)),
        best_on_validation=dict(enumerate(best)),
        gain=spread(gain) if gain else None,
        **{"num_parameters": 1702, "seconds": 2.25} | fields,
    )


def shown(*rows, title="digits"):
    file = io.StringIO()
    Console(file=file, width=200, color_system=None).print(comparison_table(rows, title=title))
    return file.getvalue()


def test_the_table_gives_percent_with_spread_each_seed_gain_size_and_time():
    text = shown(row(last=(0.5, 0.75, 0.7), best=(0.8, 0.9, 1.0), gain=(0.1, 0.2, 0.3)))
    for part in (
        "KD",
        "(1,702 parameters)",
        "65.0 ± 13.2",
        "50.0 75.0 70.0",
        "90.0",
        "+20.0 ± 10.0",
        "1,702",
    ):
        assert part in text
    assert "2.2" in text


def test_four_methods_of_three_seeds_fit_eighty_columns():
    file = io.StringIO()
    gain = (0.105, 0.068, 0.111)
    rows = [row(name, last=(0.848, 0.893, 0.846), best=(0.9,), gain=gain) for name in NAMES]
    Console(file=file, width=80, color_system=None).print(comparison_table(rows, title="digits"))
    assert all(name in file.getvalue() for name in NAMES)
    assert "…" not in file.getvalue()
    assert file.getvalue().count("86.2 ± 2.7") == len(NAMES)


def test_one_seed_is_shown_without_spread():
    text = shown(row(last=(0.5,), gain=(-0.0625,)))
    assert "50.0" in text
    assert "-6.2" in text
    assert "±" not in text


def test_why_a_gain_is_absent_is_said():
    assert "baseline" in shown(row(role="baseline"))
    assert "reference" in shown(row(role="reference"))
    assert "no pair" in shown(row(role="method"))


def test_a_gain_over_fewer_seeds_than_the_row_has_says_so():
    assert "(1 paired)" in shown(row(last=(0.5, 0.6), gain=(0.1,)))
    assert "paired" not in shown(row(last=(0.5, 0.6), gain=(0.1, 0.2)))


@pytest.mark.parametrize("name", ["[/foo]", "[red]kd[/red]", "[link=x]kd", ":smile:", "kd\\"])
def test_names_are_text_and_never_markup(name):
    assert name in shown(row(label=name))
    assert name in shown(row(), title=name)


@pytest.mark.parametrize("name", ["\x1b[2Jkd", "kd\nkd", "kd\r", "\u202ekd", "\x9bkd"])
def test_control_characters_never_reach_the_terminal(name):
    text = shown(row(label=name), title=name)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert printable(name) in text


def test_printable_names_stay_as_they_are():
    assert printable("kd, T = 4, größe 中文") == "kd, T = 4, größe 中文"


def test_students_of_different_sizes_have_a_column_for_it():
    text = shown(row(), row("large", num_parameters=98_765))
    assert "98,765" in text
    assert "parameters)" not in text


def test_an_interval_takes_the_place_of_the_deviation():
    scores = {"ce": {0: 0.5, 1: 0.52, 2: 0.51}, "KD": {0: 0.6, 1: 0.61, 2: 0.62}}
    difference = compare_over_seeds(scores, reference="ce")[1].difference
    text = shown(row(gain=(0.1, 0.09, 0.11), over_baseline=difference))
    assert "+10.0 [7.5, 12.5]" in text


def test_many_seeds_are_shown_by_their_range():
    assert "50.0 to 75.0" in shown(row(last=(0.5, 0.6, 0.7, 0.75, 0.65, 0.55)))
