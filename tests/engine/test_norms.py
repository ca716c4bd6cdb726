import pytest
import torch
from torch import nn

from limbeck.engine.norms import find_batch_norms
from limbeck.features import FeatureTap
from limbeck.models import create_model

SIDE = 32
# The batch-norm before each stage's last ReLU, as OFD's authors choose it in these networks.
EXPECTED = {
    "resnet8": ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"],
    "resnet20": ["layer1.2.bn2", "layer2.2.bn2", "layer3.2.bn2"],
    "ResNet50": ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"],
    "wrn_16_2": ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"],
    "vgg8": ["block1.1", "block2.1", "block3.1", "block4.1"],
    "MobileNetV2": [
        "blocks.1.1.conv.7",
        "blocks.2.2.conv.7",
        "blocks.4.2.conv.7",
        "blocks.6.0.conv.7",
    ],
    "ShuffleV1": ["layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"],
    # A half of the channels comes from elsewhere.
    "ShuffleV2": [],
}


def find(network, layers):
    image = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    network.eval()
    with FeatureTap(network, layers) as tap:
        tap(image)
        return find_batch_norms(network, tap.addresses, image)


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_the_last_one_before_the_stages_relu(name):
    network = create_model(name, num_classes=10)
    found = find(network, ["pre_activation:stage*"])
    assert [info.name for info in found.values()] == EXPECTED[name]
    for info in found.values():
        module = network.get_submodule(info.name)
        assert torch.equal(info.weight, module.weight)
        assert torch.equal(info.bias, module.bias)
        assert info.weight.data_ptr() != module.weight.data_ptr()
        assert not info.weight.requires_grad


def test_what_a_relu_has_cut_has_no_batch_norm():
    assert find(create_model("resnet8", num_classes=10), ["stage1", "penultimate"]) == {}


def test_a_module_used_twice_is_told_apart_by_its_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.bn2(self.relu(self.bn1(x)))).mean((2, 3))

    found = find(Twice(), ["relu:input#1", "relu:input#2"])
    assert {asked: info.name for asked, info in found.items()} == {
        "relu:input#1": "bn1",
        "relu:input#2": "bn2",
    }


def test_one_that_does_not_scale_has_ones_and_zeros():
    network = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.ReLU(), nn.Flatten())
    info = find(network, ["1:input"])["1:input"]
    assert info.weight.tolist() == [1, 1, 1]
    assert info.bias.tolist() == [0, 0, 0]


def test_no_hook_is_left_behind():
    network = create_model("resnet8", num_classes=10)
    find(network, ["pre_activation:stage*"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
