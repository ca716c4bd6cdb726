import json
import re

import pytest

from limbeck.cli.options import OPTIONS, collect_settings, typed_models
from limbeck.core.errors import SettingsError
from limbeck.runs.config import RunConfig

BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}
# Flags of a setting that few methods have.
OF_METHODS = {
    "method.assistants": {"method": {"name": "takd", "assistants": ["x"]}},
    "method.peers": {"method": {"name": "dml"}, "teacher": None},
}
REQUIRED = {"student": {"name": "digits_cnn"}, "teacher": {"run": "teacher"}}


def collected(*given, config=None, overrides=(), teacher=True):
    """Settings from pairs of flag and value."""
    options = {BY_FLAG[flag]: value for flag, value in given}
    return collect_settings(options, config=config, overrides=overrides, teacher=teacher)


def field(values, path):
    for part in path.split("."):
        values = values[part]
    return values


def test_no_flag_is_given_twice():
    flags = [flag for option in OPTIONS for flag in option.flags]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flags[0])
def test_every_flag_sets_a_setting_that_there_is(option):
    value = {int: "2", float: "0.5", str: "x", bool: True}[option.kind]
    values = collected((option.flags[0], "2,3" if option.many else value))
    expected = option.value or ([option.kind(2), option.kind(3)] if option.many else value)
    path = "teacher.run" if option.path == "teacher" else option.path
    assert field(values, path) == expected
    required = REQUIRED | OF_METHODS.get(path, {})
    field(RunConfig.read(required).plain(), path)  # KeyError if there is none


@pytest.mark.parametrize(
    "option", [o for o in OPTIONS if "[default: " in o.help], ids=lambda option: option.flags[0]
)
def test_the_help_names_the_default_that_holds(option):
    named = re.search(r"\[default: (.*)\]", option.help)[1]
    default = field(RunConfig.read(REQUIRED).plain(), option.path)
    assert named == str(default)


def test_flags_have_the_names_of_timms_training_script():
    shared = (
        *("--model", "--initial-checkpoint", "--img-size", "--in-chans", "--batch-size", "-b"),
        *("--validation-batch-size", "--channels-last", "--grad-accum-steps", "--torchcompile"),
        *("--device", "--amp", "--amp-dtype", "--opt", "--momentum", "--weight-decay"),
        *("--clip-grad", "--sched", "--lr", "--epochs", "--decay-milestones", "--decay-epochs"),
        *("--warmup-epochs", "--decay-rate", "--hflip", "--smoothing", "--model-ema-decay"),
        *("--seed", "--workers", "-j", "--checkpoint-hist", "--kd-model-name"),
        *("--kd-temperature", "--dataset", "--data-dir"),
    )
    assert set(shared) <= set(BY_FLAG)


def test_overrides_go_before_flags_and_flags_before_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"optim": {"lr": 1.0, "momentum": 0.1}, "seed": 3}))
    values = collected(("--lr", "2"), ("--momentum", "0.2"), config=path, overrides=["optim.lr=3"])
    assert values["optim"] == {"lr": 3, "momentum": "0.2"}
    assert values["seed"] == 3


def test_a_method_of_another_name_takes_only_what_all_methods_have(tmp_path):
    path = tmp_path / "config.json"
    method = {"name": "kd", "temperature": 3.0, "label_smoothing": 0.1}
    path.write_text(json.dumps({"method": method}))
    assert collected(config=path)["method"] == method
    same = collected(("--method", "kd"), config=path)
    assert same["method"] == method
    for changed in (
        collected(("--method", "rkd"), config=path),
        collected(config=path, overrides=["method.name=rkd"]),
    ):
        assert changed["method"] == {"name": "rkd", "label_smoothing": 0.1}


def test_a_combinations_settings_are_set_by_its_methods_names(tmp_path):
    wanted = {"name": "kd+at", "kd": {"temperature": 2}, "at": {"p": 1}}
    overrides = ["kd.temperature=2", "method.at.p=1", "optim.lr=1"]
    values = collected(("--method", "kd+at"), overrides=overrides)
    assert values["method"] == wanted
    assert values["optim"] == {"lr": 1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"method": {"name": "kd+at"}}))
    assert collected(config=path, overrides=overrides)["method"] == wanted
    # To a single method this is a setting of the run, which there is not.
    assert collected(("--method", "kd"), overrides=["kd.temperature=2"])["method"] == {"name": "kd"}


def test_a_distilled_runs_file_gives_train_its_matched_baseline(tmp_path, runs):
    path = runs / "student" / "config.json"
    distilled = RunConfig.read(json.loads(path.read_text()))
    baseline = RunConfig.read(collected(config=path, teacher=False))
    assert baseline.method_name == "ce"
    assert baseline.teacher is None
    for part in ("seed", "data", "student", "optim", "schedule", "train"):
        assert getattr(baseline, part) == getattr(distilled, part)


def test_the_default_method_is_kd():
    assert collected()["method"] == {"name": "kd"}
    assert collected(("--kd-temperature", "2"))["method"] == {"name": "kd", "temperature": "2"}


def test_a_teacher_is_a_run_unless_its_weights_are_given():
    assert collected(("--teacher", "a"))["teacher"] == {"run": "a"}
    weights = ("--teacher-checkpoint", "b")
    assert collected(("--teacher", "a"), weights)["teacher"] == {"name": "a", "checkpoint": "b"}


@pytest.mark.parametrize(
    ("given", "members"),
    [
        ((("--teacher", ["a", "b"]),), [{"run": "a"}, {"run": "b"}]),
        ((("--teacher", ["a", "timm/b"]),), [{"run": "a"}, {"name": "timm/b"}]),
        (
            (("--teacher", ["a", "b"]), ("--teacher-checkpoint", ["c", "d"])),
            [{"name": "a", "checkpoint": "c"}, {"name": "b", "checkpoint": "d"}],
        ),
        (
            (("--teacher", ["a", "b"]), ("--teacher-pretrained", True)),
            [{"name": "a", "pretrained": True}, {"name": "b", "pretrained": True}],
        ),
        ((("--teacher-cache", ["c", "d"]),), [{"cache": "c"}, {"cache": "d"}]),
        (
            (("--teacher", ["a", "b"]), ("--teacher-cache", ["c", "d"])),
            [{"run": "a", "cache": "c"}, {"run": "b", "cache": "d"}],
        ),
    ],
)
def test_a_repeated_teacher_is_several(given, members):
    assert collected(*given)["teacher"] == {"members": members}


def test_one_teacher_is_one_however_it_is_given():
    assert collected(("--teacher", ["a"]))["teacher"] == {"run": "a"}
    weights = ("--teacher-checkpoint", ["b"])
    assert collected(("--teacher", ["a"]), weights)["teacher"] == {"name": "a", "checkpoint": "b"}


@pytest.mark.parametrize(("teachers", "weights"), [(["a", "b"], ["c"]), (["a"], ["c", "d"])])
def test_teachers_and_checkpoints_go_in_pairs(teachers, weights):
    counts = rf"got {len(teachers)} teachers and {len(weights)} checkpoints"
    with pytest.raises(SettingsError, match=counts):
        collected(("--teacher", teachers), ("--teacher-checkpoint", weights))


def test_teachers_and_caches_go_in_pairs():
    with pytest.raises(SettingsError, match="got 2 teachers and 3 caches"):
        collected(("--teacher", ["a", "b"]), ("--teacher-cache", ["c", "d", "e"]))


def test_several_teachers_on_the_command_line_replace_those_of_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"teacher": [{"run": "a"}, {"run": "b"}]}))
    assert collected(config=path)["teacher"] == [{"run": "a"}, {"run": "b"}]
    several = collected(("--teacher", ["c", "d"]), config=path)
    assert several["teacher"] == {"members": [{"run": "c"}, {"run": "d"}]}
    assert collected(("--teacher", ["c"]), config=path)["teacher"] == {"run": "c"}


def test_models_of_several_teachers_are_typed():
    options = {
        BY_FLAG["--teacher"]: ["a.py:f", "b.py:g"],
        BY_FLAG["--teacher-checkpoint"]: ["c", "d"],
    }
    assert typed_models(options, []) == ["a.py:f", "b.py:g"]


def test_models_of_the_command_line_alone_are_typed(tmp_path):
    options = {
        BY_FLAG["--student"]: "a.py:f",
        BY_FLAG["--teacher"]: "b.py:g",
        BY_FLAG["--teacher-checkpoint"]: "c",
        BY_FLAG["--data-dir"]: "d.py:h",
    }
    assert typed_models(options, []) == ["a.py:f", "b.py:g"]
    assert typed_models({}, ["student.name=a.py:f", "seed=1"]) == ["a.py:f"]
    assert typed_models({BY_FLAG["--teacher"]: "run"}, []) == []


def test_models_in_a_list_are_typed_as_well():
    options = {BY_FLAG["--assistants"]: "a.py:f,resnet20", BY_FLAG["--peers"]: "b.py:g"}
    assert typed_models(options, []) == ["a.py:f", "resnet20", "b.py:g"]
    assert typed_models({}, ['method.assistants=["a.py:f"]']) == ["a.py:f"]
