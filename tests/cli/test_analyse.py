import json
import shutil

import pytest
import torch
from PIL import Image

from limbeck.analysis import EXPERIMENTS
from limbeck.analysis.base import Experiment, NotApplicableError
from limbeck.data import load_digits


@pytest.fixture(scope="module")
def compared(tmp_path_factory, quick, finished):
    """A comparison of two seeds: ce and kd."""
    out = tmp_path_factory.mktemp("compared") / "table"
    finished(
        "compare", "--student", "digits_cnn_tiny", "--teacher-model", "digits_cnn_tiny",
        "--methods", "kd", "--seeds", "2", "--output", out, *quick,
    )  # fmt: skip
    return out


def lines(answer):
    return [json.loads(line) for line in answer.out.splitlines()]


def test_a_comparison_is_analysed_over_its_seeds(limbeck, compared, tmp_path):
    answer = limbeck("analyse", compared, "--experiments", "fidelity", "--out", tmp_path, "--json")
    assert (answer.code, answer.err) == (0, "")
    (found,) = lines(answer)
    assert found == json.loads((tmp_path / "fidelity.json").read_text())
    assert found["readings"][0]["num_seeds"] == 2
    shown = limbeck("analyse", compared, "--experiments", "fidelity", "--out", tmp_path)
    assert found["readings"][0]["sentence"] in " ".join(shown.out.split())


def test_a_run_of_a_comparison_finds_its_independent_student(limbeck, compared, tmp_path):
    run = compared / "runs" / "kd-seed1"
    answer = limbeck("analyse", run, "--experiments", "fidelity", "--out", tmp_path, "--json")
    (found,) = lines(answer)
    assert list(found["readings"][0]["independent_by_seed"]) == ["1"]


def test_what_is_there_is_not_asked_again_unless_the_images_differ(
    limbeck, compared, tmp_path, monkeypatch
):
    asked = []

    def measure(case):
        asked.append(len(case.images))
        raise NotApplicableError("nothing to say")

    experiment = Experiment(
        key="fidelity", title="t", question="q?", source="s", measure=measure, quick=True
    )
    monkeypatch.setattr("limbeck.cli.analyse.EXPERIMENTS", {"fidelity": experiment})
    for images in (50, 50, 60):
        answer = limbeck("analyse", compared, "--out", tmp_path, "--images", images)
        assert "not asked: nothing to say" in answer.out
    assert asked == [50, 60]


def test_a_run_alone_has_no_independent_student_and_says_how_to_get_one(limbeck, runs):
    answer = limbeck("analyse", runs / "student")
    assert answer.code == 2
    assert "no independent student" in answer.err
    assert "--independent" in answer.err


def test_an_independent_student_may_be_given(limbeck, runs, tmp_path):
    answer = limbeck(
        "analyse", runs / "student", "--independent", runs / "teacher", "--out", tmp_path,
        "--experiments", "fidelity",
    )  # fmt: skip
    assert answer.code == 0, answer.err


def test_students_that_cannot_be_held_together_are_refused(limbeck, runs, quick, tmp_path):
    other = tmp_path / "other"
    assert limbeck("train", "--student", "digits_cnn", "--output", other, *quick).code == 0
    answer = limbeck("analyse", runs / "student", "--independent", other)
    assert answer.code == 2
    assert "what differs: the network" in answer.err
    shutil.copytree(runs / "teacher", tmp_path / "renamed")
    card = tmp_path / "renamed" / "student.json"
    values = json.loads(card.read_text())
    values["class_names"] = values["class_names"][::-1]
    card.write_text(json.dumps(values))
    answer = limbeck("analyse", runs / "student", "--independent", tmp_path / "renamed")
    assert "the classes or their order" in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--experiments", "fidelty"), "no experiment called 'fidelty'; did you mean 'fidelity'"),
        (("--method", "rkd"), "no method of the comparison called 'rkd'"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(limbeck, compared, arguments, message):
    answer = limbeck("analyse", compared, *arguments)
    assert answer.code == 2
    assert message in answer.err


def test_the_run_of_a_plain_student_is_refused(limbeck, runs):
    answer = limbeck("analyse", runs / "teacher", "--independent", runs / "student")
    assert answer.code == 2
    assert "had no teacher" in answer.err


def test_files_are_handed_to_the_experiments_that_read_them(limbeck, compared, tmp_path):
    """And asked again when they change, while the others are not."""
    digits = load_digits().test
    for place in range(20):
        path = tmp_path / "photos" / str(int(digits.labels[place])) / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[place, 0].numpy()).save(path)
    table = tmp_path / "groups.csv"
    table.write_text("index,group\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(449)))
    arguments = (
        "analyse", compared, "--experiments", "domains,bias", "--out", tmp_path / "out",
        "--other-images", tmp_path / "photos", "--groups", table, "--json",
    )  # fmt: skip
    answer = limbeck(*arguments)
    assert answer.code == 0, answer.err
    domains, bias = lines(answer)
    assert domains["readings"][0]["name"] == "agreement on images of photos"
    assert domains["readings"][0]["num_items"] == 20
    assert domains["readings"][1]["name"] == "accuracy on images of photos"
    assert bias["settings"]["groups"] == {"a": 225, "b": 224}
    table.write_text(table.read_text() + "\n")
    again = dict(zip(("domains", "bias"), lines(limbeck(*arguments)), strict=True))
    assert again["domains"] == domains
    assert again["bias"]["inputs"] != bias["inputs"]


def test_positions_of_drawn_images_are_those_of_the_test_split(limbeck, compared, tmp_path):
    """Of 50 images of 449, each is in a group of its own number's parity."""
    table = tmp_path / "groups.csv"
    table.write_text("index,group\n" + "".join(f"{i},{'ab'[i < 200]}\n" for i in range(449)))
    answer = limbeck(
        "analyse", compared, "--experiments", "bias", "--out", tmp_path / "out",
        "--images", 50, "--groups", table, "--json",
    )  # fmt: skip
    (found,) = lines(answer)
    drawn = torch.randperm(449, generator=torch.Generator().manual_seed(0))[:50]
    assert found["settings"]["groups"] == {
        "a": int((drawn >= 200).sum()),
        "b": int((drawn < 200).sum()),
    }


def test_without_their_files_experiments_say_what_to_give(limbeck, compared, tmp_path):
    answer = limbeck("analyse", compared, "--experiments", "shape,bias", "--out", tmp_path)
    assert answer.code == 0
    said = " ".join(answer.out.split())
    assert "--cue-conflict" in said
    assert "--groups" in said


@pytest.mark.parametrize("option", ["--other-images", "--cue-conflict", "--groups", "--corrupted"])
def test_files_that_are_not_there_are_refused_at_once(limbeck, compared, tmp_path, option):
    answer = limbeck("analyse", compared, option, tmp_path / "nowhere")
    assert answer.code == 2
    assert "does not exist" in answer.err


def test_the_soft_label_control_is_trained_once_and_stands_beside(limbeck, compared, tmp_path):
    arguments = (
        "analyse", compared, "--experiments", "colour_constancy", "--out", tmp_path,
        "--soft-label-control", "--json",
    )  # fmt: skip
    answer = limbeck(*arguments)
    assert answer.code == 0, answer.err
    (found,) = lines(answer)
    control = found["readings"][-1]
    assert control["pupil"] == "student of noise targets"
    assert control["distilled_by_seed"].keys() == {"0", "1"}
    summary = tmp_path / "controls" / "noise_label-seed1" / "summary.json"
    assert json.loads(summary.read_text())["method"] == "noise_label"
    written = summary.stat().st_mtime_ns
    assert lines(limbeck(*arguments)) == [found]
    assert summary.stat().st_mtime_ns == written


def test_a_control_that_was_trained_otherwise_is_refused(limbeck, compared, tmp_path):
    control = tmp_path / "controls" / "noise_label-seed0"
    shutil.copytree(compared / "runs" / "ce-seed0", control)
    answer = limbeck("analyse", compared, "--out", tmp_path, "--soft-label-control")
    assert answer.code == 2
    assert "holds a control trained otherwise: method.name" in answer.err


def test_every_quick_question_is_answered_and_the_report_shows_them(limbeck, compared):
    answer = limbeck("analyse", compared, "--quick", "--images", "60", "--json")
    assert answer.code == 0, answer.err
    found = {one["key"]: one for one in lines(answer)}
    assert list(found) == [key for key, e in EXPERIMENTS.items() if e.quick]
    assert next(iter(found)) == "why"
    assert [one["place"] for one in found.values()] == sorted(
        one["place"] for one in found.values()
    )
    assert found["why"]["about"]["num_images"] == 60
    training = found["training"]["tables"]["Kept networks against the teacher, means over seeds"]
    assert {row[0] for row in training[1:]} == {"distilled", "independent"}
    usual = found["why"]["tables"]["What the numbers usually mean"]
    assert any(row[0] == "cost" for row in usual)
    page = compared / "page.html"
    assert limbeck("report", compared, "--output", page).code == 0
    text = page.read_text()
    assert text.index('id="why"') < text.index('id="setting"') < text.index('id="distilled"')
    assert len(text) < 8_000_000


def test_an_interrupted_analysis_goes_on_from_what_it_has(limbeck, compared, tmp_path, monkeypatch):
    asked = []

    def measure(case):
        asked.append(case)
        raise NotApplicableError("nothing to say")

    def stop(case):
        raise KeyboardInterrupt

    def experiments(second):
        return {
            key: Experiment(key=key, title=key, question="q?", source="s", measure=m, quick=True)
            for key, m in (("first", measure), ("second", second))
        }

    monkeypatch.setattr("limbeck.cli.analyse.EXPERIMENTS", experiments(stop))
    answer = limbeck("analyse", compared, "--out", tmp_path, "--images", 50)
    assert answer.code == 130
    assert "1 of 2 are answered and kept" in answer.out
    monkeypatch.setattr("limbeck.cli.analyse.EXPERIMENTS", experiments(measure))
    assert limbeck("analyse", compared, "--out", tmp_path, "--images", 50).code == 0
    assert len(asked) == 2


def test_what_the_same_teacher_taught_is_no_independent_student(limbeck, compared):
    runs = compared / "runs"
    answer = limbeck("analyse", runs / "kd-seed0", "--independent", runs / "kd-seed1")
    assert answer.code == 2
    assert "learnt from the same teacher" in answer.err


def test_students_of_two_teachers_are_not_one_row(limbeck, compared, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(compared, copy)
    summary = copy / "runs" / "kd-seed1" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"teacher_hash": "other"}))
    answer = limbeck("analyse", copy)
    assert answer.code == 2
    assert "what differs: the teacher" in answer.err


def test_students_of_other_test_images_are_refused(limbeck, runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs / "teacher", copy)
    summary = copy / "summary.json"
    values = json.loads(summary.read_text())
    values["split_hashes"]["test"] = "other"
    summary.write_text(json.dumps(values))
    answer = limbeck("analyse", runs / "student", "--independent", copy)
    assert answer.code == 2
    assert "the test images" in answer.err
