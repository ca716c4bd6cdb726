import csv
import json

import pytest

from limbeck.data.config import DataConfig
from limbeck.engine.optim import ScheduleConfig
from limbeck.recipes.catalogue import RECIPES, Recipe

KD = "cifar100_small/kd/resnet56-resnet20"


@pytest.fixture
def on_digits(monkeypatch):
    """Recipes as they are called, but of digits and the smallest networks, in one epoch."""
    made = Recipe.run

    def run(self, **arguments):
        config = made(self, **arguments)
        return config.changed(
            data=DataConfig(fraction=0.2),
            student=config.student.changed(name="digits_cnn_tiny", normalization=None),
            schedule=ScheduleConfig(epochs=1, sched="constant"),
        )

    monkeypatch.setattr(Recipe, "run", run)


def rows(path):
    return [(row["recipe"], row["seed"]) for row in csv.DictReader(path.read_text().splitlines())]


def test_recipes_are_listed_all_or_by_a_pattern(limbeck):
    everything = limbeck("recipes")
    assert everything.code == 0
    assert all(name in everything.out for name in RECIPES)
    some = json.loads(limbeck("recipes", "cifar100/*/vgg13-vgg8", "--json").out)
    assert some
    assert all(name.endswith("/vgg13-vgg8") for name in some)


def test_one_recipe_is_printed_whole_with_its_source_and_figure(limbeck):
    answer = limbeck("recipes", "cifar100/dkd/resnet32x4-resnet8x4")
    assert "published: 76.32 % (best epoch on test;" in answer.out
    assert "source: mdistiller's YAML files" in answer.out
    printed = json.loads(answer.out[answer.out.index("{") :])
    assert printed["method"]["beta"] == 8
    as_json = limbeck("recipes", "cifar100/dkd/resnet32x4-resnet8x4", "--json")
    assert json.loads(as_json.out)["config"] == printed


def test_an_unknown_recipe_is_said_so(limbeck):
    answer = limbeck("recipes", "cifar100/kdd/*")
    assert answer.code == 2
    assert "no recipe called 'cifar100/kdd/*'" in answer.err


def test_a_recipe_is_run_with_its_teacher_first_and_never_twice(limbeck, tmp_path, on_digits):
    out, file = tmp_path / "runs", tmp_path / "results.csv"
    arguments = ("--data-dir", "unused", "--output", out, "--results", file, "--seeds", "2")
    answer = limbeck("reproduce", KD, *arguments, "--device", "cpu")
    assert answer.code == 0, answer.err
    teacher = "cifar100_small/ce/resnet56"
    assert rows(file) == [(teacher, "0"), (KD, "0"), (KD, "1")]
    config = json.loads((out / KD / "published-seed1" / "config.json").read_text())
    assert config["teacher"]["run"] == str(out / teacher / "published-seed0")
    weights = out / KD / "published-seed1" / "student.safetensors"
    written = weights.stat().st_mtime_ns
    assert limbeck("reproduce", KD, *arguments, "--device", "cpu").code == 0
    assert weights.stat().st_mtime_ns == written
    assert len(rows(file)) == 3
    page = tmp_path / "docs" / "page.md"
    assert limbeck("results", file, "--out", page).code == 0
    assert "A smaller task" in page.read_text()


def test_one_teacher_for_several_teachers_recipes_is_refused(limbeck, tmp_path):
    names = ("cifar100/kd/vgg13-vgg8", "cifar100/kd/resnet56-resnet20")
    answer = limbeck("reproduce", *names, "--data-dir", tmp_path, "--teacher", "t")
    assert answer.code == 2
    assert "--teacher is one network" in answer.err
