import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.cli.observer import JsonObserver
from limbeck.runs.summary import read_summary

TINY = ("--student", "digits_cnn_tiny")


def events(text):
    """JSON lines by their event."""
    found = {}
    for line in text.splitlines():
        value = json.loads(line)
        found.setdefault(value["event"], []).append(value)
    return found


def test_a_run_says_what_its_summary_holds(limbeck, tmp_path, quick):
    out = tmp_path / "[red] run"
    answer = limbeck("train", *TINY, "--output", out, *quick)
    assert answer.code == 0
    summary = read_summary(out)
    assert f"top-1 {summary.test.last['top1']:7.2%}" in answer.out
    assert f"{summary.num_parameters:,} parameters" in answer.out
    assert answer.out.splitlines()[0] == "ce: digits_cnn_tiny, seed 0"
    assert answer.out.splitlines()[-1].strip() == str(out)
    assert answer.err.startswith("train  epoch 1/1  loss ")


def test_what_an_embedding_is_worth_is_printed_beside_its_beginning(limbeck, tmp_path, runs, quick):
    """And where class scores were not taught, nobody is judged by the teacher's."""
    flags = ("--student", "digits_cnn_tiny", "--teacher", runs / "teacher", *quick)
    folder = tmp_path / "run"
    answer = limbeck("distill", "--method", "foundation", *flags, "--output", folder)
    assert answer.code == 0
    found = read_summary(folder).embedding
    for name, title in (("last", ""), ("before", ", before training"), ("teacher", ", teacher")):
        scores = found[name]["test"]
        line = f"  {f'embedding, test{title}':<33} linear probe {scores['linear_top1']:7.2%}"
        assert f"{line}   nearest neighbours {scores['knn_top1']:7.2%}" in answer.out
    assert "class scores are not taught" in answer.err
    judged = json.loads(limbeck("eval", folder, "--json").out)
    assert judged.keys() == {"split", "notice", "student"}


def test_a_run_of_several_teachers_says_how_good_each_is(limbeck, tmp_path, quick, runs):
    second = tmp_path / "second"
    assert limbeck("train", *TINY, "--seed", 1, "--output", second, *quick).code == 0
    several = ("--teacher", runs / "teacher", "--teacher", second)
    out = tmp_path / "run"
    command = ("distill", "--method", "multi_teacher", *several, *TINY, "--output", out, *quick)
    answer = limbeck(*command)
    assert answer.code == 0, answer.err
    summary = read_summary(out)
    assert answer.out.splitlines()[0].endswith(
        "taught by digits_cnn_tiny + digits_cnn_tiny, seed 0"
    )
    for number, teacher in enumerate(summary.teachers, start=1):
        assert f"teacher {number} digits_cnn_tiny: {teacher.val['top1']:.2%}" in answer.err
        assert re.search(rf"test, teacher {number} .*{teacher.test['top1']:.2%}", answer.out)
    together = summary.teacher_test["top1"]
    assert re.search(rf"test, teachers together .*{together:.2%}", answer.out)
    twice = limbeck(*command[:3], *several[:2] * 2, *TINY, "--output", tmp_path / "x", *quick)
    assert twice.code == 2
    assert "teachers 1 and 2 are the same" in twice.err
    judged = limbeck("eval", out, "--json")
    assert json.loads(judged.out)["teacher"] == pytest.approx(summary.teacher_test)


def test_a_quiet_run_says_nothing(limbeck, tmp_path, quick):
    assert limbeck("train", *TINY, "--output", tmp_path / "run", *quick, "--quiet") == (0, "", "")


def test_a_machine_reads_epochs_and_the_summary(limbeck, tmp_path, quick, runs):
    taught = ("--teacher", runs / "teacher", "--method", "rkd")
    answer = limbeck("distill", *TINY, *taught, "--output", tmp_path / "run", *quick, "--json")
    assert (answer.code, answer.err) == (0, "")
    found = events(answer.out)
    assert [row["epoch"] for row in found["epoch"]] == [0]
    assert found["epoch"][0]["train"].keys() >= {"loss", "ce", "distance", "angle"}
    assert any("penultimate = fc:input" in note["message"] for note in found["note"])
    (summary,) = found["summary"]
    del summary["event"]
    assert summary == read_summary(tmp_path / "run").plain()


@pytest.mark.parametrize("method", ["kd", "fitnet_one_stage", "rkd"])
def test_the_readmes_own_network_is_a_student(limbeck, tmp_path, quick, runs, monkeypatch, method):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (file,) = re.findall(r"^```python\n(# my_models\.py\n.*?)^```$", readme, re.M | re.S)
    (tmp_path / "my_models.py").write_text(file, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    own = ("--student", "my_models.py:make_student")
    taught = ("--teacher", runs / "teacher", "--method", method)
    answer = limbeck("distill", *own, *taught, "--output", "own", *quick)
    assert answer.code == 0, answer.err
    weights = load_file("own/student.safetensors")
    assert weights["head.weight"].shape == (10, 16)


def test_a_run_can_be_run_again_from_its_settings(limbeck, tmp_path, quick, runs):
    config = runs / "student" / "config.json"
    answer = limbeck("distill", "--config", config, "--output", tmp_path / "again")
    assert answer.code == 0
    first, second = read_summary(runs / "student"), read_summary(tmp_path / "again")
    assert first.student_hash == second.student_hash
    assert first.config_hash == second.config_hash


def test_a_seed_typed_with_the_settings_counts(limbeck, tmp_path, runs):
    config = runs / "student" / "config.json"
    out = tmp_path / "other"
    assert limbeck("distill", "--config", config, "--seed", "1", "--output", out).code == 0
    assert read_summary(out).seed == 1
    assert read_summary(out).student_hash != read_summary(runs / "student").student_hash


@pytest.mark.parametrize("command", ["train", "distill"])
def test_a_dry_run_tells_everything_and_writes_nothing(command, limbeck, tmp_path, quick, runs):
    taught = ("--teacher", runs / "teacher", "--method", "fitnet") if command == "distill" else ()
    arguments = (command, *TINY, *taught, "--output", tmp_path / "run", *quick, "--epochs", "8")
    answer = limbeck(*arguments, "--dry-run")
    assert (answer.code, answer.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert "  optim.lr = 0.05\n" in answer.out
    assert "Nothing was trained" in answer.out
    found = json.loads(limbeck(*arguments, "--dry-run", "--json").out)
    assert list(tmp_path.iterdir()) == []
    assert found["settings"]["schedule"]["epochs"] == 8
    for split, counts in found["counts"].items():
        assert f"{split}: {sum(counts.values())} images (0: {counts['0']}, 1: " in answer.out
    assert sum(stage["epochs"] for stage in found["stages"]) == 8
    assert found["estimated_seconds"] > 0
    assert found["peak_memory_bytes"] > 2**20
    stages = [stage["name"] for stage in found["stages"]]
    assert stages == (["hint", "distil"] if command == "distill" else ["train"])


def test_what_a_dry_run_refuses_a_run_refuses_too(limbeck, tmp_path, quick, runs):
    layer = ("--method", "fitnet_one_stage", "--set", "method.teacher_layer=penultimate")
    arguments = ("--teacher", runs / "teacher", *layer, "--output", tmp_path / "run", *quick)
    for more in ((), ("--dry-run",)):
        answer = limbeck("distill", *TINY, *arguments, *more)
        assert answer.code == 2
        assert "Choose two layers before the pooling" in answer.err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("signum", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_run_is_continued_to_the_same_end(
    signum, code, limbeck, tmp_path, quick, monkeypatch
):
    arguments = ("train", *TINY, *quick, "--epochs", "3")
    assert limbeck(*arguments, "--output", tmp_path / "whole", "--quiet").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(
            JsonObserver, "epoch", lambda self, row: os.kill(os.getpid(), signal.Signals[signum])
        )
        answer = limbeck(*arguments, "--output", tmp_path / "run", "--json")
    assert answer.code == code
    assert f"continue with: limbeck resume {tmp_path / 'run'}" in answer.err
    assert not (tmp_path / "run" / "summary.json").exists()
    resumed = limbeck("resume", tmp_path / "run", "--json")
    assert resumed.code == 0
    assert [row["epoch"] for row in events(resumed.out)["epoch"]] == [1, 2]
    weights = [load_file(tmp_path / name / "student.safetensors") for name in ("whole", "run")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_finished_run_is_shown_and_left_alone(limbeck, runs):
    before = {path: path.stat().st_mtime_ns for path in (runs / "student").rglob("*")}
    answer = limbeck("resume", runs / "student")
    assert answer.code == 0
    assert "is finished already" in answer.err
    assert answer.out.startswith("kd: digits_cnn_tiny, taught by digits_cnn_tiny, seed 0\n")
    assert {path: path.stat().st_mtime_ns for path in (runs / "student").rglob("*")} == before


def test_under_torchrun_only_the_first_process_prints(limbeck, runs, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert limbeck("resume", runs / "student", "--json").out.count('"summary"') == 0
    monkeypatch.setenv("RANK", "0")
    assert limbeck("resume", runs / "student", "--json").out.count('"summary"') == 1


def test_class_names_from_folders_cannot_steer_the_terminal(limbeck, tmp_path, quick, picture):
    names = ("[red]", ":smile:", "a\x1b[31m", "b\nc")
    data = tmp_path / "[bold] data"
    for name in names:
        for number in range(4):
            picture(data / name / f"{number}.png", seed=number)
    command = ("train", *TINY, "--output", tmp_path / "[/run]", *quick, "-b", "4")
    command += ("--dataset", "image_folder", "--data-dir", data, "--fraction", "1")
    answer = limbeck(*command, "--val-fraction", "0.25", "--dry-run")
    assert answer.code == 0, answer.err
    assert "\x1b" not in answer.out + answer.err
    for text in ("[red]: 3", ":smile: : 3".replace(" :", ":"), "a\\x1b[31m: 3", "b\\nc: 3"):
        assert text in answer.out
    assert "[bold] data" in answer.out
    (data / "[red]" / "\x1b[2J.png").write_bytes(b"no picture")
    answer = limbeck(*command)
    assert answer.code == 2
    assert "[red]/\\x1b[2J.png" in answer.err


def test_what_the_data_has_to_say_is_said(limbeck, tmp_path, quick, picture):
    data = tmp_path / "data"
    for name in ("cat", "dog"):
        for number in range(4):
            picture(data / name / f"{number}.png", seed=number)
    command = ("train", *TINY, "--output", tmp_path / "run", *quick, "-b", "4", "--fraction", "1")
    command += ("--dataset", "image_folder", "--data-dir", data, "--val-fraction", "0.25")
    assert "there is no test folder" in limbeck(*command, "--dry-run").out
    answer = limbeck(*command)
    assert "there is no test folder" in answer.err
    assert "test, last epoch" not in answer.out
    assert any("no test folder" in notice for notice in read_summary(tmp_path / "run").notices)


def test_a_long_tail_is_told_by_training_images_of_a_class(limbeck, tmp_path, quick):
    out = tmp_path / "run"
    options = (*quick, "--fraction", "1", "--imbalance-factor", "20")
    answer = limbeck("train", *TINY, "--output", out, *options)
    assert answer.code == 0, answer.err
    scores = read_summary(out).scores["last"]
    assert f"many (> 100) {scores['many_shot']:.2%}" in answer.out
    assert f"few (< 20) {scores['few_shot']:.2%}" in answer.out
    refused = limbeck("train", *TINY, "--output", out, "--imbalance-factor", "0.01")
    assert refused.code == 2
    assert "100 where other codes write 0.01" in refused.err


def test_mixed_images_are_an_option_and_a_method_that_cannot_take_them_is_named(
    limbeck, tmp_path, quick, runs
):
    taught = (*TINY, "--teacher", runs / "teacher", *quick, "--mixup", "0.2", "--cutmix", "1")
    answer = limbeck("distill", *taught, "--mixup-prob", "0.5", "--output", tmp_path / "kd")
    assert answer.code == 0, answer.err
    augment = json.loads((tmp_path / "kd" / "config.json").read_text())["data"]["augment"]
    assert (augment["mixup_alpha"], augment["cutmix_alpha"], augment["mix_prob"]) == (0.2, 1, 0.5)
    refused = limbeck("distill", *taught, "--method", "wkd_logit", "--output", tmp_path / "no")
    assert refused.code == 2
    assert "'wkd_logit' takes one label an image" in refused.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ce", ("--smoothing", "0.1")),
        ("soft_label", ("--num-labels", "0", "--mixup", "1")),
        ("kd", ("--num-labels", "0")),
        ("hard_label", ("--smoothing", "0.1", "--cutmix", "1")),
    ],
)
def test_the_plain_ways_with_labels_run_as_they_are_typed(
    limbeck, tmp_path, quick, runs, method, options
):
    """Smoothed labels without a teacher, a teacher without labels, and its choice as a label."""
    command = ("train",) if method == "ce" else ("distill", "--teacher", runs / "teacher")
    named = () if method == "ce" else ("--method", method)
    out = tmp_path / "run"
    answer = limbeck(*command, *named, *TINY, *quick, *options, "--output", out)
    assert answer.code == 0, answer.err
    config = json.loads((out / "config.json").read_text())
    assert config["method"]["label_smoothing"] == (0.1 if "--smoothing" in options else 0)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert (rows[-1]["train"]["ce"] == 0) == ("--num-labels" in options)
    assert rows[-1]["train"]["loss"] > 0


def test_without_any_label_cross_entropy_alone_is_refused(limbeck, tmp_path, quick):
    answer = limbeck("train", *TINY, *quick, "--num-labels", "0", "--output", tmp_path / "run")
    assert answer.code == 2
    assert "ce learns from labels alone, and no training image has one" in answer.err
    assert not (tmp_path / "run").exists()
