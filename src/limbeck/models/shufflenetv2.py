"""The ShuffleNetV2 of the CIFAR-100 distillation benchmark, at its full width.

A 1x1 stem of 24 channels without pooling; three stages, each one down-sampling block *and* 3, 7
and 3 basic blocks, of 116, 232 and 464 channels; a 1x1 convolution to 1024 channels, global
average pooling and one linear layer. A basic block keeps one half of its channels, convolves the
other, joins and shuffles them.

Source: Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture
    Design", ECCV 2018, https://arxiv.org/abs/1807.11164, table 5 (1x) and figure 3; the stem for
    small images and the names of layers as in RepDistiller and mdistiller.
Differs from the source: as in those codes, a stage has one block more than the table says, and
    the stem is 1x1 with stride 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.models.shufflenetv1 import channel_shuffle

__all__ = ["ShuffleNetV2", "shufflev2"]

_STEM = 24
_WIDTHS = (116, 232, 464)
_BASIC_BLOCKS = (3, 7, 3)  # after the down-sampling one
_HEAD = 1024


class _BasicBlock(nn.Module):
    """One half of the channels passes, the other is convolved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        kept, other = x.chunk(2, dim=1)
        other = self.relu1(self.bn1(self.conv1(other)))
        other = self.bn3(self.conv3(self.bn2(self.conv2(other))))
        # ReLU last, over both halves: the kept one is not negative, so nothing changes, and the
        # block's whole output exists before its activation too.
        activated: Tensor = self.relu3(channel_shuffle(torch.cat([kept, other], dim=1), 2))
        return activated


class _DownBlock(nn.Module):
    """Two branches of stride 2, each making one half of the channels."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(
            in_width, in_width, 3, stride=2, padding=1, groups=in_width, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv2 = nn.Conv2d(in_width, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(in_width, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU(inplace=True)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(x)))))
        right = self.relu5(self.bn5(self.conv5(right)))
        return channel_shuffle(torch.cat([left, right], dim=1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 for small images.

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
    """

    def __init__(self, *, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(_STEM, _WIDTHS[0], _BASIC_BLOCKS[0])
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], _BASIC_BLOCKS[1])
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], _BASIC_BLOCKS[2])
        self.conv2 = nn.Conv2d(_WIDTHS[2], _HEAD, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_HEAD)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(_HEAD, num_classes)
        self.layer_aliases = {
            "stem": "relu1",
            "pre_activation:stem": "relu1:input",
            "stage1": "layer1",
            "pre_activation:stage1": f"layer1.{_BASIC_BLOCKS[0]}.relu3:input",
            "stage2": "layer2",
            "pre_activation:stage2": f"layer2.{_BASIC_BLOCKS[1]}.relu3:input",
            "stage3": "layer3",
            "pre_activation:stage3": f"layer3.{_BASIC_BLOCKS[2]}.relu3:input",
            "last": "relu2",
            "pre_activation:last": "relu2:input",
            "penultimate": "linear:input",
        }

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` to logits ``(B, K)``."""
        x = self.relu1(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _stage(in_width: int, width: int, basic_blocks: int) -> nn.Sequential:
    down = _DownBlock(in_width, width)
    return nn.Sequential(down, *(_BasicBlock(width) for _ in range(basic_blocks)))


def shufflev2(num_classes: int = 100, in_chans: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 at full width: 1,355,528 parameters."""
    return ShuffleNetV2(num_classes=num_classes, in_chans=in_chans)
