import csv
import io
import json
import re

import pytest

from limbeck.reports.compared import read_comparison
from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.export import (
    MACHINE_COLUMNS,
    comparison_csv,
    comparison_markdown,
    runs_csv,
    safe_cell,
)
from limbeck.reports.spread import spread

THREE = {"ce": {0: 0.80, 1: 0.82, 2: 0.81}, "kd": {0: 0.90, 1: 0.91, 2: 0.92}}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$x_1$ | `y` *z*",
    "[red]x[/red]",
    "=1+1",
    "two\nlines",
    "\u202eright to left",
    "\U0001f600",
    "- item",
    "1. item",
]


def row(label="KD", role="method", last=(0.5, 0.75), best=(), gain=None, **fields):
    return ComparisonRow(
        label=label,
        role=role,
        last=dict(enumerate(last)),
        best_on_validation=dict(enumerate(best)),
        gain=spread(gain) if gain else None,
        **{"num_parameters": 1702, "seconds": 2.25} | fields,
    )


def cells(*rows):
    return list(csv.DictReader(io.StringIO(comparison_csv(rows), newline="")))


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


def lines(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_every_row_has_its_statistics_costs_and_scores(write_compared):
    summary = {
        "scores": {"last": {"nll": 0.5, "ece": 0.25, "same_wrong_class": None}},
        "deployed_bytes": 7056,
        "peak_memory_bytes": 1000,
        "teacher_seconds": 0.5,
        "floor_images_per_second": 18000.0,
    }
    compared = read_comparison(write_compared(THREE, summary=summary))
    ce, kd = lines(comparison_csv(compared.rows, compared=compared))
    assert (ce["role"], ce["settings"], ce["tuning_trials"]) == (
        "baseline",
        "published defaults",
        "0",
    )
    assert ce["gain_low"] == ""
    over = compared.rows[1].over_baseline
    assert float(kd["gain_low"]) == over.interval.low
    assert float(kd["gain_holm_p"]) == over.holm_p_value
    assert kd["gain_verdict"] == "better"
    assert float(kd["test_nll_mean"]) == 0.5
    assert float(kd["test_nll_sd"]) == 0
    assert kd["test_same_wrong_class_mean"] == ""
    assert int(kd["deployed_bytes"]) == 7056
    assert int(kd["max_peak_memory_bytes"]) == 1000
    assert float(kd["mean_teacher_seconds"]) == 0.5
    assert float(kd["mean_step_over_floor"]) == 2
    assert float(kd["sd_step_over_floor"]) == 0


def test_tuning_is_told_with_its_trials_space_and_cost(write_compared):
    rows = {label: {"space": {"optim.lr": [0.01, 0.25, "log"]}} for label in THREE}
    folder = write_compared(THREE, rows=rows)
    trial = {"values": {"optim.lr": 0.1}, "val_top1": 0.9, "val_loss": 0.1, "seconds": 2.0}
    for label in THREE:
        place = folder / "tuning" / label
        place.mkdir(parents=True)
        trials = [{"number": number, **trial} for number in range(3)]
        tuned = {"values": {"optim.lr": 0.1}, "best": 0, "trials": trials, "seconds": 6.0}
        (place / "tuned.json").write_text(json.dumps(tuned))
    compared = read_comparison(folder)
    found = lines(comparison_csv(compared.rows, compared=compared))
    assert {line["tuning_trials"] for line in found} == {"3"}
    assert {line["tuning_space"] for line in found} == {"optim.lr 0.01 to 0.25 (log)"}
    assert {line["tuning_seconds"] for line in found} == {"6.0"}
    assert json.loads(found[0]["tuned_values"]) == {"optim.lr": 0.1}


def test_a_row_without_any_run_still_has_its_line(write_compared):
    results = THREE | {"rkd": {0: "out of memory", 1: "out of memory", 2: None}}
    compared = read_comparison(write_compared(results))
    rkd = lines(comparison_csv(compared.rows, compared=compared))[2]
    assert (rkd["label"], rkd["num_seeds"], rkd["test_top1_mean"]) == ("rkd", "0", "")
    assert (rkd["failed_seeds"], rkd["failure"]) == ("0 1", "out of memory")
    assert "| rkd | published defaults | no run |" in comparison_markdown(compared, title="t")


def test_every_planned_run_has_a_line_with_its_state(write_compared):
    results = {"ce": {0: 0.8, 1: 0.81}, "kd": {0: "it failed", 1: None}}
    compared = read_comparison(write_compared(results))
    found = {(line["row"], line["seed"]): line for line in lines(runs_csv(compared))}
    states = {key: line["state"] for key, line in found.items()}
    assert states == {
        ("ce", "0"): "finished",
        ("ce", "1"): "finished",
        ("kd", "0"): "failed",
        ("kd", "1"): "missing",
    }
    assert found["kd", "0"]["failure"] == "it failed"
    assert float(found["ce", "1"]["last_top1"]) == 0.81
    assert found["kd", "1"]["last_top1"] == ""


def test_columns_that_depend_on_the_machine_are_columns(write_compared):
    compared = read_comparison(write_compared(THREE))
    rows = lines(comparison_csv(compared.rows, compared=compared))[0]
    runs = lines(runs_csv(compared))[0]
    assert set(rows) | set(runs) >= MACHINE_COLUMNS


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_a_table_or_becomes_markup_or_a_formula(write_compared, name):
    results = THREE | {"kd": {0: 0.9, 1: name, 2: 0.92}}
    compared = read_comparison(write_compared(results, rows={"kd": {"title": name}}))
    text = comparison_markdown(compared, title=name)
    table = [line for line in text.splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert columns == {11}
    assert not re.search(r"(?<!\\)[<`*$]", text)
    assert all(char.isprintable() or char == "\n" for char in text)
    for content in (comparison_csv(compared.rows, compared=compared), runs_csv(compared)):
        found = lines(content)
        assert {line["row"] for line in found} == {"ce", "kd"}
        cells = [cell for line in found for cell in line.values() if not _is_number(cell)]
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)


def _is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True
