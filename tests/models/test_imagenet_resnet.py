import pytest
import torch
from torch import nn

from limbeck.features import resolve_layer
from limbeck.models.imagenet_resnet import ImageNetResNet, resnet18, resnet50
from limbeck.models.vision import vision_state


def test_the_stem_keeps_every_pixel():
    network = resnet18()
    assert (network.conv1.kernel_size, network.conv1.stride) == ((3, 3), (1, 1))
    assert not any(isinstance(part, nn.MaxPool2d) for part in network.modules())


def test_a_bottleneck_has_its_stride_in_the_3x3_convolution_and_ends_four_times_as_wide():
    block = resnet50().layer3[0]
    convolutions = (block.conv1, block.conv2, block.conv3)
    assert [part.kernel_size[0] for part in convolutions] == [1, 3, 1]
    assert [part.stride[0] for part in convolutions] == [1, 2, 1]
    assert [part.out_channels for part in convolutions] == [256, 256, 1024]


@pytest.mark.parametrize(("make", "projected"), [(resnet18, (2, 3, 4)), (resnet50, (1, 2, 3, 4))])
def test_a_shortcut_projects_where_stride_or_width_change_and_nowhere_else(make, projected):
    with torch.device("meta"):
        network = make()
    for number in (1, 2, 3, 4):
        for position, block in enumerate(network.get_submodule(f"layer{number}")):
            wanted = position == 0 and number in projected
            assert isinstance(block.shortcut, nn.Sequential if wanted else nn.Identity)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_logits_are_those_of_torchvisions_network_with_the_other_stem(bottleneck, generator):
    state = vision_state("torchvision")
    if state.problem is not None or state.version is None:
        pytest.skip("torchvision is not there")
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    depths = [2, 1, 3, 2]
    other = ResNet(Bottleneck if bottleneck else BasicBlock, depths, num_classes=5)
    other.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    other.maxpool = nn.Identity()
    network = ImageNetResNet(depths, bottleneck=bottleneck, num_classes=5)
    theirs = other.state_dict()
    names = [name.replace("downsample", "shortcut").replace("fc.", "linear.") for name in theirs]
    network.load_state_dict(dict(zip(names, theirs.values(), strict=True)))
    image = torch.rand(2, 3, 16, 16, generator=generator)
    torch.testing.assert_close(network.eval()(image), other.eval()(image))


@pytest.mark.parametrize(("bottleneck", "end"), [(False, "relu2"), (True, "relu3")])
def test_a_stage_ends_with_the_last_relu_of_its_last_block(bottleneck, end):
    with torch.device("meta"):
        network = ImageNetResNet((2, 1, 3, 4), bottleneck=bottleneck, num_classes=5)
    for number, depth in enumerate((2, 1, 3, 4), start=1):
        assert resolve_layer(network, f"stage{number}") == f"layer{number}"
        found = resolve_layer(network, f"pre_activation:stage{number}")
        assert found == f"layer{number}.{depth - 1}.{end}:input"
    assert resolve_layer(network, "pre_activation:last") == found


def test_names_of_weights_are_those_of_the_benchmarks_checkpoints():
    with torch.device("meta"):
        names = set(resnet50().state_dict())
    assert {name.split(".")[0] for name in names} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "linear"
    }  # fmt: skip
    assert {"layer1.0.shortcut.0.weight", "layer4.2.bn3.running_var", "linear.bias"} <= names
