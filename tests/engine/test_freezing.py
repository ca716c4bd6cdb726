import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError, UnknownNameError
from limbeck.engine.freezing import freeze_parts, match_parts, rest_parts


@pytest.fixture
def network(generator):
    made = nn.Sequential()
    made.add_module("stem", nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)))
    made.add_module("body", nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)))
    made.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], ()),
        (["stem"], ("stem",)),
        (["?tem.0"], ("stem.0",)),
        (["*.bias"], ("stem.0.bias", "stem.1.bias", "body.0.bias", "body.1.bias", "head.1.bias")),
        (["body.1*", "stem.0"], ("stem.0", "body.1", "body.1.weight", "body.1.bias")),
        (["stem", "stem"], ("stem",)),
    ],
)
def test_a_pattern_finds_modules_and_parameters_in_the_networks_order(network, patterns, expected):
    assert match_parts(network, patterns) == expected


def test_names_are_told_apart_by_case(network):
    with pytest.raises(UnknownNameError, match="no part to freeze called 'Stem'; did you mean"):
        match_parts(network, ["Stem"])


def test_one_pattern_that_fits_nothing_is_named_among_others_that_do(network):
    with pytest.raises(UnknownNameError, match="'hed'; did you mean 'head'"):
        match_parts(network, ["stem", "hed"])


@pytest.mark.parametrize("patterns", [["*"], ["stem", "body", "head"], ["*.weight", "*.bias"]])
def test_a_student_with_nothing_left_to_train_is_refused(network, patterns):
    with pytest.raises(ModelError, match="leaves nothing to train; freeze less"):
        match_parts(network, patterns)


def test_what_its_maker_froze_is_not_left_to_train(network):
    network.stem.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing to train"):
        match_parts(network, ["body", "head"])
    assert match_parts(network, ["stem"]) == ("stem",)


def test_frozen_parts_stay_while_the_rest_trains(network, generator):
    """Weight decay and momentum would move a parameter whose gradient is 0, and not none."""
    names = match_parts(network, ["stem", "body.0.weight"])
    freeze_parts(network, names)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        network.train()
        rest_parts(network, names)
        optimiser.zero_grad()
        image = 5 + torch.randn(4, 1, 8, 8, generator=generator)
        network(image).square().mean().backward()
        optimiser.step()
    still = {k for k, v in network.state_dict().items() if torch.equal(v, before[k])}
    frozen = {name for name in before if name.startswith("stem.")}
    assert still == frozen | {"body.0.weight"}
    assert "stem.1.running_mean" in still
    assert "stem.1.num_batches_tracked" in still


def test_dropout_of_a_part_at_rest_drops_nothing(network, generator):
    network.train()
    rest_parts(network, ["stem"])
    image = torch.randn(4, 1, 8, 8, generator=generator)
    assert torch.equal(network.stem(image), network.stem(image))
    assert network.body.training
    assert network.training


def test_a_parameter_by_name_leaves_its_modules_statistics_moving(network):
    network.train()
    rest_parts(network, ["stem.1.weight"])
    assert all(part.training for part in network.modules())
