"""Which stage goes with which."""

import pytest
import torch

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Outputs
from limbeck.methods.adapters import LayoutConfig
from limbeck.methods.base import Probe
from limbeck.methods.pairing import pair_grids, pair_layers


@pytest.mark.parametrize(
    ("student", "teacher", "resolution", "depth"),
    [
        # equal lists
        ((32, 16, 8), (32, 16, 8), [(0, 0), (1, 1), (2, 2)], [(0, 0), (1, 1), (2, 2)]),
        # a list that begins a stage later
        ((28, 14, 7), (56, 28, 14, 7), [(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]),
        # a network that goes on halving
        ((32, 16, 8), (32, 16, 8, 4), [(0, 0), (1, 1), (2, 2)], [(0, 1), (1, 2), (2, 3)]),
        ((16, 8, 4), (32, 16, 8), [(0, 1), (1, 2)], [(0, 0), (1, 1), (2, 2)]),
        # two stages of one size
        ((16, 8, 4, 4), (16, 8, 4, 4), [(k, k) for k in range(4)], [(k, k) for k in range(4)]),
        ((16, 8, 4), (16, 8, 4, 4), [(0, 0), (1, 1), (2, 3)], [(0, 1), (1, 2), (2, 3)]),
        # sizes that are nearly equal
        ((35, 17, 8), (32, 16, 7), [(0, 0), (1, 1), (2, 2)], [(0, 0), (1, 1), (2, 2)]),
        # a transformer
        ((56, 28, 14, 7), (14,) * 4, [(k, k) for k in range(4)], [(k, k) for k in range(4)]),
        ((14,) * 4, (32, 16, 8), [(1, 0), (2, 1), (3, 2)], [(1, 0), (2, 1), (3, 2)]),
        # other sizes throughout: only the student's last and the teacher's first are equal
        ((32, 16, 8), (8, 4, 2, 1), [(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_stages_are_paired_by_size_or_from_the_last_backwards(student, teacher, resolution, depth):
    grids = [[(side, side) for side in sides] for sides in (student, teacher)]
    assert pair_grids(*grids, rule="resolution") == resolution
    assert pair_grids(*grids, rule="depth") == depth


def probe_of(student, teacher):
    outputs = [
        Outputs(features={name: torch.zeros(2, *shape) for name, shape in shapes.items()})
        for shapes in (student, teacher)
    ]
    return Probe(student=outputs[0], teacher=outputs[1], num_classes=4, num_images=20)


def pair(probe, student, teacher, rule="resolution"):
    layout = LayoutConfig()
    return pair_layers(
        probe, student, teacher, rule=rule, student_layout=layout, teacher_layout=layout
    )


def test_layers_that_are_named_are_paired_as_they_are_named():
    probe = probe_of({"a": (3, 8, 8), "b": (3, 4, 4)}, {"c": (3, 4, 4), "d": (3, 8, 8)})
    found = pair(probe, ("a", "b"), ("c", "d"))
    assert [(one, other) for one, other, _ in found.pairs] == [("a", "c"), ("b", "d")]
    assert found.left_out == ()


@pytest.mark.parametrize(("student", "teacher"), [(("a",), ("c", "d")), ((), ())])
def test_unequal_numbers_of_named_layers_are_refused(student, teacher):
    probe = probe_of({"a": (3, 8, 8)}, {"c": (3, 4, 4), "d": (3, 8, 8)})
    with pytest.raises(SettingsError, match="equally many layers"):
        pair(probe, student, teacher)


def test_what_is_left_out_is_said():
    probe = probe_of(
        {"stage1": (3, 8, 8), "stage2": (3, 4, 4)},
        {"stage1": (5, 16, 16), "stage2": (5, 8, 8), "stage3": (17, 6)},
    )
    found = pair(probe, ("stage*",), ("stage*",))
    assert [(one, other) for one, other, _ in found.pairs] == [
        ("stage1", "stage2"),
        ("stage2", "stage3"),
    ]
    assert found.left_out == ("teacher stage1 5x16x16 is left out: it has no partner",)
    assert [p.channels for p in found.pairs] == [(3, 5), (3, 6)]


def test_tokens_that_form_no_square_are_refused_before_training():
    probe = probe_of({"stage1": (3, 8, 8)}, {"stage1": (12, 6)})
    with pytest.raises(ShapeError, match="prefix_tokens"):
        pair(probe, ("stage*",), ("stage*",))


def test_a_vector_goes_with_a_vector():
    probe = probe_of(
        {"stage1": (3, 8, 8), "penultimate": (3,)}, {"stage1": (5, 8, 8), "penultimate": (5,)}
    )
    found = pair(probe, ("stage*", "penultimate"), ("stage*", "penultimate"), rule="depth")
    assert [(one, other) for one, other, _ in found.pairs] == [
        ("stage1", "stage1"),
        ("penultimate", "penultimate"),
    ]
    with pytest.raises(ShapeError, match="a vector has no places"):
        pair(probe, ("stage1",), ("penultimate",))
