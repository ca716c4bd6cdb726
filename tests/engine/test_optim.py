import pytest
import torch
from torch import nn

from limbeck.core.errors import SettingsError
from limbeck.engine.optim import OptimConfig, ScheduleConfig, build_optimizer, build_scheduler


def rates(schedule, *, updates_per_epoch=2, lr=1.0):
    optimizer = build_optimizer([nn.Linear(2, 2)], OptimConfig(lr=lr))
    scheduler = build_scheduler(optimizer, schedule, updates_per_epoch=updates_per_epoch)
    found = []
    for _ in range(schedule.epochs * updates_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_benchmark_schedule_decays_first_in_epochs_151_181_211():
    found = rates(ScheduleConfig(), updates_per_epoch=1, lr=0.05)
    assert found[149:151] == pytest.approx([0.05, 0.005])
    assert found[179:181] == pytest.approx([0.005, 0.0005])
    assert found[209:211] == pytest.approx([0.0005, 0.00005])


def test_warmup_rises_linearly_and_does_not_delay_the_milestones():
    schedule = ScheduleConfig(epochs=6, decay_epochs=(3,), warmup_epochs=2)
    found = rates(schedule)
    assert found[:5] == pytest.approx([0.01, 0.2575, 0.505, 0.7525, 1.0])
    assert found[5:7] == pytest.approx([1.0, 0.1])


def test_cosine_is_half_way_down_half_way_through():
    found = rates(ScheduleConfig(epochs=10, sched="cosine"))
    assert found[0] == 1.0
    assert found[10] == pytest.approx(0.5)
    assert found[-1] < 0.03


def test_onecycle_rises_then_falls_to_nothing():
    found = rates(ScheduleConfig(epochs=20, sched="onecycle"))
    peak = found.index(max(found))
    assert 10 <= peak <= 13  # three tenths of 40 updates
    assert found[0] == pytest.approx(0.04, abs=0.01)
    assert found[-1] < 0.01


def test_squeezing_keeps_the_shape():
    squeezed = ScheduleConfig().squeezed(24)
    assert (squeezed.epochs, squeezed.decay_epochs) == (24, (15, 18, 21))
    assert rates(ScheduleConfig().squeezed(24, sched="constant")) == [1.0] * 48


def test_squeezing_to_almost_nothing_is_still_a_schedule():
    assert ScheduleConfig().squeezed(1).epochs == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 30}, "never reached"),
        ({"epochs": 5, "sched": "cosine", "warmup_epochs": 5}, "leaves nothing"),
        ({"epochs": 5, "sched": "onecycle", "warmup_epochs": 1}, "its own rise"),
        ({"sched": "linear"}, "'multistep', 'cosine', 'onecycle' or 'constant'"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(fields, message):
    with pytest.raises(SettingsError, match=message):
        ScheduleConfig(**fields)


def decayed_names(config):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    names = {id(p): name for name, p in network.named_parameters()}
    groups = build_optimizer([network], config).param_groups
    return {names[id(p)] for g in groups if g["weight_decay"] > 0 for p in g["params"]}


def test_the_benchmark_decays_everything_and_the_switch_spares_biases_and_norms():
    assert decayed_names(OptimConfig()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert decayed_names(OptimConfig(decay_norm_and_bias=False)) == {"0.weight"}


def test_resting_parameters_are_not_the_optimisers():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    groups = build_optimizer([network], OptimConfig()).param_groups
    assert [p is network.weight for g in groups for p in g["params"]] == [True]


@pytest.mark.parametrize(("opt", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_names_are_torchs_own(opt, kind):
    optimizer = build_optimizer([nn.Linear(2, 2)], OptimConfig(opt=opt, lr=0.3))
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.3
