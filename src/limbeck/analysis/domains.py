r"""Unseen domains: does the student answer as its teacher does where neither has learnt?

The share of images of another domain on which a student's answer is the teacher's, labels aside:

.. math:: \frac{1}{N} \sum_i [\arg\max f^s(x_i) = \arg\max f^t(x_i)]

Other domains are a folder of pictures, if one is given, and changes of the test images that keep
their shapes: sketches of their edges, silhouettes, the texture of another image, no colour. Where
the folders in the given one are called like classes, accuracy is read as well: a teacher that
learnt from that domain may have passed it on to a student that never saw it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.analysis import transforms
from limbeck.analysis.base import (
    Case,
    Experiment,
    Measured,
    NotApplicableError,
    Picture,
    Reading,
    Subject,
)
from limbeck.analysis.drawing import panel, panels_png
from limbeck.analysis.pictures import read_pictures

__all__ = ["DOMAINS"]

_IMAGES, _QUICK_IMAGES = 5000, 500  # of another folder
_DRAWN = 8
_BUILT_IN: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "sketches": transforms.sketch,
    "silhouettes": transforms.silhouette,
    "swapped textures": transforms.texture_swap,
    "greyscale images": transforms.greyscale,
}


_HEADING = (
    "images",
    "number",
    "agreement, distilled",
    "agreement, independent",
    "accuracy, teacher",
    "accuracy, distilled",
    "accuracy, independent",
)


class _Domain(NamedTuple):
    """Images of one domain.

    Attributes:
        name: for people.
        images: ``(n, C, H, W)``, uint8 or floating in [0, 1].
        labels: ``(n,)`` int64, -1 where unknown.
        is_given: whether the user gave it.
    """

    name: str
    images: Tensor
    labels: NDArray[np.int64]
    is_given: bool = False


def _measure(case: Case) -> Measured:
    shown = [_Domain("test images", case.images, case.labels.numpy())]
    rows = [_HEADING, _ask(case, shown[0]).row]
    readings: list[Reading] = []
    notes: list[str] = []
    given = [] if case.given.other_images is None else [partial(_given, case)]
    for make in (*given, *(partial(_built_in, case, name) for name in _BUILT_IN)):
        try:
            domain = make()
            asked = _ask(case, domain)
        except NotApplicableError as reason:
            notes.append(f"Left out: {reason}.")
            continue
        shown.append(domain)
        rows.append(asked.row)
        readings += asked.readings
    if not readings:
        raise NotApplicableError(" ".join(notes))
    return Measured(
        readings=tuple(readings),
        pictures=(_picture(shown),),
        tables={"Agreement with the teacher, and accuracy": tuple(rows)},
        notes=tuple(notes),
    )


class _Asked(NamedTuple):
    readings: list[Reading]
    row: tuple[str, ...]


def _given(case: Case) -> _Domain:
    folder = case.given.other_images
    assert folder is not None
    found = read_pictures(case, folder, at_most=_QUICK_IMAGES if case.quick else _IMAGES)
    return _Domain(f"images of {folder.name}", found.images, found.labels.numpy(), is_given=True)


def _built_in(case: Case, name: str) -> _Domain:
    images = _BUILT_IN[name](case.images.float() / 255, case.torch_generator(name))
    return _Domain(name, images, case.labels.numpy())


def _ask(case: Case, domain: _Domain) -> _Asked:
    """What there is to say of one domain.

    Raises:
        NotApplicableError: if the teacher answers all of its images alike.
    """
    label = "clean" if domain.images is case.images else f"domain {domain.name}"
    chosen = {id(s): case.answers(s, label, domain.images).argmax(axis=1) for s in case.subjects}
    theirs = chosen[id(case.teacher)]
    case.refuse_constant(case.teacher, theirs, domain.name)
    known = domain.labels >= 0

    def agrees(student: Subject) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = chosen[id(student)] == theirs
        return same

    def right(subject: Subject) -> NDArray[np.bool_]:
        correct: NDArray[np.bool_] = chosen[id(subject)][known] == domain.labels[known]
        return correct

    groups = tuple(case.kinds.values())
    shares = [_percent(agrees, group) for group in groups[1:]]
    shares += [_percent(right, group) if known.any() else "" for group in groups]
    readings = [case.reading(f"agreement on {domain.name}", "images", agrees)]
    if domain.is_given and known.any():
        readings.append(case.trait(f"accuracy on {domain.name}", "labelled images", right))
    return _Asked(readings, (domain.name, f"{len(theirs):,}", *shares))


def _percent(value: Callable[[Subject], NDArray[np.bool_]], subjects: Sequence[Subject]) -> str:
    return f"{np.mean([value(subject).mean() for subject in subjects]):.1%}"


def _picture(domains: Sequence[_Domain]) -> Picture:
    columns = min(_DRAWN, *(len(domain.images) for domain in domains))
    return Picture(
        name="examples",
        caption="The first images of each domain, as the networks see them.",
        alt=f"Rows of example images: {', '.join(domain.name for domain in domains)}.",
        png=panels_png(
            [[panel(image) for image in domain.images[:columns]] for domain in domains],
            row_names=[domain.name for domain in domains],
            column_names=[""] * columns,
        ),
    )


DOMAINS = Experiment(
    key="domains",
    title="Unseen domains",
    question="Does the student answer as its teacher does on images of a kind that it never saw?",
    source="Ojha et al., 'What Knowledge Gets Distilled in Knowledge Distillation?', NeurIPS 2023, "
    "https://arxiv.org/abs/2205.16004, whose domains are those of Geirhos et al., NeurIPS 2021, "
    "https://arxiv.org/abs/2106.07411",
    measure=_measure,
    quick=True,
    reads=("other_images",),
)
