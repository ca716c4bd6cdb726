r"""Soft labels: learn from the teacher alone; no label is read.

.. math:: \mathcal{L} = T^2 \, KL(p^t_T \,\|\, p^s_T)

The method "kd" without its cross-entropy. What the teacher says of an image stands in for its
label, so every image counts alike, labelled or not. "Function matching" is this loss, the same
augmented and mixed pixels for both networks (``--mixup``) and a long schedule: the recipe
``limbeck.recipes.function_matching``.

Source: Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov, "Knowledge distillation: A good teacher is
    patient and consistent", CVPR 2022, https://arxiv.org/abs/2106.05237, section 3.
Defaults: T = 1, as the authors' ImageNet configuration has it.
Differs from the source: none in the loss. Mixup and the paper's 1200 epochs and more are matters
    of data and schedule, and not of this method.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from limbeck.methods.output.kd import KDConfig

__all__ = ["SoftLabelConfig"]


class SoftLabelConfig(KDConfig):
    """Settings of :class:`~limbeck.methods.output.kd.KD` without labels."""

    temperature: PositiveFloat = 1.0
    ce_weight: NonNegativeFloat = 0.0
    kd_weight: NonNegativeFloat = 1.0
