import pytest
import torch
from torch import nn

from limbeck.features import resolve_layer
from limbeck.models.digits_cnn import DigitsCNN, digits_cnn, digits_cnn_tiny
from limbeck.models.summary import summarise


def by_hand(widths, depth):
    """Parameters (weights, and two a channel of batch-norm) and multiply-adds of all layers."""
    parameters = macs = 0
    before = 1
    for side, width in zip((8, 4, 2), widths, strict=True):
        for _ in range(depth):
            parameters += 9 * before * width + 2 * width
            macs += side * side * 9 * before * width
            before = width
    return parameters + before * 10 + 10, macs + before * 10


@pytest.mark.parametrize(
    ("make", "parameters", "widths", "depth"),
    [(digits_cnn, 162_562, (24, 48, 96), 2), (digits_cnn_tiny, 1_702, (4, 8, 16), 1)],
)
def test_counts_are_those_of_the_formula_and_the_docstring(make, parameters, widths, depth):
    found = summarise(make(), (1, 8, 8))
    assert found.num_parameters == parameters
    assert (found.num_parameters, found.num_macs) == by_hand(widths, depth)
    assert f"{parameters:,} parameters" in make.__doc__


def test_stages_are_8_4_and_2_pixels_wide():
    network = digits_cnn_tiny().eval()
    found = {}
    for alias in ("stage1", "stage2", "stage3", "last"):
        network.get_submodule(resolve_layer(network, alias)).register_forward_hook(
            lambda _module, _input, output, alias=alias: found.update({alias: output.shape[1:]})
        )
    assert network(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert found == {
        "stage1": (4, 8, 8),
        "stage2": (8, 4, 4),
        "stage3": (16, 2, 2),
        "last": (16, 2, 2),
    }
    assert resolve_layer(network, "penultimate") == "fc:input"
    assert network.fc.in_features == 16


def test_images_of_a_batch_do_not_meet_in_eval_mode(generator):
    network = digits_cnn_tiny().eval()
    images = torch.rand(4, 1, 8, 8, generator=generator)
    one_by_one = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), one_by_one)


def test_every_weight_takes_part(generator):
    network = digits_cnn_tiny()
    network(torch.rand(4, 1, 8, 8, generator=generator)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_classes_channels_and_widths_are_the_callers():
    network = DigitsCNN((2, 3, 5), depth=3, num_classes=4, in_chans=3).eval()
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    widths = [part.out_channels for part in network.modules() if isinstance(part, nn.Conv2d)]
    assert widths == [2] * 3 + [3] * 3 + [5] * 3
