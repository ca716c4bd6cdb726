import json

import pytest

from limbeck.core.errors import RunFolderError
from limbeck.reports.compared import read_comparison

THREE = {"ce": {0: 0.80, 1: 0.82, 2: 0.81}, "kd": {0: 0.90, 1: 0.91, 2: 0.92}}


def test_a_comparison_is_read_row_by_row_and_seed_by_seed(write_compared):
    compared = read_comparison(write_compared(THREE))
    assert compared.seeds == (0, 1, 2)
    assert [(row.label, row.role) for row in compared.rows] == [
        ("ce", "baseline"),
        ("kd", "method"),
    ]
    assert compared.rows[1].last == THREE["kd"]
    assert compared.records["kd"][2].test.last.top1 == 0.92
    assert compared.num_missing == 0
    assert compared.teacher_top1 == 0.99


def test_a_gain_has_its_interval_by_hand_and_its_sentence(write_compared):
    """Differences 0.10, 0.09, 0.11: mean 0.1, sd 0.01, t(2, 0.975) = 4.3027."""
    compared = read_comparison(write_compared(THREE))
    over = compared.rows[1].over_baseline
    assert over.mean == pytest.approx(0.1)
    assert over.interval == pytest.approx((0.1 - 4.3027 * 0.01 / 3**0.5, 0.1 + 0.024841), abs=1e-5)
    assert compared.remarks() == (over.sentence,)
    assert "kd is better than ce by 10.0 points" in over.sentence


def test_methods_are_also_measured_against_kd(write_compared):
    results = THREE | {"rkd": {0: 0.91, 1: 0.93, 2: 0.92}}
    rows = {row.label: row for row in read_comparison(write_compared(results)).rows}
    assert rows["rkd"].over_kd.mean == pytest.approx((0.01 + 0.02 + 0) / 3)
    assert rows["kd"].over_kd is None
    assert rows["ce"].over_kd is None


def test_one_seed_has_no_interval_and_says_so(write_compared):
    compared = read_comparison(write_compared({"ce": {0: 0.8}, "kd": {0: 0.9}}))
    assert compared.rows[1].over_baseline.interval is None
    assert "One seed: there are no intervals" in compared.remarks()[0]


def test_what_failed_and_what_is_missing_is_said_and_the_rest_stands(write_compared):
    results = {"ce": THREE["ce"], "kd": {0: 0.9, 1: "NonFiniteError: at step 3", 2: None}}
    compared = read_comparison(write_compared(results))
    assert compared.rows[1].gain.count == 1
    assert compared.failures["kd"][1].reason == "NonFiniteError: at step 3"
    remarks = compared.remarks()
    assert "kd, seed 1, failed: NonFiniteError: at step 3" in remarks
    assert "1 run is still missing." in remarks


def test_without_any_baseline_there_is_a_table_without_gains(write_compared):
    results = {"ce": {0: "killed", 1: "killed"}, "kd": {0: 0.9, 1: 0.91}}
    compared = read_comparison(write_compared(results))
    (row,) = compared.rows
    assert (row.label, row.gain, row.over_baseline) == ("kd", None, None)


def test_nothing_finished_is_no_error(write_compared):
    compared = read_comparison(write_compared({"ce": {0: None}, "kd": {0: None}}))
    assert compared.rows == ()
    assert compared.teacher_top1 is None


def test_equal_titles_are_told_apart_by_their_labels(write_compared):
    rows = {"kd": {"title": "KD"}, "hot": {"title": "KD", "method": "kd"}}
    results = THREE | {"hot": {0: 0.9, 1: 0.9, 2: 0.9}}
    compared = read_comparison(write_compared(results, rows=rows))
    assert [row.label for row in compared.rows] == ["ce", "KD (kd)", "KD (hot)"]
    assert [compared.label_of(row) for row in compared.rows] == ["ce", "kd", "hot"]


def test_a_row_says_how_it_came_by_its_settings(write_compared):
    rows = {
        "ce": {"space": {"optim.lr": [0.01, 0.25, "log"]}},
        "kd": {"chosen": {"method.temperature": 2.0}},
    }
    settings = {"seeds": [0, 1, 2], "shared": {}, "tuning": {"trials": 20, "seed": 10000}}
    compared = read_comparison(write_compared(THREE, rows=rows, settings=settings))
    assert compared.settings_note("ce") == "tuned on validation, 20 trials"
    assert compared.settings_note("kd") == "set: method.temperature = 2.0"


def test_seeds_added_after_a_look_are_no_secret(write_compared):
    compared = read_comparison(write_compared(THREE, looks=[2, 3]))
    assert "Seeds were added after a look at the table (2, then 3)" in compared.remarks()[-1]


def test_a_run_judged_on_other_test_images_is_refused(write_compared):
    folder = write_compared(THREE, summary={"split_hashes": {"test": "a", "val": "v"}})
    run = folder / "runs" / "kd-seed1" / "summary.json"
    values = json.loads(run.read_text())
    run.write_text(json.dumps(values | {"split_hashes": {"test": "b", "val": "v"}}))
    with pytest.raises(RunFolderError, match=r"the test images or labels of .*kd-seed1 differ"):
        read_comparison(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 3}', "[" * 100_000])
def test_a_damaged_file_is_named(write_compared, text):
    folder = write_compared(THREE)
    (folder / "comparison.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"comparison\.json"):
        read_comparison(folder)


def test_another_folder_is_no_comparison(tmp_path):
    with pytest.raises(RunFolderError, match="holds no comparison"):
        read_comparison(tmp_path)
