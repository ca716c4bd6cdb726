"""The demo's runs: digits, a student with few labels, a teacher with all of them.

Task: scikit-learn's embedded digits, 8x8 pixels. The teacher learns from every training label;
the student has 100 labels, and a method may use the other images unlabelled. The ceiling is the
student with every label.
"""

from __future__ import annotations

from typing import Any

from limbeck.data.config import AugmentConfig, DataConfig
from limbeck.engine.config import TrainConfig
from limbeck.engine.optim import OptimConfig, ScheduleConfig
from limbeck.runs.config import RunConfig, StudentConfig, TeacherConfig

__all__ = ["DEMO_METHODS", "NUM_LABELS", "SEEDS", "TASK", "demo_student", "demo_teacher"]

NUM_LABELS = 100
SEEDS = (0, 1, 2)
EPOCHS = 30
DEMO_METHODS = ("kd", "fitnet", "rkd")
TASK = (
    "Digits (scikit-learn, 8x8): the teacher learns from all training labels; the student has "
    f"{NUM_LABELS} labels, and distillation may use the other training images unlabelled."
)

_SPLIT_SEED = 0  # one split for all seeds: they differ in weights, order and augmentation
_OPTIM = OptimConfig(lr=0.1, weight_decay=5e-4)
_TRAIN = TrainConfig(batch_size=64, device="cpu")


def demo_teacher() -> RunConfig:
    """The teacher: every label, 30 epochs."""
    return RunConfig(
        seed=0,
        data=_data(num_labels=None),
        student=StudentConfig(name="digits_cnn"),
        method={"name": "ce"},
        optim=_OPTIM,
        schedule=ScheduleConfig(epochs=EPOCHS, sched="onecycle"),
        train=_TRAIN,
    )


def demo_student(method: str, seed: int, teacher_run: str | None, **data: Any) -> RunConfig:  # noqa: ANN401
    """One student; ``teacher_run`` is the teacher's run folder, None for plain cross-entropy."""
    return RunConfig(
        seed=seed,
        data=_data(**data),
        student=StudentConfig(name="digits_cnn_tiny"),
        teacher=None if teacher_run is None else TeacherConfig(run=teacher_run),
        method={"name": method},
        optim=_OPTIM,
        schedule=ScheduleConfig(epochs=EPOCHS, sched="onecycle"),
        train=_TRAIN,
    )


def _data(*, num_labels: int | None = NUM_LABELS, labelled_only: bool = False) -> DataConfig:
    return DataConfig(
        split_seed=_SPLIT_SEED,
        num_labels=num_labels,
        labelled_only=labelled_only,
        augment=AugmentConfig(crop_padding=1),
    )
