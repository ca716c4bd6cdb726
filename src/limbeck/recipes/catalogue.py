"""Every recipe by its name, and the run that it stands for.

``cifar100/KEY/TEACHER-STUDENT`` is a student taught as its method's authors did;
``cifar100/ce/NETWORK`` the same network on labels alone: a teacher, or the matched baseline.
``cifar100_small/…`` is a smaller task for machines without a GPU, which nobody published: the
first 20 classes, a few epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from pydantic import JsonValue

from limbeck.core.errors import SettingsError, UnknownNameError
from limbeck.data import CIFAR_NORMALIZATION
from limbeck.data.config import AugmentConfig, DataConfig
from limbeck.engine.config import TrainConfig
from limbeck.engine.optim import OptimConfig, ScheduleConfig
from limbeck.recipes.cifar100_feature import FEATURE
from limbeck.recipes.cifar100_output import OUTPUT
from limbeck.recipes.cifar100_relation import RELATION
from limbeck.recipes.published import OTHER_STYLE, SAME_STYLE, Published, is_slow
from limbeck.runs.config import RunConfig, StudentConfig, TeacherConfig, resolved_method

__all__ = ["RECIPES", "Protocol", "Recipe", "find_recipe"]

Protocol = Literal["published", "held-out"]

_HELD_OUT = 0.1  # of the training images, by the "held-out" protocol
_SMALL_CLASSES = 20
_SMALL_EPOCHS = 8
_SMALL_PAIR = ("resnet56", "resnet20")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One setting that a table has a figure for, or could have.

    Attributes:
        name: in :data:`RECIPES`.
        teacher: the teacher's network; None for labels alone.
        student: the network that learns.
        published: what is particular to it.
        source: where that stands.
        small: whether it is of the smaller task.
    """

    name: str
    teacher: str | None
    student: str
    published: Published
    source: str
    small: bool = False

    @property
    def teacher_recipe(self) -> str | None:
        """The recipe that trains its teacher."""
        return None if self.teacher is None else f"{self.name.split('/')[0]}/ce/{self.teacher}"

    def run(
        self,
        *,
        data_dir: str,
        teacher: str | Path | None = None,
        seed: int = 0,
        protocol: Protocol = "published",
    ) -> RunConfig:
        """The complete settings of one run.

        Args:
            data_dir: CIFAR-100 as torchvision stores it, or as image folders ``train/`` and
                ``test/``.
            teacher: a finished run of the teacher's network, or a file of its weights.
            seed: of the run.
            protocol: "published" trains on every training image and has no validation;
                "held-out" keeps a tenth of them for it. The test split is read once, after the
                last epoch, by both.

        Raises:
            SettingsError: if a teacher is missing, or given where there is none.
        """
        if (teacher is None) != (self.teacher is None):
            wanted = "no teacher" if self.teacher is None else f"a teacher, {self.teacher}"
            raise SettingsError(f"{self.name} needs {wanted}; got {teacher}")
        own = self.published
        lr = own.lr or (0.01 if is_slow(self.student) else 0.05)
        return RunConfig(
            seed=seed,
            data=DataConfig(
                dataset=_layout(data_dir),
                data_dir=data_dir,
                num_classes=_SMALL_CLASSES if self.small else None,
                val_fraction=0 if protocol == "published" else _HELD_OUT,
                augment=AugmentConfig(crop_padding=4, flip=True),
            ),
            student=StudentConfig(name=self.student, normalization=CIFAR_NORMALIZATION["cifar100"]),
            teacher=None if teacher is None else _taught_by(str(self.teacher), Path(teacher)),
            method=self._method(),
            optim=OptimConfig(lr=lr, nesterov=own.nesterov),
            schedule=self._schedule(),
            train=TrainConfig(batch_size=own.batch_size),
        )

    def _method(self) -> dict[str, JsonValue]:
        method = resolved_method({"name": self.published.method, **self.published.settings})
        if self.small:  # what takes so many epochs of 240 takes as large a share of these
            for name, value in method.items():
                if name.endswith("_epochs") and isinstance(value, int) and value:
                    method[name] = max(1, round(value * _SMALL_EPOCHS / self.published.epochs))
        return method

    def _schedule(self) -> ScheduleConfig:
        if self.small:
            return ScheduleConfig(epochs=_SMALL_EPOCHS, sched="onecycle")
        return ScheduleConfig(epochs=self.published.epochs)


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        UnknownNameError: with the nearest names, if there is none.

    Example:
        >>> recipe = find_recipe("cifar100/dkd/wrn_40_2-wrn_16_2")
        >>> recipe.published.settings["beta"], recipe.teacher_recipe
        (6.0, 'cifar100/ce/wrn_40_2')
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES, hint="`limbeck recipes` lists them.")
    return RECIPES[name]


def _layout(data_dir: str) -> Literal["cifar100", "image_folder"]:
    folder = Path(data_dir)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return "image_folder"
    return "cifar100"


def _taught_by(network: str, teacher: Path) -> TeacherConfig:
    if teacher.is_dir():
        return TeacherConfig(run=str(teacher))
    return TeacherConfig(
        name=network, checkpoint=str(teacher), normalization=CIFAR_NORMALIZATION["cifar100"]
    )


_SOURCES = {
    "at": "RepDistiller's scripts",
    "cat_kd": "CAT-KD's YAML files",
    "cat_maps": "CAT-KD's YAML files",
    "cc": "RepDistiller's scripts",
    "ce": "RepDistiller's train_teacher.py",
    "crd": "RepDistiller's scripts",
    "crd_kd": "RepDistiller's scripts",
    "ctkd": "CTKD's scripts",
    "dist": "DIST's dist_cifar.yaml",
    "dkd": "mdistiller's YAML files",
    "dkd_standardized": "the names of LSKD's logs",
    "fitnet_one_stage": "RepDistiller's scripts",
    "kd": "RepDistiller's scripts",
    "london": "this library's defaults; LONDON's own table is of other networks",
    "lskd": "the names of LSKD's logs",
    "mlkd": "MLKD's YAML files",
    "mlkd_standardized": "LSKD's YAML files",
    "ofd": "mdistiller's YAML files",
    "pkt": "RepDistiller's scripts",
    "reviewkd": "ReviewKD's scripts",
    "rkd": "RepDistiller's scripts",
    "simkd": "SimKD's scripts",
    "sp": "RepDistiller's scripts",
    "vid": "RepDistiller's scripts",
    "vrm": "this library's reading; its authors published no settings",
    "wkd_feature": "WKD's scripts",
    "wkd_logit": "WKD's scripts",
}


def _recipes() -> dict[str, Recipe]:
    found: list[Recipe] = []
    networks = sorted(
        {network for pair in (*SAME_STYLE, *OTHER_STYLE) for network in pair.split(" -> ")}
    )
    plain = Published(method="ce")

    def add(task: str, key: str, teacher: str | None, student: str, published: Published) -> None:
        pair = student if teacher is None else f"{teacher}-{student}"
        found.append(
            Recipe(
                name=f"{task}/{key}/{pair}",
                teacher=teacher,
                student=student,
                published=published,
                source=_SOURCES[key],
                small=task == "cifar100_small",
            )
        )

    for network in sorted(networks):
        add("cifar100", "ce", None, network, plain)
    for network in _SMALL_PAIR:
        add("cifar100_small", "ce", None, network, plain)
    for key, table in (*OUTPUT.items(), *FEATURE.items(), *RELATION.items()):
        for pair, published in table.items():
            teacher, student = pair.split(" -> ")
            add("cifar100", key, teacher, student, published)
            if (teacher, student) == _SMALL_PAIR:
                add("cifar100_small", key, teacher, student, published)
    return {recipe.name: recipe for recipe in sorted(found, key=lambda recipe: recipe.name)}


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(_recipes())
