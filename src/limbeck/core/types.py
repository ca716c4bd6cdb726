"""The values one training step passes along: data -> teacher -> student -> method -> step.

B batch, C channels, H W spatial, K classes, D features.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from limbeck.core.errors import MissingOutputError

__all__ = [
    "UNLABELLED",
    "Batch",
    "Classifier",
    "LossTerms",
    "Outputs",
    "Progress",
    "keyed_generator",
]

UNLABELLED = -1  # the label of an image whose class is unknown
_EMPTY: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images of one step, before any network's own normalisation.

    Attributes:
        index: ``(B,)`` int64, each image's position in the training set.
        image: ``(B, C, H, W)`` float in [0, 1].
        label: ``(B,)`` int64; -1 where the class is unknown.
        views: further views of the same images, by name, each aligned with ``image``.
        teacher_image: what the teacher sees where it sees something else; None otherwise.
        other_label: ``(B,)`` int64, of the images that these were mixed with; -1 where unknown;
            None where nothing was mixed.
        label_share: ``(B,)`` float in [0, 1]: the part of each image that ``label`` is of;
            ``other_label`` is of the rest. None where nothing was mixed.
    """

    index: Tensor
    image: Tensor
    label: Tensor
    views: Mapping[str, Tensor] = field(default_factory=lambda: _EMPTY)
    teacher_image: Tensor | None = None
    other_label: Tensor | None = None
    label_share: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(
        self, device: torch.device, *, memory_format: torch.memory_format = torch.contiguous_format
    ) -> Batch:
        """The same batch on ``device``; images also in ``memory_format``."""

        def move(image: Tensor) -> Tensor:
            return image.to(device, non_blocking=True, memory_format=memory_format)

        def carry(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device, non_blocking=True)

        return Batch(
            index=self.index.to(device, non_blocking=True),
            image=move(self.image),
            label=self.label.to(device, non_blocking=True),
            views={name: move(view) for name, view in self.views.items()},
            teacher_image=None if self.teacher_image is None else move(self.teacher_image),
            other_label=carry(self.other_label),
            label_share=carry(self.label_share),
        )


@dataclass(frozen=True)
class Classifier:
    """The last linear layer: ``weight (K, D)`` and ``bias (K,)`` or None.

    Live parameters for a student, frozen ones for a teacher.
    """

    weight: Tensor
    bias: Tensor | None = None


class Outputs:
    """What one network gave for one batch.

    Args:
        logits: ``(B, K)``, or None when this forward pass made none.
        features: tensors by the layer name that was asked for.
        classifier: filled when a method's needs ask for it.
        views: the same network's outputs on the batch's further views, by name.
        members: one per teacher of an ensemble; empty for a single network.
        missing: why there are no logits, for the error that asking for them raises.
    """

    __slots__ = ("_logits", "classifier", "features", "members", "missing", "views")

    def __init__(
        self,
        logits: Tensor | None = None,
        *,
        features: Mapping[str, Tensor] = _EMPTY,
        classifier: Classifier | None = None,
        views: Mapping[str, Outputs] | None = None,
        members: tuple[Outputs, ...] = (),
        missing: str = "this forward pass made no logits",
    ) -> None:
        self._logits = logits
        self.features = features
        self.classifier = classifier
        self.views: Mapping[str, Outputs] = {} if views is None else views
        self.members = members
        self.missing = missing

    @property
    def has_logits(self) -> bool:
        """Whether :attr:`logits` can be read."""
        return self._logits is not None

    @property
    def logits(self) -> Tensor:
        """Raw class scores ``(B, K)``.

        Raises:
            MissingOutputError: if there are none; the message says why.
        """
        if self._logits is None:
            raise MissingOutputError(f"no logits: {self.missing}")
        return self._logits


@dataclass(frozen=True)
class LossTerms:
    """A method's loss for one batch.

    Attributes:
        total: scalar, in float32; the only thing that is differentiated.
        parts: scalars by name, detached, unweighted; for the log.
    """

    total: Tensor
    parts: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        detached = {name: part.detach() for name, part in self.parts.items()}
        object.__setattr__(self, "parts", detached)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a stage stands; the only clock and the only randomness a method may use.

    Attributes:
        seed: the run's seed.
        epoch: 0-based, ``< num_epochs``.
        step: 0-based over the whole stage, ``< num_steps``.
        num_epochs: of this stage.
        num_steps: of this stage, all epochs together.
    """

    seed: int = 0
    epoch: int = 0
    step: int = 0
    num_epochs: int = 1
    num_steps: int = 1

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator that depends on (seed, epoch, step, purpose) and nothing else."""
        return keyed_generator(self.seed, self.epoch, self.step, purpose)

    def replace(self, **changes: int) -> Progress:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by a key alone, the same on every machine and Python.

    Example:
        >>> a, b = keyed_generator(0, "crop"), keyed_generator(0, "crop")
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        True
    """
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
