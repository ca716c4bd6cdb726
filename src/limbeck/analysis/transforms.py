"""Changes of images that leave their class alone, each image its own draw, of stated strength.

Every function takes images ``(N, C, H, W)``, floating in [0, 1], a strength and a generator, and
returns new ones of the same shape in [0, 1]. Those of colour refuse greyscale images. Another
domain has no strength: ``greyscale``, ``silhouette``, ``sketch`` and ``texture_swap`` take images
and a generator.
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
    "greyscale",
    "illumination",
    "rotate",
    "shift",
    "silhouette",
    "sketch",
    "texture_swap",
    "tint",
    "white_balance",
]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# RGB to luma and two axes of chroma (NTSC's YIQ); a hue is an angle between the last two.
_YIQ = (_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))
_FLAT = 1e-3  # a gradient below is no edge: a quarter of a step of 8 bits
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
    _need_size(images, math.ceil(2 / side), f"a crop of {scale:g} of the area")
    corner = _uniform(images, generator, side - 1, 1 - side, channels=2).flatten(1)
    return _warp(images, torch.eye(2).to(images) * side, corner)


def shift(images: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """Moved by up to ``pixels`` in each direction; what comes in is mirrored."""
    _need_size(images, math.floor(pixels) + 1, f"a shift by up to {pixels:g} pixels")
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


def greyscale(images: Tensor, generator: torch.Generator) -> Tensor:
    """Without colour: every channel the luma of ITU-R BT.601."""
    del generator
    _need_colour(images)
    return _luma(images).expand_as(images)


def sketch(images: Tensor, generator: torch.Generator) -> Tensor:
    """Edges as dark lines on white: one less Sobel's gradient, which is 1 at its steepest."""
    del generator
    _need_size(images, 3, "a sketch of edges")
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]).to(images)
    padded = F.pad(_luma(images), (1, 1, 1, 1), mode="replicate")
    slopes = F.conv2d(padded, torch.stack([across, across.T])[:, None])
    steepness = slopes.square().sum(dim=1, keepdim=True).sqrt()
    steepest = steepness.amax(dim=(2, 3), keepdim=True)
    drawn = torch.where(steepest < _FLAT, 0, steepness / steepest)
    return (1 - drawn).expand_as(images)


def silhouette(images: Tensor, generator: torch.Generator) -> Tensor:
    """A black shape on white: what differs in brightness from most of the image's border.

    The threshold is each image's own (Otsu, "A Threshold Selection Method from Gray-Level
    Histograms", IEEE SMC 1979). An image of one brightness has no shape and becomes white.
    """
    del generator
    _need_size(images, 3, "a silhouette")
    levels = (_luma(images) * 255).round().long().flatten(1)
    counts = torch.zeros(len(images), 256, dtype=torch.float64, device=images.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    share = (counts / levels.shape[1]).cumsum(dim=1)
    mass = (counts / levels.shape[1] * torch.arange(256).to(counts)).cumsum(dim=1)
    between = (mass[:, -1:] * share - mass).square() / (share * (1 - share)).clamp(min=1e-12)
    bright = (levels > between.argmax(dim=1, keepdim=True)).reshape(-1, 1, *images.shape[2:])
    border = torch.ones(images.shape[2:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    ground = bright[..., border].double().mean(dim=2) > 0.5
    return (bright == ground[..., None, None]).to(images).expand_as(images)


def texture_swap(images: Tensor, generator: torch.Generator) -> Tensor:
    """The image's own shapes in the texture of another one, drawn.

    Fourier phases are kept and amplitudes are those of another image: the phase holds where edges
    are, the amplitude how rough and how contrasted (Oppenheim and Lim, "The Importance of Phase in
    Signals", Proceedings of the IEEE 1981). Style transfer by a network, as of Stylized-ImageNet,
    would need that network.
    """
    if len(images) < 2:
        raise NotApplicableError("a swap of textures needs two images or more; there is one")
    order = torch.randperm(len(images), generator=generator)
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    own, other = (torch.fft.rfft2(batch) for batch in (images, images[others.to(images.device)]))
    mixed = torch.polar(other.abs(), own.angle())
    swapped: Tensor = torch.fft.irfft2(mixed, s=images.shape[2:])
    return swapped.clamp(0, 1)


def _need_colour(images: Tensor) -> None:
    if images.shape[1] != 3:
        raise NotApplicableError(
            f"changes of colour need colour images; these have {images.shape[1]} channel"
        )


def _need_size(images: Tensor, side: int, what: str) -> None:
    height, width = images.shape[2:]
    if min(height, width) < side:
        raise NotApplicableError(
            f"{what} needs images of {side} x {side} pixels or more; these have {height} x {width}"
        )


def _uniform(
    images: Tensor, generator: torch.Generator, low: float, high: float, *, channels: int = 1
) -> Tensor:
    """``(N, channels, 1, 1)``, drawn on the CPU so that every device gets the same."""
    drawn = torch.rand(len(images), channels, 1, 1, generator=generator)
    return (low + (high - low) * drawn).to(images)


def _luma(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
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
