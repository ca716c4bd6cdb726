"""Two small networks for 8x8 digits: a teacher and a student a hundredth of its size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

__all__ = ["DigitsCNN", "digits_cnn", "digits_cnn_tiny"]


class DigitsCNN(nn.Module):
    """Three stages of 3x3 convolutions at 8x8, 4x4 and 2x2 pixels, pooled into one linear layer.

    Args:
        widths: channels of the three stages.
        depth: convolutions a stage.
        num_classes: outputs.
        in_chans: channels of the images.
    """

    def __init__(
        self, widths: Sequence[int], *, depth: int, num_classes: int, in_chans: int
    ) -> None:
        super().__init__()
        channels = [in_chans, *widths]
        stages = [_stage(before, after, depth) for before, after in pairwise(channels)]
        self.stage1, self.stage2, self.stage3 = stages
        self.halve = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[-1], num_classes)
        last_relu = 3 * depth - 1  # of a stage's layers
        self.layer_aliases = {
            "stage1": "stage1",
            "pre_activation:stage1": f"stage1.{last_relu}:input",
            "stage2": "stage2",
            "pre_activation:stage2": f"stage2.{last_relu}:input",
            "stage3": "stage3",
            "pre_activation:stage3": f"stage3.{last_relu}:input",
            "last": "stage3",
            "pre_activation:last": f"stage3.{last_relu}:input",
            "penultimate": "fc:input",
        }

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, 8, 8)`` to logits ``(B, K)``."""
        x = self.stage3(self.halve(self.stage2(self.halve(self.stage1(image)))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(in_width: int, width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for position in range(depth):
        before = in_width if position == 0 else width
        layers += [
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def digits_cnn(num_classes: int = 10, in_chans: int = 1) -> DigitsCNN:
    """Two convolutions a stage, 24, 48 and 96 channels: 162,562 parameters."""
    return DigitsCNN((24, 48, 96), depth=2, num_classes=num_classes, in_chans=in_chans)


def digits_cnn_tiny(num_classes: int = 10, in_chans: int = 1) -> DigitsCNN:
    """One convolution a stage, 4, 8 and 16 channels: 1,702 parameters."""
    return DigitsCNN((4, 8, 16), depth=1, num_classes=num_classes, in_chans=in_chans)
