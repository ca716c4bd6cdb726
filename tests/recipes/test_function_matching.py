import pytest
import torch
from torch import nn

from limbeck.core.errors import UnknownNameError
from limbeck.engine.optim import build_optimizer
from limbeck.models import MODELS
from limbeck.recipes.function_matching import PATIENCE, function_matching
from limbeck.runs.execute import execute, prepare_parts

# Of big_vision's bigsweep_food_sun.py: epochs, temperature, learning rate, decay of the weights.
PUBLISHED = {
    "fast": (100, 10.0, 0.01, 1e-3),
    "medium": (1000, 10.0, 0.001, 3e-4),
    "long": (3000, 5.0, 0.01, 1e-4),
}


def made(patience, **changes):
    return function_matching(
        patience, data_dir="data", teacher_checkpoint="t.safetensors", **changes
    )


@pytest.mark.parametrize("patience", PATIENCE)
def test_each_length_has_the_authors_numbers(patience):
    run = made(patience, seed=3)
    epochs, temperature, lr, _ = PUBLISHED[patience]
    assert (run.schedule.epochs, run.method["temperature"], run.optim.lr) == (
        epochs,
        temperature,
        lr,
    )
    assert (run.seed, run.train.batch_size, run.optim.clip_grad) == (3, 512, 1.0)
    assert run.schedule.sched == "cosine"
    assert abs(run.schedule.warmup_epochs * 98 - 1500) < 1  # 98 steps of 512 images an epoch
    assert {run.teacher.name, run.student.name} <= set(MODELS)


def test_no_label_is_read_and_every_image_is_mixed_up_alike_for_both():
    run = made("medium")
    assert (run.method["name"], run.method["ce_weight"], run.method["kd_weight"]) == (
        "soft_label",
        0,
        1,
    )
    augment = run.data.augment
    assert (augment.mixup_alpha, augment.mix_prob, augment.cutmix_alpha) == (1, 1, 0)


@pytest.mark.parametrize("patience", PATIENCE)
def test_a_step_takes_the_authors_share_of_a_kernel_away_and_none_of_a_norm(patience):
    """Without a gradient, torch's own AdamW only decays."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer([network], made(patience).optim).step()
    for name, parameter in network.named_parameters():
        kept = 1 - PUBLISHED[patience][3] if name == "0.weight" else 1
        torch.testing.assert_close(parameter.detach(), kept * before[name])


def test_another_length_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'medium'"):
        made("mediun")


def test_it_trains_without_labels_in_small(tmp_path):
    """The same settings on a part of the digits, which have no labels."""
    teacher = tmp_path / "teacher"
    config = made("fast")
    data = {"dataset": "digits", "fraction": 0.2, "val_fraction": 0}
    small = {
        "data": config.data.plain() | data | {"data_dir": None},
        "student": {"name": "digits_cnn_tiny"},
        "schedule": config.schedule.plain() | {"epochs": 2, "warmup_epochs": 0.5},
        "train": config.train.plain() | {"batch_size": 32, "device": "cpu"},
    }
    taught = config.plain() | small
    alone = taught | {"method": {"name": "ce"}, "teacher": None}
    alone = type(config).read(alone)
    execute(alone, teacher, prepare_parts(alone))
    taught = type(config).read(
        taught | {"teacher": {"run": str(teacher)}, "data": small["data"] | {"num_labels": 0}}
    )
    summary = execute(taught, tmp_path / "run", prepare_parts(taught))
    assert summary.method == "soft_label"
