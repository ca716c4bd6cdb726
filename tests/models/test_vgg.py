import pytest
import torch
from torch import nn

from limbeck.features import FeatureTap
from limbeck.models.vgg import vgg8, vgg13


def test_every_convolution_is_3x3_and_has_a_bias():
    convolutions = [part for part in vgg13().modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 10
    assert all(part.bias is not None for part in convolutions)
    assert all(part.kernel_size == (3, 3) for part in convolutions)


@pytest.mark.parametrize(
    ("side", "sides"),
    [(32, (32, 16, 8, 4, 4)), (64, (64, 32, 16, 8, 4)), (48, (48, 24, 12, 6, 6))],
)
def test_there_is_a_fourth_pool_for_images_of_64_pixels_alone(side, sides):
    network = vgg8().eval()
    stages = ("stem", "stage1", "stage2", "stage3", "stage4")
    with torch.no_grad(), FeatureTap(network, stages) as tap:
        found = tap(torch.zeros(1, 3, side, side)).features
    assert tuple(found[stage].shape[-1] for stage in stages) == sides


def test_the_network_is_the_formula_of_the_paper(generator):
    """Convolution, batch-norm (fresh, in eval mode: a constant factor), ReLU, pool; an average."""
    network = vgg8().eval()
    image = x = torch.rand(2, 3, 32, 32, generator=generator)
    for number in range(5):
        convolution = network.get_submodule(f"block{number}.0")
        x = nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
        x = (x / (1 + 1e-5) ** 0.5).relu()
        if number < 3:
            x = nn.functional.max_pool2d(x, 2)
    expected = x.mean(dim=(2, 3)) @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(image), expected)


def test_names_of_weights_are_those_of_the_benchmarks_checkpoints():
    names = set(vgg13().state_dict())
    assert {name.split(".")[0] for name in names} == {
        "block0", "block1", "block2", "block3", "block4", "classifier"
    }  # fmt: skip
    positions = {name.split(".")[1] for name in names if name.startswith("block2")}
    assert positions == {"0", "1", "3", "4"}
    assert {"block4.3.bias", "block4.4.running_var", "classifier.weight"} <= names
