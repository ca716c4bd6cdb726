"""Accuracy and cross-entropy of a split, batch by batch and over ranks.

B batch, K classes.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.core.types import UNLABELLED

__all__ = ["ClassificationTotals"]


class ClassificationTotals:
    """Running counts from which top-1, top-5 and mean cross-entropy follow.

    Nothing is read to the host before :meth:`result`. Images without a label do not count.

    Example:
        >>> totals = ClassificationTotals()
        >>> totals.add(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        >>> totals.result()["top1"]
        0.5
    """

    def __init__(self) -> None:
        # images, top-1 hits, top-5 hits, summed cross-entropy, classes
        self._totals = torch.zeros(5, dtype=torch.float64)

    def add(self, logits: Tensor, label: Tensor) -> None:
        """Count one batch: raw logits ``(B, K)`` and labels ``(B,)``, -1 where unknown.

        Raises:
            ShapeError: if the two do not belong together.
        """
        if logits.ndim != 2 or label.shape != logits.shape[:1]:
            raise ShapeError(
                "logits must be (batch, classes) and label (batch,); got "
                f"{tuple(logits.shape)} and {tuple(label.shape)}"
            )
        wide = logits if logits.dtype == torch.float64 else logits.float()
        known = label != UNLABELLED
        # Stable: of equal logits the lower class comes first, whatever the device.
        order = wide.sort(dim=1, descending=True, stable=True).indices[:, :5]
        hits = (order == label[:, None]) & known[:, None]
        nll = F.cross_entropy(wide, label, ignore_index=UNLABELLED, reduction="sum")
        batch = torch.stack(
            [
                known.sum().double(),
                hits[:, 0].sum().double(),
                hits.sum().double(),
                nll.double(),
                torch.full((), logits.shape[1], dtype=torch.float64, device=logits.device),
            ]
        )
        old = self._totals.to(batch.device)
        self._totals = torch.cat([(old + batch)[:4], batch[4:]])

    def as_tensor(self) -> Tensor:
        """The counts as ``(5,)`` float64; those of several ranks may be added up."""
        return self._totals.clone()

    @classmethod
    def from_tensor(cls, totals: Tensor, *, num_ranks: int = 1) -> Self:
        """Undo :meth:`as_tensor`, also after adding up ``num_ranks`` of them."""
        made = cls()
        made._totals = torch.cat([totals[:4], totals[4:] / num_ranks])
        return made

    def result(self) -> dict[str, float]:
        """``top1`` and (for more than five classes) ``top5`` in [0, 1], ``loss`` in nats.

        All are NaN where no image had a label.
        """
        images, top1, top5, nll, num_classes = self._totals.tolist()
        nan = float("nan")
        found = {"top1": top1 / images if images else nan}
        if num_classes > 5:
            found["top5"] = top5 / images if images else nan
        found["loss"] = nll / images if images else nan
        return found
