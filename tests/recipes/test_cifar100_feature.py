import pytest

from limbeck.methods import METHODS
from limbeck.models import MODELS
from limbeck.recipes.catalogue import find_recipe
from limbeck.recipes.cifar100_feature import FEATURE

CASES = [(recipe, pair) for recipe, table in FEATURE.items() for pair in table]


def made(recipe, pair, **changes):
    name = f"cifar100/{recipe}/{pair.replace(' -> ', '-')}"
    return find_recipe(name).run(data_dir="data", teacher="t.safetensors", **changes)


@pytest.mark.parametrize(("recipe", "pair"), CASES)
def test_every_published_pair_is_a_run_of_known_networks(recipe, pair):
    run = made(recipe, pair, seed=3)
    assert run.seed == 3
    assert run.method["name"] in METHODS
    assert {run.teacher.name, run.student.name} <= set(MODELS)
    assert (run.schedule.epochs, run.schedule.decay_epochs) == (240, (150, 180, 210))
    assert (run.optim.momentum, run.optim.weight_decay) == (0.9, 5e-4)
    assert (run.data.augment.crop_padding, run.data.augment.flip) == (4, True)
    assert run.data.val_fraction == 0
    assert run.stages()


@pytest.mark.parametrize(("recipe", "pair"), CASES)
def test_rate_batch_and_momentum_are_the_shared_ones_but_for_reviewkd_and_wkd(recipe, pair):
    run = made(recipe, pair)
    slow = pair.endswith(("MobileNetV2", "ShuffleV1", "ShuffleV2"))
    review = recipe == "reviewkd"
    assert run.optim.lr == {(0, 0): 0.05, (1, 0): 0.01, (0, 1): 0.1, (1, 1): 0.02}[slow, review]
    assert run.train.batch_size == (128 if review else 64)
    assert run.optim.nesterov == (recipe in ("reviewkd", "wkd_feature"))


@pytest.mark.parametrize(
    ("recipe", "pair", "settings"),
    [
        ("at", "resnet32x4 -> ShuffleV1", {"at_weight": 1000, "pairing": "depth", "p": 2}),
        ("cat_kd", "resnet56 -> resnet20", {"cat_weight": 0.7, "pool_size": 2, "normalize": False}),
        ("cat_kd", "wrn_40_2 -> ShuffleV1", {"cat_weight": 80, "pool_size": 4, "normalize": True}),
        ("cat_maps", "resnet32x4 -> resnet8x4", {"ce_weight": 0, "num_kept_classes": 75}),
        ("crd", "vgg13 -> vgg8", {"crd_weight": 0.8, "num_negatives": 16384, "kd_weight": 0}),
        ("crd_kd", "vgg13 -> vgg8", {"crd_weight": 0.8, "kd_weight": 1, "kd_temperature": 4}),
        ("fitnet_one_stage", "ResNet50 -> vgg8", {"hint_weight": 100, "student_layer": "stage2"}),
        ("ofd", "wrn_40_2 -> wrn_16_2", {"ofd_weight": 1e-3}),
        ("reviewkd", "resnet32x4 -> ShuffleV2", {"review_weight": 8, "warmup_epochs": 20}),
        ("simkd", "resnet32x4 -> resnet8x4", {"factor": 2, "feature_weight": 1}),
        ("vid", "vgg13 -> MobileNetV2", {"vid_weight": 1, "initial_variance": 5}),
        ("wkd_feature", "wrn_40_2 -> ShuffleV1", {"wkd_weight": 0.3, "mean_weight": 3, "grid": 4}),
    ],
)
def test_settings_are_the_authors(recipe, pair, settings):
    method = made(recipe, pair).method
    assert {name: method[name] for name in settings} == settings
