"""CKA; N examples, D features. Float64 and 1e-9 unless a test says otherwise."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.errors import ShapeError
from limbeck.functional import cka
from limbeck.losses import MinibatchCKA, debiased_cka, linear_cka, rbf_cka

GOLDEN_FILE = Path(__file__).parents[1] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["cka"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


X, Y = sines((6, 3), 0.9, 0.1), sines((6, 4), 0.5, 0.3)
TWELVE = sines((12, 3), 0.9, 0.1), sines((12, 4), 0.5, 0.3)


def notebook():
    random = np.random.RandomState(1337)
    x = random.randn(100, 10)
    return torch.from_numpy(x), torch.from_numpy(random.randn(100, 10) + x)


def hsic(x, y):
    count = len(x)
    product = cka._unbiased(x) * cka._unbiased(y)
    return product.sum() / (count * (count - 3))


def in_batches(x, y, size):
    found = MinibatchCKA()
    for rows in zip(x.split(size), y.split(size), strict=True):
        found.update(*rows)
    return found.compute()


COMPUTED = {
    "linear": lambda: linear_cka(X, Y),
    "debiased": lambda: debiased_cka(X, Y),
    "RBF t=0.5": lambda: rbf_cka(X, Y, threshold=0.5),
    "RBF t=1": lambda: rbf_cka(X, Y, threshold=1.0),
    "unbiased HSIC (K,L)": lambda: hsic(X, Y),
    "unbiased HSIC (K,K)": lambda: hsic(X, X),
    "unbiased HSIC (L,L)": lambda: hsic(Y, Y),
    "debiased of 12": lambda: debiased_cka(*TWELVE),
    "batches of 6": lambda: in_batches(*TWELVE, 6),
    "notebook linear": lambda: linear_cka(*notebook()),
    "notebook RBF t=0.5": lambda: rbf_cka(*notebook()),
    "notebook debiased": lambda: debiased_cka(*notebook()),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_the_u_centred_product_is_the_formula_of_unbiased_hsic():
    n = 6
    first, second = (rows @ rows.T * (1 - torch.eye(n)) for rows in (X, Y))
    ones = torch.ones(n, dtype=torch.float64)
    expected = (
        (first @ second).trace()
        + (ones @ first @ ones) * (ones @ second @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ first @ second @ ones)
    ) / (n * (n - 3))
    torch.testing.assert_close(hsic(X, Y), expected, rtol=0, atol=1e-9)


ALL = pytest.mark.parametrize("function", [linear_cka, rbf_cka, debiased_cka])


@ALL
def test_rotation_scale_shift_and_order_of_examples_do_not_matter(function, generator):
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    order = torch.randperm(6, generator=generator)
    expected = function(X, Y)
    for changed in ((X, 7 * Y @ rotation + 3), (X[order], Y[order]), (Y, X)):
        torch.testing.assert_close(function(*changed), expected, rtol=0, atol=1e-9)
    assert not torch.isclose(function(X[order], Y), expected, rtol=1e-3)
    stretched = Y * torch.tensor([5.0, 1.0, 1.0, 0.1], dtype=torch.float64)
    assert not torch.isclose(function(X, stretched), expected, rtol=1e-3)


@ALL
def test_features_are_like_themselves_and_flattened(function):
    maps = sines((6, 2, 2, 3), 0.9, 0.1)
    assert function(maps, maps).item() == pytest.approx(1)
    torch.testing.assert_close(function(maps, Y), function(maps.flatten(1), Y))


def test_both_forms_of_the_linear_kernel_agree(generator):
    """Fewer examples than features on both sides, and not."""
    x, y = torch.randn(2, 5, 9, dtype=torch.float64, generator=generator)
    rows = [part - part.mean(dim=0) for part in (x, y)]
    product = (rows[1].T @ rows[0]).square().sum()
    norms = [(part.T @ part).norm() for part in rows]
    expected = product / (norms[0] * norms[1])
    torch.testing.assert_close(linear_cka(x, y), expected, rtol=0, atol=1e-9)


def test_many_features_inflate_the_biased_form_alone(generator):
    x, y = torch.randn(2, 100, 200, dtype=torch.float64, generator=generator)
    assert linear_cka(x, y) > 0.5
    assert abs(debiased_cka(x, y)) < 0.05


def test_one_batch_is_the_debiased_form_and_layers_make_a_table():
    torch.testing.assert_close(in_batches(*TWELVE, 12), debiased_cka(*TWELVE))
    table = MinibatchCKA()
    for x, y in zip(TWELVE[0].split(6), TWELVE[1].split(6), strict=True):
        table.update([x, y], [x, y, x.square()])
    found = table.compute()
    assert found.shape == (2, 3)
    assert found[0, 1].item() == pytest.approx(-0.200554514019)
    torch.testing.assert_close(found.diagonal(), torch.ones(2, dtype=torch.float64))


def test_a_large_offset_leaves_float32_right():
    offset = (X + 1000).float(), (Y - 3000).float()
    torch.testing.assert_close(
        linear_cka(*offset).double(), linear_cka(X, Y), rtol=0, atol=1e-3
    )  # what is left of float32 there has four digits


@ALL
@pytest.mark.parametrize("value", [0.0, 1000.1])
def test_equal_rows_are_like_nothing_and_have_no_gradient(function, value):
    x = torch.full((6, 3), value).requires_grad_()
    found = function(x, Y.float())
    found.backward()
    assert found == 0
    assert x.grad.abs().max() == 0


@ALL
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_extreme_scales_are_finite(function, scale):
    x = (scale * X).float().requires_grad_()
    found = function(x, Y.float())
    found.backward()
    torch.testing.assert_close(found.double(), function(X, Y), rtol=0, atol=1e-4)
    assert torch.isfinite(x.grad).all()


@ALL
def test_the_gradient_is_that_of_the_formula(function):
    assert torch.autograd.gradcheck(lambda x: function(x, Y), X.clone().requires_grad_())


@pytest.mark.parametrize("function", [linear_cka, rbf_cka])
def test_a_batch_of_one_is_zero(function):
    x = X[:1].clone().requires_grad_()
    function(x, Y[:1]).backward()
    assert x.grad.abs().max() == 0


@ALL
def test_other_examples_are_refused(function):
    with pytest.raises(ShapeError, match="of the same examples"):
        function(X, Y[:5])


def test_the_debiased_form_refuses_three_examples():
    with pytest.raises(ShapeError, match="4 examples at least, got 3"):
        debiased_cka(X[:3], Y[:3])


def test_batches_of_other_layers_and_no_batch_are_refused():
    found = MinibatchCKA()
    with pytest.raises(ShapeError, match="no batch yet"):
        found.compute()
    with pytest.raises(ShapeError, match="empty list"):
        found.update([], X)
    found.update([X, X], Y)
    with pytest.raises(ShapeError, match="the same layers"):
        found.update(X, Y)
