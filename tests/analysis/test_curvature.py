import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from limbeck.analysis.curvature import hessian_product, hutchinson_traces, top_eigenvalue


@pytest.fixture
def matrix(generator):
    """A symmetric ``(12, 12)`` of known eigenvalues, of either sign."""
    basis, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    values = torch.linspace(-9, 6, 12, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.T


@pytest.fixture
def network():
    """Tiny and smooth, in float64, with its loss as a function of a flat vector."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
        image, label = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3
    names = [name for name, _ in net.named_parameters()]
    weights = [weight.detach() for weight in net.parameters()]

    def loss(at, of=slice(None)):
        logits = functional_call(net, dict(zip(names, at, strict=True)), (image[of],))
        return F.cross_entropy(logits, label[of], reduction="sum") / 7

    def of_flat(vector):
        parts = vector.split([weight.numel() for weight in weights])
        return loss([p.view_as(w) for p, w in zip(parts, weights, strict=True)])

    flat = torch.cat([weight.flatten() for weight in weights])
    return loss, weights, hessian(of_flat, flat)


def test_a_product_is_exact_on_a_quadratic(matrix, generator):
    def loss(at):
        flat = torch.cat([part.flatten() for part in at])
        return 0.5 * flat @ matrix @ flat

    weights = [torch.randn(shape, generator=generator).double() for shape in ((2, 3), (6,))]
    vector = torch.randn(12, generator=generator, dtype=torch.float64)
    found = hessian_product([loss], weights)(vector)
    torch.testing.assert_close(found, matrix @ vector, atol=1e-9, rtol=1e-9)


def test_eigenvalue_and_trace_are_exact_on_a_quadratic(matrix, generator):
    start = torch.randn(12, generator=generator, dtype=torch.float64)
    assert top_eigenvalue(lambda v: matrix @ v, start) == pytest.approx(6.0, abs=1e-6)
    diagonal = matrix.diagonal()  # of a diagonal matrix, every probe is exact
    found = hutchinson_traces(lambda v: diagonal * v, start, probes=3, generator=generator)
    assert found == pytest.approx([float(diagonal.sum())] * 3)


def test_a_product_is_that_of_the_dense_hessian_of_a_network(network, generator):
    loss, weights, dense = network
    vector = torch.randn(len(dense), generator=generator, dtype=torch.float64)
    found = hessian_product([loss], weights)(vector)
    torch.testing.assert_close(found, dense @ vector, atol=1e-9, rtol=1e-9)


def test_parts_of_a_loss_add_up(network, generator):
    loss, weights, dense = network
    vector = torch.randn(len(dense), generator=generator, dtype=torch.float64)
    parts = [lambda at, k=k: loss(at, slice(k, k + 3)) for k in (0, 3, 6)]
    found = hessian_product(parts, weights)(vector)
    torch.testing.assert_close(found, dense @ vector, atol=1e-9, rtol=1e-9)


def test_the_top_eigenvalue_is_that_of_the_dense_hessian(network, generator):
    loss, weights, dense = network
    product = hessian_product([loss], weights)
    start = torch.randn(len(dense), generator=generator, dtype=torch.float64)
    largest = float(torch.linalg.eigvalsh(dense)[-1])
    assert top_eigenvalue(product, start) == pytest.approx(largest, rel=1e-3)
    assert top_eigenvalue(product, start, max_steps=2) <= largest


def test_traces_are_unbiased_estimates_of_the_dense_one(network, generator):
    loss, weights, dense = network
    product = hessian_product([loss], weights)
    found = hutchinson_traces(product, dense[0], probes=300, generator=generator)
    # Of random signs the variance is twice the squares off the diagonal (Hutchinson 1990).
    off = dense - torch.diag(dense.diagonal())
    error = float((2 * off.square().sum()).sqrt()) / 300**0.5
    assert found.mean() == pytest.approx(float(dense.trace()), abs=4 * error)
    assert found.std() == pytest.approx(error * 300**0.5, rel=0.2)


def test_a_linear_loss_has_no_curvature(generator):
    weights = [torch.randn(3, generator=generator)]
    found = hessian_product([lambda at: (2 * at[0]).sum()], weights)(torch.ones(3))
    assert not found.any()


def test_weights_are_not_changed(network, generator):
    loss, weights, dense = network
    before = [weight.clone() for weight in weights]
    hessian_product([loss], weights)(torch.ones(len(dense), dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert not any(weight.requires_grad for weight in weights)


def test_a_start_in_an_eigenvector_ends_there():
    scale = torch.tensor([2.0, 7.0], dtype=torch.float64)
    assert top_eigenvalue(lambda v: scale * v, torch.tensor([1.0, 0.0]).double()) == 2.0
