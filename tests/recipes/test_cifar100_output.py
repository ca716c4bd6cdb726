import pytest

from limbeck.methods import METHODS
from limbeck.models import MODELS
from limbeck.recipes.catalogue import find_recipe
from limbeck.recipes.cifar100_output import OUTPUT

CASES = [(recipe, pair) for recipe, table in OUTPUT.items() for pair in table]


def made(recipe, pair, **changes):
    name = f"cifar100/{recipe}/{pair.replace(' -> ', '-')}"
    return find_recipe(name).run(data_dir="data", teacher="t.safetensors", **changes)


@pytest.mark.parametrize(("recipe", "pair"), CASES)
def test_every_published_pair_is_a_run_of_known_networks(recipe, pair):
    run = made(recipe, pair, seed=3)
    assert run.seed == 3
    assert run.method["name"] in METHODS
    assert {run.teacher.name, run.student.name} <= set(MODELS)
    assert run.schedule.decay_epochs == (150, 180, 210)
    assert (run.optim.momentum, run.optim.weight_decay) == (0.9, 5e-4)
    assert run.train.batch_size == 64
    assert (run.data.augment.crop_padding, run.data.augment.flip) == (4, True)
    assert run.data.val_fraction == 0
    assert run.stages()


@pytest.mark.parametrize(("recipe", "pair"), CASES)
def test_small_students_learn_slowly(recipe, pair):
    run = made(recipe, pair)
    slow = pair.endswith(("MobileNetV2", "ShuffleV1", "ShuffleV2"))
    assert (run.optim.lr == 0.01) == (
        slow or (recipe, pair) == ("mlkd_standardized", "vgg13 -> vgg8")
    )


@pytest.mark.parametrize(
    ("recipe", "pair", "settings"),
    [
        ("dkd", "resnet56 -> resnet20", {"beta": 2, "alpha": 1, "warmup_epochs": 20}),
        ("lskd", "resnet110 -> resnet20", {"temperature": 4, "kd_weight": 12, "ce_weight": 0.1}),
        ("dkd_standardized", "resnet32x4 -> resnet8x4", {"alpha": 9, "beta": 72}),
        ("dkd_standardized", "wrn_40_2 -> resnet8x4", {"alpha": 18, "beta": 36, "ce_weight": 1}),
        ("wkd_logit", "wrn_40_2 -> ShuffleV1", {"transport_weight": 200, "temperature": 6}),
        ("dist", "resnet32x4 -> ShuffleV2", {"temperature": 4, "inter_weight": 2}),
        ("ctkd", "vgg13 -> vgg8", {"curriculum_epochs": 10}),
        ("mlkd_standardized", "vgg13 -> vgg8", {"kd_weight": 6, "standardize": True}),
    ],
)
def test_settings_are_the_authors(recipe, pair, settings):
    method = made(recipe, pair).method
    assert {name: method[name] for name in settings} == settings


def test_mlkd_trains_long_on_shufflenets_and_wkd_looks_ahead():
    assert made("mlkd", "resnet32x4 -> ShuffleV2").schedule.epochs == 960
    assert made("wkd_logit", "resnet32x4 -> resnet8x4").optim.nesterov
    assert not made("dkd", "resnet32x4 -> resnet8x4").optim.nesterov
