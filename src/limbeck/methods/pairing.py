"""Which of one network's layers answers to which of the other's, where a method compares several.

Layers that are named one by one are paired as they are named. With ``stage*``, which stands for
every stage that a network has, a rule pairs them, from the last stage backwards:

- "depth": the last with the last, and so on, until one network has no more.
- "resolution": stages whose maps have the same size, to within half an octave; a stage without one
  is left out. Where that pairs fewer than half of the stages that could be paired, sizes say
  nothing (a transformer's tokens are equally many at every depth; a network that sees its images
  enlarged has other sizes throughout), and the rule is "depth".

Lists of features that begin at different places, as those of a network without a stem, are off by
one stage when they are simply put side by side; neither rule is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from torch import nn

from limbeck.core.errors import SettingsError
from limbeck.core.types import Outputs
from limbeck.methods.adapters import AlignedPair, Alignment, LayoutConfig, align, find_layout
from limbeck.methods.base import Probe

__all__ = ["LayerPair", "LayerPairs", "Pairing", "named_one_by_one", "pair_grids", "pair_layers"]

Pairing = Literal["resolution", "depth"]

_SAME = 0.5  # octaves between two sizes that count as one


class LayerPair(NamedTuple):
    """Two layers that are compared, by name, and how they are brought together as maps."""

    student: str
    teacher: str
    alignment: Alignment

    @property
    def channels(self) -> tuple[int, int]:
        """Of the student's layer and of the teacher's."""
        return self.alignment.student_layout.channels, self.alignment.teacher_layout.channels

    def bring(self, student: Outputs, teacher: Outputs) -> AlignedPair:
        """Both layers of one batch, as maps."""
        return self.alignment(student.features[self.student], teacher.features[self.teacher])


class LayerPairs(NamedTuple):
    """All that are compared, in the order of the forward pass, and a line for each that is not."""

    pairs: tuple[LayerPair, ...]
    left_out: tuple[str, ...]

    def resized(self, to: Literal["teacher", "smaller"]) -> LayerPairs:
        """The same, with both layers of each pair brought to one size."""
        pairs = (pair._replace(alignment=pair.alignment.resized(to)) for pair in self.pairs)
        return LayerPairs(tuple(pairs), self.left_out)

    def describe(self, regressors: Iterable[nn.Module | None]) -> tuple[str, ...]:
        """One line for each pair and what stands between its layers, and the left out."""
        lines = (
            pair.alignment.describe(pair.student, pair.teacher, regressor)
            for pair, regressor in zip(self.pairs, regressors, strict=True)
        )
        return (*lines, *self.left_out)


def pair_layers(
    probe: Probe,
    student_layers: Sequence[str],
    teacher_layers: Sequence[str],
    *,
    rule: Pairing,
    student_layout: LayoutConfig,
    teacher_layout: LayoutConfig,
) -> LayerPairs:
    """Pair the layers of two networks as the module says; each alignment is at its own sizes.

    Args:
        probe: holds their features.
        student_layers: as asked for, in the order of the forward pass.
        teacher_layers: the same.
        rule: for layers that are not named one by one.
        student_layout: how the student's lie, where their shapes leave it open.
        teacher_layout: the same of the teacher's.

    Raises:
        SettingsError: if layers are named one by one, and not equally many of both networks.
        ShapeError: if two that are paired cannot be brought together.
    """
    names = {
        "student": probe.layers("student", student_layers),
        "teacher": probe.layers("teacher", teacher_layers),
    }
    layouts = {"student": student_layout, "teacher": teacher_layout}
    lying = {
        whose: [
            find_layout(probe.feature(whose, name), layouts[whose], whose=whose)
            for name in names[whose]
        ]
        for whose in names
    }
    if named_one_by_one(student_layers, teacher_layers):
        chosen = [(k, k) for k in range(len(student_layers))]
    else:
        grids = {whose: [layout.known_grid() for layout in lying[whose]] for whose in lying}
        chosen = pair_grids(grids["student"], grids["teacher"], rule=rule)
    pairs = tuple(
        LayerPair(
            ours := names["student"][i],
            theirs := names["teacher"][j],
            align(
                probe.feature("student", ours),
                probe.feature("teacher", theirs),
                purpose="map",
                student_layout=student_layout,
                teacher_layout=teacher_layout,
            ),
        )
        for i, j in chosen
    )
    left_out = tuple(
        f"{whose} {name} {layout.describe('map')} is left out: it has no partner"
        for position, whose in enumerate(names)
        for k, (name, layout) in enumerate(zip(names[whose], lying[whose], strict=True))
        if k not in {pair[position] for pair in chosen}
    )
    return LayerPairs(pairs, left_out)


def named_one_by_one(student_layers: Sequence[str], teacher_layers: Sequence[str]) -> bool:
    """Whether the layers that are asked for are pairs as they stand, without ``stage*``.

    Raises:
        SettingsError: if they should be, and are not equally many of both networks.
    """
    if any("*" in name for name in (*student_layers, *teacher_layers)):
        return False
    counts = len(student_layers), len(teacher_layers)
    if counts[0] != counts[1] or not counts[0]:
        raise SettingsError(
            "student_layers and teacher_layers must name equally many layers, or every stage "
            f"('stage*'); got {counts[0]} and {counts[1]}"
        )
    return True


def pair_grids(
    student_grids: Sequence[tuple[int, int]],
    teacher_grids: Sequence[tuple[int, int]],
    *,
    rule: Pairing,
) -> list[tuple[int, int]]:
    """Positions of the layers that are paired, in order of depth, from the sizes (H, W) of each.

    Example:
        >>> without_stem = [(28, 28), (14, 14), (7, 7)]
        >>> pair_grids(without_stem, [(56, 56), *without_stem], rule="resolution")
        [(0, 1), (1, 2), (2, 3)]
    """
    fewer = min(len(student_grids), len(teacher_grids))
    by_depth = [
        (len(student_grids) - back, len(teacher_grids) - back) for back in range(fewer, 0, -1)
    ]
    if rule == "depth" or any(len(set(grids)) < 2 for grids in (student_grids, teacher_grids)):
        return by_depth
    found: list[tuple[int, int]] = []
    i, j = len(student_grids) - 1, len(teacher_grids) - 1
    while i >= 0 and j >= 0:
        octaves = _octaves(student_grids[i], teacher_grids[j])
        if abs(octaves) < _SAME:
            found.append((i, j))
            i, j = i - 1, j - 1
        elif octaves < 0:  # the student's is the smaller: deeper than what is left of the teacher
            i -= 1
        else:
            j -= 1
    return found[::-1] if 2 * len(found) >= fewer else by_depth


def _octaves(grid: tuple[int, int], other: tuple[int, int]) -> float:
    """How often the side of ``grid`` is twice that of ``other``."""
    return math.log2(math.prod(grid) / math.prod(other)) / 2
