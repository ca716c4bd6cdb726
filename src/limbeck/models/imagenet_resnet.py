"""ImageNet's residual networks with a stem for small images, as the CIFAR-100 benchmark has them.

A 3x3 stem of 64 channels without pooling, four stages with strides 1, 2, 2, 2, global average
pooling and one linear layer. Bottleneck blocks are four times as wide at their end, and have their
stride in the 3x3 convolution. The shortcut is a 1x1 convolution with batch-norm wherever stride or
width change.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385, table 1; the stem, the place of the stride, the names of
    layers and the initial weights as in RepDistiller and mdistiller.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["ImageNetResNet", "resnet18", "resnet34", "resnet50"]

_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4  # of a bottleneck


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the addition."""

    def __init__(self, in_width: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        activated: Tensor = self.relu2(out + self.shortcut(x))
        return activated


class _Bottleneck(nn.Module):
    """1x1 to a quarter of the width, 3x3, 1x1 back, and a shortcut, ReLU after the addition."""

    def __init__(self, in_width: int, width: int, *, stride: int) -> None:
        super().__init__()
        inner = width // _EXPANSION
        self.conv1 = nn.Conv2d(in_width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        activated: Tensor = self.relu3(self.bn3(self.conv3(out)) + self.shortcut(x))
        return activated


def _shortcut(in_width: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and in_width == width:
        return nn.Identity()
    convolution = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


class ImageNetResNet(nn.Module):
    """A residual network of ImageNet's design for small images.

    Args:
        depths: blocks of each of the four stages.
        bottleneck: blocks of three convolutions, four times as wide, instead of two.
        num_classes: outputs.
        in_chans: channels of the images.
    """

    def __init__(
        self, depths: Sequence[int], *, bottleneck: bool, num_classes: int, in_chans: int = 3
    ) -> None:
        super().__init__()
        block: type[_BasicBlock | _Bottleneck] = _Bottleneck if bottleneck else _BasicBlock
        stem, factor = _WIDTHS[0], _EXPANSION if bottleneck else 1
        self.conv1 = nn.Conv2d(in_chans, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        stages, before = [], stem
        for position, (width, depth) in enumerate(zip(_WIDTHS, depths, strict=True)):
            after = width * factor
            first = block(before, after, stride=1 if position == 0 else 2)
            others = (block(after, after, stride=1) for _ in range(depth - 1))
            stages.append(nn.Sequential(first, *others))
            before = after
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        end = "relu3" if bottleneck else "relu2"
        self.layer_aliases = {"stem": "relu", "pre_activation:stem": "relu:input"}
        for number, depth in enumerate(depths, start=1):
            before_end = f"layer{number}.{depth - 1}.{end}:input"
            self.layer_aliases |= {
                f"stage{number}": f"layer{number}",
                f"pre_activation:stage{number}": before_end,
            }
        self.layer_aliases |= {
            "last": "layer4",
            "pre_activation:last": before_end,
            "penultimate": "linear:input",
        }

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` to logits ``(B, K)``."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def resnet18(num_classes: int = 100, in_chans: int = 3) -> ImageNetResNet:
    """ResNet-18 for small images: 11,220,132 parameters."""
    return ImageNetResNet(
        (2, 2, 2, 2), bottleneck=False, num_classes=num_classes, in_chans=in_chans
    )


def resnet34(num_classes: int = 100, in_chans: int = 3) -> ImageNetResNet:
    """ResNet-34 for small images: 21,328,292 parameters."""
    return ImageNetResNet(
        (3, 4, 6, 3), bottleneck=False, num_classes=num_classes, in_chans=in_chans
    )


def resnet50(num_classes: int = 100, in_chans: int = 3) -> ImageNetResNet:
    """ResNet-50 for small images: 23,705,252 parameters."""
    return ImageNetResNet((3, 4, 6, 3), bottleneck=True, num_classes=num_classes, in_chans=in_chans)
