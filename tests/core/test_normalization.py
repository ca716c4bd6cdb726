import copy

import pytest
import torch

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.normalization import Normalization, Normalize

CIFAR = Normalization(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))


def test_each_channel_has_its_own_constants(generator):
    image = torch.rand(2, 3, 4, 5, generator=generator)
    normalised = Normalize(CIFAR)(image)
    for channel in range(3):
        expected = (image[:, channel] - CIFAR.mean[channel]) / CIFAR.std[channel]
        torch.testing.assert_close(normalised[:, channel], expected)


def test_unless_told_otherwise_images_stay_as_they_are(generator):
    image = torch.rand(2, 3, 4, 5, generator=generator)
    assert torch.equal(Normalize(Normalization())(image), image)


def test_single_constants_serve_any_number_of_channels(generator):
    image = torch.rand(2, 3, 4, 5, generator=generator)
    normalised = Normalize(Normalization(mean=(0.5,), std=(0.25,)))(image)
    torch.testing.assert_close(normalised, 4 * image - 2)


def test_the_wrong_number_of_channels_is_an_error_and_never_broadcast():
    with pytest.raises(ShapeError, match=r"has 3 channels, the images 1; give mean and std with 1"):
        Normalize(CIFAR)(torch.zeros(2, 1, 4, 4))


def test_its_constants_are_no_state_but_follow_the_network():
    module = Normalize(CIFAR)
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    assert module.double()(torch.zeros(1, 3, 1, 1, dtype=torch.float64)).dtype == torch.float64
    assert copy.deepcopy(module).normalization == CIFAR


@pytest.mark.parametrize("std", [(0.0,), (-1.0,), (float("nan"),), (float("inf"),)])
def test_a_deviation_is_a_positive_number(std):
    with pytest.raises(SettingsError, match=r"std\.0"):
        Normalization(std=std)
