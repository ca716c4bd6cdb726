"""RandAugment and Cutout, drawn once an epoch for all images, done to a batch at a time.

Every image gets two operations of :data:`OPERATIONS`, drawn with replacement, each at a strength
uniform in its range; then a square of the mean colour of ImageNet, at a uniform place, with a side
uniform up to half the image's width. Pixels are those that Pillow gives for the same draws.

Source: Cubuk et al., "RandAugment", NeurIPS 2020, https://arxiv.org/abs/1909.13719, with the
operations and ranges of Sohn et al., "FixMatch", NeurIPS 2020, https://arxiv.org/abs/2001.07685,
table 12, as the code of MLKD (Jin et al., CVPR 2023) has them; DeVries, Taylor, "Cutout", 2017,
https://arxiv.org/abs/1708.04552.

N images of the set, B of one batch, C channels, H W spatial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from limbeck.core.types import keyed_generator
from limbeck.data.augment import EpochTable
from limbeck.data.config import AugmentConfig

__all__ = ["OPERATIONS", "StrongTable"]

# Name and range of strength; blends are towards the image, 1 being the image itself, rotations in
# degrees, shears in pixels a pixel, translations in image sizes.
OPERATIONS: Final[dict[str, tuple[float, float]]] = {
    "autocontrast": (0, 1),
    "brightness": (0.05, 0.95),
    "color": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "equalize": (0, 1),
    "identity": (0, 1),
    "posterize": (4, 8),
    "rotate": (-30, 30),
    "sharpness": (0.05, 0.95),
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "solarize": (0, 256),
    "translate_x": (-0.3, 0.3),
    "translate_y": (-0.3, 0.3),
}
_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_ROUNDS = 2
_LARGEST_CUT = 0.5  # of the width
_CUT_COLOUR = (125, 123, 114)
_CUT_GREY = 123  # the same, as Pillow makes it grey
_LUMA = (19595, 38470, 7471)  # in 1/65536, as Pillow makes colours grey
_FIXED = 65536  # Pillow walks through a turned or sheared image in steps of that part of a pixel


@dataclass(frozen=True, kw_only=True, eq=False)
class StrongTable:
    """What happens to each image of the set in one epoch, read by its position.

    Attributes:
        crop: crop and flip, which come first.
        operations: ``(N, 2)`` int64, positions in :data:`OPERATIONS`, in the order they are done.
        strengths: ``(N, 2)`` float64, each in its operation's range.
        cuts: ``(N, 3)`` float64 in [0, 1): side, in halves of the width, and the square's middle
            along width and height, in image sizes.
    """

    crop: EpochTable
    operations: Tensor
    strengths: Tensor
    cuts: Tensor

    @classmethod
    def draw(
        cls, config: AugmentConfig, num_images: int, *, seed: int, epoch: int, view: str
    ) -> StrongTable:
        """The table that (seed, epoch, view) stand for, with a crop and flip of its own."""
        generator = keyed_generator(seed, epoch, "strong", view)
        operations = torch.randint(len(OPERATIONS), (num_images, _ROUNDS), generator=generator)
        shares = torch.rand((num_images, _ROUNDS), dtype=torch.float64, generator=generator)
        low, high = torch.tensor(list(OPERATIONS.values()), dtype=torch.float64).T
        return cls(
            crop=EpochTable.draw(config, num_images, seed=seed, epoch=epoch, view=view),
            operations=operations,
            strengths=low[operations] + (high - low)[operations] * shares,
            cuts=torch.rand((num_images, 3), dtype=torch.float64, generator=generator),
        )

    def to(self, device: torch.device) -> StrongTable:
        """The same table on ``device``."""
        return StrongTable(
            crop=self.crop.to(device),
            operations=self.operations.to(device),
            strengths=self.strengths.to(device),
            cuts=self.cuts.to(device),
        )

    def apply(self, image: Tensor, index: Tensor) -> Tensor:
        """Strongly changed images.

        Nothing is read back to the host, so an accelerator does not wait: every image goes through
        every kind of change, at the strength at which the kinds it did not draw do nothing.

        Args:
            image: ``(B, C, H, W)`` uint8, on the table's device, C 1 or 3.
            index: ``(B,)`` int64, each image's position in the set.

        Returns:
            ``(B, C, H, W)`` uint8, a new tensor.
        """
        image = self.crop.apply(image, index)
        for number in range(_ROUNDS):
            image = _changed(image, self.operations[index, number], self.strengths[index, number])
        return _cut(image, self.cuts[index])


def _changed(image: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """One operation done to each image: moved, looked up, or blended with a version of itself."""
    moved = _moved(image, operation, strength)
    mapped = _looked_up(moved, _lookup(image, operation, strength))
    is_color = operation == _NUMBER["color"]
    blended = is_color | (operation == _NUMBER["sharpness"])
    other = torch.where(is_color[:, None, None, None], _grey(mapped), _smooth(mapped))
    weight = torch.where(blended, strength, 1.0)
    return _blend(other, mapped, weight[:, None, None, None]).to(torch.uint8)


def _blend(other: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """``other + weight * (image - other)`` in float32, cut to whole numbers, as Pillow does."""
    other = other.to(torch.int32)
    return (other + weight.float() * (image.to(torch.int32) - other)).to(torch.int64)


# -- places ----------------------------------------------------------------------------------


def _moved(image: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Turned, sheared or shifted; black from outside, the nearest pixel inside."""
    height, width = image.shape[2:]
    zero = torch.zeros_like(strength)

    def where(name: str, value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(operation == _NUMBER[name], value, otherwise)

    # Where a pixel comes from: x' = a x + b y + c, y' = d x + e y + f, about the middle for turns.
    radians = where("rotate", torch.deg2rad(-strength), zero)
    cos, sin = radians.cos(), radians.sin()
    a, e = cos, cos
    b = where("shear_x", strength, sin)
    d = where("shear_y", strength, -sin)
    x, y = width / 2, height / 2
    turned = operation == _NUMBER["rotate"]
    c = torch.where(turned, x - cos * x - sin * y, 0.0)
    f = torch.where(turned, y + sin * x - cos * y, 0.0)
    c = where("translate_x", strength * width, c)
    f = where("translate_y", strength * height, f)
    # The middle of the first pixel. Pillow rounds steps to a fixed part of a pixel, but not shifts.
    shifted = (operation == _NUMBER["translate_x"]) | (operation == _NUMBER["translate_y"])
    half = torch.where(shifted, 0.0, 0.5)
    rows = torch.arange(height, device=image.device)[:, None]
    columns = torch.arange(width, device=image.device)

    def source(along: Tensor, across: Tensor, start: Tensor) -> Tensor:
        """Pixels ``(B, H, W)`` along one axis, ``across`` being the step of the rows."""
        first = (start + along / 2 + across / 2) * _FIXED
        steps = [torch.floor(v * _FIXED + 0.5).long()[:, None, None] for v in (along, across)]
        begin = torch.floor(first + half).long()[:, None, None]
        return (begin + steps[0] * columns + steps[1] * rows) >> 16

    from_x, from_y = source(a, b, c), source(d, e, f)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    pixels = from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)
    pixels = pixels.flatten(1)[:, None].expand(-1, image.shape[1], -1)
    found = image.flatten(2).gather(2, pixels).reshape(image.shape)
    return torch.where(inside[:, None], found, 0)


def _cut(image: Tensor, cuts: Tensor) -> Tensor:
    """A square of one colour in each image."""
    channels, height, width = image.shape[1:]
    side = cuts[:, 0] * _LARGEST_CUT * width

    def covered(middle: Tensor, size: int) -> Tensor:
        """Which places ``(B, size)`` along one axis the square covers."""
        first = torch.floor((middle * size - side / 2).clamp(min=0))
        last = torch.floor((first + side).clamp(max=size))  # itself included, as Pillow draws
        place = torch.arange(size, device=image.device)
        return (place >= first[:, None]) & (place <= last[:, None])

    covers = covered(cuts[:, 2], height)[:, :, None] & covered(cuts[:, 1], width)[:, None]
    colour = _CUT_COLOUR if channels == 3 else (_CUT_GREY,) * channels
    filled = torch.stack([torch.full_like(image[:, c], value) for c, value in enumerate(colour)], 1)
    return torch.where(covers[:, None], filled, image)


# -- values ----------------------------------------------------------------------------------


def _lookup(image: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """What becomes of each value: ``(B, C, 256)`` int64, for operations that are such a table."""
    value = torch.arange(256, device=image.device)
    strength = strength[:, None, None]
    counts = torch.zeros(*image.shape[:2], 256, dtype=torch.int64, device=image.device)
    pixels = image.flatten(2).long()
    counts = counts.scatter_add(2, pixels, torch.ones_like(pixels))
    lowest = torch.where(counts > 0, value, 255).amin(dim=2, keepdim=True)
    highest = torch.where(counts > 0, value, 0).amax(dim=2, keepdim=True)
    grey = _grey(image)[:, :1].long().sum(dim=(2, 3))[:, :, None]
    num_pixels = pixels.shape[2]
    mean = (2 * grey + num_pixels) // (2 * num_pixels)
    step = (num_pixels - counts.gather(2, highest)) // 255
    below = counts.cumsum(dim=2) - counts
    equalized = (step // 2 + below) // step.clamp(min=1)
    span = (highest - lowest).clamp(min=1).double()
    scale = torch.full_like(span, 255) / span  # 255 / span would be a rounded 1 / span, times 255
    stretched = (value * scale - lowest * scale).long()
    tables = {
        "autocontrast": torch.where(highest > lowest, stretched, value),
        "brightness": _blend(torch.zeros_like(mean), value, strength),
        "contrast": _blend(mean, value, strength),
        "equalize": torch.where(step > 0, equalized, value),
        "posterize": value - value % (2 ** (8 - strength.clamp(4, 8).floor())).long(),
        "solarize": torch.where(value < strength, value, 255 - value),
    }
    result = value.expand(counts.shape)
    for name, table in tables.items():
        result = torch.where((operation == _NUMBER[name])[:, None, None], table, result)
    return result.clamp(0, 255)


def _looked_up(image: Tensor, lookup: Tensor) -> Tensor:
    """Each value replaced by what its image's and channel's table says."""
    return lookup.gather(2, image.flatten(2).long()).reshape(image.shape).to(torch.uint8)


def _grey(image: Tensor) -> Tensor:
    """Brightness in every channel; a grey image as it is."""
    if image.shape[1] != 3:
        return image
    weight = torch.tensor(_LUMA, device=image.device)[:, None, None]
    grey = ((image.int() * weight).sum(dim=1, keepdim=True) + _FIXED // 2) >> 16
    return grey.to(torch.uint8).expand_as(image)


def _smooth(image: Tensor) -> Tensor:
    """Averaged with its eight neighbours, itself five times; the outermost pixels as they are."""
    if min(image.shape[2:]) < 3:
        return image
    value = image.int()
    rows = value[:, :, :-2] + value[:, :, 1:-1] + value[:, :, 2:]
    neighbours = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    total = neighbours + 4 * value[:, :, 1:-1, 1:-1]
    result = image.clone()
    # Over 13, to the nearest whole; no whole sum over 13 is a half.
    result[:, :, 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)
    return result
