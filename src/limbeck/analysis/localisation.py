r"""Where they look: does the student look where its teacher looks?

Grad-CAM of the labelled class at the last map of features:

.. math:: M = \mathrm{ReLU}\Big(\sum_c a_c F_c\Big), \quad
    a_c = \frac{1}{HW} \sum_{hw} \frac{\partial z_y}{\partial F_{chw}}

and the cosine of a student's map with the teacher's, image by image, the larger map resized to
the smaller. The paper counts the images on which the distilled student is the nearer of the two;
that share is in the table, beside the same count for two independent students, which should be
near one half. Images whose map is all zero for any of the networks are left out and counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Picture, Subject
from limbeck.analysis.drawing import panel, panels_png
from limbeck.core.errors import LimbeckError
from limbeck.features import LayerAddress, resolve_layer

__all__ = ["LOCALISATION", "grad_cam"]

_IMAGES, _QUICK_IMAGES = 5000, 300
_DRAWN = 8


def grad_cam(case: Case, subject: Subject, images: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM of the labelled classes.

    Args:
        case: whose device and batch size are used.
        subject: the network.
        images: ``(N, C, H, W)``, uint8 or floating in [0, 1].
        labels: ``(N,)``, each of the data's classes.

    Returns:
        ``(N, h, w)``, ``>= 0``, on the CPU.

    Raises:
        NotApplicableError: if the network has no last map of features.

    Source:
        Selvaraju et al., "Grad-CAM", ICCV 2017, https://arxiv.org/abs/1610.02391, eq. 1 and 2.
    """
    answering = subject.answering().to(case.device)
    maps = []
    for start in range(0, len(images), case.batch_size):
        part = case.unit(images[start : start + case.batch_size])
        chosen = labels[start : start + case.batch_size].to(case.device)
        with _last_map(subject, answering.normalize(part[:2])) as caught:
            logits = answering(part)
        (feature,) = caught
        if feature.ndim != 4:
            raise NotApplicableError(
                f"{subject.name}: its last features are {tuple(feature.shape)}, no maps; Grad-CAM "
                "is for networks that end in maps"
            )
        score = logits.gather(1, chosen[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, feature)
        weight = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append((weight * feature).sum(dim=1).relu().detach().cpu())
    return torch.cat(maps)


@contextmanager
def _last_map(subject: Subject, image: Tensor) -> Iterator[list[Tensor]]:
    """Within it, the last map of the next forward pass is caught as a leaf of the graph."""
    try:
        address = LayerAddress.parse(resolve_layer(subject.network, "last", image))
    except LimbeckError as error:
        raise NotApplicableError(f"{subject.name} has no last map: {error}") from error
    module = subject.network.get_submodule(address.module)
    caught: list[Tensor] = []
    calls = itertools.count(1)

    def catch(feature: Tensor) -> Tensor:
        if next(calls) != (address.call or 1):
            return feature
        caught.append(feature.detach().requires_grad_())
        return caught[0].clone()  # what comes next may write into it

    if address.takes_input:
        handle = module.register_forward_pre_hook(lambda _, args: (catch(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda *seen: catch(seen[-1]))
    with handle:
        yield caught


def _measure(case: Case) -> Measured:
    known = np.flatnonzero(case.labels.numpy() >= 0)
    drawn = case.sample(_QUICK_IMAGES if case.quick else _IMAGES, "localisation")
    chosen = torch.from_numpy(np.intersect1d(drawn, known))
    images, labels = case.images[chosen], case.labels[chosen]
    maps = {id(s): grad_cam(case, s, images, labels) for s in case.subjects}
    alive = torch.stack([found.flatten(1).amax(dim=1) > 0 for found in maps.values()]).all(dim=0)
    if not alive.any():
        raise NotApplicableError("no image has a map that is not all zero in every network")
    theirs = maps[id(case.teacher)][alive]

    def cosine(student: Subject) -> NDArray[np.float64]:
        return _cosines(maps[id(student)][alive], theirs)

    reading = case.reading("cosine of its Grad-CAM with the teacher's", "images", cosine, unit="1")
    rows = [
        ("students", "images on which the first is nearer to the teacher", "chance"),
        *(
            (f"distilled, independent; seed {seed}", f"{_nearer(first, second):.1%}", "50%")
            for seed, first in reading.distilled.items()
            if (second := reading.independent.get(seed)) is not None
        ),
        *(
            (f"independent {one}, independent {two}", f"{_nearer(first, second):.1%}", "50%")
            for (one, first), (two, second) in itertools.combinations(
                reading.independent.items(), 2
            )
        ),
    ]
    return Measured(
        readings=(reading,),
        pictures=(_picture(case, images[alive], labels[alive], maps, alive),),
        tables={"Who looks more like the teacher": tuple(rows)},
        notes=(
            f"{int((~alive).sum())} of {len(alive)} images are left out: a map of one of the "
            "networks is all zero.",
        ),
        settings={"layer": "last", "images": int(alive.sum())},
    )


def _cosines(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """Image by image; the larger map resized to the smaller."""
    size = [min(a, b) for a, b in zip(first.shape[1:], second.shape[1:], strict=True)]
    ours, theirs = (
        F.interpolate(maps[:, None].double(), size=size, mode="bilinear").flatten(1)
        for maps in (first, second)
    )
    found: NDArray[np.float64] = F.cosine_similarity(ours, theirs, dim=1).numpy()
    return found


def _nearer(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Ties count half."""
    return float((first > second).mean() + 0.5 * (first == second).mean())


def _picture(
    case: Case, images: Tensor, labels: Tensor, maps: dict[int, Tensor], alive: Tensor
) -> Picture:
    """The first image of each of the first classes, and where each network looks."""
    present = sorted(set(labels.tolist()))[:_DRAWN]
    places = [int((labels == label).nonzero()[0]) for label in present]
    shown = {
        "teacher": case.teacher,
        "distilled": next(iter(case.distilled.values())),
        "independent": next(iter(case.independent.values())),
    }
    size = images.shape[2:]

    def overlaid(subject: Subject, place: int) -> NDArray[np.float32]:
        found = maps[id(subject)][alive][place][None, None]
        large = F.interpolate(found, size=size, mode="bilinear")[0, 0]
        overlay: NDArray[np.float32] = (large / large.max()).numpy()
        return overlay

    pictures = [panel(images[place]) for place in places]
    rows: list[list[NDArray[np.float32]]] = [
        pictures,
        *([overlaid(subject, place) for place in places] for subject in shown.values()),
    ]
    names = [case.class_names[label][:12] for label in present]
    return Picture(
        name="maps",
        caption="Where each network looks for the labelled class: the first image of each of the "
        "first classes. First seed; each map by its own largest value.",
        alt=f"Images of {', '.join(names)} and, below each, the Grad-CAM of teacher, distilled and "
        "independent student.",
        png=panels_png(rows, row_names=("image", *shown), column_names=names),
    )


LOCALISATION = Experiment(
    key="localisation",
    title="Where they look",
    question="Does the student look at the parts of an image that its teacher looks at?",
    source="Ojha et al., 'What Knowledge Gets Distilled in Knowledge Distillation?', NeurIPS 2023, "
    "https://arxiv.org/abs/2205.16004, which names neither layer nor resizing",
    measure=_measure,
    quick=True,
)
