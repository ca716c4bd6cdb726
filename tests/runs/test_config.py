import json

import pytest

from limbeck.core.errors import SettingsError
from limbeck.methods import METHODS
from limbeck.methods.base import MethodEntry, Stage
from limbeck.methods.ce import CE, CEConfig
from limbeck.runs.config import RunConfig, StudentConfig, TeacherConfig

STUDENT = StudentConfig(name="digits_cnn_tiny")
TEACHER = TeacherConfig(run="runs/teacher")


def config(**fields):
    return RunConfig(**{"student": STUDENT, "teacher": TEACHER, **fields})


def test_a_run_comes_back_from_its_json():
    first = config(method={"name": "kd", "temperature": 2}, seed=7)
    again = RunConfig.read(json.loads(json.dumps(first.plain())))
    assert again == first
    assert again.hash() == first.hash()


def test_the_methods_defaults_are_written_out():
    method = config().method
    assert method["name"] == "kd"
    assert (method["temperature"], method["ce_weight"], method["kd_weight"]) == (4.0, 0.1, 0.9)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"name": "kdd"}, "did you mean 'kd'"),
        ({"name": "kd", "temprature": 2}, "did you mean 'temperature'"),
        ({"name": "kd", "temperature": -1}, "temperature: .* greater than 0"),
        ({"temperature": 2}, "needs the method's name"),
    ],
)
def test_a_wrong_method_is_answered_with_what_is_right(method, expected):
    with pytest.raises(SettingsError, match=expected):
        config(method=method)


def test_a_teacher_is_there_exactly_if_the_method_has_one():
    with pytest.raises(SettingsError, match=r"'kd' needs a teacher \(--teacher\)"):
        config(teacher=None)
    with pytest.raises(SettingsError, match="'ce' uses no teacher"):
        config(method={"name": "ce"})


def test_a_teacher_is_a_run_or_a_model_with_weights():
    with pytest.raises(SettingsError, match="either run, or name and checkpoint"):
        TeacherConfig()
    with pytest.raises(SettingsError, match="either run, or name and checkpoint"):
        TeacherConfig(run="a", name="resnet20")
    with pytest.raises(SettingsError, match="a random teacher teaches nothing"):
        TeacherConfig(name="resnet20")
    assert TeacherConfig(name="python:Net").checkpoint is None


SEVERAL = [{"run": "a"}, {"name": "resnet20", "checkpoint": "b"}]


def test_several_teachers_are_a_list_and_come_back_from_json():
    first = config(teacher=SEVERAL)
    named = [one.run or one.name for one in first.teacher.members]
    assert named == ["a", "resnet20"]
    assert RunConfig.read(json.loads(json.dumps(first.plain()))) == first
    assert config(teacher={"members": SEVERAL}) == first
    assert config(teacher=[TeacherConfig(**one) for one in SEVERAL]) == first
    assert first.hash() != config(teacher=SEVERAL[::-1]).hash()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ([{"run": "a"}], "two at least, got one; give it without a list"),
        ([], "either run, or name and checkpoint"),
        ([SEVERAL, SEVERAL], "a member is one teacher"),
        ({"members": SEVERAL, "run": "c"}, "run cannot be for several teachers at once"),
        ({"members": SEVERAL, "img_size": 8}, "img_size cannot be for several teachers at once"),
        ([{"run": "a"}, {"name": "resnet20"}], r"members.1: .*random teacher teaches nothing"),
        ([{"run": "a"}, {"rum": "b"}], r"members.1.rum: .*did you mean 'run'"),
    ],
)
def test_several_teachers_are_two_and_each_has_its_own_fields(teacher, message):
    with pytest.raises(SettingsError, match=message):
        config(teacher=teacher)


@pytest.mark.parametrize("method", ["fitnet", "at", "rkd", "simkd", "wkd_logit"])
def test_a_method_of_one_teachers_layers_refuses_several_by_its_name(method):
    with pytest.raises(SettingsError, match=f"method '{method}' reads layers of one teacher"):
        config(method={"name": method}, teacher=SEVERAL, schedule={"epochs": 2, "sched": "cosine"})


@pytest.mark.parametrize(
    "method",
    [
        {"name": name, **({"cost": "logits"} if "cost" in entry.config.model_fields else {})}
        for name, entry in METHODS.items()
        if entry.family == "output" and name != "dml"  # which has no teacher
    ],
    ids=lambda method: method["name"],
)
def test_a_method_that_reads_outputs_takes_several(method):
    if METHODS[method["name"]].required:
        method = method | {"assistants": ["digits_cnn"]}
    stages = config(method=method, teacher=SEVERAL).stages()
    assert all(stage.method.needs(stage.config).teacher for stage in stages)


def test_each_stage_has_at_least_one_epoch():
    with pytest.raises(SettingsError, match="2 stages and needs at least as many epochs; got 1"):
        config(method={"name": "fitnet"}, schedule={"epochs": 1, "sched": "cosine"})


SHARES = [(1.0,), (0.125, 0.875), (0.5, 0.5), (0.9, 0.1), (0.98, 0.01, 0.01), (0.01, 0.01, 0.98)]


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("epochs", [3, 4, 10, 241])
def test_stages_share_all_epochs_and_none_is_empty(monkeypatch, shares, epochs):
    stages = tuple(
        Stage(name=str(place), method=CE, config=CEConfig(), share=share)
        for place, share in enumerate(shares)
    )
    row = MethodEntry(family="none", config=CEConfig, stages=lambda config: stages, card="")
    monkeypatch.setattr("limbeck.methods.METHODS", {"plan": row})
    run = RunConfig(
        student=STUDENT, method={"name": "plan"}, schedule={"epochs": epochs, "sched": "cosine"}
    )
    found = run.stage_epochs()
    assert sum(found) == epochs
    assert min(found) >= 1
    if epochs == 241:  # long enough for the shares to be met within an epoch
        assert all(
            abs(count - share * epochs) <= 1 for count, share in zip(found, shares, strict=True)
        )


@pytest.mark.parametrize("epochs", [1, 5, 241])
def test_stages_with_networks_of_their_own_have_epochs_of_their_own(epochs):
    """And take none from those of the run's student."""
    schedule = {"epochs": epochs, "sched": "cosine"}
    chain = {"name": "dgkd", "assistants": ["resnet56", {"run": "a"}, "resnet20"]}
    run = config(method=chain, schedule=schedule)
    assert run.stage_epochs() == (epochs, 0, epochs, epochs)
    run = config(method=chain | {"assistant_epochs": 7}, schedule=schedule)
    assert run.stage_epochs() == (7, 0, 7, epochs)
    generations = config(method={"name": "born_again", "generations": 4}, schedule=schedule)
    assert generations.stage_epochs() == (epochs,) * 4


def test_a_network_given_by_its_folder_is_told_from_one_given_by_name(tmp_path, monkeypatch):
    (tmp_path / "trained").mkdir()
    monkeypatch.chdir(tmp_path)
    run = config(method={"name": "takd", "assistants": ["trained", "resnet20", "timm/x", ""]})
    assert run.method["assistants"] == [
        {"run": "trained"},
        {"model": "resnet20"},
        {"model": "timm/x"},
        {"model": ""},
    ]
    # What is written down does not depend on folders any more.
    monkeypatch.chdir("/")
    assert RunConfig.read(json.loads(json.dumps(run.plain()))) == run


def test_every_method_of_the_table_makes_a_run():
    for name, entry in METHODS.items():
        given = {key: ["resnet20"] for key in entry.required}
        needed = entry.stages(entry.config())[0].method.needs(entry.config()).teacher
        run = config(method={"name": name, **given}, teacher=TEACHER if needed else None)
        assert run.method_config == entry.config(**given)


SAME = [
    {"device": "cuda"},
    {"workers": 3},
    {"checkpoint_steps": 5},
    {"checkpoint_seconds": 1.0},
    {"checkpoint_hist": 1},
]


@pytest.mark.parametrize("train", SAME, ids=str)
def test_the_hash_is_of_what_changes_the_result(train):
    assert config(train=train).hash() == config().hash()


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"optim": {"lr": 0.01}},
        {"train": {"batch_size": 32}},
        {"train": {"amp_dtype": "bfloat16"}},
        {"method": {"name": "kd", "temperature": 5}},
        {"data": {"val_fraction": 0.2}},
        {"teacher": {"run": "runs/other"}},
    ],
    ids=str,
)
def test_the_hash_changes_with_every_setting_of_the_result(fields):
    assert config(**fields).hash() != config().hash()


@pytest.mark.parametrize("name", [n for n, entry in METHODS.items() if entry.family == "feature"])
def test_a_method_of_features_does_not_learn_from_stored_logits(name):
    message = f"method '{name}' reads its teacher's features .*; give the teacher itself"
    with pytest.raises(SettingsError, match=message):
        config(method={"name": name}, teacher=TeacherConfig(cache="runs/cache"))
