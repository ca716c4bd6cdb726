import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.models.shufflenetv1 import channel_shuffle, shufflev1


def normed(x):
    """A fresh batch-norm in eval mode."""
    return x / math.sqrt(1 + 1e-5)


def units(network):
    return [unit for stage in (network.layer1, network.layer2, network.layer3) for unit in stage]


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_the_shuffle_is_torchs(groups, generator):
    x = torch.randn(2, 12, 3, 2, generator=generator)
    assert torch.equal(channel_shuffle(x, groups), nn.ChannelShuffle(groups)(x))


def test_the_stem_is_1x1_and_nothing_is_pooled_before_the_stages():
    network = shufflev1()
    assert network.conv1.kernel_size == network.conv1.stride == (1, 1)
    assert not any(isinstance(part, nn.MaxPool2d) for part in network.modules())


def test_stages_have_4_8_and_4_units_of_which_the_first_has_stride_2():
    network = shufflev1()
    stages = (network.layer1, network.layer2, network.layer3)
    assert [len(stage) for stage in stages] == [4, 8, 4]
    strides = [[unit.conv2.stride[0] for unit in stage] for stage in stages]
    assert strides == [[2] + [1] * (len(stage) - 1) for stage in stages]


def test_inner_widths_are_a_quarter_of_what_the_convolutions_make():
    """What comes in is appended in units of stride 2: they make 240 - 24, 480 - 240, 960 - 480."""
    made = [unit.conv3.out_channels for unit in units(shufflev1())]
    assert made == [216, *[240] * 3, 240, *[480] * 7, 480, *[960] * 3]
    inner = [unit.conv2.out_channels for unit in units(shufflev1())]
    assert inner == [54, *[60] * 3, 60, *[120] * 7, 120, *[240] * 3]
    assert all(unit.conv2.groups == unit.conv2.in_channels for unit in units(shufflev1()))


def test_every_1x1_convolution_of_a_unit_has_three_groups_but_the_very_first():
    first, *others = units(shufflev1())
    assert (first.conv1.groups, first.conv3.groups) == (1, 3)
    assert {(unit.conv1.groups, unit.conv3.groups) for unit in others} == {(3, 3)}


@pytest.mark.parametrize("position", [0, 1])
def test_a_unit_is_the_formula_with_relu_after_the_depthwise_convolution(position, generator):
    unit = shufflev1().layer2[position].eval()
    stride = 2 - position
    x = torch.randn(2, unit.conv1.in_channels, 6, 6, generator=generator)
    keep = x.clone()
    out = normed(F.conv2d(x, unit.conv1.weight, groups=3)).relu()
    out = nn.ChannelShuffle(3)(out)
    out = F.conv2d(out, unit.conv2.weight, stride=stride, padding=1, groups=out.shape[1])
    out = normed(F.conv2d(normed(out).relu(), unit.conv3.weight, groups=3))
    if stride == 2:
        expected = torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1).relu()
    else:
        expected = (out + x).relu()
    torch.testing.assert_close(unit(x), expected)
    assert torch.equal(x, keep)


def test_names_of_weights_are_those_of_the_benchmarks_checkpoints():
    names = set(shufflev1().state_dict())
    assert {name.split(".")[0] for name in names} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "linear"
    }  # fmt: skip
    assert {"layer1.0.conv3.weight", "layer2.7.bn3.running_var", "linear.bias"} <= names
    assert not [name for name in names if "shortcut" in name or "pool" in name]
