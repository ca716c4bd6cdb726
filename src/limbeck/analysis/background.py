"""What finished runs left behind of the networks under study, beside their last weights.

N images, C channels, H W spatial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Background", "Epoch", "RunFacts", "Snapshot", "Stretch"]


class Epoch(NamedTuple):
    """One epoch on validation.

    Attributes:
        number: counted from 1.
        top1: a fraction.
        loss: cross-entropy, nats.
    """

    number: int
    top1: float
    loss: float


class Snapshot(NamedTuple):
    """A student as it once was.

    Attributes:
        epoch: after how many.
        best: whether it is the one that validation chose.
        load: the network, with its weights of then; None where the checkpoint turns out to be of
            another network, as in an earlier stage.
    """

    epoch: float
    best: bool
    load: Callable[[], nn.Module | None]


class Stretch(NamedTuple):
    """How far the layers between two stages stretch.

    Attributes:
        name: of the part.
        sigma: mean over images of the largest singular value between the stages' maps.
        log10_product: of the layers' spectral norms; None where that is 0.
    """

    name: str
    sigma: float
    log10_product: float | None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One student's run.

    Attributes:
        seconds: of training.
        teacher_seconds: the part that the teacher's forward passes took; None without a teacher.
        images_per_second: through the trained student; None where it was not measured.
        epochs: on validation; empty without a validation split.
        snapshots: in the order of training, without the last epoch's.
    """

    seconds: float
    teacher_seconds: float | None = None
    images_per_second: float | None = None
    epochs: Sequence[Epoch] = ()
    snapshots: Sequence[Snapshot] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Background:
    """All of them, and what they learnt from.

    Attributes:
        train_images: ``(N, C, H, W)`` uint8: of the training split, as they are without
            augmentation; all, or a sample.
        train_labels: ``(N,)``; -1 where the run did not know the class.
        num_train: images of the training split.
        num_labelled: of these, those with a label.
        distilled: by seed.
        independent: by seed.
        stretches: from a subject's name to the parts of its network; None where nobody measures
            them.
    """

    train_images: Tensor
    train_labels: Tensor
    num_train: int
    num_labelled: int
    distilled: Mapping[int, RunFacts] = field(default_factory=dict)
    independent: Mapping[int, RunFacts] = field(default_factory=dict)
    stretches: Callable[[str], Sequence[Stretch]] | None = None
