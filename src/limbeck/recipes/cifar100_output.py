"""CIFAR-100 by output knowledge: the settings behind each published pair of networks.

All share the recipe of RepDistiller (Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699):
batches of 64, 240 epochs of SGD at 0.05 (0.01 for MobileNet and ShuffleNet students), a tenth of
it after epochs 150, 180 and 210, crop and flip, every training image. What a method's authors do
otherwise is in its table. Their numbers are often the best epoch on the test images, about 0.3
percentage points above the last one; these runs report the last.

Sources: DKD's YAML files (mdistiller), the names of LSKD's logs, MLKD's YAML files, DIST's
``dist_cifar.yaml``, CTKD's and WKD's scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from limbeck.core.errors import UnknownNameError
from limbeck.data.config import AugmentConfig, DataConfig
from limbeck.engine.config import TrainConfig
from limbeck.engine.optim import OptimConfig, ScheduleConfig
from limbeck.runs.config import RunConfig, StudentConfig, TeacherConfig

__all__ = [
    "OTHER_STYLE",
    "PUBLISHED",
    "SAME_STYLE",
    "SLOW_STUDENTS",
    "Published",
    "cifar100_output",
    "published_run",
]

SLOW_STUDENTS = ("MobileNetV2", "ShuffleV1", "ShuffleV2")  # at a fifth of the rate


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


_Table = dict[str, Published]

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


def _kd() -> _Table:
    return {pair: Published(method="kd") for pair in (*SAME_STYLE, *OTHER_STYLE)}


def _ctkd() -> _Table:
    return {
        pair: Published(method="ctkd")
        for pair in (*SAME_STYLE, "vgg13 -> MobileNetV2", "ResNet50 -> MobileNetV2")
    }


def _dist() -> _Table:
    pairs = (
        "resnet56 -> resnet20",
        "resnet32x4 -> resnet8x4",
        "wrn_40_2 -> wrn_40_1",
        "ResNet50 -> MobileNetV2",
        "resnet32x4 -> ShuffleV1",
        "resnet32x4 -> ShuffleV2",
    )
    return {pair: Published(method="dist") for pair in pairs}


def _dkd() -> _Table:
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


def _lskd() -> _Table:
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


def _dkd_standardized() -> _Table:
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


def _mlkd() -> _Table:
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


def _mlkd_standardized() -> _Table:
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


def _wkd_logit() -> _Table:
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


PUBLISHED: Final[Mapping[str, Mapping[str, Published]]] = MappingProxyType(
    {
        "ctkd": _ctkd(),
        "dist": _dist(),
        "dkd": _dkd(),
        "dkd_standardized": _dkd_standardized(),
        "kd": _kd(),
        "lskd": _lskd(),
        "mlkd": _mlkd(),
        "mlkd_standardized": _mlkd_standardized(),
        "wkd_logit": _wkd_logit(),
    }
)


def cifar100_output(
    recipe: str, pair: str, *, teacher_checkpoint: str, data_dir: str, seed: int = 0
) -> RunConfig:
    """The run that a published number stands for.

    Args:
        recipe: a name in :data:`PUBLISHED`.
        pair: ``"teacher -> student"`` in that table.
        teacher_checkpoint: the teacher's published weights, converted.
        data_dir: where CIFAR-100 lies.
        seed: of the run.

    Raises:
        UnknownNameError: if there is no such recipe, or nobody published that pair by it.

    Example:
        >>> run = cifar100_output(
        ...     "dkd", "wrn_40_2 -> wrn_16_2", teacher_checkpoint="t.safetensors", data_dir="data"
        ... )
        >>> run.method["beta"], run.optim.lr
        (6.0, 0.05)
    """
    return published_run(
        PUBLISHED, recipe, pair, teacher_checkpoint=teacher_checkpoint, data_dir=data_dir, seed=seed
    )


def published_run(
    recipes: Mapping[str, Mapping[str, Published]],
    recipe: str,
    pair: str,
    *,
    teacher_checkpoint: str,
    data_dir: str,
    seed: int,
) -> RunConfig:
    """The run of one row of a table of recipes; the rest as in :func:`cifar100_output`.

    Raises:
        UnknownNameError: if there is no such recipe, or nobody published that pair by it.
    """
    if recipe not in recipes:
        raise UnknownNameError("recipe", recipe, recipes)
    table = recipes[recipe]
    if pair not in table:
        raise UnknownNameError(
            f"pair of {recipe}", pair, table, hint="Pairs read 'teacher -> student'."
        )
    published = table[pair]
    teacher, student = pair.split(" -> ")
    lr = published.lr or (0.01 if student in SLOW_STUDENTS else 0.05)
    return RunConfig(
        seed=seed,
        data=DataConfig(
            dataset="cifar100",
            data_dir=data_dir,
            val_fraction=0,
            augment=AugmentConfig(crop_padding=4, flip=True),
        ),
        student=StudentConfig(name=student),
        teacher=TeacherConfig(name=teacher, checkpoint=teacher_checkpoint),
        method={"name": published.method, **published.settings},
        optim=OptimConfig(lr=lr, nesterov=published.nesterov),
        schedule=ScheduleConfig(epochs=published.epochs),
        train=TrainConfig(batch_size=published.batch_size),
    )
