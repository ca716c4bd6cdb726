"""Function matching: a patient and consistent teacher, in three lengths.

The student sees no label. It matches the teacher's probabilities on the same crops, mirrored and
mixed up (mixup, uniform shares), for a very long time: Adam, half a cosine after 1,500 steps of
warm-up, gradients clipped at a norm of 1.

Source: Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov, "Knowledge distillation: A good teacher is
    patient and consistent", CVPR 2022, https://arxiv.org/abs/2106.05237, section 3 and table 4;
    the numbers are those of the authors' ``bigsweep_food_sun.py`` (google-research/big_vision) for
    Food-101, whose 101 classes and 68,000 images are of their sets the likest to CIFAR-100.
Differs from the source: the data set, hence the padded crops in place of Inception's, and the
    networks. Their decay of the weights does not depend on the learning rate and spares all but
    kernels; AdamW multiplies it by the rate, so the rate is divided out here, and biases and norms
    are spared. A share for each image, where they draw one for a batch. Nobody has published
    results of this on CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from limbeck.core.errors import UnknownNameError
from limbeck.data.config import AugmentConfig, DataConfig
from limbeck.engine.config import TrainConfig
from limbeck.engine.optim import OptimConfig, ScheduleConfig
from limbeck.runs.config import RunConfig, StudentConfig, TeacherConfig

__all__ = ["PATIENCE", "Patience", "function_matching"]

BATCH_SIZE = 512
_WARMUP_STEPS = 1500
_NUM_IMAGES = 50_000


class Patience(NamedTuple):
    """What goes with one length of training."""

    epochs: int
    temperature: float
    lr: float
    decay: float  # of the weights in a step, at the base rate


PATIENCE: Final[Mapping[str, Patience]] = MappingProxyType(
    {
        "fast": Patience(100, 10.0, 0.01, 1e-3),
        "medium": Patience(1000, 10.0, 0.001, 3e-4),
        "long": Patience(3000, 5.0, 0.01, 1e-4),
    }
)


def function_matching(
    patience: str = "medium",
    *,
    data_dir: str,
    teacher_checkpoint: str,
    teacher: str = "resnet32x4",
    student: str = "resnet8x4",
    seed: int = 0,
) -> RunConfig:
    """The whole run, on CIFAR-100.

    Args:
        patience: a name in :data:`PATIENCE`.
        data_dir: where CIFAR-100 lies.
        teacher_checkpoint: the teacher's weights.
        teacher: its network.
        student: the network that learns.
        seed: of the run.

    Raises:
        UnknownNameError: if there is no such length.

    Example:
        >>> run = function_matching(data_dir="data", teacher_checkpoint="t.safetensors")
        >>> run.schedule.epochs, run.method["ce_weight"], run.data.augment.mixup_alpha
        (1000, 0.0, 1.0)
    """
    if patience not in PATIENCE:
        raise UnknownNameError("length of function matching", patience, PATIENCE)
    epochs, temperature, lr, decay = PATIENCE[patience]
    steps = -(-_NUM_IMAGES // BATCH_SIZE)
    return RunConfig(
        seed=seed,
        data=DataConfig(
            dataset="cifar100",
            data_dir=data_dir,
            val_fraction=0,
            augment=AugmentConfig(crop_padding=4, flip=True, mixup_alpha=1.0),
        ),
        student=StudentConfig(name=student),
        teacher=TeacherConfig(name=teacher, checkpoint=teacher_checkpoint),
        method={"name": "soft_label", "temperature": temperature},
        optim=OptimConfig(
            opt="adamw", lr=lr, weight_decay=decay / lr, decay_norm_and_bias=False, clip_grad=1.0
        ),
        schedule=ScheduleConfig(
            epochs=epochs, sched="cosine", warmup_epochs=round(_WARMUP_STEPS / steps, 2)
        ),
        train=TrainConfig(batch_size=BATCH_SIZE),
    )
