"""CIFAR-100 by feature knowledge: the settings behind each published pair of networks.

The recipe that all share is in :mod:`limbeck.recipes.cifar100_output`; what a method's authors do
otherwise is in its table. The numbers of RepDistiller are of the last epoch; CAT-KD's, WKD's and
mdistiller's are of the best one on the test images, about 0.3 percentage points above the last;
these runs report the last.

Sources: RepDistiller's scripts (FitNet in one stage, AT, VID, CRD), which name one setting for all
pairs; SimKD's scripts; mdistiller's YAML files (OFD); CAT-KD's and WKD's YAML files; ReviewKD's
scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from limbeck.recipes.cifar100_output import (
    OTHER_STYLE,
    SAME_STYLE,
    SLOW_STUDENTS,
    Published,
    published_run,
)
from limbeck.runs.config import RunConfig

__all__ = ["PUBLISHED_FEATURE", "cifar100_feature"]

_Table = dict[str, Published]


def _everywhere(method: str, **settings: Any) -> _Table:  # noqa: ANN401  (as the method has them)
    """One setting for all pairs."""
    return {
        pair: Published(method=method, settings=settings) for pair in (*SAME_STYLE, *OTHER_STYLE)
    }


def _cat_kd() -> _Table:
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


def _cat_maps() -> _Table:
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


def _reviewkd() -> _Table:
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
            lr=0.02 if pair.endswith(SLOW_STUDENTS) else 0.1,
            nesterov=True,
            batch_size=128,
        )
        for pair, weight in values.items()
    }


def _wkd_feature() -> _Table:
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


PUBLISHED_FEATURE: Final[Mapping[str, Mapping[str, Published]]] = MappingProxyType(
    {
        "at": _everywhere("at", pairing="depth"),  # as their lists are
        "cat_kd": _cat_kd(),
        "cat_maps": _cat_maps(),
        "crd": _everywhere("crd"),
        "crd_kd": _everywhere("crd", kd_weight=1.0),
        "fitnet_one_stage": _everywhere("fitnet_one_stage"),
        "ofd": _everywhere("ofd"),
        "reviewkd": _reviewkd(),
        "simkd": _everywhere("simkd"),
        "vid": _everywhere("vid"),
        "wkd_feature": _wkd_feature(),
    }
)


def cifar100_feature(
    recipe: str, pair: str, *, teacher_checkpoint: str, data_dir: str, seed: int = 0
) -> RunConfig:
    """The run that a published number stands for.

    Args:
        recipe: a name in :data:`PUBLISHED_FEATURE`.
        pair: ``"teacher -> student"`` in that table.
        teacher_checkpoint: the teacher's published weights, converted.
        data_dir: where CIFAR-100 lies.
        seed: of the run.

    Raises:
        UnknownNameError: if there is no such recipe, or nobody published that pair by it.

    Example:
        >>> run = cifar100_feature(
        ...     "cat_kd", "vgg13 -> vgg8", teacher_checkpoint="t.safetensors", data_dir="data"
        ... )
        >>> run.method["cat_weight"], run.train.batch_size
        (4.5, 64)
    """
    return published_run(
        PUBLISHED_FEATURE,
        recipe,
        pair,
        teacher_checkpoint=teacher_checkpoint,
        data_dir=data_dir,
        seed=seed,
    )
