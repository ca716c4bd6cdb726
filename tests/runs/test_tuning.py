import dataclasses

import pytest

from limbeck.core.errors import NonFiniteError, RunFolderError, SettingsError
from limbeck.methods import METHODS
from limbeck.runs.compare import CompareConfig
from limbeck.runs.summary import EpochResult, RunSummary
from limbeck.runs.tuning import SEARCH_SPACES, check_tunable, search, space

SHARED = {
    "student": {"name": "digits_cnn_tiny"},
    "method": {"name": "ce"},
    "schedule": {"epochs": 2, "sched": "cosine"},
    "optim": {"lr": 0.1},
}


@pytest.fixture
def comparison():
    def make(trials=8, rows=None, **fields):
        rows = rows or {"kd": {"method": {"name": "kd"}}}
        values = {"shared": SHARED, "contenders": rows, "teacher": {"run": "teacher"}}
        return CompareConfig.read(values | {"tuning": {"trials": trials}} | fields).resolved()

    return make


def summary(top1, loss=1.0):
    fields = dict.fromkeys(RunSummary.model_fields)
    last = EpochResult(epoch=1, val={"top1": top1, "loss": loss})
    return RunSummary.model_construct(**fields | {"last": last, "seconds": 2.0})


def peak_at(lr):
    """A trial whose accuracy falls with the distance of the rate from ``lr``."""
    return lambda number, run: summary(1 - abs(run.optim.lr - lr))


def test_every_row_of_the_table_names_settings_that_its_method_has():
    for name, dimensions in SEARCH_SPACES.items():
        fields = METHODS[name].config.model_fields
        for dimension in dimensions:
            part, _, setting = dimension.name.partition(".")
            assert part in ("optim", "method")
            assert part == "optim" or setting in fields, f"{name} has no {setting}"
            assert dimension.low < dimension.high


def test_every_method_has_a_row():
    """A new method needs one, in the same change: the settings that its users turn."""
    assert set(METHODS) <= set(SEARCH_SPACES)


def test_every_method_and_the_baseline_may_turn_the_learning_rate():
    assert "ce" in SEARCH_SPACES
    for dimensions in SEARCH_SPACES.values():
        assert "optim.lr" in [dimension.name for dimension in dimensions]


def test_ends_are_those_of_the_recipe_at_hand(comparison):
    spans = space(comparison(), "kd")
    assert (spans["optim.lr"].low, spans["optim.lr"].high) == pytest.approx((0.02, 0.5))
    assert (spans["method.temperature"].low, spans["method.temperature"].high) == (1, 16)
    assert spans["method.kd_weight"].high == pytest.approx(9)


def test_a_term_that_is_off_stays_off(comparison):
    rows = {"kd": {"method": {"name": "kd", "kd_weight": 0}}}
    assert "method.kd_weight" not in space(comparison(rows=rows), "kd")


def test_the_first_trial_has_the_settings_the_row_starts_from(comparison):
    tried = []
    search(comparison(), "kd", lambda number, run: tried.append(run) or summary(0.5))
    assert tried[0].optim.lr == pytest.approx(0.1)
    assert tried[0].method_config == METHODS["kd"].config()
    assert {run.seed for run in tried} == {10_000}
    assert len({run.optim.lr for run in tried}) == len(tried) == 8


@pytest.mark.parametrize("label", ["ce", "kd"])
def test_the_best_on_validation_is_chosen_and_every_row_has_as_many_trials(comparison, label):
    found = search(comparison(20), label, peak_at(0.3))
    assert len(found.trials) == 20
    best = max(found.trials, key=lambda trial: trial.val_top1)
    assert (found.best, found.values) == (best.number, best.values)
    assert found.values["optim.lr"] == pytest.approx(0.3, abs=0.1)
    assert found.seconds == 40
    spans = space(comparison(), label)
    for trial in found.trials:
        for name, value in trial.values.items():
            assert spans[name].low <= value <= spans[name].high


def test_of_equal_accuracies_the_lower_loss_is_chosen_then_the_earlier(comparison):
    losses = [1.0, 0.5, 0.5, 2.0]
    found = search(comparison(4), "kd", lambda number, run: summary(0.9, losses[number]))
    assert found.best == 1


def test_a_search_gone_through_again_asks_the_same(comparison):
    """So that one that was interrupted goes on as if nothing had been."""
    assert search(comparison(15), "kd", peak_at(0.3)) == search(comparison(15), "kd", peak_at(0.3))


def test_a_trial_that_diverges_counts_and_is_never_chosen(comparison):
    def run_trial(number, run):
        if number in (0, 2):
            raise NonFiniteError("loss is not finite")
        return summary(0.1)

    found = search(comparison(4), "kd", run_trial)
    assert len(found.trials) == 4
    assert found.trials[0].failure == "loss is not finite"
    assert found.best == 1


def test_another_error_ends_the_search(comparison):
    def run_trial(number, run):
        raise RunFolderError("disk full")

    with pytest.raises(RunFolderError, match="disk full"):
        search(comparison(), "kd", run_trial)


def test_a_method_without_a_space_is_refused_before_anything_runs(comparison, monkeypatch):
    less = {name: row for name, row in SEARCH_SPACES.items() if name != "kd"}
    monkeypatch.setattr("limbeck.runs.tuning.SEARCH_SPACES", less)
    with pytest.raises(SettingsError, match="method 'kd' has no search space"):
        check_tunable(comparison())
    check_tunable(comparison(tuning=None))


def test_a_combination_is_tuned_in_what_its_methods_are(comparison):
    row = {"method": {"name": "kd+at", "at": {"at_weight": 10}}}
    config = comparison(contenders={"kd-at": row})
    found = space(config, "kd-at")
    weights = {"method.kd.kd_weight", "method.at.at_weight"}
    assert found.keys() == {"optim.lr", "method.kd.temperature", *weights}
    assert (found["method.at.at_weight"].low, found["method.at.at_weight"].high) == (1, 100)
    chosen = dict.fromkeys(found, 2.0)
    run = config.run_config("kd-at", 0, tuned=chosen)
    assert (run.method_config.at.at_weight, run.method_config.kd.temperature) == (2, 2)


def test_what_teaches_no_class_scores_is_not_judged_by_them(comparison):
    with pytest.raises(SettingsError, match=r"does not teach; .*foundation.ce_weight=1"):
        space(
            comparison(contenders={"foundation": {"method": {"name": "foundation"}}}), "foundation"
        )
    row = {"method": {"name": "foundation", "ce_weight": 1}}
    assert "optim.lr" in space(comparison(contenders={"foundation": row}), "foundation")


def test_without_validation_there_is_nothing_to_choose_on(comparison):
    shared = SHARED | {"data": {"val_fraction": 0}}
    with pytest.raises(SettingsError, match="val_fraction is 0"):
        check_tunable(comparison(shared=shared))


def test_without_optuna_the_remedy_is_said(comparison, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(SettingsError, match=r"pip install 'limbeck\[hpo\]'"):
        check_tunable(comparison())


def test_dimensions_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SEARCH_SPACES["kd"][0].low = 0
