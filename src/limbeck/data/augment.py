"""Random crops and mirrorings, drawn once an epoch for all images.

N images of the set, B of one batch, C channels, H W spatial.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.types import keyed_generator
from limbeck.data.config import AugmentConfig

__all__ = ["EpochTable"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochTable:
    """What happens to each image of the set in one epoch, read by its position.

    Hence neither the order of the images, nor the batch they come in, nor the process that
    makes it changes a pixel.

    Attributes:
        offsets: ``(N, 2)`` int64 in [0, 2 * padding]: top and left corner of the crop within
            the padded image.
        flips: ``(N,)`` bool: mirrored left-right after the crop.
        padding: zero pixels on each side.
    """

    offsets: Tensor
    flips: Tensor
    padding: int

    @classmethod
    def draw(
        cls, config: AugmentConfig, num_images: int, *, seed: int, epoch: int, view: str = ""
    ) -> EpochTable:
        """The table that (seed, epoch, view) stand for; ``view`` names a further draw."""
        key = (seed, epoch, "augment", view) if view else (seed, epoch, "augment")
        generator = keyed_generator(*key)
        padding = config.crop_padding
        offsets = torch.randint(2 * padding + 1, (num_images, 2), generator=generator)
        flips = torch.randint(2, (num_images,), generator=generator).bool()
        return cls(offsets=offsets, flips=flips & config.flip, padding=padding)

    def to(self, device: torch.device) -> EpochTable:
        """The same table on ``device``."""
        return EpochTable(
            offsets=self.offsets.to(device), flips=self.flips.to(device), padding=self.padding
        )

    def apply(self, image: Tensor, index: Tensor) -> Tensor:
        """Cropped and mirrored images, in whatever dtype they come.

        Nothing is read back to the host, so an accelerator does not wait.

        Args:
            image: ``(B, C, H, W)``, on the table's device; black is 0.
            index: ``(B,)`` int64, each image's position in the set.

        Returns:
            ``(B, C, H, W)``, a new tensor.
        """
        batch, channels, height, width = image.shape
        offset = self.offsets[index]
        flip = self.flips[index][:, None]
        rows = offset[:, :1] + torch.arange(height, device=image.device)
        columns = torch.arange(width, device=image.device)
        columns = offset[:, 1:] + torch.where(flip, width - 1 - columns, columns)
        padded = F.pad(image, (self.padding,) * 4)
        pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W)
        pixels = pixels.reshape(batch, 1, -1).expand(-1, channels, -1)
        return padded.flatten(start_dim=2).gather(2, pixels).reshape(image.shape)
