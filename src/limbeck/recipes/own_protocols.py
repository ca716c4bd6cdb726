"""CIFAR-100 as the authors of chains, mutual learning, several teachers and long tails train it.

These have another budget, other images or more networks than the table that all others share, so
they are functions from data and teachers to a whole run, and not rows of the catalogue.

Sources: assistants: the scripts of TAKD and DGKD (Mirzadeh et al. 2020,
``Teacher-Assistant-Knowledge-Distillation``; Son et al. 2021, ``DGKD``), and for TAKD's ResNets the
settings that its author names in an issue there. Mutual learning: Zhang et al. 2018, section 4.
Several teachers: the scripts of CA-MKD (Zhang et al. 2022) and AE-KD (Du et al. 2020). Long tail:
the script of BKD (Zhang et al. 2023).
Differs from the source: no figure of theirs can be expected to the digit. TAKD's code never uses
the first rate of its ResNets, 0.1 (a comparison that cannot be true); the paper's is taken here.
BKD's rate rises from a hundredth of the base rate, and not from a fifth. AE-KD's ResNet18 is that
of the CIFAR zoo. Every author reports the epoch that was best on the test images; runs made here
report the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from limbeck.core.normalization import Normalization
from limbeck.data import CIFAR_NORMALIZATION
from limbeck.data.config import AugmentConfig, DataConfig
from limbeck.engine.config import TrainConfig
from limbeck.engine.optim import OptimConfig, ScheduleConfig
from limbeck.runs.config import RunConfig, StudentConfig, TeacherConfig

__all__ = ["balanced", "mutual", "plane_chain", "resnet_chain", "several_teachers"]

_CROPPED = AugmentConfig(crop_padding=4, flip=True)
# Of TAKD's and DGKD's code, for CIFAR-10 and CIFAR-100 alike.
_CHAIN_NORMALIZATION = Normalization(mean=(0.507, 0.487, 0.441), std=(0.267, 0.256, 0.276))
# Of BKD's code, likewise.
_TAIL_NORMALIZATION = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


def plane_chain(
    method: Literal["takd", "dgkd"] = "dgkd",
    *,
    data_dir: str,
    teacher_checkpoint: str,
    seed: int = 20,
) -> RunConfig:
    """DGKD's chain of plain CNNs: plane10 teaches 8, 6 and 4, and these plane2.

    160 epochs each at a constant rate of 0.01, batches of 128, images as they are; T = 5,
    lambda = 1, and of DGKD's four teachers one left out of each step.

    Args:
        method: "takd" has each network taught by the one before it alone.
        data_dir: where CIFAR-100 lies.
        teacher_checkpoint: plane10's weights.
        seed: the authors'.

    Example:
        >>> run = plane_chain(data_dir="data", teacher_checkpoint="t.safetensors")
        >>> [stage.name for stage in run.stages()], run.student.name
        (['assistant1', 'assistant2', 'assistant3', 'student'], 'plane2')
    """
    return RunConfig(
        seed=seed,
        data=_data(data_dir, AugmentConfig()),
        student=StudentConfig(name="plane2", normalization=_CHAIN_NORMALIZATION),
        teacher=_teacher("plane10", teacher_checkpoint, _CHAIN_NORMALIZATION),
        method={
            "name": method,
            "assistants": ["plane8", "plane6", "plane4"],
            "temperature": 5.0,
            "kd_share": 1.0,
        },
        optim=OptimConfig(lr=0.01, weight_decay=1e-4),
        schedule=ScheduleConfig(epochs=160, sched="constant"),
        train=TrainConfig(batch_size=128),
    )


def resnet_chain(*, data_dir: str, teacher_checkpoint: str, seed: int = 31) -> RunConfig:
    """TAKD's chain of ResNets: resnet110 teaches resnet20, and this resnet8.

    160 epochs each at 0.1, a tenth of it after 80 and after 120; T = 5, lambda = 0.15. The author
    found these on the test images.

    Args:
        data_dir: where CIFAR-100 lies.
        teacher_checkpoint: resnet110's weights.
        seed: the author's.
    """
    return RunConfig(
        seed=seed,
        data=_data(data_dir, AugmentConfig()),
        student=StudentConfig(name="resnet8", normalization=_CHAIN_NORMALIZATION),
        teacher=_teacher("resnet110", teacher_checkpoint, _CHAIN_NORMALIZATION),
        method={"name": "takd", "assistants": ["resnet20"], "temperature": 5.0, "kd_share": 0.15},
        optim=OptimConfig(lr=0.1, weight_decay=1e-4),
        schedule=ScheduleConfig(epochs=160, decay_epochs=(80, 120)),
        train=TrainConfig(batch_size=128),
    )


def mutual(
    *, data_dir: str, student: str = "resnet32", peers: Sequence[str] = (), seed: int = 0
) -> RunConfig:
    """Deep mutual learning: 200 epochs at 0.1 with Nesterov's momentum, a tenth every 60.

    Args:
        data_dir: where CIFAR-100 lies.
        student: the first network.
        peers: the others; none stands for one more of the first.
        seed: of the run.
    """
    own = {"peers": list(peers)} if peers else {}
    return RunConfig(
        seed=seed,
        data=_data(data_dir, _CROPPED),
        student=StudentConfig(name=student, normalization=CIFAR_NORMALIZATION["cifar100"]),
        method={"name": "dml", **own},
        optim=OptimConfig(lr=0.1, nesterov=True),
        schedule=ScheduleConfig(epochs=200, decay_epochs=(60, 120, 180)),
        train=TrainConfig(batch_size=64),
    )


def several_teachers(
    fusion: Literal["average_loss", "ebkd", "ca_mkd", "aekd"] = "ca_mkd",
    *,
    data_dir: str,
    teacher_checkpoints: Sequence[str],
    seed: int = 0,
) -> RunConfig:
    """CA-MKD's three resnet32x4 for resnet8x4; or AE-KD's three ResNet50 for ResNet18.

    The shared recipe with Nesterov's momentum: 240 epochs at 0.05, batches of 64; the rule's own
    settings are the method's defaults.

    Args:
        fusion: "aekd" takes AE-KD's networks, the others CA-MKD's.
        data_dir: where CIFAR-100 lies.
        teacher_checkpoints: weights of two teachers or more, which differ in their seeds.
        seed: of the run.
    """
    teacher, student = ("ResNet50", "ResNet18") if fusion == "aekd" else ("resnet32x4", "resnet8x4")
    own = CIFAR_NORMALIZATION["cifar100"]
    return RunConfig(
        seed=seed,
        data=_data(data_dir, _CROPPED),
        student=StudentConfig(name=student, normalization=own),
        teacher=TeacherConfig(
            members=tuple(_teacher(teacher, path, own) for path in teacher_checkpoints)
        ),
        method={"name": "multi_teacher", "fusion": fusion},
        optim=OptimConfig(nesterov=True),
    )


def balanced(*, data_dir: str, teacher_checkpoint: str, seed: int = 0) -> RunConfig:
    """BKD on CIFAR-100-LT: the first class 100 times as frequent as the last.

    ResNet-32 with parameter-free shortcuts teaches its like. 200 epochs at 0.1 after five of
    warm-up, a hundredth after 160 and again after 180, batches of 128.

    Args:
        data_dir: where CIFAR-100 lies.
        teacher_checkpoint: of the same network, trained on the same long tail by labels alone.
        seed: of the run; the tail is that of seed 0.
    """
    network = "resnet32_option_a"
    return RunConfig(
        seed=seed,
        data=_data(data_dir, _CROPPED).changed(imbalance_factor=100.0, split_seed=0),
        student=StudentConfig(name=network, normalization=_TAIL_NORMALIZATION),
        teacher=_teacher(network, teacher_checkpoint, _TAIL_NORMALIZATION),
        method={"name": "bkd"},
        optim=OptimConfig(lr=0.1, weight_decay=2e-4),
        schedule=ScheduleConfig(
            epochs=200, decay_epochs=(160, 180), decay_rate=0.01, warmup_epochs=5
        ),
        train=TrainConfig(batch_size=128),
    )


def _data(data_dir: str, augment: AugmentConfig) -> DataConfig:
    return DataConfig(dataset="cifar100", data_dir=data_dir, val_fraction=0, augment=augment)


def _teacher(name: str, checkpoint: str, own: Normalization) -> TeacherConfig:
    return TeacherConfig(name=name, checkpoint=checkpoint, normalization=own)
