"""What a network makes of images in [0, 1] before it looks at them: kept beside the network.

B batch, C channels, H W spatial.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from limbeck.core.errors import ShapeError
from limbeck.core.settings import Settings

__all__ = ["Normalization", "Normalize"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: the weights of red, green and blue


class Normalization(Settings):
    """Size, channels, mean and standard deviation that a network wants of images in [0, 1].

    Attributes:
        mean: per channel of the network.
        std: the same.
        image_size: height and width that the network is fed; None takes images as they come.
        in_chans: channels that it is fed; None takes images as they come.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[PositiveFloat, ...] = (1.0,)
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    in_chans: PositiveInt | None = None

    def input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """What the network is fed for images of shape ``(C, H, W)``.

        Example:
            >>> Normalization(image_size=(32, 32)).input_shape((1, 8, 8))
            (1, 32, 32)
        """
        return (self.in_chans or image_shape[0], *(self.image_size or image_shape[1:]))


class Normalize(nn.Module):
    """``(image - mean) / std`` per channel, of images in the network's own channels and size.

    Grey images are repeated for a network of three channels, and colour images become grey by
    Rec. 601 luma for a network of one. Another size is reached by bilinear interpolation with
    antialiasing, of the whole image: nothing is cropped. The constants follow the device and are
    no state.

    Source:
        ITU-R BT.601: Y = 0.299 R + 0.587 G + 0.114 B.

    Example:
        >>> normalize = Normalize(Normalization(image_size=(4, 4), in_chans=3))
        >>> tuple(normalize(torch.rand(2, 1, 8, 8)).shape)
        (2, 3, 4, 4)
    """

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization
        constants = {"mean": normalization.mean, "std": normalization.std, "luma": _LUMA}
        for name, values in constants.items():
            constant = torch.tensor(values).reshape(1, -1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the shape that the network takes.

        Raises:
            ShapeError: if the channel counts differ and neither the images can be converted nor
                the constants are one for all.
        """
        image = self._resized(self._converted(image))
        if self.mean.shape[1] not in (1, image.shape[1]):
            raise ShapeError(
                f"the normalisation has {self.mean.shape[1]} channels, the images "
                f"{image.shape[1]}; give mean and std with {image.shape[1]} values"
            )
        return (image - self.mean) / self.std

    def _converted(self, image: Tensor) -> Tensor:
        given, wanted = image.shape[1], self.normalization.in_chans
        if wanted is None or wanted == given:
            return image
        if given == 1:
            return image.repeat(1, wanted, 1, 1)
        if (given, wanted) == (3, 1):
            return (image * self.luma).sum(dim=1, keepdim=True)
        raise ShapeError(
            f"the network takes {wanted} channels, the images have {given}, and only grey and "
            f"colour can be converted; use a network of {given} channels"
        )

    def _resized(self, image: Tensor) -> Tensor:
        size = self.normalization.image_size
        if size is None or size == tuple(image.shape[2:]):
            return image
        return F.interpolate(image, size, mode="bilinear", antialias=True)
