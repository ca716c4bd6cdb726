import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from limbeck.core.normalization import Normalize
from limbeck.models import create_model
from limbeck.runs.networks import load_student
from limbeck.runs.summary import read_summary

NETWORK = """
from torch import nn

def linear(num_classes, in_chans):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_chans, num_classes))
"""


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    """The file of one real digit, and its pixels ``(1, 1, 8, 8)`` in [0, 1]."""
    pixels = (load_digits().images[1700] / 16 * 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "digit.png"
    Image.fromarray(pixels).save(path)
    return path, torch.from_numpy(pixels)[None, None].float() / 255


@pytest.fixture
def copied(runs, tmp_path):
    """Both runs in a place where a test may change them; the student's teacher is the copy."""
    for name in ("teacher", "student"):
        shutil.copytree(runs / name, tmp_path / name)
    path = tmp_path / "student" / "config.json"
    config = json.loads(path.read_text())
    config["teacher"] = {"run": str(tmp_path / "teacher")}
    path.write_text(json.dumps(config))
    return tmp_path


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("best", [False, True])
def test_eval_finds_what_the_run_found_at_its_end(best, limbeck, runs):
    options = ["--json", *(["--best"] if best else [])]
    found = json.loads(limbeck("eval", runs / "student", *options).out)
    summary = read_summary(runs / "student")
    expected = summary.test.best_on_validation if best else summary.test.last
    assert found["student"] == pytest.approx(expected)
    assert found["teacher"] == pytest.approx(summary.teacher_test)


def test_eval_reads_the_split_that_is_asked_for(limbeck, runs):
    found = json.loads(limbeck("eval", runs / "student", "--split", "val", "--json").out)
    assert found["student"] == pytest.approx(read_summary(runs / "student").last.val)
    text = limbeck("eval", runs / "student", "--split", "val").out
    assert text.startswith("val: ")
    assert f"{found['student']['top1']:.2%}" in text


def test_eval_shows_the_student_where_the_teacher_is_gone(limbeck, copied):
    shutil.rmtree(copied / "teacher")
    answer = limbeck("eval", copied / "student")
    assert answer.code == 0
    assert "the teacher is not shown: " in answer.out


def test_predict_gives_each_networks_softmax(limbeck, runs, digit):
    path, pixels = digit
    answer = limbeck("predict", runs / "student", path, "--top", "10", "--json")
    found = json.loads(answer.out)
    for role in ("student", "teacher"):
        named, card = load_student(runs / role)
        with torch.no_grad():
            logits = named.network.eval()(Normalize(named.normalization)(pixels))
        expected = dict(zip(card.class_names, logits.softmax(dim=1)[0].tolist(), strict=True))
        assert found[role] == pytest.approx(expected, abs=1e-6)
        assert list(found[role].values()) == sorted(found[role].values(), reverse=True)
    assert found["image"] == str(path)


def test_predict_prints_both_networks_beside_each_other(limbeck, runs, digit):
    path, _ = digit
    found = json.loads(limbeck("predict", runs / "student", path, "--json").out)
    lines = limbeck("predict", runs / "student", path).out.splitlines()
    assert lines[0].split() == ["image", "student", "teacher"]
    (student, p), (teacher, q) = (
        next(iter(found[role].items())) for role in ("student", "teacher")
    )
    assert lines[1].split() == [str(path), f"{p:.1%}", student, f"{q:.1%}", teacher]


def test_predict_takes_a_picture_of_another_size_as_training_would(
    limbeck, runs, picture, tmp_path
):
    small = picture(tmp_path / "small.png", size=(8, 8))
    with Image.open(small) as image:
        image.resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    answer = limbeck("predict", runs / "student", small, tmp_path / "large.png", "--json")
    first, second = (json.loads(line) for line in answer.out.splitlines())
    assert answer.code == 0
    assert first["student"] != second["student"]  # resizing smooths


def test_pictures_that_are_not_square_are_taken_as_they_are(limbeck, picture, tmp_path, quick):
    data = tmp_path / "data"
    for number in range(12):
        for name in ("cat", "dog"):
            path = data / name / f"{number}.png"
            picture(path, size=(12, 8), seed=number + 100 * (name == "dog"))
    out = tmp_path / "run"
    command = ["train", "--student", "digits_cnn_tiny", "--output", out, *quick]
    command += ["--dataset", "image_folder", "--data-dir", data, "--fraction", "1", "-b", "4"]
    assert limbeck(*command).code == 0
    found = json.loads(limbeck("predict", out, data / "cat" / "3.png", "--json").out)
    named, card = load_student(out)
    assert card.image_size == (8, 12)
    with Image.open(data / "cat" / "3.png") as image:
        pixels = torch.from_numpy(np.asarray(image).copy())[None, None].float() / 255
    with torch.no_grad():
        logits = named.network.eval()(Normalize(named.normalization)(pixels))
    expected = dict(zip(card.class_names, logits.softmax(dim=1)[0].tolist(), strict=True))
    assert found["student"] == pytest.approx(expected, abs=1e-6)
    answer = limbeck("predict", out, picture(tmp_path / "other.png", size=(9, 9)))
    assert answer.code == 2
    assert "takes 12 x 8 pixels" in answer.err


def test_a_teacher_given_by_name_is_shown_as_well(limbeck, copied, digit):
    path, _ = digit
    weights = str(copied / "teacher" / "student.safetensors")
    by_run = json.loads(limbeck("predict", copied / "student", path, "--json").out)
    teacher = {"name": "digits_cnn_tiny", "checkpoint": weights}
    rewrite(copied / "student" / "config.json", teacher=teacher)
    by_name = json.loads(limbeck("predict", copied / "student", path, "--json").out)
    assert by_name["teacher"] == pytest.approx(by_run["teacher"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"teacher": {"run": "nowhere"}}, "student.json is missing"),
        ({"teacher": {"name": "python:Net"}}, "passed in Python"),
        ({"teacher": {"name": "net.py:linear", "checkpoint": "x"}}, "is code, and is not run"),
    ],
    ids=["gone", "python", "code"],
)
def test_the_student_is_shown_where_the_teacher_cannot_be(change, reason, limbeck, copied, digit):
    rewrite(copied / "student" / "config.json", **change)
    answer = limbeck("predict", copied / "student", digit[0])
    assert answer.code == 0
    assert "the teacher is not shown: " in answer.out
    assert reason in answer.out


def test_a_teacher_that_learnt_other_classes_since_is_not_shown(limbeck, copied, digit):
    names = [f"class {k}" for k in range(10)]
    rewrite(copied / "teacher" / "student.json", class_names=names)
    answer = limbeck("predict", copied / "student", digit[0], "--json")
    assert "teacher" not in json.loads(answer.out)
    assert "was trained on 10 classes (class 0, " in json.loads(answer.out)["notice"]


def test_class_and_file_names_are_printed_as_they_stand(limbeck, copied, digit):
    names = ["[red]", "[/a]", ":smile:", "a\x1b[31m", "b\nc", "\\", "é", "{x}", "%s", " "]
    for run in ("teacher", "student"):
        rewrite(copied / run / "student.json", class_names=names)
    path = copied / "[bold]\x1b[2J.png"
    shutil.copy(digit[0], path)
    answer = limbeck("predict", copied / "student", path, "--top", "10")
    assert answer.code == 0
    assert "\x1b" not in answer.out
    for text in ("[bold]\\x1b[2J.png", "[red]", "[/a]", ":smile:", "a\\x1b[31m", "b\\nc"):
        assert text in answer.out
    found = json.loads(limbeck("predict", copied / "student", path, "--top", "10", "--json").out)
    assert set(found["student"]) == set(names)


def test_code_of_ones_own_is_run_where_it_is_typed_and_only_there(
    limbeck, tmp_path, quick, digit, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    model = ("--student", "net.py:linear")
    assert limbeck("train", *model, "--output", "a", *quick).code == 0
    tiny = ("--student", "digits_cnn_tiny")
    taught = ("distill", *tiny, "--teacher", "a", "--output", "b", *quick)
    refused = limbeck(*taught)
    assert refused.code == 2
    assert "--teacher-model net.py:linear" in refused.err
    assert limbeck(*taught, "--teacher-model", "net.py:linear").code == 0
    for command, rest in (("eval", ()), ("predict", (digit[0],)), ("inspect", ())):
        refused = limbeck(command, "a", *rest)
        assert refused.code == 2
        assert "--student net.py:linear" in refused.err
        assert limbeck(command, "a", *rest, *model).code == 0
    for command, rest in (("eval", ()), ("predict", (digit[0],))):
        assert "the teacher is not shown" in limbeck(command, "b", *rest).out
        shown = limbeck(command, "b", *rest, "--teacher", "net.py:linear")
        assert shown.code == 0
        assert "not shown" not in shown.out


def test_the_weights_of_a_run_are_those_it_ended_with(runs):
    """A guard for the tests above: the two runs are not the same network."""
    both = [load_file(runs / role / "student.safetensors") for role in ("student", "teacher")]
    assert both[0].keys() == create_model("digits_cnn_tiny", num_classes=10).state_dict().keys()
    assert any(not torch.equal(both[0][name], both[1][name]) for name in both[0])
