"""The ShuffleNet of the CIFAR-100 distillation benchmark, in three groups.

A 1x1 stem of 24 channels without pooling, three stages of 4, 8 and 4 units that end in 240, 480
and 960 channels, global average pooling and one linear layer. A unit is a grouped 1x1 convolution,
a channel shuffle, a 3x3 depthwise and another grouped 1x1 convolution, added to its input. The
first of a stage has stride 2 and *appends* its average-pooled input, so its convolutions make only
the channels that are lacking; the inner ones are a quarter of those.

Source: Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for
    Mobile Devices", CVPR 2018, https://arxiv.org/abs/1707.01083, table 1 (g = 3); the stem for
    small images and the names of layers as in RepDistiller and mdistiller.
Differs from the source: as in those codes, ReLU also after the depthwise convolution, and a 1x1
    stem of stride 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ShuffleNetV1", "channel_shuffle", "shufflev1"]

_STEM = 24
_GROUPS = 3
_WIDTHS = (240, 480, 960)
_UNITS = (4, 8, 4)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels ``g, i`` (group, place in it) move to ``i, g``: ``(B, C, H, W)``, same shape.

    Example:
        >>> channel_shuffle(torch.arange(6).reshape(1, 6, 1, 1), 2).flatten().tolist()
        [0, 3, 1, 4, 2, 5]
    """
    num_images, channels, height, width = x.shape
    grouped = x.reshape(num_images, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(num_images, channels, height, width)


class _Unit(nn.Module):
    """A residual unit; ``width`` counts what its convolutions make."""

    def __init__(self, in_width: int, width: int, *, stride: int, first_groups: int) -> None:
        super().__init__()
        inner = width // 4
        self.groups = first_groups
        self.conv1 = nn.Conv2d(in_width, inner, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(inner, width, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        out = channel_shuffle(self.relu1(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        out = out + x if self.pool is None else torch.cat([out, self.pool(x)], dim=1)
        activated: Tensor = self.relu3(out)
        return activated


class ShuffleNetV1(nn.Module):
    """ShuffleNet for small images.

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
    """

    def __init__(self, *, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU(inplace=True)
        # Too few channels come in for groups in the very first convolution.
        self.layer1 = _stage(_STEM, _WIDTHS[0], _UNITS[0], first_groups=1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], _UNITS[1], first_groups=_GROUPS)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], _UNITS[2], first_groups=_GROUPS)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(_WIDTHS[2], num_classes)
        self.layer_aliases = {
            "stem": "relu",
            "pre_activation:stem": "relu:input",
            "stage1": "layer1",
            "pre_activation:stage1": f"layer1.{_UNITS[0] - 1}.relu3:input",
            "stage2": "layer2",
            "pre_activation:stage2": f"layer2.{_UNITS[1] - 1}.relu3:input",
            "stage3": "layer3",
            "pre_activation:stage3": f"layer3.{_UNITS[2] - 1}.relu3:input",
            "last": "layer3",
            "pre_activation:last": f"layer3.{_UNITS[2] - 1}.relu3:input",
            "penultimate": "linear:input",
        }

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` to logits ``(B, K)``."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _stage(in_width: int, width: int, units: int, *, first_groups: int) -> nn.Sequential:
    first = _Unit(in_width, width - in_width, stride=2, first_groups=first_groups)
    others = (_Unit(width, width, stride=1, first_groups=_GROUPS) for _ in range(units - 1))
    return nn.Sequential(first, *others)


def shufflev1(num_classes: int = 100, in_chans: int = 3) -> ShuffleNetV1:
    """ShuffleNet in three groups: 949,258 parameters."""
    return ShuffleNetV1(num_classes=num_classes, in_chans=in_chans)
