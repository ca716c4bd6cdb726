import json
import shutil

import pytest
import torch

from limbeck.data import DataConfig, build_data
from limbeck.reports.lipschitz import read_profiles
from limbeck.runs.lipschitz import lipschitz_profile
from limbeck.runs.networks import load_student


def profiled(limbeck, *arguments):
    answer = limbeck("inspect", "--lipschitz", *arguments, "--json", "--device", "cpu")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


@pytest.fixture
def teacher(runs):
    return runs / "teacher"


@pytest.fixture
def student(runs, tmp_path):
    """A copy, since its profiles are written into it."""
    return shutil.copytree(runs / "student", tmp_path / "student")


def test_a_run_is_shown_beside_its_teacher_and_the_untaught_student(limbeck, teacher, student):
    found = profiled(limbeck, student, "--independent", teacher)
    assert list(found["networks"]) == ["teacher", "student", "independent"]
    # The run that taught stands for the untaught student here, so two columns are the same.
    assert found["networks"]["teacher"] == found["networks"]["independent"]
    assert found["networks"]["teacher"] != found["networks"]["student"]
    assert found["notices"] == []


def test_the_images_are_the_runs_own_validation_images(limbeck, student):
    """Its settings: a fifth of the digits, split by its seed."""
    found = profiled(limbeck, student)
    data = build_data(DataConfig(fraction=0.2), seed=0)
    named, _ = load_student(student)
    images = [data.val.images.float() / 255]
    ours = lipschitz_profile(named, images, device=torch.device("cpu"))
    assert found["num_images"] == len(data.val)
    for part, own in zip(found["networks"]["student"]["parts"], ours.parts, strict=True):
        assert part["sigma_mean"] == pytest.approx(own.sigma_mean, rel=1e-5)
        assert part["sigma_sd"] == pytest.approx(own.sigma_sd, rel=1e-4)


def test_the_runs_profiles_are_left_for_its_report(limbeck, student):
    file = student / "lipschitz.json"
    answer = limbeck("inspect", "--lipschitz", student, "--device", "cpu")
    assert f"lipschitz.json is in {student}" in answer.out
    found = json.loads(file.read_text())
    assert found == profiled(limbeck, student)
    read = read_profiles(student)
    for role, profile in found["networks"].items():
        assert read.networks[role].log10_layer_product == profile["log10_layer_product"]
        assert [part.sigma_mean for part in read.networks[role].parts] == [
            part["sigma_mean"] for part in profile["parts"]
        ]


def test_another_split_can_be_named(limbeck, student):
    assert profiled(limbeck, student, "--split", "test")["split"] == "test"
    answer = limbeck("inspect", "--lipschitz", student, "--split", "vall")
    assert answer.code == 2
    assert "did you mean 'val'" in answer.err


def test_many_images_are_thinned_out_evenly(limbeck, student, monkeypatch):
    monkeypatch.setattr("limbeck.cli.lipschitz._MOST_IMAGES", 3)
    assert profiled(limbeck, student)["num_images"] == 3
    assert "over 3 of " in limbeck("inspect", "--lipschitz", student, "--device", "cpu").out


def test_the_table_has_every_number_and_says_what_it_is_not(limbeck, teacher, student):
    found = profiled(limbeck, student, "--independent", teacher)
    answer = limbeck("inspect", student, "--lipschitz", "--independent", teacher, "--device", "cpu")
    for profile in found["networks"].values():
        for part in profile["parts"]:
            assert f"{part['sigma_mean']:.3g} ± {part['sigma_sd']:.3g}" in answer.out
            assert f"10^{part['log10_layer_product']:.1f} ({part['num_layers']})" in answer.out
    lines = [" ".join(line.split(" ")[:3]) for line in answer.out.splitlines()]
    assert lines.count("stage1 to stage2") == lines.count("stage2 to stage3") == 2
    assert lines.count("image to logits") == 1
    assert "Neither is a bound" in answer.out


def test_networks_of_other_depths_stand_side_by_side_from_the_end(limbeck, runs, tmp_path):
    """MobileNetV2 has four stages, the digits' network three."""
    # fmt: off
    run = limbeck(
        "distill", "--teacher", runs / "teacher", "--student", "MobileNetV2", "--epochs", "1",
        "--fraction", "0.05", "--batch-size", "16", "--sched", "constant", "--device", "cpu",
        "--output", tmp_path / "deep", "--quiet",
    )
    # fmt: on
    assert run.code == 0, run.err
    answer = limbeck("inspect", tmp_path / "deep", "--lipschitz", "--device", "cpu").out
    assert "\nstage1 to stage2 / stage2 to stage3 " in answer


def test_a_model_is_shown_with_fresh_weights(limbeck):
    found = profiled(limbeck, "digits_cnn_tiny")
    assert list(found["networks"]) == ["model"]
    assert found["notices"] == ["digits_cnn_tiny has fresh weights, drawn from seed 0"]
    assert profiled(limbeck, "digits_cnn_tiny", "--dataset", "digits") == found


def test_a_teacher_that_is_gone_leaves_the_student(limbeck, runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for file in (runs / "student").iterdir():
        if file.is_file():
            (run / file.name).write_bytes(file.read_bytes())
    config = json.loads((run / "config.json").read_text())
    config["teacher"]["run"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    found = profiled(limbeck, run)
    assert list(found["networks"]) == ["student"]
    assert found["notices"][0].startswith("the teacher is not shown: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lipschitz"], "needs a run's folder, or a model's name"),
        (["--lipschitz", "resnet20"], "the model resnet20 has none by itself"),
        (["--lipschitz", "resnot20", "--dataset", "digits"], "did you mean 'resnet20'"),
        (["--lipschitz", "resnet20", "--dataset", "cifar100"], "needs data_dir"),
        (["--lipschitz", "digits_cnn", "--num-classes", "3"], "leave out --num-classes"),
        (["digits_cnn", "--split", "val"], "add --lipschitz or --cka, or leave them out"),
    ],
)
def test_what_does_not_go_together_is_named(limbeck, arguments, message):
    answer = limbeck("inspect", *arguments)
    assert answer.code == 2
    assert message in answer.err


def test_a_runs_images_cannot_be_chosen(limbeck, student):
    answer = limbeck("inspect", "--lipschitz", student, "--dataset", "digits")
    assert answer.code == 2
    assert "leave out --dataset" in answer.err


def test_a_student_that_was_taught_is_not_independent(limbeck, student):
    answer = limbeck("inspect", "--lipschitz", student, "--independent", student)
    assert answer.code == 2
    assert "was taught by" in answer.err


def test_an_independent_student_of_other_data_is_refused(
    limbeck, student, tmp_path, picture, quick
):
    for split in ("train", "test"):
        for number in range(10):
            picture(tmp_path / "data" / split / str(number % 2) / f"{number}.png", seed=number)
    # fmt: off
    run = limbeck(
        "train", "--student", "digits_cnn_tiny", "--dataset", "image_folder", "--data-dir",
        tmp_path / "data", "--epochs", "1", "--sched", "constant", "--batch-size", "4",
        "--device", "cpu", "--output", tmp_path / "other", "--quiet",
    )
    # fmt: on
    assert run.code == 0, run.err
    answer = limbeck("inspect", "--lipschitz", student, "--independent", tmp_path / "other")
    assert answer.code == 2
    assert "was trained on other data: 2 classes" in answer.err
