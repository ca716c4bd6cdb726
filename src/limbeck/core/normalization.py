"""A network's own input normalisation: kept beside the network, applied to images in [0, 1]."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from limbeck.core.errors import ShapeError
from limbeck.core.settings import Settings

__all__ = ["Normalization", "Normalize"]


class Normalization(Settings):
    """Mean and standard deviation per channel, of images in [0, 1]."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[PositiveFloat, ...] = (1.0,)


class Normalize(nn.Module):
    """``(image - mean) / std`` per channel; the constants follow the device and are no state."""

    mean: Tensor
    std: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization
        for name in ("mean", "std"):
            constant = torch.tensor(getattr(normalization, name)).reshape(1, -1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape.

        Raises:
            ShapeError: if the channel counts differ and the constants are not one for all.
        """
        if self.mean.shape[1] not in (1, image.shape[1]):
            raise ShapeError(
                f"the normalisation has {self.mean.shape[1]} channels, the images "
                f"{image.shape[1]}; give mean and std with {image.shape[1]} values"
            )
        return (image - self.mean) / self.std
