import json

import pytest

from limbeck.reports.answer import answer
from limbeck.reports.compared import read_comparison
from limbeck.reports.embeddings import embeddings
from limbeck.reports.evidence import Evidence
from limbeck.reports.export import comparison_markdown


def test_probe_and_neighbours_stand_as_mean_and_deviation_over_seeds(evidence):
    section = embeddings(evidence)
    (table,) = section.tables
    assert [column.title for column in table.columns] == [
        "taught by",
        "n",
        "linear probe, before training",
        "linear probe, after it",
        "linear probe, the teacher",
        "nearest neighbours, before training",
        "nearest neighbours, after it",
        "nearest neighbours, the teacher",
    ]
    ((name, count, *cells),) = table.rows
    assert (name.text, count.text) == ("fitnet", "3")
    assert [cell.text for cell in cells] == ["", "62.5 ± 12.5", "", "", "50.0 ± 0.0", ""]
    assert cells[1].value == pytest.approx(0.625)


def test_without_one_there_is_no_section(write_compared):
    folder = write_compared({"ce": {0: 0.8}, "kd": {0: 0.9}})
    assert embeddings(Evidence(compared=read_comparison(folder))) is None


def test_accuracy_that_says_nothing_is_not_compared_and_the_reader_is_told(write_full):
    folder = write_full()
    compared = Evidence(compared=read_comparison(folder))
    assert compared.rows["fitnet"].over_baseline.holm_p_value is not None
    tests = sum(row.over_baseline is not None for row in compared.rows.values())
    for path in (folder / "runs").glob("fitnet-*/summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scores_taught": False}))
    found = Evidence(compared=read_comparison(folder))
    row = found.rows["fitnet"]
    assert (row.gain, row.over_baseline, row.best_over_baseline, row.over_kd) == (None,) * 4
    assert sum(one.over_baseline is not None for one in found.rows.values()) == tests - 1
    assert "accuracy says nothing of fitnet: no class scores were taught." in answer(found)
    assert any(r.startswith("fitnet teaches no class scores") for r in found.compared.remarks())
    assert row.no_gain == "scores not taught"
    assert "| scores not taught |" in comparison_markdown(found.compared, title="")
