"""The networks of a run, built from settings; and a finished run's student, loaded again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from limbeck.core.errors import CheckpointError, ModelError
from limbeck.core.normalization import Normalization
from limbeck.core.settings import Settings
from limbeck.data import DataBundle
from limbeck.models import create_model, load_weights
from limbeck.runs.config import StudentConfig, TeacherConfig
from limbeck.runs.folder import RunFolder, read_json

__all__ = ["NamedNetwork", "StudentCard", "build_student", "build_teacher", "load_student"]


class StudentCard(Settings):
    """What ``student.safetensors`` is of: ``student.json``.

    Attributes:
        model: its name; ``python:CLASS`` for a module that was passed in.
        num_classes: outputs.
        in_chans: channels of its images.
        image_size: height and width it was trained at.
        class_names: in the order of the outputs.
        normalization: of images in [0, 1].
    """

    model: str
    num_classes: int
    in_chans: int
    image_size: tuple[int, int]
    class_names: tuple[str, ...]
    normalization: Normalization


@dataclass(frozen=True)
class NamedNetwork:
    """A network, its normalisation, and what to call it."""

    network: nn.Module
    normalization: Normalization
    name: str


def build_student(
    config: StudentConfig, bundle: DataBundle, *, seed: int, typed: Collection[str] = ()
) -> NamedNetwork:
    """The student, its weights drawn from the seed or read from a file."""
    network = create_model(
        config.name,
        num_classes=bundle.num_classes,
        in_chans=bundle.image_shape[0],
        seed=seed,
        allow_code=config.name in typed,
    )
    if config.initial_checkpoint is not None:
        load_weights(network, Path(config.initial_checkpoint))
    return NamedNetwork(network, config.normalization or bundle.normalization, config.name)


def build_teacher(
    config: TeacherConfig, bundle: DataBundle, *, typed: Collection[str] = ()
) -> NamedNetwork:
    """The teacher with its weights.

    Raises:
        ModelError: if a run's student was trained on other classes or channels.
    """
    if config.run is not None:
        loaded, card = load_student(config.run, typed=typed)
        mine, theirs = bundle.train.class_names, card.class_names
        if mine != theirs:
            raise ModelError(
                f"teacher {config.run} was trained on {len(theirs)} classes ({_some(theirs)}), the "
                f"data has {len(mine)} ({_some(mine)}); use a teacher of the same classes"
            )
        if card.in_chans != bundle.image_shape[0]:
            raise ModelError(
                f"teacher {config.run} takes {card.in_chans} channels, the data has "
                f"{bundle.image_shape[0]}; set data.in_chans={card.in_chans}"
            )
        return NamedNetwork(
            loaded.network, config.normalization or loaded.normalization, loaded.name
        )
    assert config.name is not None
    network = create_model(
        config.name,
        num_classes=bundle.num_classes,
        in_chans=bundle.image_shape[0],
        allow_code=config.name in typed,
    )
    if config.checkpoint is not None:  # else a module passed in, which has just been refused
        load_weights(network, Path(config.checkpoint))
    return NamedNetwork(network, config.normalization or bundle.normalization, config.name)


def load_student(
    run: str | Path, *, best: bool = False, typed: Collection[str] = ()
) -> tuple[NamedNetwork, StudentCard]:
    """A finished run's student in eval mode, and its card.

    Args:
        run: the run folder.
        best: the best epoch on validation instead of the last.
        typed: names the user gave here and now; a student named ``file.py:function`` is
            imported only if it is among them.

    Raises:
        RunFolderError: if the folder is no finished run.
        CheckpointError: if its weights cannot be used.
    """
    folder = RunFolder(run)
    card = StudentCard.read(read_json(folder.student_card))
    weights = folder.student_best if best else folder.student
    if not weights.exists():
        raise CheckpointError(
            f"{weights} is missing"
            + ("; the run had no validation split" if best else "; the run is not finished")
        )
    if card.model.startswith("python:"):
        raise ModelError(
            f"{run} was trained from a module passed in Python ({card.model}); build it and load "
            f"{weights} into it with limbeck.models.load_weights"
        )
    network = create_model(
        card.model,
        num_classes=card.num_classes,
        in_chans=card.in_chans,
        allow_code=card.model in typed,
    )
    load_weights(network, weights)
    return NamedNetwork(network.eval(), card.normalization, card.model), card


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
