"""N images, B batch, C channels, H W spatial."""

import math
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from limbeck.core.errors import ModelError
from limbeck.core.normalization import Normalization
from limbeck.models import create_model
from limbeck.runs.lipschitz import layer_norm, lipschitz_profile
from limbeck.runs.networks import NamedNetwork

CPU = torch.device("cpu")
NORMALIZATION = Normalization(mean=(0.3,), std=(0.4,))


def profile(network, image, *, normalization=NORMALIZATION, size=3):
    named = NamedNetwork(network, normalization, "net")
    return lipschitz_profile(named, torch.split(image, size), device=CPU)


class Chain(nn.Module):
    """Two stages whose layers' norms are known, and an unused layer."""

    layer_aliases: ClassVar = {
        "stage1": "relu1",
        "stage2": "relu2",
        "pre_activation:stage1": "relu1:input",
        "pre_activation:stage2": "relu2:input",
    }

    def __init__(self):
        super().__init__()
        self.late = scaled(7.0)  # defined first, runs last
        self.unused = scaled(1e6)
        self.first, self.twice = scaled(2.0), scaled(3.0)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = 5 * torch.eye(2)

    def forward(self, image):
        x = self.relu1(self.first(image))
        x = self.relu2(self.twice(self.twice(x)))
        return self.head(self.late(x).mean((2, 3)))


@torch.no_grad()
def scaled(factor):
    layer = nn.Conv2d(2, 2, 1, bias=False)
    layer.weight.copy_(factor * torch.eye(2)[:, :, None, None])
    return layer


# -- sigma ---------------------------------------------------------------------------------


def by_hand(network, names, image):
    """Each image's largest singular value, from numpy, of what lies before the stages' ReLU."""
    maps = []
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output: maps.append(output.detach().double().numpy())
        )
        for name in names
    ]
    with torch.no_grad():
        network.eval()((image - 0.3) / 0.4)
    for handle in handles:
        handle.remove()
    found = []
    for first, second in pairwise(maps):
        factor = first.shape[2] // second.shape[2]
        shape = (*first.shape[:2], second.shape[2], factor, second.shape[3], factor)
        pooled = first.reshape(shape).mean((3, 5))
        matrices = np.einsum("bchw,bdhw->bcd", pooled, second) / np.prod(second.shape[2:])
        found.append([np.linalg.svd(matrix, compute_uv=False)[0] for matrix in matrices])
    return np.array(found)


def test_sigma_is_the_singular_value_of_the_maps_before_the_relu_over_all_images(generator):
    network = create_model("digits_cnn", num_classes=10, in_chans=1)
    image = torch.rand(8, 1, 8, 8, generator=generator)
    found = profile(network, image)  # batches of 3, 3 and 2
    # The batch-norms behind the second convolutions.
    expected = by_hand(network, ["stage1.4", "stage2.4", "stage3.4"], image)
    assert len(found.parts) == 2
    for part, values in zip(found.parts, expected, strict=True):
        assert part.sigma_mean == pytest.approx(values.mean(), rel=1e-5)
        assert part.sigma_sd == pytest.approx(values.std(ddof=1), rel=1e-4)


def test_the_parts_are_named_by_where_they_begin_and_end(generator):
    network = create_model("digits_cnn_tiny", num_classes=10, in_chans=1)
    found = profile(network, torch.rand(2, 1, 8, 8, generator=generator))
    assert [(part.first, part.second) for part in found.parts] == [
        ("pre_activation:stage1", "pre_activation:stage2"),
        ("pre_activation:stage2", "pre_activation:stage3"),
    ]


def test_a_single_image_has_no_spread(generator):
    found = profile(Chain(), torch.rand(1, 2, 4, 4, generator=generator))
    assert found.parts[0].sigma_sd is None


def test_training_mode_changes_nothing(generator):
    image = torch.rand(4, 1, 8, 8, generator=generator)
    network = create_model("digits_cnn", num_classes=10, in_chans=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert profile(network.train(), image, size=1) == profile(network.eval(), image, size=1)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("model", ["resnet8", "vgg8", "ShuffleV2", "MobileNetV2"])
def test_every_family_of_the_zoo_has_a_profile(model, generator):
    network = create_model(model, num_classes=10, in_chans=3)
    normalization = Normalization(mean=(0.3,), std=(0.4,))
    found = profile(
        network, torch.rand(2, 3, 32, 32, generator=generator), normalization=normalization
    )
    assert len(found.parts) >= 2
    assert all(part.sigma_mean > 0 for part in found.parts)


# -- products of layers --------------------------------------------------------------------


def test_layers_are_multiplied_where_they_run_and_as_often(generator):
    found = profile(Chain(), torch.rand(2, 2, 4, 4, generator=generator))
    (part,) = found.parts
    assert part.num_layers == 2
    assert part.log10_layer_product == pytest.approx(math.log10(3 * 3))
    assert found.num_layers == 5
    assert found.log10_layer_product == pytest.approx(math.log10(2 * 3 * 3 * 7 * 5))


def test_a_layer_of_zeros_leaves_no_product(generator):
    network = Chain()
    nn.init.zeros_(network.twice.weight)
    found = profile(network, torch.rand(2, 2, 4, 4, generator=generator))
    assert found.parts[0].log10_layer_product is None
    assert found.log10_layer_product is None
    assert found.parts[0].sigma_mean == 0


LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "convolution": lambda: nn.Conv2d(3, 6, 3),
    "stride and bias": lambda: nn.Conv2d(6, 4, 5, stride=2, bias=False),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_layers_norm_is_what_torchs_parametrization_divides_by(layer):
    layer = layer()
    before = layer.weight.detach().clone()
    norm = layer_norm(layer)
    spectral_norm(layer, n_power_iterations=500)
    torch.testing.assert_close(before / norm, layer.weight.detach(), rtol=1e-5, atol=1e-6)


def test_groups_count_by_the_largest(generator):
    """As the block-diagonal matrix that a grouped convolution is."""
    layer = nn.Conv2d(6, 4, 3, groups=2)
    blocks = layer.weight.detach().double().reshape(2, 2, -1)
    whole = torch.block_diag(*blocks).numpy()
    assert layer_norm(layer) == pytest.approx(np.linalg.svd(whole, compute_uv=False)[0], rel=1e-5)


def test_a_batch_norm_counts_by_its_largest_factor_in_eval_mode(generator):
    layer = nn.BatchNorm2d(4).eval()
    layer.weight.data = torch.tensor([1.0, -6.0, 2.0, 0.5])
    layer.running_var = torch.tensor([1.0, 4.0, 0.25, 0.01])
    # A step along one channel comes out as many times as long.
    image = torch.randn(1, 4, 1, 1, generator=generator)
    layer.requires_grad_(False)
    steps = [layer(image + torch.eye(4)[c].reshape(1, 4, 1, 1)) - layer(image) for c in range(4)]
    assert layer_norm(layer) == pytest.approx(max(step.norm().item() for step in steps), rel=1e-4)
    plain = nn.BatchNorm1d(2, affine=False)
    assert layer_norm(plain) == pytest.approx(1 / math.sqrt(1 + 1e-5))


@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.LayerNorm(3), nn.BatchNorm2d(3, track_running_stats=False)], ids=str
)
def test_other_layers_have_none(layer):
    assert layer_norm(layer) is None


# -- what cannot be profiled ---------------------------------------------------------------


class OneStage(Chain):
    layer_aliases: ClassVar = {"stage1": "relu1"}


class Vectors(Chain):
    layer_aliases: ClassVar = {"stage1": "relu1", "stage2": "cube"}

    def __init__(self):
        super().__init__()
        self.cube = nn.Unflatten(1, (1, 1, 2))

    def forward(self, image):
        self.cube(self.first(image))
        return super().forward(image)


@pytest.mark.parametrize(
    ("network", "message"),
    [(OneStage, "net: .* two stages; this network has 1"), (Vectors, r"stage2 gives \(2, 1, 1, 2")],
)
def test_a_network_without_two_stages_of_maps_is_named(network, message, generator):
    with pytest.raises(ModelError, match=message):
        profile(network(), torch.rand(2, 2, 4, 4, generator=generator))


def test_values_that_are_not_finite_are_named(generator):
    network = Chain()
    nn.init.constant_(network.twice.weight, math.inf)
    with pytest.raises(ModelError, match="stage2 gives values that are not finite"):
        profile(network, torch.rand(2, 2, 4, 4, generator=generator))
