import pytest

from limbeck.core.errors import SettingsError
from limbeck.runs.compare import CompareConfig, Contender, run_differences, settings_differences

SHARED = {
    "student": {"name": "digits_cnn_tiny"},
    "method": {"name": "ce"},
    "schedule": {"epochs": 4, "sched": "cosine"},
}


def comparison(methods=("kd", "rkd"), **fields):
    rows = {method: {"method": {"name": method}} for method in methods}
    values = {"shared": SHARED, "contenders": rows, "teacher": {"run": "teacher"}}
    return CompareConfig.read(values | fields)


def test_the_baseline_is_always_in_and_first():
    config = comparison(["kd"])
    assert list(config.contenders) == ["ce", "kd"]
    assert config.contenders["ce"].role == "baseline"
    assert not config.contenders["ce"].needs_teacher


def test_settings_come_back_from_plain_values():
    config = comparison(tuning={"trials": 3}).resolved()
    assert CompareConfig.read(config.plain()) == config


@pytest.mark.parametrize("label", ["kd", "rkd"])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_method_differs_from_the_baseline_in_method_and_teacher_alone(label, seed):
    """So budget, data, split, order and student are one: the seed keys all that is random."""
    config = comparison(seeds=[0, 7]).resolved()
    base, ours = (config.run_config(name, seed).plain() for name in ("ce", label))
    assert {name for name in base if base[name] != ours[name]} == {"method", "teacher"}
    assert ours["seed"] == seed
    assert ours["data"]["split_seed"] == 0


def test_all_seeds_share_the_first_ones_split_unless_another_is_set():
    assert comparison(seeds=[5, 6]).resolved().run_config("kd", 6).data.split_seed == 5
    shared = SHARED | {"data": {"split_seed": 3}}
    assert comparison(shared=shared).resolved().run_config("kd", 1).data.split_seed == 3


def test_the_seed_and_method_of_what_is_shared_do_not_count():
    shared = SHARED | {"seed": 7, "method": {"name": "ce", "label_smoothing": 0.1}}
    assert comparison(shared=shared).resolved() == comparison().resolved()


def test_a_teacher_that_is_trained_lies_where_it_is_told():
    config = comparison(teacher=None, teacher_training=SHARED | {"student": {"name": "digits_cnn"}})
    assert config.run_config("kd", 0, teacher_run="here").teacher.run == "here"
    assert config.run_config("ce", 0, teacher_run="here").teacher is None


def test_a_teacher_is_judged_by_its_scores_where_a_row_reads_them():
    assert comparison(["kd", "foundation"]).reads_teacher_scores
    assert not comparison(["foundation"]).reads_teacher_scores
    assert not CompareConfig.read({"shared": SHARED}).reads_teacher_scores


def test_a_row_may_have_its_own_optimiser_and_tuning_comes_last():
    rows = {"kd": {"method": {"name": "kd", "temperature": 2}, "changes": {"optim.lr": 0.1}}}
    config = comparison(contenders=rows)
    run = config.run_config("kd", 0, tuned={"optim.lr": 0.3, "method.kd_weight": 1.5})
    assert run.optim.lr == 0.3
    assert (run.method_config.temperature, run.method_config.kd_weight) == (2, 1.5)
    assert config.run_config("ce", 0).optim.lr == 0.05
    assert config.contenders["kd"].chosen() == {"method.temperature": 2.0, "optim.lr": 0.1}


@pytest.mark.parametrize("name", ["schedule.epochs", "train.batch_size", "data.fraction", "seed"])
def test_no_method_gets_another_budget(name):
    with pytest.raises(SettingsError, match="must be the same for all"):
        Contender.read({"method": {"name": "kd"}, "changes": {name: 2}})


def test_a_reference_may_have_other_data_and_no_other_teacher():
    row = {"role": "reference", "method": {"name": "ce"}, "changes": {"data.num_labels": 50}}
    config = comparison(contenders={"few": row})
    assert config.run_config("few", 0).data.num_labels == 50
    with pytest.raises(SettingsError, match="may not touch teacher"):
        Contender.read(row | {"changes": {"teacher.run": "x"}})


BAD = {
    "seed twice": ({"seeds": [0, 1, 0]}, r"seeds \[0\] are there twice"),
    "no seed": ({"seeds": []}, "at least 1 item"),
    "unknown method": ({"methods": ["kdd"]}, "did you mean 'kd'"),
    "no teacher": ({"teacher": None}, "kd: method 'kd' needs a teacher"),
    "two teachers": ({"teacher_training": SHARED}, "not both"),
    "label as path": (
        {"contenders": {"../kd": {"method": {"name": "kd"}}}},
        "name folders|folders",
    ),
    "labels by case": (
        {"contenders": {"KD": {"method": {"name": "kd"}}, "kd": {"method": {"name": "kd"}}}},
        "upper and lower case",
    ),
    "two baselines": (
        {"contenders": {"b": {"role": "baseline", "method": {"name": "ce"}}}},
        "'ce' and no other is the baseline",
    ),
    "taught baseline": (
        {"contenders": {"ce": {"role": "baseline", "method": {"name": "kd"}}}},
        "learns without a teacher",
    ),
    "tuned and judged by one seed": ({"tuning": {"trials": 2, "seed": 1}}, "is one of the seeds"),
    "unknown field": ({"sedds": [1]}, "did you mean 'seeds'"),
}


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_compared_is_refused_before_anything_runs(fields, message):
    with pytest.raises(SettingsError, match=message):
        comparison(**fields)


# -- going on with a comparison ------------------------------------------------------------------


def test_further_seeds_and_rows_may_join():
    then = comparison(["kd"], seeds=[0]).resolved()
    now = comparison(["kd", "rkd"], seeds=[0, 1, 2]).resolved()
    assert settings_differences(then, now) == []


def test_seeds_and_rows_may_not_leave():
    then = comparison(["kd", "rkd"], seeds=[0, 1]).resolved()
    now = comparison(["kd"], seeds=[0]).resolved()
    assert settings_differences(then, now) == ["seeds (1 left out)", "contenders (rkd left out)"]


def test_every_other_setting_is_named_with_both_values():
    then = comparison().resolved()
    shared = SHARED | {"optim": {"lr": 0.1}, "train": {"batch_size": 32}}
    rows = {"kd": {"method": {"name": "kd", "temperature": 2}}, "rkd": {"method": {"name": "rkd"}}}
    now = comparison(shared=shared, contenders=rows).resolved()
    assert settings_differences(then, now) == [
        "contenders.kd.method.temperature (4.0 then, 2.0 now)",
        "shared.optim.lr (0.05 then, 0.1 now)",
        "shared.train.batch_size (64 then, 32 now)",
    ]


def test_places_and_machines_are_no_settings():
    """What lies there is known by its hash."""
    then = comparison(threads=2).resolved()
    machine = SHARED | {"train": {"device": "cpu", "workers": 2, "checkpoint_seconds": 5}}
    now = comparison(shared=machine, teacher={"run": "elsewhere/teacher"}).resolved()
    assert settings_differences(then, now) == []
    one, other = (config.run_config("kd", 0) for config in (then, now))
    assert run_differences(one, other) == []


def test_of_several_teachers_each_is_compared_by_its_place_in_the_list():
    several = [{"run": "a"}, {"run": "b"}]
    rows = {"contenders": {"kd": {"method": {"name": "kd"}}}}
    then = comparison(**rows, teacher=several).resolved()
    moved = [{"run": "elsewhere/a"}, {"run": "elsewhere/b"}]
    assert settings_differences(then, comparison(**rows, teacher=moved).resolved()) == []
    sized = [{"run": "a"}, {"run": "b", "img_size": 16}]
    resized = comparison(**rows, teacher=sized).resolved()
    assert settings_differences(then, resized) == ["teacher.members.1.img_size (null then, 16 now)"]
    assert [one.run for one in then.run_config("kd", 0).teacher.members] == ["a", "b"]


def test_the_number_of_threads_is_one():
    differences = settings_differences(comparison(threads=2), comparison(threads=1))
    assert differences == ["threads (2 then, 1 now)"]


def test_a_row_with_assistants_has_the_teacher_and_peers_have_none():
    rows = {
        "takd": {"method": {"name": "takd", "assistants": ["resnet20"]}},
        "dml": {"method": {"name": "dml"}},
    }
    config = comparison(contenders=rows)
    assert config.run_config("takd", 0).teacher.run == "teacher"
    assert config.run_config("dml", 0).teacher is None
    assert config.contenders["takd"].chosen() == {"method.assistants": [{"model": "resnet20"}]}
    assert config.contenders["dml"].chosen() == {}


def test_a_row_without_its_assistants_is_refused_by_its_label():
    with pytest.raises(SettingsError, match=r"takd: .*needs assistants: "):
        comparison(["kd", "takd"])
