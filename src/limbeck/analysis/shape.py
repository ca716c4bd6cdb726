r"""Shape or texture: which of two cues that contradict each other does a network go by?

A cue-conflict image has the shape of one class and the texture of another. Of the images that a
network calls by either, the share that it calls by the shape:

.. math:: \frac{\#\text{shape}}{\#\text{shape} + \#\text{texture}}

The folder is that of the model-vs-human toolbox: a folder for each category of shape, in it
pictures named after both, as ``cat/cat3-elephant1.png``. Categories are classes of the data by
name; or the folder's ``categories.json`` says which classes each one has:
``{"dog": ["n02085620", "n02085782"]}``. A network decides for the category whose classes have the
largest mean probability, as the toolbox does.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from limbeck.analysis.base import (
    Case,
    Experiment,
    Measured,
    NotApplicableError,
    Subject,
    ratio_items,
)
from limbeck.analysis.pictures import read_pictures
from limbeck.core.errors import DataError

__all__ = ["SHAPE", "Cues", "cues_of"]

_CATEGORIES = "categories.json"
_MOST = 5000  # pictures; the published set has 1,280


class Cues(NamedTuple):
    """The two categories that a cue-conflict image shows."""

    shape: str
    texture: str


def cues_of(name: str) -> Cues | None:
    """From a picture's path, or None where it is not named after two categories.

    Source:
        Geirhos et al., "Partial success in closing the gap between human and machine vision",
        NeurIPS 2021, https://arxiv.org/abs/2106.07411; the layout of its toolbox's data.

    Example:
        >>> cues_of("cue-conflict/cat/cat3-elephant1.png")
        Cues(shape='cat', texture='elephant')
    """
    path = PurePosixPath(name)
    shape, dash, texture = path.stem.rpartition("_")[2].rpartition("-")
    letters = "".join(filter(str.isalpha, texture))
    if not (shape and dash and letters):
        return None
    return Cues(path.parent.name.casefold(), letters.casefold())


def _measure(case: Case) -> Measured:
    folder = case.given.cue_conflict
    if folder is None:
        raise NotApplicableError(
            "cue-conflict images are needed, with the shape of one class and the texture of "
            "another; give a folder of them, as the model-vs-human toolbox has, with --cue-conflict"
        )
    categories = _categories(case, folder)
    names = sorted(categories)
    pictures = read_pictures(case, folder, at_most=_MOST)
    cues = [cues_of(name) for name in pictures.names]
    usable = [
        place
        for place, cue in enumerate(cues)
        if cue is not None and cue.shape != cue.texture and set(cue) <= categories.keys()
    ]
    if not usable:
        raise NotApplicableError(
            f"{folder}: no picture shows two categories of the data; pictures are to lie in a "
            "folder called like the shape's and be called like cat3-elephant1.png; known are "
            f"{', '.join(names[:8]) or 'no categories'}; {_CATEGORIES} in the folder may say which "
            'classes each has: {"dog": ["beagle", "pug"]}'
        )
    images = pictures.images[usable]
    shapes, textures = (
        np.array([names.index(cue[kind]) for cue in (cues[place] for place in usable) if cue])
        for kind in (0, 1)
    )
    decided: dict[int, NDArray[np.int64]] = {}
    for subject in case.subjects:
        logits = case.answers(subject, "cue conflict", images)
        probability = softmax(logits.astype(np.float64), axis=1)
        means = [probability[:, categories[name]].mean(axis=1) for name in names]
        decided[id(subject)] = np.argmax(means, axis=0)
        if not ((chosen := decided[id(subject)]) == shapes).any() | (chosen == textures).any():
            raise NotApplicableError(f"{subject.name} recognises neither cue on any image")

    def bias(subject: Subject) -> NDArray[np.float64]:
        by_shape = decided[id(subject)] == shapes
        return ratio_items(by_shape, by_shape | (decided[id(subject)] == textures))

    def agrees(student: Subject) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = decided[id(student)] == decided[id(case.teacher)]
        return same

    heading = ("network", "called by its shape", "by its texture", "by neither", "shape bias")
    rows: list[tuple[str, ...]] = [heading]
    for subject in case.subjects:
        by_shape = float((decided[id(subject)] == shapes).mean())
        by_texture = float((decided[id(subject)] == textures).mean())
        shares = (by_shape, by_texture, 1 - by_shape - by_texture, float(bias(subject).mean()))
        rows.append((subject.name, *(f"{share:.1%}" for share in shares)))
    left_out = len(cues) - len(usable)
    return Measured(
        readings=(
            case.trait("shape bias", "cue-conflict images", bias),
            case.reading("agreement on the category", "cue-conflict images", agrees),
        ),
        tables={"What cue-conflict images are called by": tuple(rows)},
        notes=(
            f"{left_out} of {len(cues)} pictures are left out: named after one category alone, or "
            "after one that the data have not.",
        )
        * bool(left_out),
        settings={"categories": names, "images": len(usable)},
    )


def _categories(case: Case, folder: Path) -> dict[str, list[int]]:
    """The data's class numbers of each category, by its name in lower case."""
    numbers = {name.casefold(): [number] for number, name in enumerate(case.class_names)}
    path = folder / _CATEGORIES
    if not path.is_file():
        return numbers
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        listed = {str(name).casefold(): [*map(str, classes)] for name, classes in table.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f'{path} cannot be read: {error}; wanted {{"category": ["class", ...]}}'
        ) from error
    found = {
        name: [number for other in classes for number in numbers.get(other.casefold(), ())]
        for name, classes in listed.items()
    }
    return {name: members for name, members in found.items() if members}


SHAPE = Experiment(
    key="shape",
    title="Shape or texture",
    question="Does the student go by shape or by texture, as its teacher does?",
    source="Geirhos et al., 'ImageNet-trained CNNs are biased towards texture', ICLR 2019, "
    "https://arxiv.org/abs/1811.12231; of distillation: Ojha et al., NeurIPS 2023, "
    "https://arxiv.org/abs/2205.16004",
    measure=_measure,
    quick=False,
    reads=("cue_conflict",),
)
