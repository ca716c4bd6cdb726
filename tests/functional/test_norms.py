import torch
from torch import nn

from limbeck.functional.norms import BatchNorm2d


def test_one_value_a_channel_is_normalised_by_what_was_gathered(generator):
    ours = BatchNorm2d(3).train()
    ours(torch.randn(4, 3, 2, 2, generator=generator))
    before = ours.running_mean.clone()
    value = torch.randn(1, 3, 1, 1, generator=generator)
    found = ours(value)
    assert torch.equal(found, ours.eval()(value))
    assert torch.equal(ours.running_mean, before)


def test_otherwise_it_is_torchs(generator):
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    for shape in ((2, 3, 1, 1), (1, 3, 1, 2)):
        feature = torch.randn(shape, generator=generator)
        assert torch.equal(ours(feature), theirs(feature))
    assert torch.equal(ours.running_var, theirs.running_var)
