"""Teachers, frozen by construction: eval mode, no gradient, each its own normalisation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from limbeck.core.errors import ModelError, TeacherChangedError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Outputs
from limbeck.features import ObservedNetwork
from limbeck.functional.logits import joint_logits
from limbeck.teacher_cache import CachedTeacher

__all__ = ["CachedEnsemble", "Teacher", "TeacherEnsemble", "joint_hash", "state_hash"]


class Teacher(nn.Module):
    """A network that only answers.

    Whatever a parent's ``.train()`` does, it stays in eval mode; its outputs carry no gradient,
    whatever a parent's ``.requires_grad_()`` does.

    Args:
        network: images to logits ``(B, K)``; it is frozen in place.
        normalization: the teacher's own; None leaves images in [0, 1].
        layers: what :attr:`Outputs.features` holds, by address or meaning.
        classifier: whether :attr:`Outputs.classifier` is filled.
        classes: which of the network's classes are the data's, in the data's order; None where
            they are the same.
        scores: whether what the network gives are class scores; where not, it may give anything.

    Example:
        >>> teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
        >>> teacher(torch.rand(2, 1, 2, 2)).logits.shape
        torch.Size([2, 3])
        >>> teacher.train().training
        False
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        normalization: Normalization | None = None,
        layers: Sequence[str] = (),
        classifier: bool = False,
        classes: Sequence[int] | None = None,
        scores: bool = True,
    ) -> None:
        super().__init__()
        self.observed = ObservedNetwork(
            network.requires_grad_(False),
            normalization=normalization,
            layers=layers,
            classifier=classifier,
            classes=classes,
            scores=scores,
        )
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The frozen network."""
        return self.observed.network

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, so a parent's ``.train()`` cannot move batch-norm statistics."""
        del mode
        return super().train(False)

    # no_grad and not inference_mode: autograd must save these tensors for the student's
    # backward, and refuses to save inference tensors.
    @torch.no_grad()
    def forward(self, image: Tensor, views: Mapping[str, Tensor] | None = None) -> Outputs:
        """Outputs for ``(B, C, H, W)`` images in [0, 1], and for their further views."""
        outputs: Outputs = self.observed(image, views)
        return outputs

    def answer(self, batch: Batch, epoch: int) -> Outputs:
        """Outputs for a batch, in whatever epoch: how training asks every kind of teacher."""
        del epoch
        image = batch.image if batch.teacher_image is None else batch.teacher_image
        outputs: Outputs = self(image, batch.views)
        return outputs

    def check_unchanged(self, expected: str) -> None:
        """Compare the state's hash with what :func:`state_hash` gave before training.

        Raises:
            TeacherChangedError: if a parameter or buffer moved since then.
        """
        now = state_hash(self.network)
        if now != expected:
            raise TeacherChangedError(
                f"the teacher's state changed during training: SHA-256 {expected[:12]} before, "
                f"{now[:12]} after. Something wrote into its parameters or buffers; the results "
                "of this run cannot be trusted"
            )


class TeacherEnsemble(nn.Module):
    r"""Several teachers that answer as one, by their mean probability.

    .. math:: z = \log \frac{1}{K} \sum_k \mathrm{softmax}(z^k)

    It is called like a :class:`Teacher`, and whatever needs the logits of a teacher takes it for
    one. What each teacher said, its features among it, is in :attr:`Outputs.members`.

    Args:
        teachers: one at least, of the same classes. Each has its own architecture, normalisation,
            size, class map and layers, or answers from a cache, by :meth:`answer` alone.

    Raises:
        ModelError: if there is no teacher.

    Example:
        >>> networks = (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2))
        >>> outputs = TeacherEnsemble([Teacher(n) for n in networks])(torch.rand(5, 1, 2, 2))
        >>> outputs.logits.exp().sum(dim=1).round(decimals=3).tolist(), len(outputs.members)
        ([1.0, 1.0, 1.0, 1.0, 1.0], 2)
    """

    def __init__(self, teachers: Sequence[Teacher | CachedTeacher]) -> None:
        super().__init__()
        if not teachers:
            raise ModelError("an ensemble is of one teacher at least; got none")
        self.each = tuple(teachers)
        self.networks = nn.ModuleList(one for one in teachers if isinstance(one, Teacher))
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, as each of the teachers does."""
        del mode
        return super().train(False)

    def forward(self, image: Tensor, views: Mapping[str, Tensor] | None = None) -> Outputs:
        """Outputs for ``(B, C, H, W)`` images in [0, 1], and for their further views.

        Raises:
            ModelError: if the teachers are of different numbers of classes, or one of them is a
                cache, which knows images by their place and not by their pixels.
        """
        if len(self.networks) < len(self.each):
            raise ModelError("a cached teacher looks no image up by its pixels; ask by `answer`")
        return _together(tuple(teacher(image, views) for teacher in self.networks))

    def answer(self, batch: Batch, epoch: int) -> Outputs:
        """Outputs for a batch, in whatever epoch, as :meth:`Teacher.answer`."""
        return _together(tuple(one.answer(batch, epoch) for one in self.each))


class CachedEnsemble(CachedTeacher):
    """Several teachers, each by the cache of its answers; they train as a :class:`TeacherEnsemble`.

    Args:
        teachers: two at least, of the same images.
    """

    def __init__(self, teachers: Sequence[CachedTeacher]) -> None:
        self._each = tuple(teachers)

    @property
    def each(self) -> tuple[CachedTeacher, ...]:
        """One by one."""
        return self._each

    @property
    def name(self) -> str:
        """Of all."""
        return " + ".join(one.name for one in self.each)

    def describe(self) -> str:
        """Of all, in a line."""
        return "; ".join(one.describe() for one in self.each)

    def hashes(self) -> tuple[str, str]:
        """Of all states together, and of all caches."""
        states, caches = zip(*(one.hashes() for one in self.each), strict=True)
        return joint_hash(states), joint_hash(caches)

    def logits_of(self, split: str, fingerprint: str) -> Tensor:
        """As of one teacher: their mean probability."""
        return joint_logits([one.logits_of(split, fingerprint) for one in self.each])


def _together(members: tuple[Outputs, ...]) -> Outputs:
    counts = [member.logits.shape[1] for member in members]
    if len(set(counts)) > 1:
        raise ModelError(
            "teachers that answer together must be of the same classes; they give "
            f"{', '.join(map(str, counts))} logits. Leave out those of other classes, or say which "
            "of theirs are the data's (class_map)"
        )
    return Outputs(
        joint_logits([member.logits for member in members]),
        members=members,
        views={
            name: _together(tuple(member.views[name] for member in members))
            for name in members[0].views
        },
    )


def joint_hash(hashes: Sequence[str]) -> str:
    """SHA-256 over several in their order, as hex: of several teachers."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def state_hash(network: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters and buffers, as hex.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> state_hash(layer) == state_hash(layer)
        True
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
