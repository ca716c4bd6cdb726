"""The plain ("plane") convolutional networks of the teacher-assistant papers, for 32x32 images.

Stages of 3x3 convolutions (with bias), batch-norm and ReLU, a 2x2 max-pool behind each stage or
behind the first few, then one linear layer on all that is left, or two with a ReLU between. The
number in a name counts the convolutions. ``plane2`` ... ``plane10`` have the widths that
the papers use for CIFAR-100, ``plane2_cifar10`` ... ``plane10_cifar10`` those for CIFAR-10; the
number of classes is free in both.

Source: Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, "Improved Knowledge Distillation
    via Teacher Assistant", AAAI 2020, https://arxiv.org/abs/1902.03393, and its authors' code for
    the even depths; Son, Na, Choi, Hwang, "Densely Guided Knowledge Distillation using Multiple
    Teacher Assistants", ICCV 2021, https://arxiv.org/abs/2009.08825, for the odd ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.core.errors import ShapeError

__all__ = [
    "PlaneCNN",
    "plane2",
    "plane2_cifar10",
    "plane3",
    "plane4",
    "plane4_cifar10",
    "plane5",
    "plane6",
    "plane6_cifar10",
    "plane7",
    "plane8",
    "plane8_cifar10",
    "plane9",
    "plane10",
    "plane10_cifar10",
]

_SIDE = 32  # pixels


class PlaneCNN(nn.Module):
    """A stack of convolutions for 32x32 images.

    Args:
        stages: width and number of convolutions of each stage.
        num_pools: how many stages, from the first on, are followed by a 2x2 max-pool.
        hidden: width of a linear layer before the classifier; None for no such layer.
        num_classes: outputs.
        in_chans: channels of the images.
    """

    def __init__(
        self,
        *stages: tuple[int, int],
        num_pools: int,
        hidden: int | None = None,
        num_classes: int,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.layer_aliases: dict[str, str] = {}
        before = in_chans
        for number, (width, depth) in enumerate(stages, start=1):
            for _ in range(depth):
                layers += [
                    nn.Conv2d(before, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                before = width
            address = f"conv_layers.{len(layers) - 1}"
            self.layer_aliases |= {
                f"stage{number}": address,
                f"pre_activation:stage{number}": f"{address}:input",
            }
            if number <= num_pools:
                layers.append(nn.MaxPool2d(2))
        # Two flat lists, as in the authors' code, so that weights have its names.
        self.conv_layers = nn.Sequential(*layers)
        features = before * (_SIDE // 2**num_pools) ** 2
        head: list[nn.Module] = []
        if hidden is not None:
            head = [nn.Linear(features, hidden), nn.ReLU(inplace=True)]
            features = hidden
        self.fc_layers = nn.Sequential(*head, nn.Linear(features, num_classes))
        self.layer_aliases |= {
            "last": address,
            "pre_activation:last": f"{address}:input",
            "penultimate": f"fc_layers.{len(head)}:input",
        }

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, 32, 32)`` to logits ``(B, K)``.

        Raises:
            ShapeError: if the images are of another size.
        """
        if image.shape[2:] != (_SIDE, _SIDE):
            raise ShapeError(
                f"a plane CNN takes images of {_SIDE}x{_SIDE} pixels, since its linear layer sees "
                f"every pixel; got {tuple(image.shape)}. Resize them, or choose another network"
            )
        logits: Tensor = self.fc_layers(self.conv_layers(image).flatten(1))
        return logits


def plane2(num_classes: int = 100, in_chans: int = 3) -> PlaneCNN:
    """2 convolutions, CIFAR-100's widths: 215,172 parameters."""
    return PlaneCNN((32, 1), (32, 1), num_pools=2, num_classes=num_classes, in_chans=in_chans)


def plane3(num_classes: int = 100, in_chans: int = 3) -> PlaneCNN:
    """3 convolutions, CIFAR-100's widths: 438,596 parameters."""
    return PlaneCNN((32, 2), (64, 1), num_pools=2, num_classes=num_classes, in_chans=in_chans)


def plane4(num_classes: int = 100, in_chans: int = 3) -> PlaneCNN:
    """4 convolutions, CIFAR-100's widths: 475,652 parameters."""
    return PlaneCNN((32, 2), (64, 2), num_pools=2, num_classes=num_classes, in_chans=in_chans)


def plane5(num_classes: int = 100, in_chans: int = 3) -> PlaneCNN:
    """5 convolutions, CIFAR-100's widths: 959,364 parameters."""
    return PlaneCNN(
        (32, 2), (64, 2), (128, 1), num_pools=2, num_classes=num_classes, in_chans=in_chans
    )


def plane6(num_classes: int = 100, in_chans: int = 3) -> PlaneCNN:
    """6 convolutions, CIFAR-100's widths: 1,107,204 parameters."""
    return PlaneCNN(
        (32, 2), (64, 2), (128, 2), num_pools=2, num_classes=num_classes, in_chans=in_chans
    )


def plane7(num_classes: int = 100, in_chans: int = 3) -> PlaneCNN:
    """7 convolutions, CIFAR-100's widths: 655,684 parameters."""
    return PlaneCNN(
        (32, 2),
        (64, 2),
        (128, 2),
        (256, 1),
        num_pools=4,
        hidden=64,
        num_classes=num_classes,
        in_chans=in_chans,
    )


def plane8(num_classes: int = 100, in_chans: int = 3) -> PlaneCNN:
    """8 convolutions, CIFAR-100's widths: 1,246,276 parameters."""
    return PlaneCNN(
        (32, 2),
        (64, 2),
        (128, 2),
        (256, 2),
        num_pools=4,
        hidden=64,
        num_classes=num_classes,
        in_chans=in_chans,
    )


def plane9(num_classes: int = 100, in_chans: int = 3) -> PlaneCNN:
    """9 convolutions, CIFAR-100's widths: 2,340,868 parameters."""
    return PlaneCNN(
        (32, 2),
        (64, 2),
        (128, 2),
        (256, 3),
        num_pools=4,
        hidden=512,
        num_classes=num_classes,
        in_chans=in_chans,
    )


def plane10(num_classes: int = 100, in_chans: int = 3) -> PlaneCNN:
    """10 convolutions, CIFAR-100's widths: 2,931,460 parameters."""
    return PlaneCNN(
        (32, 2),
        (64, 2),
        (128, 2),
        (256, 4),
        num_pools=4,
        hidden=512,
        num_classes=num_classes,
        in_chans=in_chans,
    )


def plane2_cifar10(num_classes: int = 10, in_chans: int = 3) -> PlaneCNN:
    """2 convolutions, CIFAR-10's widths: 13,082 parameters."""
    return PlaneCNN((16, 1), (16, 1), num_pools=2, num_classes=num_classes, in_chans=in_chans)


def plane4_cifar10(num_classes: int = 10, in_chans: int = 3) -> PlaneCNN:
    """4 convolutions, CIFAR-10's widths: 37,338 parameters."""
    return PlaneCNN((16, 2), (32, 2), num_pools=2, num_classes=num_classes, in_chans=in_chans)


def plane6_cifar10(num_classes: int = 10, in_chans: int = 3) -> PlaneCNN:
    """6 convolutions, CIFAR-10's widths: 82,778 parameters."""
    return PlaneCNN(
        (16, 2), (32, 2), (64, 2), num_pools=3, num_classes=num_classes, in_chans=in_chans
    )


def plane8_cifar10(num_classes: int = 10, in_chans: int = 3) -> PlaneCNN:
    """8 convolutions, CIFAR-10's widths: 327,962 parameters."""
    return PlaneCNN(
        (16, 2),
        (32, 2),
        (64, 2),
        (128, 2),
        num_pools=4,
        hidden=64,
        num_classes=num_classes,
        in_chans=in_chans,
    )


def plane10_cifar10(num_classes: int = 10, in_chans: int = 3) -> PlaneCNN:
    """10 convolutions, CIFAR-10's widths: 2,487,850 parameters."""
    return PlaneCNN(
        (32, 2),
        (64, 2),
        (128, 2),
        (256, 4),
        num_pools=4,
        hidden=128,
        num_classes=num_classes,
        in_chans=in_chans,
    )
