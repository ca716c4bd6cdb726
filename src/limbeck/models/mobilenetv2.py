"""The half-width MobileNetV2 of the CIFAR-100 distillation benchmark.

A 3x3 stem of stride 2, seven groups of inverted residual blocks, a 1x1 convolution to 1280
channels, global average pooling and one linear layer, without dropout. Widths of stem and groups
are halved and rounded down; the 1280 are not. A block expands its input six times by a 1x1
convolution, filters it depthwise and projects it without an activation, so the stages' values
have both signs and are their own ``pre_activation``. Stages 1 to 4 end with groups 2, 3, 5 and 7.

Source: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
    Bottlenecks", CVPR 2018, https://arxiv.org/abs/1801.04381, table 2; strides for small images,
    names of layers and initial weights as in RepDistiller and mdistiller.
Differs from the source: as in those codes, ReLU in place of ReLU6, stride 1 in the second group, a
    1x1 convolution also in the first block, where it expands nothing, and no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

__all__ = ["MobileNetV2", "mobilenetv2"]

_STEM = 32
_HEAD = 1280
# Expansion, width, blocks, and the first block's stride, of each group at full width.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; plus its input where the shapes agree."""

    def __init__(self, in_width: int, width: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        self.adds_input = stride == 1 and in_width == width
        wide = in_width * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(in_width, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.adds_input else out


class MobileNetV2(nn.Module):
    """MobileNetV2 for small images.

    Args:
        width: share of the full widths.
        num_classes: outputs.
        in_chans: channels of the images.
    """

    layer_aliases: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "stem": "conv1",
            "pre_activation:stem": "conv1.2:input",
            "stage1": "blocks.1",
            "pre_activation:stage1": "blocks.1",
            "stage2": "blocks.2",
            "pre_activation:stage2": "blocks.2",
            "stage3": "blocks.4",
            "pre_activation:stage3": "blocks.4",
            "stage4": "blocks.6",
            "pre_activation:stage4": "blocks.6",
            "last": "conv2",
            "pre_activation:last": "conv2.2:input",
            "penultimate": "classifier.0:input",
        }
    )

    def __init__(self, width: float, *, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        before = int(_STEM * width)
        self.conv1 = _activated(nn.Conv2d(in_chans, before, 3, stride=2, padding=1, bias=False))
        groups = []
        for expansion, full, blocks, stride in _GROUPS:
            after = int(full * width)
            first = _InvertedResidual(before, after, stride=stride, expansion=expansion)
            others = (
                _InvertedResidual(after, after, stride=1, expansion=expansion)
                for _ in range(blocks - 1)
            )
            groups.append(nn.Sequential(first, *others))
            before = after
        self.blocks = nn.Sequential(*groups)
        self.conv2 = _activated(nn.Conv2d(before, _HEAD, 1, bias=False))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(_HEAD, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` to logits ``(B, K)``."""
        x = self.conv2(self.blocks(self.conv1(image)))
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def _activated(convolution: nn.Conv2d) -> nn.Sequential:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))


def mobilenetv2(num_classes: int = 100, in_chans: int = 3) -> MobileNetV2:
    """MobileNetV2 at half width: 812,836 parameters."""
    return MobileNetV2(0.5, num_classes=num_classes, in_chans=in_chans)
