"""K classes, N rows of each, D features; float64 and 1e-9 unless a test says otherwise."""

import math

import numpy as np
import pytest
import torch

from limbeck.core.errors import ShapeError
from limbeck.functional import class_cost
from limbeck.functional.class_cost import cka_cost, cosine_cost, sharpened

EXACT = {"rtol": 0.0, "atol": 1e-9}


def cka_by_kernels(x, y):
    """HSIC of the centred linear kernels over its norm: the definition by N x N matrices."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = (centre @ z @ z.T @ centre for z in (x, y))
    return (k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum())


@pytest.mark.parametrize(("rows", "features"), [(4, 7), (7, 4), (5, 5)])
def test_it_is_one_minus_cka_of_kernel_matrices(rows, features, generator):
    """Whichever of the two Gram forms is smaller."""
    x = torch.randn(3, rows, features, dtype=torch.float64, generator=generator) + 2
    found = cka_cost(x)
    for i in range(3):
        for j in range(3):
            expected = 1 - cka_by_kernels(x[i].numpy(), x[j].numpy())
            assert abs(found[i, j].item() - expected) < 1e-9


def test_working_through_classes_a_few_at_a_time_changes_nothing(generator, monkeypatch):
    x = torch.randn(5, 6, 3, dtype=torch.float64, generator=generator)
    expected = cka_cost(x)
    monkeypatch.setattr(class_cost, "_MOST_ENTRIES", 18)
    torch.testing.assert_close(cka_cost(x), expected, **EXACT)


def test_rotations_offsets_and_one_scale_of_a_class_are_free(generator):
    x = torch.randn(3, 9, 4, dtype=torch.float64, generator=generator)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    changed = x.clone()
    changed[1] = 7 * x[1] @ rotation - 3
    torch.testing.assert_close(cka_cost(changed), cka_cost(x), **EXACT)


def test_it_depends_on_which_rows_are_paired(generator):
    """The trap that the docstring tells of."""
    x = torch.randn(2, 9, 4, dtype=torch.float64, generator=generator)
    shuffled = x.clone()
    shuffled[1] = x[1].flip(0)
    assert abs(cka_cost(shuffled)[0, 1] - cka_cost(x)[0, 1]) > 1e-3


def test_independent_rows_are_as_far_apart_as_directions_are_few_beside_rows(generator):
    """About one minus (tr S)^2 / |S|^2 / N: for white features, 1 - D / N."""
    x = torch.randn(8, 2000, 100, generator=generator)
    off = cka_cost(x)[~torch.eye(8, dtype=torch.bool)]
    assert abs(off.mean().item() - (1 - 100 / 2100)) < 5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_costs_are_symmetric_between_zero_and_one_with_a_zero_diagonal(dtype, generator):
    cost = cka_cost(torch.randn(6, 5, 3, generator=generator).to(dtype))
    assert torch.equal(cost, cost.T)
    assert (cost.diagonal() == 0).all()
    assert cost.min() >= 0
    assert cost.max() <= 1


def test_a_class_of_equal_rows_is_at_one_from_all_others(generator):
    x = torch.randn(3, 5, 2, generator=generator)
    x[1] = 0.25
    cost = cka_cost(x)
    assert cost[1].tolist() == [1, 0, 1]
    assert torch.isfinite(cost).all()


def test_features_of_other_shapes_are_named():
    with pytest.raises(ShapeError, match=r"\(classes, rows, features\); got \(5, 2\)"):
        cka_cost(torch.zeros(5, 2))


def test_cosine_costs_are_at_known_angles():
    weight = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 5.0], [-1.0, 0.0]])
    expected = torch.tensor([0, 1 - math.cos(math.pi / 4), 1, 2])
    torch.testing.assert_close(cosine_cost(weight)[0], expected)


def test_sharpening_is_the_formula_and_leaves_zero_alone(generator):
    cost = torch.rand(4, 4, dtype=torch.float64, generator=generator).fill_diagonal_(0)
    torch.testing.assert_close(sharpened(cost, 2.0), 1 - torch.exp(-2 * cost), **EXACT)
    assert (sharpened(cost, 2.0).diagonal() == 0).all()
    assert sharpened(cost, 0.0) is cost
