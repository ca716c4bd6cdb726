"""Networks to be looked at and not trained: by name, by file or from a run; weights do not matter.

Where nobody says which images they are for, these are the usual ones: the digits' 1 x 8 x 8 and
10 classes, the CIFAR benchmark's 3 x 32 x 32 and 100, ImageNet's 3 x 224 x 224 and 1,000.

C channels, H W spatial.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn

from limbeck.core.errors import SettingsError
from limbeck.core.normalization import Normalization
from limbeck.models import OpenedModel, is_vision_name, make_ready, open_model
from limbeck.runs.folder import RunFolder
from limbeck.runs.networks import NamedNetwork, load_student

__all__ = ["OpenedNetwork", "OpenedPair", "open_network", "open_pair"]


class _Usual(NamedTuple):
    """Images that a network is made for."""

    shape: tuple[int, int, int]
    num_classes: int


_DIGITS = _Usual((1, 8, 8), 10)
_CIFAR = _Usual((3, 32, 32), 100)
_IMAGENET = _Usual((3, 224, 224), 1000)


@dataclass(frozen=True)
class OpenedNetwork:
    """A network, and what it takes and gives.

    Attributes:
        network: in eval mode.
        normalization: its own; plain where it has none.
        image_shape: ``(C, H, W)`` that it is fed.
        num_classes: outputs.
        notes: what was done to make it fit to use.
    """

    network: nn.Module
    normalization: Normalization
    image_shape: tuple[int, int, int]
    num_classes: int
    notes: tuple[str, ...] = ()

    def named(self, name: str) -> NamedNetwork:
        """The same as part of a run, which brings all images to what it is fed."""
        fed = self.normalization.changed(
            in_chans=self.image_shape[0], image_size=self.image_shape[1:]
        )
        return NamedNetwork(self.network, fed, name, notes=self.notes)


@dataclass(frozen=True)
class OpenedPair:
    """Two networks for the same images.

    Attributes:
        teacher: by its name.
        student: by its name.
        image_shape: ``(C, H, W)`` of the images, before either network's own size and channels.
        num_classes: of the images.
    """

    teacher: NamedNetwork
    student: NamedNetwork
    image_shape: tuple[int, int, int]
    num_classes: int


def open_network(
    model: str,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | None = None,
    typed: Collection[str] = (),
) -> OpenedNetwork:
    """One network by itself.

    Args:
        model: a model's name, ``file.py:function`` or a run's folder; the user gave it here and
            now, so that its code may run.
        num_classes: None takes the usual number, or that of its weights.
        in_chans: channels; None takes the usual number.
        img_size: side in pixels that it is fed; None takes the usual one, or its own.
        typed: names besides ``model`` that may run code.

    Raises:
        SettingsError: if a run is to have other classes or images than its own.
        UnknownNameError: with the nearest names, if there is no such network.
        ModelError: if it cannot be made.
    """
    if _is_run(model):
        _refuse_options(model, num_classes, in_chans, img_size)
        return _open_run(model, typed)
    usual = _usual(model)
    vision = is_vision_name(model)
    side = img_size or usual.shape[1]
    opened = open_model(
        model,
        # Its own, unless told otherwise.
        num_classes=num_classes or (None if vision else usual.num_classes),
        in_chans=in_chans or usual.shape[0],
        img_size=(img_size, img_size) if vision and img_size else None,
        own_size=True,
        allow_code=True,
    )
    return _ready(opened, (side, side))


def open_pair(
    teacher: str,
    student: str,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | None = None,
    typed: Collection[str] = (),
) -> OpenedPair:
    """Two networks as a run on the same images would make them.

    The images are those of the run, if one of the two is one; else what is usual for the student,
    or for the teacher if the student is timm's or torchvision's and the teacher is not. What is
    made for another size is fed that, as in a run.

    Args:
        teacher: as ``model`` of :func:`open_network`.
        student: the same.
        num_classes: of the images; None takes the usual number.
        in_chans: channels of the images.
        img_size: side of the images in pixels.
        typed: names besides these two that may run code.

    Raises:
        SettingsError: as :func:`open_network`.
        UnknownNameError: as :func:`open_network`.
        ModelError: as :func:`open_network`.
    """
    models = {"teacher": teacher, "student": student}
    typed = (*models.values(), *typed)
    opened = {}
    for whose, model in models.items():
        if _is_run(model):
            _refuse_options(model, num_classes, in_chans, img_size)
            opened[whose] = _open_run(model, typed)
    if opened:
        run = next(iter(opened.values()))
        shape, classes = run.image_shape, run.num_classes
    else:
        pinned = [model for model in (student, teacher) if not is_vision_name(model)]
        usual = _usual(pinned[0]) if pinned else _IMAGENET
        side = img_size or usual.shape[1]
        shape = (in_chans or usual.shape[0], side, side)
        classes = num_classes or usual.num_classes
    for whose, model in models.items():
        if whose not in opened:
            found = open_model(
                model,
                num_classes=classes,
                in_chans=shape[0],
                data_size=shape[1:],
                own_size=whose == "teacher",  # its weights were trained at that size
                allow_code=True,
            )
            opened[whose] = _ready(found, shape[1:])
    named = {whose: opened[whose].named(model) for whose, model in models.items()}
    return OpenedPair(named["teacher"], named["student"], shape, classes)


def _usual(model: str) -> _Usual:
    if is_vision_name(model):
        return _IMAGENET
    return _DIGITS if model.startswith("digits_") else _CIFAR


def _is_run(model: str) -> bool:
    return RunFolder(model).path.is_dir()


def _refuse_options(
    run: str, num_classes: int | None, in_chans: int | None, img_size: int | None
) -> None:
    if (num_classes, in_chans, img_size) != (None, None, None):
        raise SettingsError(
            f"{run} is a run, whose classes and images are known; leave out --num-classes, "
            "--in-chans and --img-size"
        )


def _open_run(run: str, typed: Collection[str]) -> OpenedNetwork:
    named, card = load_student(Path(run), typed=typed)
    shape = named.normalization.input_shape((card.in_chans, *card.image_size))
    return OpenedNetwork(named.network, named.normalization, shape, card.num_classes)


def _ready(opened: OpenedModel, size: tuple[int, int]) -> OpenedNetwork:
    shape = (opened.in_chans, *(opened.image_size or size))
    notes = (*opened.notes, *make_ready(opened.network, shape))
    normalization = opened.normalization or Normalization()
    return OpenedNetwork(opened.network.eval(), normalization, shape, opened.num_classes, notes)
