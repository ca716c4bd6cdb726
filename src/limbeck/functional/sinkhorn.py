r"""Entropic optimal transport between rows of class probabilities, with one cost for all of them.

Both solvers scale the kernel exp(-C / eps) by a vector on each side. One kernel serves the whole
batch, so that no tensor is larger than ``(B, K)`` or ``(K, K)``.

B batch, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["converged_sinkhorn_cost", "sinkhorn_cost"]

_EPSILON = 1e-8  # in the denominators, as the code of WKD's authors has it


def sinkhorn_cost(
    student_p: Tensor,
    teacher_p: Tensor,
    cost: Tensor,
    *,
    start: Tensor,
    regularization: float,
    iterations: int,
) -> Tensor:
    r"""What it costs to carry the student's mass to the teacher's, after a few scalings.

    .. math:: \langle P, C \rangle, \quad P = \mathrm{diag}(u) \, K \, \mathrm{diag}(v), \quad
        K = e^{-C / \epsilon}

    from ``v = q / (K^T u + 1e-8)``, then ``u = p / (K v + 1e-8)``, ``iterations`` times. The plan's
    rows sum to the student's probabilities; its columns reach the teacher's with more iterations.
    Gradient flows through all of them. Not 0 where the two agree.

    Args:
        student_p: ``(B, K)``, rows of probabilities.
        teacher_p: ``(B, K)``; receives no gradient.
        cost: ``(K, K)``, ``>= 0``, from the student's class (row) to the teacher's.
        start: ``(B, K)``, the first u.
        regularization: eps, ``> 0``.
        iterations: at least 1.

    Returns:
        ``(B,)``, each in [0, largest cost]. Memory for the gradient: ``2 * iterations`` tensors
        ``(B, K)``.

    Source:
        Cuturi 2013, https://arxiv.org/abs/1306.0895, algorithm 1.

    Example:
        >>> certain = torch.eye(2)
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> start = torch.full((2, 2), 0.5)
        >>> sinkhorn_cost(
        ...     certain, certain.flip(0), cost, start=start, regularization=0.1, iterations=5
        ... ).round(decimals=3).tolist()
        [1.0, 1.0]
    """
    teacher_p = teacher_p.detach()
    # Autocast would multiply in half precision, whose smallest number is above e^-20.
    with torch.autocast(student_p.device.type, enabled=False):
        kernel = (-cost / regularization).exp()
        u = start
        for _ in range(iterations):
            v = teacher_p / (u @ kernel + _EPSILON)
            u = student_p / (v @ kernel.T + _EPSILON)
        return (u * (v @ (kernel * cost).T)).sum(dim=1)


def converged_sinkhorn_cost(
    student_log_p: Tensor,
    teacher_log_p: Tensor,
    cost: Tensor,
    *,
    regularization: float,
    iterations: int,
) -> Tensor:
    r"""What the entropic optimal plan costs, without the entropy; scaled in the log domain.

    .. math:: \langle P^*, C \rangle, \quad P^* = \arg\min_P \langle P, C \rangle + \epsilon
        \sum_{ij} P_{ij} \log P_{ij}

    over plans P from the student's probabilities to the teacher's. The gradient is that of the
    optimum and not of the iterations: the linear system of the implicit function theorem, solved
    by as many iterations of the same kind, without a tensor ``(B, K, K)``.

    Args:
        student_log_p: ``(B, K)``, logarithms of rows of probabilities; may be minus infinity.
        teacher_log_p: the same; receives no gradient.
        cost: ``(K, K)``, ``>= 0``; ``cost / regularization`` below 80 in float32, beyond which
            the kernel has zeros. Receives no gradient.
        regularization: eps, ``> 0``.
        iterations: at least 1; 100 leave an error of 1e-4 in the teacher's probabilities at
            costs up to 0.6 and eps = 0.05.

    Returns:
        ``(B,)``, each in [0, largest cost].

    Source:
        Cuturi 2013, https://arxiv.org/abs/1306.0895, eq. 2; differentiated as in Luise et al. 2018,
        https://arxiv.org/abs/1805.11897, section 4.

    Example:
        >>> log_p = torch.eye(2).log()
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> converged_sinkhorn_cost(
        ...     log_p, log_p.flip(0), cost, regularization=0.1, iterations=5
        ... ).tolist()
        [1.0, 1.0]
    """
    with torch.autocast(student_log_p.device.type, enabled=False):
        result: Tensor = _Converged.apply(
            student_log_p, teacher_log_p.detach(), cost.detach(), regularization, iterations
        )
        return result


class _Converged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        student_log_p: Tensor,
        teacher_log_p: Tensor,
        cost: Tensor,
        regularization: float,
        iterations: int,
    ) -> Tensor:
        kernel = (-cost / regularization).exp()
        log_u = torch.zeros_like(student_log_p)
        for _ in range(iterations):
            log_v = teacher_log_p - _log_product(log_u, kernel)
            log_u = student_log_p - _log_product(log_v, kernel.T)
        ctx.iterations = iterations
        ctx.save_for_backward(student_log_p, log_u, log_v, kernel, cost)
        v = _shifted(log_v).exp()
        mean_cost = (v @ (kernel * cost).T) / _positive(v @ kernel.T)
        return (student_log_p.exp() * mean_cost).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401
        student_log_p, log_u, log_v, kernel, cost = ctx.saved_tensors
        # With P = u K v: the conditions P 1 = p and P' 1 = q, differentiated, are a linear system
        # in d log u and d log v. Its transpose, with the cost's derivatives on the right, has the
        # wanted slopes as its solution; each half of it is an average under the plan.
        u, v = _shifted(log_u).exp(), _shifted(log_v).exp()
        rows, columns = _positive(v @ kernel.T), _positive(u @ kernel)
        row_cost, column_cost = (v @ (kernel * cost).T) / rows, (u @ (kernel * cost)) / columns
        slope = torch.zeros_like(u)  # of the cost along the student's probabilities
        for _ in range(ctx.iterations):
            other = column_cost - ((u * slope) @ kernel) / columns
            slope = row_cost - ((v * other) @ kernel.T) / rows
        return gradient[:, None] * student_log_p.exp() * slope, None, None, None, None


def _log_product(log_weight: Tensor, kernel: Tensor) -> Tensor:
    """log(exp(log_weight) @ kernel), ``(B, K)``."""
    # What underflows after the shift is below the smallest positive number, and beside it stands
    # the largest weight, 1, times an entry of the kernel: it is not missed.
    shift = log_weight.amax(dim=1, keepdim=True)
    return shift + _positive((log_weight - shift).exp() @ kernel).log()


def _shifted(log_weight: Tensor) -> Tensor:
    """Each row less its maximum; a factor that cancels in every average."""
    return log_weight - log_weight.amax(dim=1, keepdim=True)


def _positive(tensor: Tensor) -> Tensor:
    return tensor.clamp(min=torch.finfo(tensor.dtype).tiny)
