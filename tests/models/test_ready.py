import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.models.ready import make_ready


def lazy():
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(5)
    )


def test_a_network_that_is_whole_stays_as_it_is(generator):
    network = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert make_ready(network, (3, 1, 1)) == ()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_lazy_weights_get_the_size_that_the_images_give(generator):
    network = lazy()
    (note,) = make_ready(network, (3, 6, 8))
    assert "3 x 6 x 8" in note
    assert network[0].weight.shape == (4, 3, 3, 3)
    assert network[4].weight.shape == (5, 4 * 4 * 6)
    assert network(torch.rand(2, 3, 6, 8, generator=generator)).shape == (2, 5)
    assert make_ready(network, (3, 6, 8)) == ()


def test_the_dry_pass_moves_no_statistics_and_no_mode():
    network = lazy()
    network[2].eval()
    make_ready(network, (1, 5, 5))
    assert network[1].running_mean.eq(0).all()
    assert network[1].running_var.eq(1).all()
    assert network[1].num_batches_tracked == 0
    assert [part.training for part in network] == [True, True, False, True, True]


def test_lazy_values_follow_from_the_seed_alone_and_the_stream_stays():
    first, second, other = lazy(), lazy(), lazy()
    stream = torch.get_rng_state()
    make_ready(first, (1, 5, 5), seed=3)
    assert torch.equal(torch.get_rng_state(), stream)
    torch.rand(7)
    make_ready(second, (1, 5, 5), seed=3)
    make_ready(other, (1, 5, 5), seed=4)
    assert torch.equal(first[4].weight, second[4].weight)
    assert not torch.equal(first[4].weight, other[4].weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_without_a_change_of_value(dtype):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(dtype)
    before = network[0].weight.detach().clone()
    (note,) = make_ready(network, (1, 4, 4))
    assert str(dtype).removeprefix("torch.") in note
    assert network[0].weight.dtype == network[1].running_mean.dtype == torch.float32
    assert network[1].num_batches_tracked.dtype == torch.int64
    assert torch.equal(network[0].weight.to(dtype), before)


def test_a_buffer_alone_in_half_precision_is_found():
    network = nn.Linear(2, 2)
    network.register_buffer("scale", torch.ones(1, dtype=torch.bfloat16))
    assert len(make_ready(network, (2, 1, 1))) == 1
    assert network.scale.dtype == torch.float32


def test_lazy_and_half_at_once_end_in_float32():
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(3, dtype=torch.bfloat16))
    assert len(make_ready(network, (1, 2, 2))) == 2
    assert network[1].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("part", "name"),
    [(nn.LazyLinear(3), "aside.weight"), (nn.LazyBatchNorm1d(affine=False), "aside.running_mean")],
)
def test_lazy_layers_that_do_not_run_are_named(part, name):
    network = nn.Linear(2, 2)
    network.add_module("aside", part)
    with pytest.raises(ModelError, match=f"does not reach \\({name}.*give them a size, or remove"):
        make_ready(network, (2, 1, 2))


def test_images_that_a_lazy_network_cannot_take_are_its_error_and_its_mode_is_kept():
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ModelError, match=r"could not take 1 x 4 x 4 images.*RuntimeError"):
        make_ready(network, (1, 4, 4))
    assert all(part.training for part in network.modules())
