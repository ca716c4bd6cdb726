import shutil

import pytest

from limbeck.core.errors import RunFolderError, SettingsError
from limbeck.runs import energy, estimate
from limbeck.runs.energy import EnergyMeter
from limbeck.runs.estimate import plan
from limbeck.runs.orchestrate import compare


def test_a_plan_counts_runs_and_adds_up_their_times_and_writes_nothing(small, tmp_path):
    training = small.config("ce", student="digits_cnn", epochs=6).plain()
    config = small.comparison(["kd", "rkd"], teacher_training=training, tuning={"trials": 4})
    found = plan(config, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["teacher", "ce", "kd", "rkd"]
    assert (rows["teacher"].num_runs, rows["teacher"].num_trials, rows["teacher"].epochs) == (
        1,
        0,
        6,
    )
    assert (rows["kd"].num_runs, rows["kd"].num_trials, rows["kd"].epochs) == (2, 4, 2)
    assert found.num_runs == 1 + 3 * (2 + 4)
    assert found.seconds == pytest.approx(
        rows["teacher"].run_seconds + 6 * sum(rows[k].run_seconds for k in ("ce", "kd", "rkd"))
    )
    assert all(row.run_seconds > 0 and row.peak_memory_bytes > 0 for row in found.rows)
    assert found.threads == 1


def test_what_is_there_is_not_counted_again(small, tmp_path):
    folder = compare(small.comparison(), tmp_path / "c")
    shutil.rmtree(folder.run("kd", 1))
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    found = plan(small.comparison(), folder.path)
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before
    assert {row.name: (row.num_runs, row.num_finished) for row in found.rows} == {
        "ce": (0, 2),
        "kd": (1, 1),
    }


def test_energy_is_the_power_of_the_rehearsal_times_all_runs(small, tmp_path, monkeypatch):
    class Meter(EnergyMeter):
        def __exit__(self, *error):
            self.seconds, self.joules = 2.0, 30.0

    monkeypatch.setattr(estimate, "EnergyMeter", Meter)
    found = plan(small.comparison(), tmp_path / "c")
    assert found.watts == 15
    assert found.joules == pytest.approx(15 * found.seconds)


def test_without_counters_the_plan_says_that_energy_cannot_be_metered(small, tmp_path, monkeypatch):
    monkeypatch.setattr(
        estimate, "EnergyMeter", lambda: energy.EnergyMeter(tmp_path / "no counters")
    )
    found = plan(small.comparison(), tmp_path / "c")
    assert found.joules is None
    assert "shows no energy counters" in found.energy_note


def test_what_a_comparison_refuses_its_plan_refuses_too(small, tmp_path):
    rows = {"bad": {"method": {"name": "fitnet", "student_layer": "stage9"}}}
    with pytest.raises(SettingsError, match=r"bad: .*stage9"):
        plan(small.comparison(rows), tmp_path / "c")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not an empty folder"):
        plan(small.comparison(), tmp_path)
