import json
import shutil

import pytest

from limbeck.analysis.base import Experiment, NotApplicableError


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
