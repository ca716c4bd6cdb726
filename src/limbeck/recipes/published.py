"""What the published CIFAR-100 tables share: pairs of networks, the recipe, what may differ.

RepDistiller's recipe (Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699), which nearly all
later tables keep: batches of 64, 240 epochs of SGD at 0.05 (0.01 for MobileNet and ShuffleNet
students), a tenth of it after epochs 150, 180 and 210, momentum 0.9, weight decay 5e-4 on all
weights, crop with 4 pixels of padding and flip, every training image.

RepDistiller's own figures are of the last epoch. Those of mdistiller, and of whoever builds on its
trainer, are of the epoch that was best on the test images: about 0.3 points above the last. Runs
made here report the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "OTHER_STYLE",
    "SAME_STYLE",
    "Published",
    "Table",
    "everywhere",
    "is_slow",
]

SAME_STYLE = (
    "resnet56 -> resnet20",
    "resnet110 -> resnet32",
    "resnet110 -> resnet20",
    "resnet32x4 -> resnet8x4",
    "wrn_40_2 -> wrn_16_2",
    "wrn_40_2 -> wrn_40_1",
    "vgg13 -> vgg8",
)
OTHER_STYLE = (
    "vgg13 -> MobileNetV2",
    "ResNet50 -> MobileNetV2",
    "ResNet50 -> vgg8",
    "resnet32x4 -> ShuffleV1",
    "resnet32x4 -> ShuffleV2",
    "wrn_40_2 -> ShuffleV1",
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """How one pair was trained.

    Attributes:
        method: its name.
        settings: that differ from the method's defaults.
        lr: base learning rate; None takes the shared one for the student.
        epochs: of training; the milestones stay where they are.
        nesterov: whether SGD looked ahead.
        batch_size: images a step.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None
    epochs: int = 240
    nesterov: bool = False
    batch_size: int = 64


Table = dict[str, Published]


def everywhere(method: str, **settings: Any) -> Table:  # noqa: ANN401  (as the method has them)
    """One setting for all pairs."""
    return {
        pair: Published(method=method, settings=settings) for pair in (*SAME_STYLE, *OTHER_STYLE)
    }


def is_slow(pair: str) -> bool:
    """Whether the student is one of those that learn at a fifth of the rate."""
    return pair.endswith(("MobileNetV2", "ShuffleV1", "ShuffleV2"))
