"""The wide residual networks of the CIFAR-100 distillation benchmark.

Depth d = 6n + 4: a 3x3 stem of 16 channels, three stages of n pre-activation blocks with strides
1, 2, 2 and widths 16w, 32w, 64w, then batch-norm, ReLU, global average pooling and one linear
layer. A block adds to its input, or, where the width changes, to a 1x1 convolution (without
batch-norm) of its input *after* batch-norm and ReLU.

Stem and stages end in sums, not in ReLU: their values have both signs. The ``pre_activation`` of a
stage is what the next batch-norm makes of it, which the next ReLU takes.

Source: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146;
    names of layers and initial weights as in RepDistiller and mdistiller. No dropout.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

from limbeck.core.errors import ModelError

__all__ = ["WideResNet", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"]

_STEM = 16


class _Block(nn.Module):
    """Batch-norm, ReLU, convolution, twice; and a shortcut."""

    def __init__(self, in_width: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        # Its name in the published checkpoints.
        self.convShortcut: nn.Conv2d | None = None
        if stride != 1 or in_width != width:
            self.convShortcut = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideResNet(nn.Module):
    """A wide residual network for small images.

    Args:
        depth: 6n + 4.
        widen: how many times as wide as 16, 32, 64 the stages are.
        num_classes: outputs.
        in_chans: channels of the images.

    Raises:
        ModelError: if there is no network of that depth.
    """

    layer_aliases: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "stem": "conv1",
            "pre_activation:stem": "block1.layer.0.bn1",
            "stage1": "block1",
            "pre_activation:stage1": "block2.layer.0.bn1",
            "stage2": "block2",
            "pre_activation:stage2": "block3.layer.0.bn1",
            "stage3": "block3",
            "pre_activation:stage3": "bn1",
            "last": "relu",
            "pre_activation:last": "bn1",
            "penultimate": "fc:input",
        }
    )

    def __init__(self, depth: int, widen: int, *, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ModelError(f"the depth of these networks is 6n + 4, from 10 on; got {depth}")
        blocks = (depth - 4) // 6
        widths = (16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(in_chans, _STEM, 3, padding=1, bias=False)
        self.block1 = _stage(_STEM, widths[0], blocks, stride=1)
        self.block2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.block3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` to logits ``(B, K)``."""
        x = self.block3(self.block2(self.block1(self.conv1(image))))
        x = self.relu(self.bn1(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(in_width: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = _Block(in_width, width, stride=stride)
    others = (_Block(width, width, stride=1) for _ in range(blocks - 1))
    # The further level that the names in the published checkpoints have.
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *others)))


def wrn_16_1(num_classes: int = 100, in_chans: int = 3) -> WideResNet:
    """WRN-16-1: 180,916 parameters."""
    return WideResNet(16, 1, num_classes=num_classes, in_chans=in_chans)


def wrn_16_2(num_classes: int = 100, in_chans: int = 3) -> WideResNet:
    """WRN-16-2: 703,284 parameters."""
    return WideResNet(16, 2, num_classes=num_classes, in_chans=in_chans)


def wrn_40_1(num_classes: int = 100, in_chans: int = 3) -> WideResNet:
    """WRN-40-1: 569,780 parameters."""
    return WideResNet(40, 1, num_classes=num_classes, in_chans=in_chans)


def wrn_40_2(num_classes: int = 100, in_chans: int = 3) -> WideResNet:
    """WRN-40-2: 2,255,156 parameters."""
    return WideResNet(40, 2, num_classes=num_classes, in_chans=in_chans)
