r"""Sinkhorn: WKD-L with the optimal plan in place of ten iterations towards it.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) - p^t_y \log p^s_y + \lambda(e) \, \langle P^*, C
    \rangle

.. math:: P^* = \mathrm{argmin}_P \, \langle P, C \rangle + \epsilon \sum_{ij} P_{ij} \log P_{ij}

The method "wkd_logit" with its solver "converged": scaled in the log domain, with the gradient of
the optimum by the implicit function theorem. The two losses differ in size and in gradient: ten
iterations give about two thirds of the optimal cost on CIFAR-100 and nine tenths on ImageNet, so
that no result of one says anything of the other.

Source: Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013,
    https://arxiv.org/abs/1306.0895, in place of the iterations of Lv, Yang, Li, NeurIPS 2024,
    https://arxiv.org/abs/2412.08139, section 3.1.
Defaults: those of "wkd_logit", with 100 iterations; nobody has published any for this form.
Differs from the source: Lv et al. describe an entropic optimum and compute ten iterations; this is
    the optimum. The entropy is left out of the loss, as there.
"""

from __future__ import annotations

from pydantic import PositiveInt

from limbeck.methods.output.wkd_logit import Solver, WKDLogitConfig

__all__ = ["SinkhornLogitConfig"]


class SinkhornLogitConfig(WKDLogitConfig):
    """Settings of :class:`~limbeck.methods.output.wkd_logit.WKDLogit`, converged."""

    iterations: PositiveInt = 100
    solver: Solver = "converged"
