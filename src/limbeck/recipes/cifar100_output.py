"""CIFAR-100 by output knowledge: the settings behind each published pair of networks.

The recipe that all share is in :mod:`limbeck.recipes.published`; what a method's authors do
otherwise is in its table.

Sources: DKD's YAML files (mdistiller), the names of LSKD's logs, MLKD's YAML files, DIST's
``dist_cifar.yaml``, CTKD's and WKD's scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from limbeck.recipes.published import SAME_STYLE, Published, Table, everywhere

__all__ = ["OUTPUT"]


def _ctkd() -> Table:
    return {
        pair: Published(method="ctkd")
        for pair in (*SAME_STYLE, "vgg13 -> MobileNetV2", "ResNet50 -> MobileNetV2")
    }


def _dist() -> Table:
    pairs = (
        "resnet56 -> resnet20",
        "resnet32x4 -> resnet8x4",
        "wrn_40_2 -> wrn_40_1",
        "ResNet50 -> MobileNetV2",
        "resnet32x4 -> ShuffleV1",
        "resnet32x4 -> ShuffleV2",
    )
    return {pair: Published(method="dist") for pair in pairs}


def _dkd() -> Table:
    beta = {
        "resnet56 -> resnet20": 2.0,
        "resnet110 -> resnet32": 2.0,
        "resnet32x4 -> resnet8x4": 8.0,
        "wrn_40_2 -> wrn_16_2": 6.0,
        "wrn_40_2 -> wrn_40_1": 6.0,
        "vgg13 -> vgg8": 6.0,
        "vgg13 -> MobileNetV2": 6.0,
        "ResNet50 -> MobileNetV2": 8.0,
        "ResNet50 -> wrn_16_2": 6.0,
        "resnet32x4 -> ShuffleV1": 8.0,
        "resnet32x4 -> ShuffleV2": 8.0,
        "wrn_40_2 -> ShuffleV1": 8.0,
    }
    return {pair: Published(method="dkd", settings={"beta": b}) for pair, b in beta.items()}


def _lskd() -> Table:
    """Temperature and weight."""
    values = {
        "resnet32x4 -> resnet8x4": (2.0, 9.0),
        "vgg13 -> vgg8": (3.0, 9.0),
        "wrn_40_2 -> wrn_40_1": (2.0, 9.0),
        "wrn_40_2 -> wrn_16_2": (2.0, 9.0),
        "resnet56 -> resnet20": (2.0, 9.0),
        "resnet110 -> resnet32": (2.0, 9.0),
        "resnet110 -> resnet20": (4.0, 12.0),
        "resnet32x4 -> ShuffleV2": (2.0, 9.0),
        "resnet32x4 -> wrn_16_2": (3.0, 9.0),
        "resnet32x4 -> wrn_40_2": (3.0, 9.0),
        "wrn_40_2 -> resnet8x4": (2.0, 9.0),
        "wrn_40_2 -> MobileNetV2": (3.0, 9.0),
        "vgg13 -> MobileNetV2": (3.0, 9.0),
        "ResNet50 -> MobileNetV2": (3.0, 1.0),
    }
    return {
        pair: Published(method="lskd", settings={"temperature": t, "kd_weight": w})
        for pair, (t, w) in values.items()
    }


def _dkd_standardized() -> Table:
    """Temperature, the weight that multiplies both parts, and beta before that."""
    values = {
        "resnet32x4 -> resnet8x4": (2.0, 9.0, 8.0),
        "vgg13 -> vgg8": (2.0, 15.0, 2.0),
        "wrn_40_2 -> wrn_40_1": (2.0, 12.0, 2.0),
        "wrn_40_2 -> wrn_16_2": (2.0, 12.0, 2.0),
        "resnet56 -> resnet20": (3.0, 18.0, 2.0),
        "resnet110 -> resnet32": (2.0, 15.0, 2.0),
        "resnet110 -> resnet20": (2.0, 15.0, 2.0),
        "resnet32x4 -> ShuffleV2": (2.0, 9.0, 8.0),
        "resnet32x4 -> wrn_16_2": (2.0, 9.0, 2.0),
        "resnet32x4 -> wrn_40_2": (2.0, 9.0, 8.0),
        "wrn_40_2 -> resnet8x4": (2.0, 18.0, 2.0),
        "wrn_40_2 -> MobileNetV2": (2.0, 15.0, 2.0),
        "vgg13 -> MobileNetV2": (3.0, 9.0, 2.0),
        "ResNet50 -> MobileNetV2": (2.0, 15.0, 2.0),
    }
    return {
        pair: Published(
            method="dkd",
            settings={"temperature": t, "alpha": w, "beta": w * b, "standardize": True},
        )
        for pair, (t, w, b) in values.items()
    }


def _mlkd() -> Table:
    """Epochs and learning rate."""
    values = {
        "resnet56 -> resnet20": (240, 0.025),
        "resnet110 -> resnet32": (240, 0.025),
        "resnet32x4 -> resnet8x4": (240, 0.025),
        "wrn_40_2 -> wrn_16_2": (240, 0.025),
        "wrn_40_2 -> wrn_40_1": (240, 0.025),
        "vgg13 -> vgg8": (240, 0.025),
        "vgg13 -> MobileNetV2": (480, 0.01),
        "ResNet50 -> MobileNetV2": (480, 0.01),
        "wrn_40_2 -> ShuffleV1": (480, 0.01),
        "resnet32x4 -> ShuffleV1": (960, 0.01),
        "resnet32x4 -> ShuffleV2": (960, 0.01),
    }
    return {
        pair: Published(method="mlkd", epochs=epochs, lr=lr)
        for pair, (epochs, lr) in values.items()
    }


def _mlkd_standardized() -> Table:
    """Weight, epochs and learning rate; the first temperature is 2."""
    values = {
        "resnet32x4 -> resnet8x4": (9.0, 480, 0.025),
        "vgg13 -> vgg8": (6.0, 480, 0.01),
        "wrn_40_2 -> wrn_40_1": (9.0, 480, 0.025),
        "wrn_40_2 -> wrn_16_2": (9.0, 480, 0.025),
        "resnet110 -> resnet32": (9.0, 480, 0.025),
        "vgg13 -> MobileNetV2": (6.0, 480, 0.01),
        "ResNet50 -> MobileNetV2": (9.0, 480, 0.01),
        "resnet32x4 -> ShuffleV2": (6.0, 960, 0.01),
    }
    return {
        pair: Published(
            method="mlkd",
            settings={
                "temperatures": [2.0, 3.0, 5.0, 2.0, 6.0],
                "kd_weight": weight,
                "standardize": True,
            },
            epochs=epochs,
            lr=lr,
        )
        for pair, (weight, epochs, lr) in values.items()
    }


def _wkd_logit() -> Table:
    """Lambda and temperature; with Nesterov's momentum."""
    values = {
        "resnet32x4 -> resnet8x4": (600.0, 8.0),
        "wrn_40_2 -> ShuffleV1": (200.0, 6.0),
    }
    return {
        pair: Published(
            method="wkd_logit",
            settings={"transport_weight": weight, "temperature": temperature},
            nesterov=True,
        )
        for pair, (weight, temperature) in values.items()
    }


OUTPUT: Final[Mapping[str, Mapping[str, Published]]] = MappingProxyType(
    {
        "ctkd": _ctkd(),
        "dist": _dist(),
        "dkd": _dkd(),
        "dkd_standardized": _dkd_standardized(),
        "kd": everywhere("kd"),
        "lskd": _lskd(),
        "mlkd": _mlkd(),
        "mlkd_standardized": _mlkd_standardized(),
        "wkd_logit": _wkd_logit(),
    }
)
