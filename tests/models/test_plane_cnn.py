import pytest
import torch
from torch import nn

from limbeck.core.errors import ShapeError
from limbeck.models import plane_cnn
from limbeck.models.plane_cnn import PlaneCNN, plane2, plane6, plane6_cifar10, plane8

# As the papers' codes write them: Cn a convolution, P a pool, Fn a linear layer.
LISTS = {
    "plane2": "C32 P C32 P F100",
    "plane3": "C32 C32 P C64 P F100",
    "plane4": "C32 C32 P C64 C64 P F100",
    "plane5": "C32 C32 P C64 C64 P C128 F100",
    "plane6": "C32 C32 P C64 C64 P C128 C128 F100",
    "plane7": "C32 C32 P C64 C64 P C128 C128 P C256 P F64 F100",
    "plane8": "C32 C32 P C64 C64 P C128 C128 P C256 C256 P F64 F100",
    "plane9": "C32 C32 P C64 C64 P C128 C128 P C256 C256 C256 P F512 F100",
    "plane10": "C32 C32 P C64 C64 P C128 C128 P C256 C256 C256 C256 P F512 F100",
    "plane2_cifar10": "C16 P C16 P F10",
    "plane4_cifar10": "C16 C16 P C32 C32 P F10",
    "plane6_cifar10": "C16 C16 P C32 C32 P C64 C64 P F10",
    "plane8_cifar10": "C16 C16 P C32 C32 P C64 C64 P C128 C128 P F64 F10",
    "plane10_cifar10": "C32 C32 P C64 C64 P C128 C128 P C256 C256 C256 C256 P F128 F10",
}


def written(network):
    words = []
    for part in network.modules():
        match part:
            case nn.Conv2d():
                words.append(f"C{part.out_channels}")
            case nn.MaxPool2d():
                words.append("P")
            case nn.Linear():
                words.append(f"F{part.out_features}")
    return " ".join(words)


@pytest.mark.parametrize("name", LISTS)
def test_layers_are_those_of_the_papers_lists(name):
    with torch.device("meta"):
        assert written(getattr(plane_cnn, name)()) == LISTS[name]


def test_every_network_of_the_file_is_in_the_table():
    assert set(plane_cnn.__all__) == {"PlaneCNN", *LISTS}


def test_the_third_pool_is_lacking_for_cifar_100_alone():
    assert written(plane6()).count("P") == 2
    assert written(plane6_cifar10()).count("P") == 3


def test_convolutions_have_a_bias_and_relu_stands_between_linear_layers_alone():
    network = plane8()
    assert all(p.bias is not None for p in network.modules() if isinstance(p, nn.Conv2d))
    assert [type(part).__name__ for part in network.fc_layers] == ["Linear", "ReLU", "Linear"]


def test_the_linear_layer_sees_every_pixel(generator):
    """Two images of the same averages, one the other's mirror image, differ in their logits."""
    network = plane2().eval()
    x = torch.rand(1, 32, 8, 8, generator=generator)
    logits = [network.fc_layers(x.flatten(1)), network.fc_layers(x.flip(3).flatten(1))]
    assert not torch.allclose(*logits)
    assert network.fc_layers[0].in_features == 32 * 8 * 8


def test_names_of_weights_are_those_of_the_authors_code():
    names = set(plane8().state_dict())
    assert {name.split(".")[0] for name in names} == {"conv_layers", "fc_layers"}
    assert {"conv_layers.0.bias", "conv_layers.7.weight", "fc_layers.2.bias"} <= names


def test_classes_and_channels_are_the_callers_and_images_have_32_pixels():
    network = PlaneCNN((4, 1), (6, 2), num_pools=1, hidden=3, num_classes=7, in_chans=1).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert network.fc_layers[0].in_features == 6 * 16 * 16
    with pytest.raises(ShapeError, match=r"32x32 pixels.*got \(2, 1, 64, 32\)"):
        network(torch.zeros(2, 1, 64, 32))
