import csv
import io

import pytest
from rich.console import Console

from limbeck.reports.comparison import ComparisonRow, spread
from limbeck.reports.table import comparison_csv, comparison_table, printable, safe_cell

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


def cells(*rows):
    return list(csv.DictReader(io.StringIO(comparison_csv(rows), newline="")))


def test_the_table_gives_percent_with_spread_each_seed_gain_size_and_time():
    text = shown(row(last=(0.5, 0.75, 0.7), best=(0.8, 0.9, 1.0), gain=(0.1, 0.2, 0.3)))
    for part in ("KD", "65.0 ± 13.2", "50.0 75.0 70.0", "90.0", "+20.0 ± 10.0", "1,702"):
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


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_text_cell_that_a_spreadsheet_would_run_is_defused(start):
    name = f"{start}cmd|'/C calc'!A0"
    assert safe_cell(name) == f"'{name}"
    assert cells(row(label=name))[0]["label"] == f"'{name}"


def test_harmless_text_is_left_alone():
    assert safe_cell("kd-2, a=b @c") == "kd-2, a=b @c"
    assert safe_cell("") == ""


def test_numbers_stay_numbers_at_full_precision():
    (line,) = cells(row(last=(1 / 3, 0.5), gain=(-0.1, -0.3)))
    assert float(line["gain_mean"]) == (-0.1 + -0.3) / 2
    assert float(line["test_top1_seed_0"]) == 1 / 3
    assert int(line["num_parameters"]) == 1702
    assert float(line["mean_seconds"]) == 2.25


def test_what_does_not_exist_is_an_empty_cell_and_zero_is_not():
    (line,) = cells(row(role="baseline", last=(0.0,)))
    for name in ("test_top1_sd", "gain_mean", "gain_sd", "best_on_validation_test_top1_mean"):
        assert line[name] == ""
    assert float(line["test_top1_mean"]) == 0
    (line,) = cells(row(gain=(0.0, 0.0), best=(0.0, 0.0)))
    assert [float(line[n]) for n in ("gain_mean", "gain_sd")] == [0, 0]
    assert float(line["best_on_validation_test_top1_mean"]) == 0
    assert float(line["best_on_validation_test_top1_sd"]) == 0


def test_each_seed_has_one_column_for_all_rows():
    first, second = cells(row(last=(0.5,)), row(label="RKD", last=(0.25, 0.75)))
    assert first["test_top1_seed_1"] == ""
    assert float(second["test_top1_seed_1"]) == 0.75


def test_a_name_with_separators_survives_the_round_trip():
    assert cells(row(label='a,"b"\nc'))[0]["label"] == 'a,"b"\nc'
