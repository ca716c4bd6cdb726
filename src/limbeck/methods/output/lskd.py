r"""LSKD: KD on standardised class scores, so that their size and offset are free.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{kd} \, T^2 \,
    KL(\mathrm{softmax}(Z(z^t) / T) \,\|\, \mathrm{softmax}(Z(z^s) / T)), \quad
    Z(z)_k = \frac{z_k - \mu(z)}{\sigma(z) + 10^{-7}}

The method "kd" with its setting ``standardize`` on and the authors' defaults; "dkd", "mlkd" and
"ctkd" have the same setting. Gradient flows through the student's mean and deviation. The
cross-entropy sees raw scores.

Source: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024,
    https://arxiv.org/abs/2403.01427, algorithm 1; deviation as in its authors' code.
Defaults: T = 2, weights 0.1 and 9, the authors' for CIFAR-100. Their own logs use T = 3 for six
    pairs, T = 4 and weight 12 for resnet110 -> resnet20, and weight 1 for ResNet50 -> MobileNetV2.
Differs from the source: the deviation is the unbiased one plus 1e-7, as in the authors' code; the
    paper writes the population's without the addend (``standardize="population"``). A row that is
    constant up to rounding, as a zero-initialised classifier gives, becomes zeros without a
    gradient, where the paper has 0/0 and the code a gradient of 1e6.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from limbeck.functional.logits import Standardize
from limbeck.methods.output.kd import KDConfig

__all__ = ["LSKDConfig"]


class LSKDConfig(KDConfig):
    """Settings of :class:`~limbeck.methods.output.kd.KD` with the defaults of LSKD."""

    temperature: PositiveFloat = 2.0
    kd_weight: NonNegativeFloat = 9.0
    standardize: Standardize = True
