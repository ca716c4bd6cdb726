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
from limbeck.runs.compare import BASELINE, CompareConfig, Contender
from limbeck.runs.config import RunConfig, StudentConfig, TeacherConfig

__all__ = [
    "DEMO_METHODS",
    "NUM_LABELS",
    "SEEDS",
    "TASK",
    "demo_comparison",
    "demo_student",
    "demo_teacher",
]

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


def demo_comparison() -> CompareConfig:
    """All of the demo: the teacher, the matched student, three ways to teach it, the ceiling."""
    baseline = Contender(title="cross-entropy", role="baseline", method={"name": "ce"})
    ceiling = Contender(
        title="cross-entropy, all labels",
        role="reference",
        method={"name": "ce"},
        changes={"data.num_labels": None},
    )
    return CompareConfig(
        shared=demo_student("ce", 0, None),
        contenders={
            BASELINE: baseline,
            **{method: Contender(method={"name": method}) for method in DEMO_METHODS},
            "ceiling": ceiling,
        },
        seeds=SEEDS,
        teacher_training=demo_teacher(),
        # Networks this small gain nothing from a second thread, and where another program holds
        # the other core they wait ten times as long for it. One also sums alike everywhere.
        threads=1,
    )


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
