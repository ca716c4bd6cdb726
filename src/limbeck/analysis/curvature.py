r"""Curvature of a loss at given weights: its Hessian H, without ever writing it down.

A product :math:`Hv` costs two backward passes,

.. math:: Hv = \nabla_w \langle \nabla_w L(w), v \rangle

and from such products come the top eigenvalue (Lanczos) and the trace (Hutchinson).

P parameters, Q probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["hessian_product", "hutchinson_traces", "top_eigenvalue"]

Product = Callable[[Tensor], Tensor]
_CONVERGED = 1e-4  # change of the top Ritz value, relative
_SPENT = 1e-8  # of a residual's length: the space that the start reaches is exhausted


def hessian_product(
    losses: Sequence[Callable[[Sequence[Tensor]], Tensor]], weights: Sequence[Tensor]
) -> Product:
    """Products with the Hessian of a sum of losses.

    Args:
        losses: parts of the loss, as of single batches, each from weights to a scalar.
        weights: where; they are not changed.

    Returns:
        From a vector ``(P,)``, all weights flat in their order, to ``(P,)``.
    """

    def product(vector: Tensor) -> Tensor:
        at = [weight.detach().requires_grad_() for weight in weights]
        parts = torch.split(vector, [weight.numel() for weight in at])
        total = torch.zeros_like(vector)
        for loss in losses:
            gradients = torch.autograd.grad(loss(at), at, create_graph=True)
            along = sum(
                (gradient.flatten() * part.to(gradient.dtype)).sum()
                for gradient, part in zip(gradients, parts, strict=True)
            )
            assert isinstance(along, Tensor)
            if not along.requires_grad:  # a loss that is linear in its weights
                continue
            seconds = torch.autograd.grad(along, at, allow_unused=True, materialize_grads=True)
            total += torch.cat([second.flatten() for second in seconds]).to(total.dtype)
        return total

    return product


def top_eigenvalue(product: Product, start: Tensor, *, max_steps: int = 20) -> float:
    """The largest eigenvalue of a symmetric operator, with its sign, by Lanczos iteration.

    Every vector is made orthogonal to all before it. The value is a lower bound that rises with
    the steps; they end where it changes by less than 1e-4 of itself.

    Args:
        product: ``(P,)`` to ``(P,)``.
        start: ``(P,)``, not zero; a random one.
        max_steps: products at most.

    Source:
        Lanczos 1950; of neural networks: Ghorbani, Krishnan, Xiao, ICML 2019,
        https://arxiv.org/abs/1901.10159.

    Example:
        >>> scale = torch.tensor([3.0, 1.0, -5.0], dtype=torch.float64)
        >>> round(top_eigenvalue(lambda v: scale * v, torch.ones(3, dtype=torch.float64)), 6)
        3.0
    """
    basis = [start.double() / start.double().norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    best = float("nan")
    for _ in range(min(max_steps, start.numel())):
        image = product(basis[-1].to(start.dtype)).double()
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # once is not enough against rounding
            for vector in basis:
                image = image - (image @ vector) * vector
        tridiagonal = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        before, best = best, float(np.linalg.eigvalsh(tridiagonal)[-1])
        length = float(image.norm())
        if length <= _SPENT * max(1e-30, *map(abs, diagonal)):
            break
        if abs(best - before) <= _CONVERGED * abs(best):
            break
        beside.append(length)
        basis.append(image / length)
    return best


def hutchinson_traces(
    product: Product, like: Tensor, *, probes: int, generator: torch.Generator
) -> NDArray[np.float64]:
    r"""Unbiased estimates :math:`v^\top H v` of the trace, of random signs v: ``(Q,)``.

    Args:
        product: ``(P,)`` to ``(P,)``.
        like: ``(P,)``: dtype and device of v.
        probes: Q.
        generator: of the signs, on the CPU.

    Source:
        Hutchinson 1990; of neural networks: Yao et al., "PyHessian", 2020,
        https://arxiv.org/abs/1912.07145.
    """
    found = []
    for _ in range(probes):
        signs = torch.randint(2, (like.numel(),), generator=generator).to(like) * 2 - 1
        found.append(float(signs.double() @ product(signs).double()))
    return np.array(found)
