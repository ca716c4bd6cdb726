"""B batch, K classes; float64. The oracle of transport is POT."""

import ot
import pytest
import torch
import torch.nn.functional as F

from limbeck.functional.sinkhorn import _log_product, converged_sinkhorn_cost, sinkhorn_cost
from limbeck.losses import wkd_logit_loss


@pytest.fixture
def case(generator):
    """Probabilities p and q ``(3, 6)`` and an uneven cost ``(6, 6)``."""
    p, q = F.softmax(2 * torch.randn(2, 3, 6, dtype=torch.float64, generator=generator), dim=2)
    cost = torch.rand(6, 6, dtype=torch.float64, generator=generator).fill_diagonal_(0)
    return p, q, cost


def official(p, q, cost, *, regularization=0.05, iterations=10):
    start = torch.full_like(p, 1 / p.shape[1])
    return sinkhorn_cost(
        p, q, cost, start=start, regularization=regularization, iterations=iterations
    )


def converged(p, q, cost, *, regularization=0.05, iterations=2000):
    return converged_sinkhorn_cost(
        p.log(), q.log(), cost, regularization=regularization, iterations=iterations
    )


def plans(p, q, cost, regularization=0.05):
    """POT's entropic plans, image by image."""
    return torch.stack(
        [
            torch.from_numpy(
                ot.sinkhorn(
                    a.numpy(),
                    b.numpy(),
                    cost.numpy(),
                    reg=regularization,
                    method="sinkhorn_log",
                    stopThr=1e-14,
                    numItermax=100_000,
                )
            )
            for a, b in zip(p, q, strict=True)
        ]
    )


def exact(p, q, cost):
    """POT's linear programme."""
    pairs = zip(p, q, strict=True)
    return torch.tensor([ot.emd2(a.numpy(), b.numpy(), cost.numpy()) for a, b in pairs]).double()


SOLVERS = [official, converged]


@pytest.mark.parametrize("solver", SOLVERS)
def test_with_many_iterations_both_cost_what_pots_plan_does(solver, case):
    """Prices up to 1/2, whose kernel stays far above the 1e-8 in the official denominators."""
    p, q, cost = case[0], case[1], case[2] / 2
    found = solver(p, q, cost, iterations=2000)
    expected = (plans(p, q, cost) * cost).sum(dim=(1, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_converged_plan_costs_no_less_than_the_exact_one_and_comes_near(case):
    optimum = exact(*case)
    gaps = [
        (converged(*case, regularization=eps, iterations=5000) - optimum).max().item()
        for eps in (0.2, 0.05, 0.01)
    ]
    assert (converged(*case) >= optimum - 1e-9).all()
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 5e-3


def test_ten_iterations_are_far_from_the_optimum(case):
    p, q, cost = case
    assert (official(p, q, cost, iterations=10) - converged(*case)).abs().max() > 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_large_regularization_makes_the_plan_independent(solver, case):
    """P = p q', after one iteration."""
    p, q, cost = case
    found = solver(p, q, cost, regularization=1e6, iterations=1)
    expected = torch.einsum("bi,ij,bj->b", p, cost, q)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_constant_price_makes_it_total_variation(case):
    p, q, _ = case
    cost = 0.7 * (1 - torch.eye(6, dtype=torch.float64))
    expected = 0.7 * (p - q).abs().sum(dim=1) / 2
    torch.testing.assert_close(exact(p, q, cost), expected, rtol=0, atol=1e-7)
    found = converged(p, q, cost, iterations=5000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_scaling_cost_and_regularization_scales_the_result(solver, case):
    """1e-5: the 1e-8 in the official denominators."""
    p, q, cost = case
    found = solver(p, q, 2 * cost, regularization=0.1)
    torch.testing.assert_close(found, 2 * solver(p, q, cost), rtol=1e-5, atol=0)


def test_it_is_not_symmetric_at_ten_iterations(case):
    p, q, cost = case
    assert (official(p, q, cost) - official(q, p, cost.T)).abs().max() > 1e-4
    torch.testing.assert_close(converged(p, q, cost), converged(q, p, cost.T), rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_networks_that_agree_still_cost_something(solver, case):
    """The entropy blurs the plan: zero must not be expected."""
    p, _, cost = case
    assert (solver(p, p, cost) > 1e-4).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_gradient_is_that_of_differences(solver, case):
    p, q, cost = case
    logits = p.log().requires_grad_()

    def function(z):
        return solver(F.softmax(z, dim=1), q, cost, regularization=0.1, iterations=300)

    assert torch.autograd.gradcheck(function, (logits,), atol=1e-6)


def test_the_converged_gradient_is_that_of_unrolled_iterations(case):
    p, q, cost = case[0], case[1], case[2] / 4  # as above, for the 1e-8
    found, unrolled = [], []
    for solver, gradients in ((converged, found), (official, unrolled)):
        logits = p.log().requires_grad_()
        solver(F.softmax(logits, dim=1), q, cost, iterations=2000).sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(found[0], unrolled[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_answers_cost_the_price_between_them(solver, dtype):
    """2e-2: the official denominators keep some of a row's mass at a kernel of e^-18."""
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 200.0]], dtype=dtype)
    log_p = F.log_softmax(logits, dim=1).requires_grad_()
    cost = torch.tensor([[0, 0.3, 0.9], [0.3, 0, 0.5], [0.9, 0.5, 0]], dtype=dtype)
    q = F.softmax(logits, dim=1).flip(0)
    if solver is official:
        found = official(log_p.exp(), q, cost, iterations=50)
    else:
        found = converged_sinkhorn_cost(
            log_p, F.log_softmax(logits, dim=1).flip(0), cost, regularization=0.05, iterations=50
        )
    torch.testing.assert_close(found, cost[[0, 2], [2, 0]], rtol=0, atol=2e-2)
    found.sum().backward()
    assert torch.isfinite(log_p.grad).all()


def test_classes_without_any_probability_take_no_part(case):
    """As one that was left out of both rows."""
    p, q, cost = case
    p, q = (torch.cat([x, torch.zeros(3, 1, dtype=torch.float64)], dim=1) for x in (p, q))
    wide = torch.full((7, 7), 0.4, dtype=torch.float64)
    wide[:6, :6] = cost
    torch.testing.assert_close(converged(p, q, wide), converged(*case), rtol=0, atol=1e-9)


@pytest.mark.parametrize("offset", [-900.0, 0.0, 900.0])
def test_a_product_in_the_log_domain_bears_any_size(offset, generator):
    log_weight = offset + torch.randn(2, 5, generator=generator)
    kernel = torch.rand(5, 5, generator=generator)
    expected = torch.logsumexp(log_weight[:, :, None] + kernel.log(), dim=1)
    torch.testing.assert_close(_log_product(log_weight, kernel), expected)


def peak_bytes(function):
    """The most that was allocated at a time beyond what was there before, by torch's profiler."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    sizes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, size in sizes:
        held += size
        peak = max(peak, held)
    return peak


def test_the_meter_sees_what_is_allocated():
    assert peak_bytes(lambda: torch.zeros(1000, 1000) + 1) >= 8_000_000


def test_at_batch_256_and_1000_classes_it_takes_less_than_50_megabytes(generator):
    """Forward and backward; one tensor (B, K, K) alone would be 1 GB."""
    student, teacher = 3 * torch.randn(2, 256, 1000, generator=generator)
    student.requires_grad_()
    label = torch.randint(1000, (256,), generator=generator)
    cost = torch.rand(1000, 1000, generator=generator).fill_diagonal_(0)

    def step():
        wkd_logit_loss(student, teacher, label, cost, temperature=2.0, weight=30).backward()

    step()
    assert 4_000_000 < peak_bytes(step) < 50_000_000  # 43 MB with torch 2.14
