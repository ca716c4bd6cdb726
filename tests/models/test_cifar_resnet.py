import math

import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.features import resolve_layer
from limbeck.models.cifar_resnet import CifarResNet, resnet8x4, resnet20, resnet32_option_a


@pytest.mark.parametrize("depth", [8, 14, 110])
def test_a_stage_ends_with_the_last_relu_of_its_last_block(depth):
    network = CifarResNet(depth, (4, 4, 8, 16), num_classes=7)
    for stage in ("stage1", "stage2", "stage3"):
        blocks = network.get_submodule(resolve_layer(network, stage))
        expected = f"layer{stage[-1]}.{len(blocks) - 1}.relu2:input"
        assert resolve_layer(network, f"pre_activation:{stage}") == expected
        assert len(blocks) == (depth - 2) // 6


@pytest.mark.parametrize(
    ("make", "projected"),
    [(resnet20, ["layer2", "layer3"]), (resnet8x4, ["layer1", "layer2", "layer3"])],
)
def test_a_shortcut_projects_where_stride_or_width_change_and_nowhere_else(make, projected):
    network = make()
    for stage in ("layer1", "layer2", "layer3"):
        for position, block in enumerate(network.get_submodule(stage)):
            wanted = position == 0 and stage in projected
            assert isinstance(block.downsample, nn.Sequential if wanted else nn.Identity)


def test_a_block_is_the_formula_of_the_paper(generator):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))), with batch-norms that do nothing."""
    block = resnet20().layer1[0].eval()
    x = torch.randn(2, 16, 5, 5, generator=generator)
    keep = x.clone()
    inner = nn.functional.conv2d(x, block.conv1.weight, padding=1) / math.sqrt(1 + 1e-5)
    outer = nn.functional.conv2d(inner.relu(), block.conv2.weight, padding=1) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(block(x), (x + outer).relu())
    assert torch.equal(x, keep)


def test_option_a_takes_every_second_pixel_and_pads_channels_with_zeros(generator):
    """With the other branch at zero, the block is the shortcut alone."""
    block = resnet32_option_a().layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 6, 6, generator=generator)
    out = block(x)
    assert out.shape == (2, 32, 3, 3)
    for channel in range(32):
        source = x[:, channel - 8, ::2, ::2] if 8 <= channel < 24 else torch.zeros(2, 3, 3)
        assert torch.equal(out[:, channel], source)


def test_option_as_shortcuts_have_no_weights():
    names = resnet32_option_a().state_dict()
    assert not [name for name in names if "downsample" in name]
    # What its depth's projections, and nothing else, hold in the benchmark's network.
    assert 16 * 32 + 32 * 64 + 2 * (32 + 64) == 472_756 - 470_004


def test_convolutions_start_as_kaimings_fan_out_and_norms_as_the_identity():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = resnet8x4()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            # 5 standard errors of a standard deviation that is estimated from so many weights
            loose = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=loose)
            assert module.bias is None
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_names_of_weights_are_those_of_the_benchmarks_checkpoints():
    names = resnet8x4().state_dict()
    assert list(names)[:2] == ["conv1.weight", "bn1.weight"]
    expected = {
        "layer1.0.conv1.weight",
        "layer1.0.bn2.running_var",
        "layer3.0.downsample.0.weight",
        "layer3.0.downsample.1.bias",
        "fc.weight",
        "fc.bias",
    }
    assert expected <= set(names)
    tops = {name.split(".")[0] for name in names}
    assert tops == {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}


def test_other_channels_sizes_and_classes_fit():
    network = CifarResNet(8, (4, 4, 8, 16), num_classes=7, in_chans=1).eval()
    assert network(torch.zeros(2, 1, 28, 36)).shape == (2, 7)


@pytest.mark.parametrize("depth", [10, 18, 0, 2])
def test_another_depth_is_refused(depth):
    with pytest.raises(ModelError, match=f"6n \\+ 2, from 8 on; got {depth}"):
        CifarResNet(depth, (4, 4, 8, 16), num_classes=7)
