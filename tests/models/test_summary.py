import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from limbeck.core.errors import ModelError
from limbeck.models.create import MODELS, create_model
from limbeck.models.summary import count_macs, summarise


def torchs_count(network, image_shape):
    """Multiply-adds as torch's own counter sees them, at the level of single operations."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        copy.deepcopy(network).eval()(torch.zeros(1, *image_shape))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def one(layer, image_shape):
    """The summary of a network of one layer, and that layer's row."""
    found = summarise(nn.Sequential(layer), image_shape)
    (row,) = found.rows
    assert row.name == "0"
    return found, row


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 6, 5), 6 * 5 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, (1, 5), stride=2), (3, 6, 9), 3 * 3 * 8 * 3 * 5),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 5, 5), 3 * 3 * 8 * 2 * 9),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 5, 5), 3 * 3 * 4 * 9),
        (nn.Conv2d(2, 3, 3, dilation=2), (2, 7, 7), 3 * 3 * 3 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5), 5 * 5 * 4 * 3 * 9),
        (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 5 * 7),
        (nn.BatchNorm2d(3), (3, 4, 4), 0),
        (nn.ReLU(), (3, 4, 4), 0),
        (nn.AvgPool2d(2), (3, 4, 4), 0),
    ],
)
def test_one_layer_costs_what_the_formula_says(layer, shape, macs):
    found, row = one(layer, shape)
    assert row.num_macs == found.num_macs == macs
    assert row.kind == type(layer).__name__
    assert row.output_shape == tuple(copy.deepcopy(layer).eval()(torch.zeros(1, *shape)).shape[1:])
    assert row.num_parameters == sum(p.numel() for p in layer.parameters())
    assert macs == torchs_count(layer, shape)


@pytest.mark.parametrize("name", MODELS)
def test_the_zoo_costs_what_torchs_own_counter_says(name):
    shape = (1, 8, 8) if name.startswith("digits") else (3, 32, 32)
    network = create_model(name, num_classes=10, in_chans=shape[0])
    assert summarise(network, shape).num_macs == torchs_count(network, shape)


class Attentive(nn.Module):
    def __init__(self, *, batch_first, kdim=None):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, image):
        tokens = image.flatten(2)  # (B, 8, L)
        query = tokens.permute(0, 2, 1) if self.batch_first else tokens.permute(2, 0, 1)
        keys = query[:, :5] if self.batch_first else query[:5]
        keys = keys[..., : self.attention.kdim]
        return self.attention(query, key=keys, value=keys)[0]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("width", [8, 6])
def test_attention_costs_its_projections_and_its_two_products(batch_first, width):
    """12 queries, 5 keys, 8 wide: q, k, v and output projections; scores and weighted values."""
    found = summarise(Attentive(batch_first=batch_first, kdim=width), (8, 3, 4))
    projections = 12 * 8 * 8 + 2 * (5 * width * 8) + 12 * 8 * 8
    assert found.num_macs == projections + 2 * (12 * 5 * 8)
    assert [row.name for row in found.rows] == ["attention"]
    assert found.rows[0].num_parameters == found.num_parameters


def test_a_transformers_short_cut_hides_no_layer():
    """In eval mode torch may compute a whole encoder layer in one operation."""
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    found = summarise(nn.Sequential(nn.Flatten(2), nn.Linear(4, 8), layer), (5, 2, 2))
    expected = 5 * 4 * 8 + (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8) + 2 * 5 * 8 * 16
    assert found.num_macs == expected
    assert {row.name for row in found.rows if row.num_macs} == {
        "1",
        "2.self_attn",
        "2.linear1",
        "2.linear2",
    }


class Odd(nn.Module):
    """A module used twice, one never used, a parameter of no layer, a tied weight."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(5))
        self.shared = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.halve = nn.MaxPool2d(2)
        self.unused = nn.Linear(3, 3, bias=False)
        self.tied = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.tied.weight = self.shared.weight

    def forward(self, image):
        return self.tied(self.shared(self.halve(self.shared(image))))


def test_calls_add_up_and_parameters_are_counted_once():
    found = summarise(Odd(), (2, 8, 8))
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["shared", "halve", "unused", "tied"]
    assert rows["shared"].num_macs == (64 + 16) * 2 * 2 * 9
    assert rows["shared"].output_shape == (2, 4, 4)  # of the last call
    assert found.num_macs == (64 + 16 + 16) * 36
    assert rows["unused"].output_shape is None
    assert rows["unused"].num_macs == 0
    assert found.num_parameters == 5 + 36 + 9  # and not the tied 36 again


def test_a_parametrised_layer_is_still_a_layer():
    layer = parametrizations.weight_norm(nn.Conv2d(2, 3, 3, bias=False))
    found = summarise(nn.Sequential(layer, nn.ReLU()), (2, 3, 3))
    assert [row.name for row in found.rows] == ["0", "1"]
    assert found.num_macs == 2 * 3 * 9
    assert found.num_parameters == 2 * 3 * 9 + 3


def test_a_network_that_is_a_single_layer_has_one_row_without_a_name():
    found = summarise(nn.Flatten(), (2, 3, 4))
    assert [(row.name, row.output_shape) for row in found.rows] == [("", (24,))]


class Counting(nn.Module):
    """Even in eval mode it writes into a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm2d(1, momentum=0.5)

    def forward(self, image):
        self.calls += 1
        return self.norm(image + 1)


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(Counting(), nn.Dropout(), Counting().eval())
    network[0].norm.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    stream = torch.get_rng_state()
    summarise(network, (1, 3, 3))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    assert [p.requires_grad for p in network.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), stream)


def test_the_image_has_the_networks_own_dtype():
    assert summarise(nn.Conv2d(1, 1, 1).double(), (1, 2, 2)).num_macs == 4


def test_an_image_that_does_not_fit_is_named_and_hooks_stay_away():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ModelError, match=r"Sequential could not take one 1 x 8 x 8 .*--img-size"):
        summarise(network, (1, 8, 8))
    assert not network[0]._forward_hooks


def test_what_a_module_costs_while_something_runs_is_the_sum_over_its_own_layers():
    """By hand: 2 images of 3 values to 5, twice, and attention as torch counts it."""
    inner = nn.Linear(3, 5)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    outer, tokens = nn.ModuleDict({"inner": inner, "attention": attention}), torch.zeros(2, 4, 8)

    def run():
        inner(inner(torch.zeros(2, 3))[:, :3])
        nn.Linear(7, 7)(torch.zeros(1, 7))  # of somebody else
        attention(tokens, tokens, tokens)

    linear = 2 * (2 * 3 * 5)
    projections, products = 2 * 4 * (4 * 8 * 8), 2 * (2 * 4 * 4 * 8)
    assert count_macs(outer, run) == linear + projections + products
    assert not any(module._forward_hooks for module in outer.modules())


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))

    def forward(self, image):
        return F.linear(image.flatten(1), self.weight), None


def test_what_is_computed_outside_layers_is_not_counted_but_its_weights_are():
    found = summarise(nn.Sequential(Functional()), (1, 2, 2))
    assert (found.num_macs, found.num_parameters) == (0, 12)
    assert found.rows[0].output_shape == (3,)  # the first of several outputs


def test_a_lazy_network_is_counted_and_stays_lazy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls lazy modules new
        network = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    found = summarise(network, (1, 2, 3))
    assert (found.num_macs, found.num_parameters) == (30, 35)
    assert network[1].has_uninitialized_params()
