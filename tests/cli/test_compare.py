import csv
import json
import os
import signal

import pytest

from limbeck.cli import compare as module
from limbeck.cli.compare import collect_comparison, seed_list
from limbeck.cli.options import OPTIONS
from limbeck.core.errors import SettingsError, UnknownNameError
from limbeck.reports.compared import read_comparison
from limbeck.runs.compare import CompareConfig
from limbeck.runs.summary import read_summary

TINY = ("--student", "digits_cnn_tiny", "--threads", "1")


@pytest.fixture
def command(quick, runs):
    """A comparison of two seeds of KD, of a second a run."""
    return (
        "compare",
        *TINY,
        "--teacher",
        runs / "teacher",
        "--methods",
        "kd",
        "--seeds",
        "2",
        *quick,
    )


@pytest.fixture
def collect(tmp_path):
    """Settings from flags as the command line collects them."""

    def make(*, output=tmp_path / "new", config=None, methods="kd", **flags):
        options = {o: flags[o.parameter] for o in OPTIONS if o.parameter in flags}
        own = {
            "overrides": (),
            "method_sets": (),
            "seeds": None,
            "teacher_model": None,
            "independent_teacher": None,
            "tune": None,
            "threads": None,
        }
        own |= {name: flags[name] for name in own if name in flags}
        return collect_comparison(options, output=output, config=config, methods=methods, **own)

    return make


def test_methods_are_compared_and_the_table_says_what_the_runs_found(limbeck, command, tmp_path):
    out = tmp_path / "[red] c"
    answer = limbeck(*command, "--output", out)
    assert answer.code == 0, answer.err
    compared = read_comparison(out)
    assert [row.label for row in compared.rows] == ["ce", "kd"]
    for label in ("ce", "kd"):
        for seed in (0, 1):
            top1 = read_summary(out / "runs" / f"{label}-seed{seed}").test.last["top1"]
            assert f"{top1:.2%}" in answer.out
            assert f"{100 * top1:.1f}" in answer.out
    for remark in compared.remarks():
        assert remark in answer.out
    assert "[red] c" in answer.out.splitlines()[-1]
    assert answer.out.splitlines()[-1] == f"Report: {out / 'report.html'}"
    for name in ("comparison.csv", "comparison.md", "comparison.png", "runs.csv", "report.html"):
        assert (out / name).exists()
        assert name in answer.out


def test_the_same_command_makes_nothing_again_and_more_seeds_make_those_alone(
    limbeck, command, tmp_path
):
    assert limbeck(*command, "--output", tmp_path / "c", "--quiet") == (0, "", "")
    again = limbeck(*command, "--output", tmp_path / "c", "--json")
    events = [json.loads(line)["event"] for line in again.out.splitlines()]
    assert events == ["comparison"]
    more = limbeck("compare", "--output", tmp_path / "c", "--seeds", "3", "--json")
    lines = [json.loads(line) for line in more.out.splitlines()]
    assert [line["task"] for line in lines if line["event"] == "finished"] == [
        "ce-seed2",
        "kd-seed2",
    ]
    assert lines[-1]["rows"][1]["test_top1"].keys() == {"0", "1", "2"}


def test_another_setting_is_refused_by_name(limbeck, command, tmp_path):
    assert limbeck(*command, "--output", tmp_path / "c", "--quiet").code == 0
    answer = limbeck("compare", "--output", tmp_path / "c", "--lr", "0.2")
    assert answer.code == 2
    assert "shared.optim.lr (0.05 then, 0.2 now)" in answer.err


def test_a_dry_run_prints_the_plan_and_writes_nothing(limbeck, command, tmp_path):
    answer = limbeck(*command, "--output", tmp_path / "c", "--dry-run")
    assert answer.code == 0, answer.err
    assert list(tmp_path.iterdir()) == []
    assert "4 runs to make: about" in answer.out
    assert "nothing stays behind" in answer.out
    assert ("Energy cannot be metered" in answer.out) or ("kWh" in answer.out)
    found = json.loads(limbeck(*command, "--output", tmp_path / "c", "--dry-run", "--json").out)
    assert found["runs"] == 4
    assert [row["label"] for row in found["rows"]] == ["ce", "kd"]
    assert found["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_comparison_is_resumed_to_its_end(limbeck, command, tmp_path, monkeypatch):
    out = tmp_path / "c"
    with monkeypatch.context() as patch:
        patch.setattr(
            module.SilentObserver,
            "epoch",
            lambda self, row: os.kill(os.getpid(), signal.SIGTERM),
        )
        answer = limbeck(*command, "--output", out)
    assert answer.code == 143
    assert f"continue with: limbeck resume {out}" in answer.err
    resumed = limbeck("resume", out)
    assert resumed.code == 0, resumed.err
    assert read_comparison(out).num_missing == 0


def test_a_failed_run_is_told_and_the_exit_code_says_so(limbeck, command, tmp_path):
    rows = ("--methods", "kd,rkd", "--set", 'contenders.rkd.changes={"optim.lr": 1e30}')
    answer = limbeck(*command, *rows, "--output", tmp_path / "c")
    assert answer.code == 2
    assert "2 of 6 runs failed" in answer.err
    assert "rkd, seed 0, failed: NonFiniteError" in answer.out
    with (tmp_path / "c" / "comparison.csv").open(newline="") as file:
        found = {row["row"]: row["num_seeds"] for row in csv.DictReader(file)}
    assert found == {"ce": "2", "kd": "2", "rkd": "0"}


def test_one_seed_is_a_table_without_intervals_and_says_so(limbeck, command, tmp_path):
    answer = limbeck(*command, "--seeds", "7,", "--output", tmp_path / "c")
    assert answer.code == 0
    assert "One seed: there are no intervals" in answer.out
    assert "interval 9" not in answer.out


@pytest.mark.parametrize(
    "title",
    ["<script>alert(1)</script>", '"><img onerror=1>', "$x_1$", "[red]", "=1+1", "\u202eab"],
)
def test_hostile_titles_are_text_everywhere(limbeck, command, tmp_path, title):
    named = ("--set", f"contenders.kd.title={json.dumps(title)}")
    answer = limbeck(*command, *named, "--seeds", "1", "--output", tmp_path / "c")
    assert answer.code == 0, answer.err
    assert all(char.isprintable() or char == "\n" for char in answer.out)
    with (tmp_path / "c" / "comparison.csv").open(newline="") as file:
        label = list(csv.DictReader(file))[1]["label"]
    assert label == (f"'{title}" if title.startswith("=") else title)


def test_tuning_gives_every_row_as_many_trials_and_says_so(limbeck, command, tmp_path):
    answer = limbeck(*command, "--seeds", "1", "--tune", "2", "--output", tmp_path / "c")
    assert answer.code == 0, answer.err
    assert answer.out.count("on validation, 2 trials") == 2
    with (tmp_path / "c" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["tuning_trials"] for row in rows] == ["2", "2"]
    assert all("optim.lr" in row["tuning_space"] for row in rows)
    assert all(float(row["tuning_seconds"]) > 0 for row in rows)


# -- flags -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("0,3,7", [0, 3, 7]), ("7,", [7]), ("1", [0])]
)
def test_seeds_are_a_count_or_a_list(text, seeds):
    assert seed_list(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-2", "many", "1.5", ",", "0,x"])
def test_other_seeds_are_refused(text):
    with pytest.raises(SettingsError, match="--seeds takes"):
        seed_list(text)


def test_flags_go_to_what_all_runs_share(collect):
    values = collect(student="resnet8", lr="0.1", epochs="12", overrides=["data.fraction=0.5"])
    assert values["shared"]["optim"] == {"lr": "0.1"}
    assert values["shared"]["data"] == {"fraction": 0.5}
    assert values["contenders"].keys() == {"ce", "kd"}


def test_the_comparisons_own_settings_are_set_by_their_names(collect):
    values = collect(overrides=["tuning.trials=3", "contenders.kd.title=KD, T = 4"])
    assert values["tuning"] == {"trials": 3}
    assert values["contenders"]["kd"]["title"] == "KD, T = 4"


def test_a_method_may_come_twice_under_two_labels(collect):
    values = collect(methods="kd,hot=kd", method_sets=["hot.temperature=8"])
    assert values["contenders"]["hot"]["method"] == {"name": "kd", "temperature": 8}
    assert values["contenders"]["kd"]["method"] == {"name": "kd"}


def test_what_every_method_has_is_set_for_all_and_a_temperature_where_there_is_one(collect):
    values = collect(methods="kd,rkd", smoothing="0.1", kd_temperature="2")
    methods = {label: row["method"] for label, row in values["contenders"].items()}
    assert {method["label_smoothing"] for method in methods.values()} == {"0.1"}
    assert methods["kd"]["temperature"] == "2"
    assert "temperature" not in methods["rkd"]


def test_a_combination_is_a_row_under_a_label_that_a_folder_can_have(collect):
    values = collect(
        methods="kd,kd+at,both=kd+rkd",
        method_sets=["kd+at.kd.temperature=2", "kd-at.at.p=1", "both.rkd.angle_weight=3"],
        smoothing="0.1",
        student="digits_cnn_tiny",
        teacher="runs/t",
        epochs="4",
        sched="cosine",
    )
    assert list(values["contenders"]) == ["ce", "kd", "kd-at", "both"]
    row = CompareConfig.read(values).contenders["kd-at"]
    assert (row.title, row.name) == ("kd+at", "kd+at")
    assert row.chosen() == {
        "method.label_smoothing": 0.1,
        "method.kd.temperature": 2.0,
        "method.at.p": 1.0,
    }
    assert CompareConfig.read(values).contenders["both"].title is None


def test_a_teacher_is_trained_by_the_same_recipe_where_none_is_given(collect):
    flags = {"student": "digits_cnn_tiny", "epochs": "4", "sched": "cosine"}
    values = collect(teacher_model="digits_cnn", seeds="5,6", **flags)
    config = CompareConfig.read(values).resolved()
    training = config.teacher_training
    assert training.student.name == "digits_cnn"
    assert training.seed == training.data.split_seed == 5
    assert training.schedule == config.shared.schedule
    given = collect(teacher_model="net.py:f", teacher="runs/t", **flags)
    assert given.get("teacher_training") is None
    assert given["teacher"] == {"run": "runs/t"}


@pytest.mark.parametrize("form", ["comparison", "settings", "run"])
def test_settings_may_come_from_any_file_that_holds_some(collect, tmp_path, form, runs):
    first = CompareConfig.read(collect(student="resnet8", teacher="t", seeds="4,5")).plain()
    run = json.loads((runs / "student" / "config.json").read_text())
    content = {"comparison": {"settings": first}, "settings": first, "run": run}[form]
    file = tmp_path / "file.json"
    file.write_text(json.dumps(content))
    values = collect(config=file, methods=None, lr="0.3")
    assert list(values["contenders"]) == ["ce", "kd"] or form == "run"
    assert values["contenders"].keys() == {"ce", "kd"}
    assert values["shared"]["optim"]["lr"] == "0.3"
    assert CompareConfig.read(values).teacher is not None


def test_assistants_and_peers_go_to_the_rows_that_take_them(collect):
    values = collect(methods="kd,takd,dml", assistants="digits_cnn", peers="resnet8", teacher="t")
    methods = {label: row["method"] for label, row in values["contenders"].items()}
    assert methods["kd"] == {"name": "kd"}
    assert methods["takd"] == {"name": "takd", "assistants": ["digits_cnn"]}
    assert methods["dml"] == {"name": "dml", "peers": ["resnet8"]}


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"assistants": "resnet8"}, SettingsError, "no row of the comparison takes assistants"),
        ({"peers": "resnet8"}, SettingsError, "no row of the comparison takes peers"),
        ({"methods": None}, SettingsError, "--methods kd,fitnet,rkd"),
        ({"methods": "kdd"}, UnknownNameError, "did you mean 'kd'"),
        ({"methods": "kd,kd"}, SettingsError, "names 'kd' twice"),
        ({"methods": "kd+simkd"}, SettingsError, "simkd cannot be combined"),
        ({"overrides": ["seed=3"]}, SettingsError, "--seeds 0,3,7"),
        ({"overrides": ["method.temperature_x=3"]}, SettingsError, "--method-set"),
        ({"method_sets": ["rkd.ce_weight=1"]}, UnknownNameError, "row of the comparison"),
        ({"method_sets": ["kd=1"]}, SettingsError, "LABEL.SETTING=VALUE"),
    ],
    ids=str,
)
def test_flags_that_mean_nothing_are_answered(collect, flags, error, message):
    with pytest.raises(error, match=message):
        collect(**flags)
