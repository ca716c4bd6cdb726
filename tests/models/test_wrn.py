import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.features import FeatureTap
from limbeck.models.wrn import WideResNet, wrn_16_1, wrn_16_2


def activated(x):
    """A fresh batch-norm in eval mode, and ReLU."""
    return (x / math.sqrt(1 + 1e-5)).relu()


def branch(block, x, stride):
    inner = F.conv2d(x, block.conv1.weight, stride=stride, padding=1)
    return F.conv2d(activated(inner), block.conv2.weight, padding=1)


def test_a_widening_block_projects_its_input_after_relu_and_without_batch_norm(generator):
    block = wrn_16_2().block2.layer[0].eval()
    x = torch.randn(2, 32, 6, 6, generator=generator)
    keep = x.clone()
    shortcut = F.conv2d(activated(x), block.convShortcut.weight, stride=2)
    torch.testing.assert_close(block(x), shortcut + branch(block, activated(x), 2))
    assert torch.equal(x, keep)
    assert block.convShortcut.kernel_size == (1, 1)
    assert not hasattr(block.convShortcut, "running_mean")


def test_any_other_block_adds_its_input_as_it_came(generator):
    block = wrn_16_2().block2.layer[1].eval()
    x = torch.randn(2, 64, 6, 6, generator=generator)
    keep = x.clone()
    torch.testing.assert_close(block(x), x + branch(block, activated(x), 1))
    assert torch.equal(x, keep)


def test_the_first_stage_projects_only_where_it_is_wider_than_the_stem():
    assert wrn_16_1().block1.layer[0].convShortcut is None
    assert wrn_16_2().block1.layer[0].convShortcut is not None


def test_a_pre_activation_is_what_the_next_batch_norm_makes_of_the_stage(generator):
    network = wrn_16_1()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.bias.normal_(generator=generator)
    norms = {
        "stem": network.block1.layer[0].bn1,
        "stage1": network.block2.layer[0].bn1,
        "stage2": network.block3.layer[0].bn1,
        "stage3": network.bn1,
    }
    layers = [*norms, *(f"pre_activation:{name}" for name in norms)]
    with torch.no_grad(), FeatureTap(network, layers) as tap:
        found = tap(torch.rand(3, 3, 16, 16, generator=generator)).features
    for name, norm in norms.items():
        expected = F.batch_norm(found[name], None, None, norm.weight, norm.bias, training=True)
        torch.testing.assert_close(found[f"pre_activation:{name}"], expected)


def test_names_of_weights_are_those_of_the_benchmarks_checkpoints():
    names = set(wrn_16_2().state_dict())
    assert {name.split(".")[0] for name in names} == {
        "conv1", "block1", "block2", "block3", "bn1", "fc"
    }  # fmt: skip
    expected = {
        "block1.layer.0.bn1.weight",
        "block1.layer.0.convShortcut.weight",
        "block3.layer.1.conv2.weight",
        "block3.layer.1.bn2.num_batches_tracked",
    }
    assert expected <= names
    assert "block3.layer.1.convShortcut.weight" not in names


@pytest.mark.parametrize("depth", [4, 14, 20, 38])
def test_another_depth_is_refused(depth):
    with pytest.raises(ModelError, match=f"6n \\+ 4, from 10 on; got {depth}"):
        WideResNet(depth, 1, num_classes=7)
