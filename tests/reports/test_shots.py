import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from limbeck.reports.compared import read_comparison
from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.export import comparison_markdown
from limbeck.reports.shots import SHOTS, shot_cells, shot_spreads, shot_table

TAIL = {"many_shot": 0.9, "medium_shot": 0.75, "few_shot": 0.5}


def row(*scores, label="KD"):
    records = {seed: SimpleNamespace(scores={"last": found}) for seed, found in enumerate(scores)}
    return ComparisonRow(
        label=label,
        role="method",
        last=dict.fromkeys(records, 0.5),
        best_on_validation={},
        gain=None,
        num_parameters=1,
        seconds=1.0,
        records=records,
    )


def shown(table):
    file = io.StringIO()
    Console(file=file, width=80, color_system=None).print(table)
    return file.getvalue()


def test_each_group_is_averaged_over_seeds():
    found = shot_spreads(row(TAIL, TAIL | {"few_shot": 0.7}))
    assert found["few_shot"].mean == pytest.approx(0.6)
    assert found["few_shot"].sd == pytest.approx(0.02**0.5)
    assert shot_cells(row(TAIL, TAIL | {"few_shot": 0.7})) == [
        "90.0 ± 0.0",
        "75.0 ± 0.0",
        "60.0 ± 14.1",
    ]


def test_a_group_without_classes_is_a_dash_and_one_seed_has_no_spread():
    assert shot_cells(row(TAIL | {"medium_shot": None})) == ["90.0", "-", "50.0"]


def test_without_a_long_tail_there_is_no_table():
    assert shot_spreads(row({"top1": 0.5}, {})) == {}
    assert shot_table([row({"top1": 0.5}), row()]) is None


def test_the_table_has_the_rows_that_were_judged_so_within_eighty_columns():
    text = shown(shot_table([row(TAIL, TAIL), row({}, label="old"), row(TAIL, label="[red]x")]))
    assert "90.0 ± 0.0" in text
    assert "[red]x" in text
    assert "old" not in text
    assert all(heading in text for heading in SHOTS.values())
    assert all(len(line) <= 80 for line in text.splitlines())


def test_markdown_has_the_same_numbers(write_compared):
    results = {"ce": {0: 0.8, 1: 0.8}, "kd": {0: 0.9, 1: 0.9}}
    tail = read_comparison(write_compared(results, summary={"scores": {"last": TAIL}}))
    text = comparison_markdown(tail, title="digits")
    heading = next(line for line in text.splitlines() if "by training images" in line)
    assert heading.count("|") == 5
    assert "| kd | 90.0 ± 0.0 | 75.0 ± 0.0 | 50.0 ± 0.0 |" in text
    plain = read_comparison(write_compared(results, name="plain"))
    assert "by training images" not in comparison_markdown(plain, title="digits")
