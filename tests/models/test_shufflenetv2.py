import math

import torch
import torch.nn.functional as F
from torch import nn

from limbeck.models.shufflenetv2 import shufflev2


def normed(x):
    """A fresh batch-norm in eval mode."""
    return x / math.sqrt(1 + 1e-5)


def test_a_stage_is_one_block_that_halves_and_3_7_or_3_that_do_not():
    network = shufflev2()
    for stage, basic in ((network.layer1, 3), (network.layer2, 7), (network.layer3, 3)):
        assert [hasattr(block, "conv5") for block in stage] == [True] + [False] * basic
        strides = [
            max(part.stride[0] for part in block.modules() if isinstance(part, nn.Conv2d))
            for block in stage
        ]
        assert strides == [2] + [1] * basic


def test_the_stem_is_1x1_and_nothing_is_pooled_before_the_stages():
    network = shufflev2()
    assert network.conv1.kernel_size == network.conv1.stride == (1, 1)
    assert not any(isinstance(part, nn.MaxPool2d) for part in network.modules())


def test_a_basic_block_convolves_the_second_half_and_shuffles_both_in_two_groups(generator):
    """As published: ReLU on the branch alone. What comes in is the end of a ReLU already."""
    block = shufflev2().layer1[1].eval()
    x = torch.rand(2, 116, 5, 5, generator=generator)
    kept, other = x[:, :58], x[:, 58:]
    other = normed(F.conv2d(other, block.conv1.weight)).relu()
    other = normed(F.conv2d(other, block.conv2.weight, padding=1, groups=58))
    other = normed(F.conv2d(other, block.conv3.weight)).relu()
    out = block(x)
    torch.testing.assert_close(out[:, 0::2], kept)
    torch.testing.assert_close(out[:, 1::2], other)


def test_a_halving_block_joins_two_branches_of_stride_2(generator):
    block = shufflev2().layer2[0].eval()
    x = torch.rand(2, 116, 6, 6, generator=generator)
    left = normed(F.conv2d(x, block.conv1.weight, stride=2, padding=1, groups=116))
    left = normed(F.conv2d(left, block.conv2.weight)).relu()
    right = normed(F.conv2d(x, block.conv3.weight)).relu()
    right = normed(F.conv2d(right, block.conv4.weight, stride=2, padding=1, groups=116))
    right = normed(F.conv2d(right, block.conv5.weight)).relu()
    out = block(x)
    torch.testing.assert_close(out[:, 0::2], left)
    torch.testing.assert_close(out[:, 1::2], right)


def test_names_of_weights_are_those_of_the_benchmarks_checkpoints():
    names = set(shufflev2().state_dict())
    assert {name.split(".")[0] for name in names} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "conv2", "bn2", "linear"
    }  # fmt: skip
    assert {"layer1.0.conv5.weight", "layer2.7.bn3.weight", "layer3.3.conv3.weight"} <= names
    assert "layer2.8.conv1.weight" not in names
