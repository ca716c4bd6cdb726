import pytest

from limbeck.methods import METHODS
from limbeck.recipes.catalogue import find_recipe
from limbeck.recipes.cifar100_relation import RELATION

PAIR = "resnet32x4 -> resnet8x4"


def made(recipe, pair=PAIR):
    name = f"cifar100/{recipe}/{pair.replace(' -> ', '-')}"
    return find_recipe(name).run(data_dir="data", teacher="t.safetensors")


@pytest.mark.parametrize("recipe", RELATION)
@pytest.mark.parametrize("pair", [PAIR, "resnet32x4 -> ShuffleV2"])
def test_every_method_has_the_shared_recipe(recipe, pair):
    run = made(recipe, pair)
    assert run.method["name"] == recipe
    assert recipe in METHODS
    assert (run.schedule.epochs, run.schedule.decay_epochs) == (240, (150, 180, 210))
    assert run.optim.lr == (0.01 if pair.endswith("V2") else 0.05)
    assert (run.optim.momentum, run.optim.weight_decay, run.optim.nesterov) == (0.9, 5e-4, False)
    assert run.train.batch_size == 64


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("rkd", {"ce_weight": 1, "distance_weight": 25, "angle_weight": 50}),
        ("sp", {"ce_weight": 1, "sp_weight": 3000}),
        ("pkt", {"ce_weight": 1, "pkt_weight": 30000}),
        ("cc", {"ce_weight": 1, "cc_weight": 0.02, "embedding_dim": 128}),
    ],
)
def test_settings_are_the_authors(recipe, settings):
    method = made(recipe).method
    assert {name: method[name] for name in settings} == settings
