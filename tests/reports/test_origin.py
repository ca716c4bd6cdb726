import json

import pytest

from limbeck.reports.compared import read_comparison
from limbeck.reports.evidence import Evidence
from limbeck.reports.origin import definitions, failures, notices, reproduction, setting


def read(folder):
    return Evidence(compared=read_comparison(folder))


def test_the_setting_says_what_was_taught_what_and_how(evidence):
    facts = dict(setting(evidence).facts)
    assert facts["student"] == "digits_cnn_tiny, 1,702 parameters, 12,000 multiply-adds an image"
    assert facts["teacher"].startswith("digits_cnn, given, 99.0 % on 120 test images")
    assert "600 train, 50 val and 120 test images" in facts["data"]
    assert facts["seeds"] == "0, 1, 2"
    assert facts["settings"].startswith("published defaults in every row")


def test_settings_that_were_chosen_are_told_row_by_row(write_full):
    folder = write_full()
    record = json.loads((folder / "comparison.json").read_text())
    record["rows"]["kd"]["chosen"] = {"method.temperature": 2.0}
    (folder / "comparison.json").write_text(json.dumps(record))
    found = dict(setting(read(folder)).facts)["settings"]
    assert "kd: set: method.temperature = 2.0" in found
    assert "ce: published defaults" in found


def test_tuning_is_told_with_trials_space_choice_and_cost(write_full):
    folder = write_full()
    record = json.loads((folder / "comparison.json").read_text())
    record["rows"]["kd"]["space"] = {"optim.lr": [0.01, 0.25, "log"]}
    (folder / "comparison.json").write_text(json.dumps(record))
    trial = {"values": {"optim.lr": 0.1}, "val_loss": 0.1, "seconds": 2.0}
    trials = [{"number": 0, "val_top1": 0.8, **trial}, {"number": 1, "val_top1": 0.9, **trial}]
    tuned = {"values": {"optim.lr": 0.1}, "best": 1, "trials": trials, "seconds": 4.0}
    (folder / "tuning" / "kd").mkdir(parents=True)
    (folder / "tuning" / "kd" / "tuned.json").write_text(json.dumps(tuned))
    (table,) = setting(read(folder)).tables
    (row,) = table.rows
    assert [cell.text for cell in row] == [
        "kd",
        "2",
        "optim.lr 0.01 to 0.25 (log)",
        "optim.lr = 0.1",
        "90.0",
        "4",
        "0",
    ]


def test_every_notice_is_there_once_with_its_runs(evidence):
    section = notices(evidence)
    (table,) = section.tables
    found = {row[0].text: (row[1].value, row[2].text) for row in table.rows}
    assert found["teacher: 96 %"] == (15, "all of them")
    assert found["reads layer stage2 of kd"] == (3, "kd, seed 0; kd, seed 1; kd, seed 2")
    assert section.text == ("No warning in 15 finished runs.",)
    assert table.folded


def test_a_warning_comes_first_and_unfolded(write_full):
    folder = write_full()
    path = folder / "runs" / "rkd-seed2" / "summary.json"
    warning = "warning: the teacher is hardly better than guessing"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"notices": ["other", warning]}))
    section = notices(read(folder))
    assert section.tables[0].rows[0][0].text == warning
    assert not section.tables[0].folded
    assert section.text == ("1 warning in 15 finished runs.",)


def test_failed_runs_have_their_reason_and_missing_ones_are_counted(write_full):
    hits = {"ce": {0: 80, 1: 81}, "kd": {0: "NonFiniteError: at step 3", 1: None}}
    section = failures(read(write_full(hits)))
    assert section.text == ("1 of 4 planned runs failed.", "1 run more: not made yet.")
    assert [cell.text for cell in section.tables[0].rows[0]][:3] == [
        "kd",
        "0",
        "NonFiniteError: at step 3",
    ]


def test_no_failure_is_said_too(evidence):
    assert failures(evidence).text == ("0 of 15 planned runs failed.",)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["/usr/bin/limbeck", "compare", "--output", "a b"], "limbeck compare --output 'a b'"),
        (["__main__.py", "demo"], "limbeck demo"),
        (["script.py", "x"], "script.py x"),
        ([], "limbeck compare"),
    ],
)
def test_the_command_can_be_typed_again(write_full, command, shown):
    assert reproduction(read(write_full(command=command))).code[0] == shown


def test_hashes_versions_and_the_machine_are_told(write_full):
    code = {"limbeck": "0.1.0", "commit": "abc", "packages": {"torch": "2.11"}}
    section = reproduction(read(write_full(code=code)))
    facts = dict(section.facts)
    assert facts["limbeck"] == "0.1.0, commit abc"
    assert facts["packages"] == "torch 2.11"
    assert facts["SHA-256 of test"] == "t"
    assert facts["SHA-256 of the teacher"] == "t"
    assert "1 of 2 threads" in facts["machine"]
    assert len(section.tables[0].rows) == 15
    assert section.tables[0].rows[0][-1].value == f"{0:064x}"


def test_runs_of_several_machines_are_told_apart(write_full):
    folder = write_full()
    (folder / "runs" / "kd-seed0" / "environment.json").write_text("[]")
    section = reproduction(read(folder))
    assert "not comparable" in section.text[1]
    assert dict(section.facts)["machine of 14 runs"]


def test_every_metric_on_the_page_is_defined_with_its_source(evidence):
    (table,) = definitions(evidence).tables
    rows = {row[0].text: [cell.text for cell in row] for row in table.rows}
    assert {"top1", "ece", "agreement", "class_accuracy"} <= rows.keys()
    assert "agreement_independent" not in rows
    assert "arxiv" in rows["ece"][-1]
    assert all(all(row) for row in rows.values())
