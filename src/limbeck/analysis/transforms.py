"""Changes of images that leave their class alone, each image its own draw, of stated strength.

Every function takes images ``(N, C, H, W)``, floating in [0, 1], a strength and a generator, and
returns new ones of the same shape in [0, 1]. Those of colour refuse greyscale images.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.analysis.base import NotApplicableError

__all__ = [
    "colour_jitter",
    "crop",
    "illumination",
    "rotate",
    "shift",
    "tint",
    "white_balance",
]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# RGB to luma and two axes of chroma (NTSC's YIQ); a hue is an angle between the last two.
_YIQ = (_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))
_GRADIENT = 0.5  # of the illumination's strength goes into its slope


def colour_jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue, in this order, each by a factor of its own.

    Args:
        images: colour.
        strength: s: factors are uniform in [1 - s, 1 + s], the hue turns by up to ±s / 4 of a
            circle.
        generator: of the factors.
    """
    _need_colour(images)
    brightness, contrast, saturation, hue = (
        _uniform(images, generator, -strength, strength) for _ in range(4)
    )
    images = (images * (1 + brightness)).clamp(0, 1)
    mean = _luma(images).mean(dim=(2, 3), keepdim=True)
    images = (mean + (images - mean) * (1 + contrast)).clamp(0, 1)
    grey = _luma(images)
    images = (grey + (images - grey) * (1 + saturation)).clamp(0, 1)
    return _turn_hue(images, hue.flatten() * math.pi / 2).clamp(0, 1)


def tint(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Light of a random colour: each channel multiplied by a gain in [1 - s, 1 + s].

    The gains' mean is 1, so that the light gets no brighter.
    """
    _need_colour(images)
    gains = _uniform(images, generator, -strength, strength, channels=images.shape[1])
    return (images * (1 + gains - gains.mean(dim=1, keepdim=True))).clamp(0, 1)


def white_balance(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Warmer or cooler light: red multiplied by 1 + t, blue by 1 - t, with t = ±strength."""
    _need_colour(images)
    signs = (torch.rand(len(images), generator=generator) < 0.5).to(images) * 2 - 1
    towards = torch.tensor([1.0, 0.0, -1.0]).to(images)
    gains = 1 + strength * signs[:, None] * towards
    return (images * gains[:, :, None, None]).clamp(0, 1)


def illumination(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Another exposure, x^g with g in [1 / (1 + s), 1 + s], and a slope of light across it."""
    _, _, height, width = images.shape
    exponent = (1 + strength) ** _uniform(images, generator, -1, 1)
    angle = _uniform(images, generator, 0, 2 * math.pi)
    y = torch.linspace(-1, 1, height).to(images)[:, None]
    x = torch.linspace(-1, 1, width).to(images)
    slope = x * angle.cos() + y * angle.sin()
    return (images.clamp(min=0) ** exponent * (1 + _GRADIENT * strength * slope)).clamp(0, 1)


def crop(images: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """A square part of area ``scale``, anywhere in the image, enlarged to the whole."""
    side = math.sqrt(scale)
    corner = _uniform(images, generator, side - 1, 1 - side, channels=2).flatten(1)
    return _warp(images, torch.eye(2).to(images) * side, corner)


def shift(images: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """Moved by up to ``pixels`` in each direction; what comes in is mirrored."""
    size = torch.tensor([images.shape[3], images.shape[2]]).to(images)
    moved = _uniform(images, generator, -pixels, pixels, channels=2).flatten(1).round()
    return _warp(images, torch.eye(2).to(images), 2 * moved / size)


def rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turned about the middle by exactly ``degrees``, to either side; corners are mirrored."""
    signs = (torch.rand(len(images), generator=generator) < 0.5).to(images) * 2 - 1
    angle = signs * math.radians(degrees)
    cos, sin = angle.cos(), angle.sin()
    ratio = images.shape[2] / images.shape[3]  # coordinates run from -1 to 1 in both directions
    matrix = torch.stack([cos, -sin * ratio, sin / ratio, cos], dim=1).reshape(-1, 2, 2)
    return _warp(images, matrix, torch.zeros(2).to(images))


def _need_colour(images: Tensor) -> None:
    if images.shape[1] != 3:
        raise NotApplicableError(
            f"changes of colour need colour images; these have {images.shape[1]} channel"
        )


def _uniform(
    images: Tensor, generator: torch.Generator, low: float, high: float, *, channels: int = 1
) -> Tensor:
    """``(N, channels, 1, 1)``, drawn on the CPU so that every device gets the same."""
    drawn = torch.rand(len(images), channels, 1, 1, generator=generator)
    return (low + (high - low) * drawn).to(images)


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA).to(images)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True)


def _turn_hue(images: Tensor, angle: Tensor) -> Tensor:
    to_yiq = torch.tensor(_YIQ, dtype=torch.float64)
    cos, sin, one = angle.double().cpu().cos(), angle.double().cpu().sin(), torch.ones(len(angle))
    zero = torch.zeros(len(angle))
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).double()
    matrix = (torch.linalg.inv(to_yiq) @ turn.reshape(-1, 3, 3) @ to_yiq).to(images)
    return torch.einsum("nij,njhw->nihw", matrix, images)


def _warp(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Each output pixel at (x, y) in [-1, 1] reads ``matrix @ (x, y) + offset``, bilinearly."""
    count = len(images)
    theta = torch.cat([matrix.expand(count, 2, 2), offset.expand(count, 2)[:, :, None]], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).clamp(0, 1)
