import pytest

from limbeck.core.errors import SettingsError, UnknownNameError
from limbeck.recipes.catalogue import RECIPES, find_recipe
from limbeck.reports.reproduced import published_figures

# output.md 0.1, feature.md 0.4: what every run of the benchmark shares.
SHARED = {
    "batch_size": 64,
    "epochs": 240,
    "decay_epochs": (150, 180, 210),
    "decay_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "crop_padding": 4,
    "flip": True,
}
OTHERWISE = {"reviewkd": {"batch_size": 128}}


def shared(run):
    return {
        "batch_size": run.train.batch_size,
        "epochs": run.schedule.epochs,
        "decay_epochs": run.schedule.decay_epochs,
        "decay_rate": run.schedule.decay_rate,
        "momentum": run.optim.momentum,
        "weight_decay": run.optim.weight_decay,
        "crop_padding": run.data.augment.crop_padding,
        "flip": run.data.augment.flip,
    }


def run_of(recipe, **changes):
    teacher = None if recipe.teacher is None else "t.safetensors"
    return recipe.run(**{"data_dir": "data", "teacher": teacher, **changes})


def test_every_recipe_is_the_benchmarks_but_for_what_its_authors_changed():
    for name in filter(lambda name: name.startswith("cifar100/"), RECIPES):
        recipe = find_recipe(name)
        key = name.split("/")[1]
        run = run_of(recipe)
        expected = SHARED | OTHERWISE.get(key, {})
        if key.startswith("mlkd"):  # they train as long as their tables say
            expected["epochs"] = recipe.published.epochs
        assert shared(run) == expected, name
        assert run.data.val_fraction == 0
        assert recipe.source


def test_every_recipe_of_the_smaller_task_is_short_and_so_are_its_warm_ups():
    for name in filter(lambda name: name.startswith("cifar100_small/"), RECIPES):
        run = run_of(find_recipe(name))
        assert (run.schedule.epochs, run.data.num_classes) == (8, 20), name
        waits = [value for field, value in run.method.items() if field.endswith("_epochs")]
        assert all(value <= 8 for value in waits), name


def test_a_teachers_recipe_is_there_for_every_recipe():
    for recipe in RECIPES.values():
        assert recipe.teacher_recipe is None or RECIPES[recipe.teacher_recipe].teacher is None


def test_every_published_figure_of_the_usual_pairs_has_a_recipe_or_is_of_no_recipe():
    usual = {recipe.name.split("/")[2] for recipe in RECIPES.values() if recipe.teacher}
    missing = {
        figure.recipe
        for figure in published_figures()
        if figure.pair.replace("->", "-") in usual
        and f"cifar100/{figure.recipe}/{figure.pair.replace('->', '-')}" not in RECIPES
    }
    # Nobody's settings are known for every pair that somebody's table has.
    assert missing <= {
        "teacher", "ce", "ctkd_standardized", "cat_kd", "crd", "ctkd", "dist", "dkd", "kd", "lskd",
        "mlkd", "mlkd_standardized", "ofd", "reviewkd", "simkd",
    }  # fmt: skip


def test_a_validation_split_is_the_other_protocols():
    recipe = find_recipe("cifar100/kd/resnet32x4-resnet8x4")
    run = run_of(recipe, protocol="held-out", seed=5)
    assert (run.data.val_fraction, run.seed) == (0.1, 5)


def test_data_are_image_folders_where_they_are_and_weights_a_run_where_they_are(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    recipe = find_recipe("cifar100/kd/resnet32x4-resnet8x4")
    run = run_of(recipe, data_dir=str(tmp_path), teacher=tmp_path)
    assert run.data.dataset == "image_folder"
    assert run.teacher.run == str(tmp_path)
    run = run_of(recipe)
    assert run.data.dataset == "cifar100"
    assert (run.teacher.name, run.teacher.checkpoint) == ("resnet32x4", "t.safetensors")


def test_a_teacher_is_wanted_where_there_is_one_and_only_there():
    with pytest.raises(SettingsError, match="needs a teacher, resnet32x4; got None"):
        find_recipe("cifar100/kd/resnet32x4-resnet8x4").run(data_dir="data")
    with pytest.raises(SettingsError, match="needs no teacher; got t"):
        find_recipe("cifar100/ce/resnet8x4").run(data_dir="data", teacher="t")


def test_an_unknown_recipe_is_answered_with_near_ones():
    with pytest.raises(UnknownNameError, match="cifar100/kd/resnet32x4-resnet8x4"):
        find_recipe("cifar100/kd/resnet32x4-resnet8x")
