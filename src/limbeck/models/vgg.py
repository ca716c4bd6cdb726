"""The VGG networks of the CIFAR-100 distillation benchmark.

Five blocks of 3x3 convolutions (with bias), each followed by batch-norm and ReLU; 2x2 max-pooling
after the first three blocks, and after the fourth too where the image is 64 pixels high; then
global average pooling and one linear layer. The first block is the benchmark's feature 0, here
``stem``, so that ``stage2`` is at 8x8 pixels for these networks as in its tables.

Source: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    ICLR 2015, https://arxiv.org/abs/1409.1556, table 1 (A, B, D, E); depth 8, batch-norm, the
    single linear layer and the names of layers as in RepDistiller and mdistiller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

__all__ = ["VGG", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"]

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """A plain convolutional network for small images.

    Args:
        depths: convolutions of each of the five blocks.
        num_classes: outputs.
        in_chans: channels of the images.
    """

    layer_aliases: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "stem": "relu0",
            "pre_activation:stem": "relu0:input",
            "stage1": "relu1",
            "pre_activation:stage1": "relu1:input",
            "stage2": "relu2",
            "pre_activation:stage2": "relu2:input",
            "stage3": "relu3",
            "pre_activation:stage3": "relu3:input",
            "stage4": "relu4",
            "pre_activation:stage4": "relu4:input",
            "last": "relu4",
            "pre_activation:last": "relu4:input",
            "penultimate": "classifier:input",
        }
    )

    def __init__(self, depths: Sequence[int], *, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        widths = [in_chans, *_WIDTHS]
        blocks = [
            _block(before, after, depth)
            for (before, after), depth in zip(pairwise(widths), depths, strict=True)
        ]
        self.block0, self.block1, self.block2, self.block3, self.block4 = blocks
        # Outside the blocks, as in the published checkpoints, whose numbering ends before it.
        self.relu0 = nn.ReLU(inplace=True)
        self.relu1 = nn.ReLU(inplace=True)
        self.relu2 = nn.ReLU(inplace=True)
        self.relu3 = nn.ReLU(inplace=True)
        self.relu4 = nn.ReLU(inplace=True)
        self.pool0 = nn.MaxPool2d(2)
        self.pool1 = nn.MaxPool2d(2)
        self.pool2 = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` to logits ``(B, K)``."""
        x = self.pool0(self.relu0(self.block0(image)))
        x = self.pool1(self.relu1(self.block1(x)))
        x = self.pool2(self.relu2(self.block2(x)))
        x = self.relu3(self.block3(x))
        if image.shape[2] == 64:
            x = self.pool3(x)
        x = self.relu4(self.block4(x))
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def _block(in_width: int, width: int, depth: int) -> nn.Sequential:
    """Convolution, batch-norm, ReLU, ``depth`` times, without the last ReLU."""
    layers: list[nn.Module] = []
    for position in range(depth):
        before = in_width if position == 0 else width
        layers += [
            nn.Conv2d(before, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers[:-1])


def vgg8(num_classes: int = 100, in_chans: int = 3) -> VGG:
    """VGG-8, one convolution a block: 3,965,028 parameters."""
    return VGG((1, 1, 1, 1, 1), num_classes=num_classes, in_chans=in_chans)


def vgg11(num_classes: int = 100, in_chans: int = 3) -> VGG:
    """VGG-11, configuration A: 9,277,284 parameters."""
    return VGG((1, 1, 2, 2, 2), num_classes=num_classes, in_chans=in_chans)


def vgg13(num_classes: int = 100, in_chans: int = 3) -> VGG:
    """VGG-13, configuration B: 9,462,180 parameters."""
    return VGG((2, 2, 2, 2, 2), num_classes=num_classes, in_chans=in_chans)


def vgg16(num_classes: int = 100, in_chans: int = 3) -> VGG:
    """VGG-16, configuration D: 14,774,436 parameters."""
    return VGG((2, 2, 3, 3, 3), num_classes=num_classes, in_chans=in_chans)


def vgg19(num_classes: int = 100, in_chans: int = 3) -> VGG:
    """VGG-19, configuration E: 20,086,692 parameters."""
    return VGG((2, 2, 4, 4, 4), num_classes=num_classes, in_chans=in_chans)
