"""The residual networks of the CIFAR-100 distillation benchmark.

Depth N = 6n + 2: a 3x3 stem, three stages of n basic blocks with strides 1, 2, 2, global average
pooling and one linear layer. Widths 16, 16, 32, 64; the "x4" networks have 32, 64, 128, 256. The
shortcut is a 1x1 convolution with batch-norm wherever stride or width change, as in RepDistiller
and mdistiller, whose checkpoints' names these layers have. He et al.'s own CIFAR networks take
every second pixel there and pad the channels with zeros ("option A"); so does one network here,
that of the papers on long-tailed CIFAR.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385, section 4.2; widths and shortcuts as in the benchmark codes.
    Option A's initial weights as in the code of Zhang, Chen, Hu, Peng, "Balanced Knowledge
    Distillation for Long-tailed Learning", https://arxiv.org/abs/2104.10510.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import ModelError

__all__ = [
    "CifarResNet",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32_option_a",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet110",
]

_NARROW = (16, 16, 32, 64)
_X4 = (32, 64, 128, 256)


class _PaddedShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and zeros for the channels before and behind."""

    def __init__(self, in_width: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (width - in_width) // 2
        self.behind = width - in_width - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.behind))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the addition."""

    def __init__(self, in_width: int, width: int, *, stride: int, option_a: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.relu2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if option_a and (stride != 1 or in_width != width):
            self.downsample = _PaddedShortcut(in_width, width, stride=stride)
        elif stride != 1 or in_width != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        activated: Tensor = self.relu2(out + self.downsample(x))
        return activated


class CifarResNet(nn.Module):
    """A residual network for small images.

    Args:
        depth: 6n + 2.
        widths: of the stem and the three stages.
        num_classes: outputs.
        in_chans: channels of the images.
        option_a: shortcuts that pad with zeros instead of 1x1 convolutions; and weights, the
            classifier's too, drawn by the width of what comes in instead of what goes out.

    Raises:
        ModelError: if there is no network of that depth.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int],
        *,
        num_classes: int,
        in_chans: int = 3,
        option_a: bool = False,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ModelError(f"the depth of these networks is 6n + 2, from 8 on; got {depth}")
        blocks = (depth - 2) // 6
        stem, *stages = widths
        self.conv1 = nn.Conv2d(in_chans, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(stem, stages[0], blocks, stride=1, option_a=option_a)
        self.layer2 = _stage(stages[0], stages[1], blocks, stride=2, option_a=option_a)
        self.layer3 = _stage(stages[1], stages[2], blocks, stride=2, option_a=option_a)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight,
                    mode="fan_in" if option_a else "fan_out",
                    nonlinearity="relu",
                )
        if option_a:
            nn.init.kaiming_normal_(self.fc.weight, nonlinearity="relu")
        self.layer_aliases = {
            "stem": "relu",
            "pre_activation:stem": "relu:input",
            "stage1": "layer1",
            "pre_activation:stage1": f"layer1.{blocks - 1}.relu2:input",
            "stage2": "layer2",
            "pre_activation:stage2": f"layer2.{blocks - 1}.relu2:input",
            "stage3": "layer3",
            "pre_activation:stage3": f"layer3.{blocks - 1}.relu2:input",
            "last": "layer3",
            "pre_activation:last": f"layer3.{blocks - 1}.relu2:input",
            "penultimate": "fc:input",
        }

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` to logits ``(B, K)``."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(in_width: int, width: int, blocks: int, *, stride: int, option_a: bool) -> nn.Sequential:
    first = _BasicBlock(in_width, width, stride=stride, option_a=option_a)
    others = (_BasicBlock(width, width, stride=1, option_a=option_a) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def resnet8(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-8: 83,892 parameters."""
    return CifarResNet(8, _NARROW, num_classes=num_classes, in_chans=in_chans)


def resnet14(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-14: 181,108 parameters."""
    return CifarResNet(14, _NARROW, num_classes=num_classes, in_chans=in_chans)


def resnet20(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-20: 278,324 parameters."""
    return CifarResNet(20, _NARROW, num_classes=num_classes, in_chans=in_chans)


def resnet32(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-32: 472,756 parameters."""
    return CifarResNet(32, _NARROW, num_classes=num_classes, in_chans=in_chans)


def resnet32_option_a(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-32 with zero-padded shortcuts: 470,004 parameters."""
    return CifarResNet(32, _NARROW, num_classes=num_classes, in_chans=in_chans, option_a=True)


def resnet44(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-44: 667,188 parameters."""
    return CifarResNet(44, _NARROW, num_classes=num_classes, in_chans=in_chans)


def resnet56(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-56: 861,620 parameters."""
    return CifarResNet(56, _NARROW, num_classes=num_classes, in_chans=in_chans)


def resnet110(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-110: 1,736,564 parameters."""
    return CifarResNet(110, _NARROW, num_classes=num_classes, in_chans=in_chans)


def resnet8x4(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-8, four times as wide: 1,233,540 parameters."""
    return CifarResNet(8, _X4, num_classes=num_classes, in_chans=in_chans)


def resnet32x4(num_classes: int = 100, in_chans: int = 3) -> CifarResNet:
    """ResNet-32, four times as wide: 7,433,860 parameters."""
    return CifarResNet(32, _X4, num_classes=num_classes, in_chans=in_chans)
