"""The public door to every loss function, for people with their own training loop.

Tensors come first, student before teacher; settings are keyword-only. The teacher's tensors
receive no gradient.
"""

from __future__ import annotations

from limbeck.functional.divergences import kd_loss
from limbeck.functional.hints import hint_loss
from limbeck.methods.relation.rkd import rkd_angle_loss, rkd_distance_loss

__all__ = ["hint_loss", "kd_loss", "rkd_angle_loss", "rkd_distance_loss"]
