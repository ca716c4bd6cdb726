"""Against the numbers that the authors' scripts hold, written down from these and not from ours."""

import pytest

from limbeck.core.errors import SettingsError
from limbeck.models import MODELS
from limbeck.recipes.own_protocols import (
    balanced,
    mutual,
    plane_chain,
    resnet_chain,
    several_teachers,
)

ONE = {"data_dir": "data", "teacher_checkpoint": "t.safetensors"}
THREE = [f"t{seed}.safetensors" for seed in range(3)]
RUNS = {
    "dgkd": plane_chain(**ONE),
    "takd": plane_chain("takd", **ONE),
    "resnets": resnet_chain(**ONE),
    "mutual": mutual(data_dir="data"),
    "ca_mkd": several_teachers("ca_mkd", data_dir="data", teacher_checkpoints=THREE),
    "aekd": several_teachers("aekd", data_dir="data", teacher_checkpoints=THREE),
    "balanced": balanced(**ONE),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_network_is_of_the_zoo_and_all_training_images_are_used(name):
    run = RUNS[name]
    teachers = [] if run.teacher is None else [run.teacher, *run.teacher.members]
    own = [net.model for stage in run.stages() for net in stage.own_networks().values()]
    named = {run.student.name, *(t.name for t in teachers), *own} - {None}
    assert named <= set(MODELS)
    assert run.data.val_fraction == 0
    assert type(run).read(run.plain()) == run


@pytest.mark.parametrize(
    ("name", "epochs", "rate", "falls", "factor", "batch", "decay", "nesterov"),
    [
        ("dgkd", 160, 0.01, None, None, 128, 1e-4, False),
        ("takd", 160, 0.01, None, None, 128, 1e-4, False),
        ("resnets", 160, 0.1, (80, 120), 0.1, 128, 1e-4, False),
        ("mutual", 200, 0.1, (60, 120, 180), 0.1, 64, 5e-4, True),
        ("ca_mkd", 240, 0.05, (150, 180, 210), 0.1, 64, 5e-4, True),
        ("aekd", 240, 0.05, (150, 180, 210), 0.1, 64, 5e-4, True),
        ("balanced", 200, 0.1, (160, 180), 0.01, 128, 2e-4, False),
    ],
)
def test_budget_and_optimiser_are_the_authors(
    name, epochs, rate, falls, factor, batch, decay, nesterov
):
    run = RUNS[name]
    assert (run.schedule.epochs, run.optim.lr, run.train.batch_size) == (epochs, rate, batch)
    assert (run.optim.momentum, run.optim.weight_decay, run.optim.nesterov) == (
        0.9,
        decay,
        nesterov,
    )
    if falls is None:
        assert run.schedule.sched == "constant"
    else:
        assert run.schedule.sched == "multistep"
        assert (run.schedule.decay_epochs, run.schedule.decay_rate) == (falls, factor)
    assert run.schedule.warmup_epochs == (5 if name == "balanced" else 0)


@pytest.mark.parametrize("name", ["dgkd", "takd", "resnets"])
def test_chains_see_the_images_as_they_are(name):
    augment = RUNS[name].data.augment
    assert (augment.crop_padding, augment.flip) == (0, False)
    for settings in (RUNS[name].student, RUNS[name].teacher):
        assert settings.normalization.std == (0.267, 0.256, 0.276)


def test_each_chain_has_the_authors_networks_and_weights():
    dgkd, takd, resnets = (RUNS[name].method for name in ("dgkd", "takd", "resnets"))
    planes = [{"model": f"plane{depth}"} for depth in (8, 6, 4)]
    assert dgkd["assistants"] == takd["assistants"] == planes
    assert (dgkd["temperature"], dgkd["kd_share"], dgkd["drop_count"]) == (5, 1, 1)
    assert (resnets["temperature"], resnets["kd_share"]) == (5, 0.15)
    assert (RUNS["dgkd"].seed, RUNS["resnets"].seed) == (20, 31)
    assert RUNS["dgkd"].stage_epochs() == (160, 160, 160, 160)


def test_several_teachers_have_the_rules_own_weights():
    ca_mkd, aekd = RUNS["ca_mkd"], RUNS["aekd"]
    assert [one.name for one in ca_mkd.teacher.members] == ["resnet32x4"] * 3
    weights = [ca_mkd.method[k] for k in ("temperature", "ce_weight", "kd_weight", "hint_weight")]
    assert weights == [4, 1, 1, 50]
    assert [one.name for one in aekd.teacher.members] == ["ResNet50"] * 3
    assert [aekd.method[k] for k in ("temperature", "kd_weight", "max_weight")] == [4, 0.9, 0.6]
    with pytest.raises(SettingsError, match="several teachers are two at least"):
        several_teachers(data_dir="data", teacher_checkpoints=THREE[:1])


def test_the_long_tail_is_the_authors():
    run = RUNS["balanced"]
    assert (run.data.imbalance_factor, run.data.split_seed) == (100, 0)
    assert run.student.name == run.teacher.name == "resnet32_option_a"
    assert (run.method["temperature"], run.method["effective_number_beta"]) == (2, 0.9999)
    assert run.method["defer_epochs"] == 0  # of CIFAR-10 alone


def test_mutual_learning_is_of_two_alike_or_of_those_that_are_named():
    assert RUNS["mutual"].student.name == "resnet32"
    (stage,) = RUNS["mutual"].stages()
    assert len(stage.peers) == 1
    assert stage.peers[0].model is None
    (stage,) = mutual(data_dir="data", peers=["MobileNetV2", "wrn_16_2"]).stages()
    assert [peer.model for peer in stage.peers] == ["MobileNetV2", "wrn_16_2"]
