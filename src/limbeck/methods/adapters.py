r"""What brings two networks' features to one form: layouts, sizes, channels, for any two layers.

B batch, C channels, H W spatial, N tokens.

Three steps, each usable alone. A *layout* says how a layer's tensor lies: ``(B, C, H, W)``,
``(B, H, W, C)`` as Swin gives, ``(B, N, C)`` as transformers give, or ``(B, C)``. An *alignment*
brings both layers to what the method compares, its *purpose*: maps ``(B, C, H, W)`` of one size,
tokens ``(B, N, C)`` of one number, or vectors ``(B, C)``, the mean over the places. An *adapter*
is an alignment and the trainable part that takes the student's channels to the teacher's. A
method whose source fixes its regressor uses an alignment and its own.

The rule that reads a layout from one dry feature, where the settings do not say it:

- 2 axes are a vector, 3 are tokens.
- 4 axes are channels-first if the last two are equal, and channels-last if the two behind the
  batch are equal and the last is longer: images are square, and every stage of the published Swins
  has more channels than rows. A cube is channels-first, as torch's layers are. Where nothing is
  square, the one reading whose height and width are within a factor of two of each other counts.
- The first p tokens are no places but class and register tokens, where p in 0 (Swin, pooled ViT),
  1 (ViT), 2 (DeiT), 4 (registers alone), 5 (DINOv2 with registers) leaves a square grid, of more
  than one place if p > 0.

Where two readings fit, or none does, a :class:`~limbeck.core.errors.ShapeError` names them and the
setting to use.

The rule that chooses the adapter, kind "auto": tokens and vectors take a linear layer. Maps take a
1x1 convolution where the sizes are equal, a 3x3 of stride 2 where the student's is twice the
teacher's, a transposed 4x4 of stride 2 where it is half, and otherwise the student's map is resized
and takes a 1x1 convolution. Tokens whose number differs are resized on their grids.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.settings import Settings
from limbeck.functional.hints import rescaling_convolution

__all__ = [
    "Adapter",
    "AdapterConfig",
    "AlignedPair",
    "Alignment",
    "Layout",
    "LayoutConfig",
    "Purpose",
    "align",
    "find_layout",
    "make_adapter",
    "resize_map",
]

Purpose = Literal["map", "tokens", "vector"]

_PREFIXES = (0, 1, 2, 4, 5)  # numbers of class and register tokens that published networks have
_NUM_AXES = {"vector": 2, "tokens": 3, "map": 4, "channels_last": 4}


class LayoutConfig(Settings):
    """How one layer's tensor lies, where the rule of the module would have to guess.

    Attributes:
        kind: "map" (B, C, H, W), "channels_last" (B, H, W, C), "tokens" (B, N, C) or "vector"
            (B, C); "auto" reads it from the shape.
        prefix_tokens: how many tokens at the beginning are dropped, being no places of the image;
            0 keeps all, class tokens among them. None reads it from their number.
    """

    kind: Literal["auto", "map", "channels_last", "tokens", "vector"] = "auto"
    prefix_tokens: NonNegativeInt | None = None


class AdapterConfig(Settings):
    """Which adapter, and what follows its layers.

    Attributes:
        kind: "auto" chooses by the rule of the module. "linear" is a linear layer, on maps a 1x1
            convolution. "mlp" is several of them. "strided" is the convolution that halves or
            doubles a map. "none" leaves the channels as they are, equal or not.
        norm: behind each layer: "batch" on maps and vectors, "layer" on tokens and vectors.
        activation: behind each norm. An mlp's inner layers have a ReLU where this is "none".
        bias: of the layers; a norm behind them makes it idle.
        num_layers: of an mlp.
        hidden_channels: of an mlp's inner layers; None takes the teacher's.
        resize: what gives way where sizes differ: "teacher" brings the student's map to the
            teacher's size, "smaller" pools the larger of the two along each axis.
        student_layout: how the student's layer lies, where the shape leaves it open.
        teacher_layout: the same of the teacher's.
    """

    kind: Literal["auto", "none", "linear", "mlp", "strided"] = "auto"
    norm: Literal["none", "batch", "layer"] = "none"
    activation: Literal["none", "relu", "gelu"] = "none"
    bias: bool = True
    num_layers: int = Field(2, ge=2)
    hidden_channels: PositiveInt | None = None
    resize: Literal["teacher", "smaller"] = "teacher"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.kind == "none" and (self.norm, self.activation) != ("none", "none"):
            raise ValueError("kind 'none' has no layer that a norm or an activation could follow")
        if self.kind != "mlp" and (self.num_layers, self.hidden_channels) != (2, None):
            raise ValueError(f"num_layers and hidden_channels are an mlp's; kind is {self.kind!r}")
        if self.kind == "strided" and self.resize != "teacher":
            raise ValueError("kind 'strided' goes to the teacher's size; resize must be 'teacher'")
        return self


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one layer's tensor lies.

    Attributes:
        kind: as in :class:`LayoutConfig`.
        shape: of one image's feature, without the batch.
        channels: C.
        grid: (H, W) of the places; None for tokens that form no square. A vector has (1, 1).
        num_prefix: tokens dropped from the beginning.
    """

    kind: Literal["map", "channels_last", "tokens", "vector"]
    shape: tuple[int, ...]
    channels: int
    grid: tuple[int, int] | None
    num_prefix: int = 0

    @property
    def num_places(self) -> int:
        """Places of the image that have a feature each."""
        return math.prod(self.shape) // self.channels - self.num_prefix

    def as_map(self, feature: Tensor) -> Tensor:
        """To ``(B, C, H, W)``.

        Raises:
            ShapeError: if the tokens form no square.
        """
        match self.kind:
            case "map":
                return feature
            case "channels_last":
                return feature.permute(0, 3, 1, 2)
            case "tokens":
                tokens = feature[:, self.num_prefix :].transpose(1, 2)
                return tokens.reshape(len(feature), self.channels, *self.known_grid())
            case "vector":
                return feature[:, :, None, None]

    def as_tokens(self, feature: Tensor) -> Tensor:
        """To ``(B, N, C)``, row by row; a vector is one token."""
        if self.kind == "tokens":
            return feature[:, self.num_prefix :]
        return self.as_map(feature).flatten(2).transpose(1, 2)

    def as_vector(self, feature: Tensor) -> Tensor:
        """To ``(B, C)``: the mean over the places."""
        return feature if self.kind == "vector" else self.as_tokens(feature).mean(dim=1)

    def known_grid(self) -> tuple[int, int]:
        """The grid.

        Raises:
            ShapeError: if the tokens form no square.
        """
        if self.grid is None:
            raise ShapeError(
                "a map needs tokens that form a square grid; got "
                f"{self.num_places} tokens of {self.channels} channels, after {self.num_prefix} "
                "dropped at the beginning. Set this layer's prefix_tokens to the number of its "
                "class and register tokens, or choose another layer"
            )
        return self.grid

    def describe(self, purpose: Purpose) -> str:
        """Its shape, and what it is read as where that differs."""
        text = "x".join(map(str, self.shape))
        if self.kind in ("tokens", "channels_last"):
            text += f" {self.kind.replace('_', '-')}"
        match purpose:
            case "map" if self.kind != "map":
                return f"{text} as {'x'.join(map(str, (self.channels, *self.known_grid())))}"
            case "tokens" if self.kind != "tokens" or self.num_prefix:
                return f"{text} as {self.num_places}x{self.channels} tokens"
            case "vector" if self.kind != "vector":
                return f"{text}, mean of {self.num_places} places"
            case _:
                return text


class AlignedPair(NamedTuple):
    """Both features in the form that a method compares."""

    student: Tensor
    teacher: Tensor


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Brings two layers to one form and size, and leaves their channels as they are.

    Attributes:
        purpose: the form.
        student_layout: of the student's layer.
        teacher_layout: of the teacher's.
        size: (H, W) that both are brought to; None leaves each at its own.
    """

    purpose: Purpose
    student_layout: Layout
    teacher_layout: Layout
    size: tuple[int, int] | None = None

    @property
    def convolutional(self) -> bool:
        """Whether both layers give maps ``(B, C, H, W)`` as they are."""
        return self.student_layout.kind == self.teacher_layout.kind == "map"

    @property
    def grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(H, W) of the student's layer and of the teacher's, as they are.

        Raises:
            ShapeError: if tokens form no square.
        """
        return self.student_layout.known_grid(), self.teacher_layout.known_grid()

    def resized(self, to: Literal["teacher", "smaller"]) -> Alignment:
        """The same, with both brought to one size; nothing to do for vectors.

        Raises:
            ShapeError: if the sizes differ and tokens form no square.
        """
        layouts = self.student_layout, self.teacher_layout
        if self.purpose == "vector":
            return self
        # Equally many tokens need no grid, so that class tokens may be among them.
        equal = layouts[0].num_places == layouts[1].num_places
        if self.purpose == "tokens" and equal and None in (layouts[0].grid, layouts[1].grid):
            return self
        student, teacher = self.grids
        if to == "teacher":
            return dataclasses.replace(self, size=teacher)
        size = min(student[0], teacher[0]), min(student[1], teacher[1])
        return dataclasses.replace(self, size=size)

    def student(self, feature: Tensor) -> Tensor:
        """The student's feature in this form."""
        return self._bring(self.student_layout, feature)

    def teacher(self, feature: Tensor) -> Tensor:
        """The teacher's feature in this form."""
        return self._bring(self.teacher_layout, feature)

    def __call__(self, student_feature: Tensor, teacher_feature: Tensor) -> AlignedPair:
        """Both features in this form."""
        return AlignedPair(self.student(student_feature), self.teacher(teacher_feature))

    def _bring(self, layout: Layout, feature: Tensor) -> Tensor:
        match self.purpose:
            case "vector":
                return layout.as_vector(feature)
            case "tokens" if self.size in (None, layout.grid):
                return layout.as_tokens(feature)
            case _:
                grid = layout.as_map(feature)
                grid = grid if self.size is None else resize_map(grid, self.size)
                return grid if self.purpose == "map" else grid.flatten(2).transpose(1, 2)

    def describe(self, student_layer: str, teacher_layer: str, regressor: nn.Module | None) -> str:
        """One line on what happens between two layers.

        Args:
            student_layer: its name.
            teacher_layer: its name.
            regressor: the trainable part on the student's side; None where there is none.
        """
        steps = [f"student {student_layer} {self._side(self.student_layout)}"]
        parts = [] if regressor is None else [_name(part) for part in _leaves(regressor)]
        if parts:
            steps.append(", ".join(parts))
        steps.append(f"teacher {teacher_layer} {self._side(self.teacher_layout)}")
        count = 0 if regressor is None else sum(p.numel() for p in regressor.parameters())
        return f"{' -> '.join(steps)}; {f'{count:,}' if count else 'no'} parameters"

    def _side(self, layout: Layout) -> str:
        resized = self.size not in (None, layout.grid)
        size = f" resized to {self.size[0]}x{self.size[1]}" if self.size and resized else ""
        return layout.describe(self.purpose) + size


class Adapter(nn.Module):
    """An alignment, and the trainable part from the student's channels to the teacher's.

    Args:
        alignment: of the two layers.
        regressor: applied to the student's aligned feature.
    """

    def __init__(self, alignment: Alignment, regressor: nn.Module) -> None:
        super().__init__()
        self.alignment = alignment
        self.regressor = regressor

    def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> AlignedPair:
        """Both features in one form, the student's with the teacher's channels."""
        pair = self.alignment(student_feature, teacher_feature)
        return AlignedPair(self.regressor(pair.student), pair.teacher)

    def describe(self, student_layer: str, teacher_layer: str) -> str:
        """One line on what happens between two layers, and how many parameters it takes."""
        return self.alignment.describe(student_layer, teacher_layer, self.regressor)


def find_layout(feature: Tensor, config: LayoutConfig, *, whose: str) -> Layout:
    """How a dry feature lies: as the settings say, else by the rule of the module.

    Args:
        feature: only its shape counts.
        config: of this layer.
        whose: "student" or "teacher", for the message.

    Raises:
        ShapeError: if the shape leaves it open or contradicts the settings.

    Example:
        >>> import torch
        >>> find_layout(torch.zeros(2, 197, 384), LayoutConfig(), whose="teacher").grid
        (14, 14)
    """
    shape = tuple(feature.shape[1:])
    kind = _guess_kind(feature, whose) if config.kind == "auto" else config.kind
    if feature.ndim != _NUM_AXES[kind]:
        raise ShapeError(
            f"{whose}_layout.kind {kind!r} has {_NUM_AXES[kind]} axes, the batch among them; the "
            f"{whose}'s feature is {tuple(feature.shape)}. Leave the kind at 'auto', or choose "
            "another layer"
        )
    if kind != "tokens" and config.prefix_tokens is not None:
        raise ShapeError(
            f"{whose}_layout.prefix_tokens is for tokens (batch, tokens, channels); the {whose}'s "
            f"feature is {tuple(feature.shape)}. Leave it at None"
        )
    match kind:
        case "map":
            return Layout(kind=kind, shape=shape, channels=shape[0], grid=(shape[1], shape[2]))
        case "channels_last":
            return Layout(kind=kind, shape=shape, channels=shape[2], grid=(shape[0], shape[1]))
        case "vector":
            return Layout(kind=kind, shape=shape, channels=shape[0], grid=(1, 1))
        case "tokens":
            num_prefix = config.prefix_tokens
            if num_prefix is None:
                num_prefix = _guess_prefix(feature, whose)
            if num_prefix >= shape[0]:
                raise ShapeError(
                    f"{whose}_layout.prefix_tokens is {num_prefix}, and the {whose}'s feature "
                    f"{tuple(feature.shape)} has no more than {shape[0]} tokens. Give a smaller one"
                )
            side = math.isqrt(shape[0] - num_prefix)
            grid = (side, side) if side**2 == shape[0] - num_prefix else None
            return Layout(
                kind=kind, shape=shape, channels=shape[1], grid=grid, num_prefix=num_prefix
            )


def _guess_kind(feature: Tensor, whose: str) -> Literal["map", "channels_last", "tokens", "vector"]:
    match tuple(feature.shape[1:]):
        case (_,):
            return "vector"
        case (_, _):
            return "tokens"
        case (first, second, third):
            if second == third:
                return "map"
            if first == second < third:
                return "channels_last"
            # Not square: neither reading if both are possible.
            as_map, as_channels_last = _near(second, third), _near(first, second)
            if as_map != as_channels_last:
                return "map" if as_map else "channels_last"
            raise ShapeError(
                f"cannot tell where the channels of the {whose}'s feature {tuple(feature.shape)} "
                f"are: it may be {first} channels of {second}x{third}, or {third} channels of "
                f"{first}x{second}. Set {whose}_layout.kind to 'map' for the former, to "
                "'channels_last' for the latter"
            )
        case _:
            raise ShapeError(
                "a feature is a map of 4 axes, tokens of 3 or a vector of 2, the batch among them; "
                f"the {whose}'s is {tuple(feature.shape)}. Choose another layer (`limbeck inspect "
                "MODEL` lists a network's layers)"
            )


def _near(height: int, width: int) -> bool:
    return max(height, width) <= 2 * min(height, width)


def _guess_prefix(feature: Tensor, whose: str) -> int:
    count = feature.shape[1]
    sides = {p: math.isqrt(count - p) for p in _PREFIXES if p < count}
    found = {p: side for p, side in sides.items() if side**2 == count - p and (p == 0 or side > 1)}
    if len(found) == 1:
        return next(iter(found))
    listed = ", or ".join(f"{p}, which leaves {side}x{side}" for p, side in found.items())
    raise ShapeError(
        f"cannot tell how many of the {count} tokens of the {whose}'s feature "
        f"{tuple(feature.shape)} are class or register tokens: "
        + (f"it may be {listed}" if found else f"none of {_PREFIXES} leaves a square grid")
        + f". Set {whose}_layout.prefix_tokens to their number, or to 0 to keep all tokens where "
        "no map is needed"
    )


def align(
    student_feature: Tensor,
    teacher_feature: Tensor,
    *,
    purpose: Purpose,
    student_layout: LayoutConfig,
    teacher_layout: LayoutConfig,
) -> Alignment:
    """The alignment of two dry features, each at its own size; see :meth:`Alignment.resized`.

    Args:
        student_feature: only its shape counts.
        teacher_feature: the same.
        purpose: the form both are brought to.
        student_layout: how the student's lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.

    Raises:
        ShapeError: if a shape leaves its layout open, or one feature has several places and the
            other is a vector, unless vectors are asked for.
    """
    alignment = Alignment(
        purpose=purpose,
        student_layout=find_layout(student_feature, student_layout, whose="student"),
        teacher_layout=find_layout(teacher_feature, teacher_layout, whose="teacher"),
    )
    layouts = alignment.student_layout, alignment.teacher_layout
    one_vector = [layout.kind for layout in layouts].count("vector") == 1
    if purpose != "vector" and one_vector and any(layout.grid != (1, 1) for layout in layouts):
        raise ShapeError(
            "features are compared place by place, and a vector has no places; got student "
            f"{tuple(student_feature.shape)}, teacher {tuple(teacher_feature.shape)}. Choose two "
            "layers before the pooling, or two behind it (`limbeck inspect MODEL` lists a "
            "network's layers)"
        )
    if purpose == "map":
        _ = alignment.grids  # fails here and not in the first step
    return alignment


def make_adapter(
    student_feature: Tensor,
    teacher_feature: Tensor,
    *,
    purpose: Purpose,
    config: AdapterConfig,
) -> Adapter:
    """The adapter of two dry features, by the rule of the module or as the settings say.

    Args:
        student_feature: only its shape counts.
        teacher_feature: the same.
        purpose: what the method compares.
        config: ``AdapterConfig()`` leaves all to the rule.

    Raises:
        ShapeError: if a shape leaves its layout open, or the two cannot be brought together.
        SettingsError: if the kind or the norm does not go with the purpose.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 32, 16, 16), torch.zeros(2, 64, 16, 16)
        >>> adapter = make_adapter(student, teacher, purpose="map", config=AdapterConfig())
        >>> adapter.describe("stage2", "stage2")
        'student stage2 32x16x16 -> 1x1 conv -> teacher stage2 64x16x16; 2,112 parameters'
    """
    alignment = align(
        student_feature,
        teacher_feature,
        purpose=purpose,
        student_layout=config.student_layout,
        teacher_layout=config.teacher_layout,
    )
    channels = alignment.student_layout.channels, alignment.teacher_layout.channels
    if config.kind == "strided" and purpose != "map":
        raise SettingsError(f"adapter kind 'strided' is for maps; this method compares {purpose}")
    if purpose == "map" and config.resize == "teacher" and config.kind in ("auto", "strided"):
        maps = alignment(student_feature, teacher_feature)
        strided = rescaling_convolution(*maps, bias=config.bias)
        if strided is not None:
            return Adapter(alignment, nn.Sequential(strided, *_tail(config, purpose, channels[1])))
        if config.kind == "strided":
            raise ShapeError(
                "adapter kind 'strided' needs a student's map twice or half as large as the "
                f"teacher's; got student {tuple(maps.student.shape)}, teacher "
                f"{tuple(maps.teacher.shape)}. Leave the kind at 'auto'"
            )
    alignment = alignment.resized(config.resize)
    if config.kind == "none":
        return Adapter(alignment, nn.Identity())
    widths = [*channels]
    if config.kind == "mlp":
        hidden = config.hidden_channels or channels[1]
        widths = [channels[0], *[hidden] * (config.num_layers - 1), channels[1]]
    layers: list[nn.Module] = []
    for position in range(1, len(widths)):
        before, after = widths[position - 1 : position + 1]
        layers.append(
            nn.Conv2d(before, after, kernel_size=1, bias=config.bias)
            if purpose == "map"
            else nn.Linear(before, after, bias=config.bias)
        )
        layers += _tail(config, purpose, after)
        if position < len(widths) - 1 and config.activation == "none":
            layers.append(nn.ReLU())
    return Adapter(alignment, nn.Sequential(*layers))


def _tail(config: AdapterConfig, purpose: Purpose, channels: int) -> list[nn.Module]:
    """What follows a layer."""
    tail: list[nn.Module] = []
    match config.norm, purpose:
        case "none", _:
            pass
        case "batch", "map":
            tail.append(nn.BatchNorm2d(channels))
        case "batch", "vector":
            tail.append(nn.BatchNorm1d(channels))
        case "layer", "tokens" | "vector":
            tail.append(nn.LayerNorm(channels))
        case _:
            other = "batch" if purpose == "map" else "layer"
            raise SettingsError(
                f"adapter norm {config.norm!r} does not go with {purpose}, which this method "
                f"compares; use {other!r} or 'none'"
            )
    match config.activation:
        case "none":
            pass
        case "relu":
            tail.append(nn.ReLU())
        case "gelu":
            tail.append(nn.GELU())
    return tail


def resize_map(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Another size, along each axis: adaptive average pooling down, bilinear interpolation up.

    Args:
        feature: ``(B, C, H, W)``.
        size: ``(H', W')``.

    Returns:
        ``(B, C, H', W')``; the feature itself where the size is its own. The mean over the places
        stays the same where H' divides H and W' divides W.

    Example:
        >>> import torch
        >>> resize_map(torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]]), (1, 2)).tolist()
        [[[[2.0, 4.0]]]]
    """
    height, width = feature.shape[2:]
    smaller = min(height, size[0]), min(width, size[1])
    resized = feature
    if smaller != (height, width):
        resized = F.adaptive_avg_pool2d(resized, smaller)
    if smaller != size:
        resized = F.interpolate(resized, size=size, mode="bilinear", align_corners=False)
    return resized


def _leaves(regressor: nn.Module) -> list[nn.Module]:
    return [
        part
        for part in regressor.modules()
        if next(part.children(), None) is None and not isinstance(part, nn.Identity)
    ]


def _name(part: nn.Module) -> str:
    match part:
        case nn.Conv2d() | nn.ConvTranspose2d():
            kernel = "x".join(map(str, part.kernel_size))
            transposed = " transposed" if isinstance(part, nn.ConvTranspose2d) else ""
            stride = "" if part.stride == (1, 1) else f" of stride {part.stride[0]}"
            return f"{kernel}{transposed} conv{stride}"
        case nn.Linear():
            return "linear"
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return "batch norm"
        case nn.LayerNorm():
            return "layer norm"
        case _:
            return type(part).__name__
