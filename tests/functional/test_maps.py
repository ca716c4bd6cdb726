import pytest
import torch

from limbeck.core.errors import ShapeError
from limbeck.functional.maps import check_feature_maps, pooled_alike, unit_maps


def test_only_exactly_zero_maps_have_no_direction(generator):
    maps = torch.randn(3, 2, 4, 4, generator=generator)
    maps[0, 0] = 0
    maps[1] *= 1e-12
    lengths = unit_maps(maps.requires_grad_()).norm(dim=2)
    expected = torch.ones(3, 2)
    expected[0, 0] = 0
    torch.testing.assert_close(lengths, expected)
    unit_maps(maps).sum().backward()
    assert maps.grad[0, 0].abs().max() == 0
    assert torch.isfinite(maps.grad).all()


def test_each_axis_takes_the_smaller_size():
    first, second = torch.rand(1, 2, 8, 2), torch.rand(1, 3, 4, 6)
    one, other = pooled_alike(first, second)
    torch.testing.assert_close(one, first.unflatten(2, (4, 2)).mean(dim=3))
    torch.testing.assert_close(other, second.unflatten(3, (2, 3)).mean(dim=4))
    assert pooled_alike(first, first)[0] is first


@pytest.mark.parametrize(
    ("student", "teacher", "asked", "message"),
    [
        ((2, 3), (2, 3), {}, "width\\) of the same batch;"),
        ((2, 3, 4, 4), (3, 3, 4, 4), {}, "of the same batch;"),
        ((2, 3, 4, 4), (2, 4, 4, 4), {"channels": True}, "batch and channels"),
        ((2, 3, 4, 4), (2, 3, 4, 5), {"equal": True}, "batch, channels and size"),
    ],
)
def test_what_does_not_fit_is_named(student, teacher, asked, message):
    with pytest.raises(ShapeError, match=message):
        check_feature_maps(torch.zeros(student), torch.zeros(teacher), **asked)


def test_what_fits_passes():
    check_feature_maps(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2))
    check_feature_maps(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2), channels=True)
    check_feature_maps(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), equal=True)
