r"""Decision boundaries: do student and teacher cut up the space between images alike?

Three test images of three classes span a plane; on a grid over it, each network decides. The share
of grid points at which a student decides as the teacher does, plane by plane:

.. math:: \frac{1}{G^2} \sum_{uv} [\arg\max f^s(x_{uv}) = \arg\max f^t(x_{uv})], \quad
    x_{uv} = x_1 + u \, e_1 + v \, e_2

with :math:`e_1, e_2` from :math:`x_2 - x_1, x_3 - x_1` by Gram and Schmidt, and the grid over the
box around the three images, 10 % wider on each side. Points outside [0, 1] are given to the
networks as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Picture, Subject
from limbeck.analysis.drawing import panels_png

__all__ = ["BOUNDARIES", "Plane", "plane_through"]

_PLANES, _SIDE, _QUICK_SIDE = 50, 50, 20
_DRAWN = 3
_MARGIN = 0.1
_SMALLEST = 1e-6  # of an edge's length; three such images span no plane


class Plane(NamedTuple):
    """A grid of images over the plane through three.

    Attributes:
        points: ``(side * side, C, H, W)``, row by row.
        corners: ``(3, 2)``: where the three images lie, as (column, row) of the grid.
    """

    points: Tensor
    corners: NDArray[np.float64]


def plane_through(images: Tensor, *, side: int) -> Plane:
    """The grid over the plane through three images.

    Args:
        images: ``(3, C, H, W)``, floating.
        side: points in each direction.

    Raises:
        NotApplicableError: if the three lie on a line.
    """
    origin = images[0].flatten().double()
    first, second = (image.flatten().double() - origin for image in images[1:])
    length = first.norm()
    e1 = first / length.clamp(min=_SMALLEST)
    x = second @ e1
    rest = second - x * e1
    height = rest.norm()
    if min(length, height) < _SMALLEST:
        raise NotApplicableError("three images lie on a line and span no plane")
    e2 = rest / height
    at = torch.tensor([[0.0, 0.0], [float(length), 0.0], [float(x), float(height)]]).double()
    low, high = at.amin(dim=0), at.amax(dim=0)
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    us, vs = (torch.linspace(float(low[i]), float(high[i]), side).double() for i in (0, 1))
    points = origin + us.repeat(side)[:, None] * e1 + vs.repeat_interleave(side)[:, None] * e2
    corners = ((at - low) / (high - low) * (side - 1)).numpy()
    return Plane(points.reshape(side * side, *images.shape[1:]).to(images.dtype), corners)


def _measure(case: Case) -> Measured:
    side = _QUICK_SIDE if case.quick else _SIDE
    triplets = _triplets(case)
    planes = [plane_through(case.images[t].float() / 255, side=side) for t in triplets]
    decisions = {
        id(subject): np.stack([case.forward(subject, p.points).argmax(axis=1) for p in planes])
        for subject in case.subjects
    }
    theirs = decisions[id(case.teacher)]

    def equal(student: Subject) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = (decisions[id(student)] == theirs).mean(axis=1)
        return shares

    reading = case.reading("share of equal decisions between images", "planes", equal)
    shown = (
        case.teacher,
        next(iter(case.distilled.values())),
        next(iter(case.independent.values())),
    )
    drawn = range(min(_DRAWN, len(planes)))
    png = panels_png(
        [[decisions[id(subject)][k].reshape(side, side) for k in drawn] for subject in shown],
        row_names=("teacher", "distilled", "independent"),
        column_names=[
            " / ".join(case.class_names[int(case.labels[i])][:12] for i in triplets[k])
            for k in drawn
        ],
        marks=[planes[k].corners for k in drawn],
        classes=True,
    )
    shares = [f"{equal(subject)[k]:.0%}" for subject in shown[1:] for k in drawn]
    return Measured(
        readings=(reading,),
        pictures=(
            Picture(
                name="planes",
                caption="The class that each network decides for on the first planes; the dots "
                "are the three test images that span it. First seed.",
                alt="Maps of decisions of teacher, distilled and independent student on "
                f"{len(drawn)} planes; equal to the teacher's, distilled: "
                f"{', '.join(shares[: len(drawn)])}; independent: "
                f"{', '.join(shares[len(drawn) :])}.",
                png=png,
            ),
        ),
        settings={"planes": len(planes), "points": side * side, "margin": _MARGIN},
    )


def _triplets(case: Case) -> list[list[int]]:
    """Positions of three images of three classes each, drawn."""
    labels = case.labels.numpy()
    present = np.unique(labels[labels >= 0])
    if len(present) < 3:
        raise NotApplicableError(
            f"planes go through images of three classes; the images are of {len(present)}"
        )
    generator = case.generator("boundaries")
    members = {int(label): np.flatnonzero(labels == label) for label in present}
    return [
        [
            int(generator.choice(members[int(label)]))
            for label in generator.choice(present, 3, replace=False)
        ]
        for _ in range(_PLANES)
    ]


BOUNDARIES = Experiment(
    key="boundaries",
    title="Decision boundaries",
    question="Does the student draw its class boundaries where its teacher does?",
    source="Somepalli et al., 'Can Neural Nets Learn the Same Model Twice?', CVPR 2022, "
    "https://arxiv.org/abs/2203.08124; of distillation: Ojha et al., 'What Knowledge Gets "
    "Distilled in Knowledge Distillation?', NeurIPS 2023, https://arxiv.org/abs/2205.16004",
    measure=_measure,
    quick=True,
)
