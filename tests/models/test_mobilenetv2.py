import torch
from torch import nn

from limbeck.models.mobilenetv2 import MobileNetV2, mobilenetv2


def convolutions(network):
    return [part for part in network.modules() if isinstance(part, nn.Conv2d)]


def test_relu_has_no_ceiling_at_6(generator):
    network = mobilenetv2().eval()
    assert not any(isinstance(part, nn.ReLU6 | nn.Hardtanh) for part in network.modules())
    assert network.conv1(100 * torch.rand(1, 3, 8, 8, generator=generator)).max() > 6


def test_the_stem_halves_the_image():
    stem = mobilenetv2().conv1[0]
    assert (stem.kernel_size, stem.stride, stem.out_channels) == ((3, 3), (2, 2), 16)


def test_groups_have_the_halved_widths_and_the_strides_for_small_images():
    groups = mobilenetv2().blocks
    assert [group[0].conv[6].out_channels for group in groups] == [8, 12, 16, 32, 48, 80, 160]
    assert [len(group) for group in groups] == [1, 2, 3, 4, 3, 3, 1]
    assert [group[0].conv[3].stride[0] for group in groups] == [1, 1, 2, 2, 1, 2, 1]
    assert all(block.conv[3].stride == (1, 1) for group in groups for block in group[1:])


def test_widths_are_rounded_down_and_the_head_is_not_scaled():
    network = MobileNetV2(0.3, num_classes=5)
    assert network.conv1[0].out_channels == 9
    assert [group[0].conv[6].out_channels for group in network.blocks] == [4, 7, 9, 19, 28, 48, 96]
    assert network.conv2[0].out_channels == network.classifier[0].in_features == 1280


def test_a_block_expands_six_times_but_the_first_which_still_has_its_convolution():
    for number, group in enumerate(mobilenetv2().blocks):
        for block in group:
            expand, filtering = block.conv[0], block.conv[3]
            assert expand.out_channels == expand.in_channels * (1 if number == 0 else 6)
            assert filtering.groups == filtering.in_channels == filtering.out_channels
            assert expand.kernel_size == (1, 1)


def test_input_is_added_where_stride_and_width_keep_its_shape(generator):
    adding = 0
    for group in mobilenetv2().eval().blocks:
        for block in group:
            given, made = block.conv[0].in_channels, block.conv[6].out_channels
            x = torch.randn(1, given, 4, 4, generator=generator)
            keeps = given == made and block.conv[3].stride == (1, 1)
            expected = block.conv(x) + x if keeps else block.conv(x)
            torch.testing.assert_close(block(x), expected)
            adding += keeps
    assert adding == 10


def test_there_is_no_dropout_and_no_bias_but_the_classifiers():
    network = mobilenetv2()
    assert not any(isinstance(part, nn.Dropout) for part in network.modules())
    assert all(part.bias is None for part in convolutions(network))


def test_names_of_weights_are_those_of_the_benchmarks_checkpoints():
    names = set(mobilenetv2().state_dict())
    assert {name.split(".")[0] for name in names} == {"conv1", "blocks", "conv2", "classifier"}
    expected = {
        "conv1.0.weight",
        "conv1.1.running_mean",
        "blocks.0.0.conv.7.bias",
        "blocks.5.2.conv.3.weight",
        "conv2.1.weight",
        "classifier.0.bias",
    }
    assert expected <= names
