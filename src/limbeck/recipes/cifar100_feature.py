"""CIFAR-100 by feature knowledge: the settings behind each published pair of networks.

The recipe that all share is in :mod:`limbeck.recipes.published`; what a method's authors do
otherwise is in its table.

Sources: RepDistiller's scripts (FitNet in one stage, AT, VID, CRD), which name one setting for all
pairs; SimKD's scripts; mdistiller's YAML files (OFD); CAT-KD's and WKD's YAML files; ReviewKD's
scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from limbeck.recipes.published import Published, Table, everywhere, is_slow

__all__ = ["FEATURE"]


def _cat_kd() -> Table:
    """Weight, pooled size, and whether the maps are normalised."""
    values = {
        "resnet56 -> resnet20": (0.7, 2, False),
        "resnet110 -> resnet32": (1.8, 2, False),
        "resnet32x4 -> resnet8x4": (15.0, 2, False),
        "vgg13 -> vgg8": (4.5, 2, False),
        "wrn_40_2 -> wrn_16_2": (12.0, 2, False),
        "wrn_40_2 -> wrn_40_1": (1.5, 2, False),
        "vgg13 -> MobileNetV2": (15.0, 2, True),
        "ResNet50 -> MobileNetV2": (40.0, 2, True),
        "resnet32x4 -> ShuffleV1": (600.0, 4, True),
        "resnet32x4 -> ShuffleV2": (600.0, 4, True),
        "wrn_40_2 -> ShuffleV1": (80.0, 4, True),
    }
    return {
        pair: Published(
            method="cat_kd",
            settings={"cat_weight": weight, "pool_size": size, "normalize": normalize},
        )
        for pair, (weight, size, normalize) in values.items()
    }


def _cat_maps() -> Table:
    """Class maps alone, without a label: weight, and further settings."""
    same, smaller = "resnet32x4 -> resnet32x4", "resnet32x4 -> resnet8x4"
    lowest = {"num_kept_classes": 75, "kept_classes": "lowest"}
    return {
        pair: Published(
            method="cat_kd",
            settings={"ce_weight": 0.0, "normalize": True, "cat_weight": weight, **more},
        )
        for pair, weight, more in ((same, 50.0, {}), (smaller, 300.0, lowest))
    }


def _reviewkd() -> Table:
    """Weight; larger batches at twice the rate, with Nesterov's momentum."""
    values = {
        "wrn_40_2 -> wrn_16_2": 5.0,
        "wrn_40_2 -> wrn_40_1": 5.0,
        "wrn_40_2 -> ShuffleV1": 5.0,
        "resnet32x4 -> resnet8x4": 5.0,
        "resnet32x4 -> ShuffleV1": 5.0,
        "resnet32x4 -> ShuffleV2": 8.0,
        "resnet56 -> resnet20": 0.6,
        "resnet110 -> resnet32": 1.0,
    }
    return {
        pair: Published(
            method="reviewkd",
            settings={"review_weight": weight},
            lr=0.02 if is_slow(pair) else 0.1,
            nesterov=True,
            batch_size=128,
        )
        for pair, weight in values.items()
    }


def _wkd_feature() -> Table:
    """Weight, gamma and cells; with Nesterov's momentum."""
    values = {
        "resnet32x4 -> resnet8x4": (0.08, 4.0, 1),
        "wrn_40_2 -> ShuffleV1": (0.3, 3.0, 4),
    }
    return {
        pair: Published(
            method="wkd_feature",
            settings={"wkd_weight": weight, "mean_weight": gamma, "grid": grid},
            nesterov=True,
        )
        for pair, (weight, gamma, grid) in values.items()
    }


FEATURE: Final[Mapping[str, Mapping[str, Published]]] = MappingProxyType(
    {
        "at": everywhere("at", pairing="depth"),  # as their lists are
        "cat_kd": _cat_kd(),
        "cat_maps": _cat_maps(),
        "crd": everywhere("crd"),
        "crd_kd": everywhere("crd", kd_weight=1.0),
        "fitnet_one_stage": everywhere("fitnet_one_stage"),
        "ofd": everywhere("ofd"),
        "reviewkd": _reviewkd(),
        "simkd": everywhere("simkd"),
        "vid": everywhere("vid"),
        "wkd_feature": _wkd_feature(),
    }
)
