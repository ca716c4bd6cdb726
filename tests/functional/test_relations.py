"""B batch, D features; float64 and 1e-9 unless a test says otherwise."""

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist

from limbeck.core.errors import ShapeError
from limbeck.functional.relations import (
    angle_cosines,
    check_maps,
    directions,
    over_maximum,
    over_mean,
    pairwise_distances,
    rounding_of,
    shifted_cosines,
    taylor_kernel,
    transmitting_matrix,
    unit_rows,
)

EXACT = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture
def rows(generator):
    return torch.randn(5, 4, dtype=torch.float64, generator=generator)


def test_unit_rows_are_torchs_normalised_ones(rows):
    torch.testing.assert_close(unit_rows(rows), F.normalize(rows), **EXACT)


def test_a_row_of_rounding_errors_is_zero_and_gives_no_gradient():
    rows = torch.tensor([[1.0, 2.0], [1e-7, 0.0]], requires_grad=True)
    unit = unit_rows(rows)
    unit.sum().backward()
    assert unit[1].abs().sum() == 0
    assert rows.grad[1].abs().sum() == 0
    assert rows.grad[0].abs().sum() > 0


def test_rounding_is_of_the_largest_entry_or_of_each_row():
    rows = torch.tensor([[1.0, -4.0], [0.5, 0.25]])
    eps = torch.finfo(torch.float32).eps
    assert rounding_of(rows) == 64 * eps * 4
    assert rounding_of(rows, each=True).tolist() == [[64 * eps * 4], [64 * eps * 0.5]]


def test_an_epsilon_is_added_to_the_length():
    way = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(directions(way, torch.tensor(0.0), epsilon=5.0), way / 10)


def test_distances_are_scipys(rows):
    other = rows[:3] + 1
    ours = pairwise_distances(rows, other)
    assert abs(ours.numpy() - cdist(rows.numpy(), other.numpy())).max() < 1e-9


def test_distances_far_from_the_origin_lose_no_digits(rows):
    far = rows.float() + 1000
    torch.testing.assert_close(
        pairwise_distances(far, far), pairwise_distances(far.double(), far.double()).float()
    )


def test_zeros_over_their_mean_or_maximum_stay_zeros_with_a_finite_gradient():
    for over in (over_mean, over_maximum):
        values = torch.zeros(3, requires_grad=True)
        result = over(values)
        result.sum().backward()
        assert result.abs().sum() == 0
        assert torch.isfinite(values.grad).all()


def test_some_corners_of_the_angles_are_those_of_all(rows):
    torch.testing.assert_close(angle_cosines(rows, slice(1, 3)), angle_cosines(rows)[1:3], **EXACT)


def test_a_kernels_series_comes_to_the_exponential(rows):
    other = rows[:3] + 1
    squared = cdist(F.normalize(rows).numpy(), F.normalize(other).numpy()) ** 2
    expected = torch.exp(-0.6 * torch.from_numpy(squared))
    ours = taylor_kernel(rows, other, gamma=0.6, order=25)
    torch.testing.assert_close(ours, expected, **EXACT)
    series = [taylor_kernel(rows, other, gamma=0.6, order=p) for p in range(3)]
    cosine = F.normalize(rows) @ F.normalize(other).T
    torch.testing.assert_close(series[2] - series[1], 0.72 * cosine**2 * 0.30119421191220214)


def test_shifted_cosines_are_torchs(rows):
    expected = (F.cosine_similarity(rows[:, None], rows[None], dim=2) + 1) / 2
    torch.testing.assert_close(shifted_cosines(rows, rows), expected, rtol=0, atol=1e-6)


def test_the_transmitting_matrix_is_the_mean_product_over_places(generator):
    first = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator)
    second = torch.randn(2, 5, 2, 2, dtype=torch.float64, generator=generator)
    pooled = F.avg_pool2d(first, 2)
    expected = torch.einsum("bchw,bdhw->bcd", pooled, second) / 4
    torch.testing.assert_close(transmitting_matrix(first, second), expected, **EXACT)
    torch.testing.assert_close(transmitting_matrix(second, first), expected.mT, **EXACT)


def test_each_axis_is_pooled_by_itself(generator):
    first = torch.randn(1, 2, 4, 2, dtype=torch.float64, generator=generator)
    second = torch.randn(1, 2, 2, 4, dtype=torch.float64, generator=generator)
    pooled = [F.avg_pool2d(first, (2, 1)), F.avg_pool2d(second, (1, 2))]
    expected = torch.einsum("bchw,bdhw->bcd", *pooled) / 4
    torch.testing.assert_close(transmitting_matrix(first, second), expected, **EXACT)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3, 2, 2)])
def test_what_is_no_map_of_the_batch_is_named(shape):
    with pytest.raises(ShapeError, match=r"got \(2, 3, 2, 2\), .*before the pooling"):
        check_maps(torch.zeros(2, 3, 2, 2), torch.zeros(shape))
