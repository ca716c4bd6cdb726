"""B batch, D features; float64 and 1e-9 unless a test says otherwise. More in
test_invariances.py.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import pdist, squareform

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import irg_loss, irg_transformation_loss
from limbeck.methods.base import Probe
from limbeck.methods.relation.irg import IRG, IRGConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["irg"]
EXACT = {"rtol": 0.0, "atol": 1e-9}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


S = tensor([[math.sin(1.0 * (3 * i + j) + 0.5) for j in range(3)] for i in range(4)])
T = tensor([[math.cos(0.7 * (5 * i + j)) for j in range(5)] for i in range(4)])
T3 = tensor([[math.cos(0.7 * (3 * i + j)) for j in range(3)] for i in range(4)])
T5 = tensor([[math.cos(1.3 * (5 * i + j)) for j in range(5)] for i in range(4)])
COMPUTED = {
    "edges": lambda: irg_loss(S, T),
    "transformation": lambda: irg_transformation_loss(S, T3, T, T5),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_number_of_the_authors_loops(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_the_maximum_counts_as_a_constant_in_the_gradient():
    student = S.clone().requires_grad_()
    irg_loss(student, T).backward()
    largest, theirs = pdist(S).max() ** 2, tensor(squareform(pdist(T) / pdist(T).max()) ** 2)
    other = S.clone().requires_grad_()
    squared = (other[:, None] - other[None]).square().sum(2)
    ((squared / largest - theirs).square().sum() / 8).backward()
    torch.testing.assert_close(student.grad, other.grad, **EXACT)


def test_an_image_that_does_not_move_has_no_gradient_of_its_way():
    first = S.clone().requires_grad_()
    second = torch.cat([S[:1], T3[1:]])
    value = irg_transformation_loss(first, second, T, T5)
    value.backward()
    assert torch.isfinite(value)
    assert first.grad[0].abs().sum() == 0
    assert torch.isfinite(first.grad).all()


def test_a_part_that_moves_nothing_is_finite():
    first = S.clone().requires_grad_()
    value = irg_transformation_loss(first, S, T, T)
    value.backward()
    assert value.item() == 0
    assert first.grad.abs().sum() == 0


def test_a_part_that_changes_its_width_is_refused():
    with pytest.raises(ShapeError, match=r"student's part.*\(4, 3\) and \(4, 5\).*one width"):
        irg_transformation_loss(S, T, T, T5)


def case(generator, **settings):
    logits = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    student = Outputs(logits[0], features={"penultimate": S, "in": S, "out": T3})
    teacher = Outputs(logits[1], features={"penultimate": T, "in": T, "out": T5})
    probe = Probe(student=student, teacher=teacher, num_classes=3, num_images=20)
    return IRG.from_probe(IRGConfig(**settings), probe), student, teacher


def test_the_total_weighs_the_four_terms(generator):
    method, student, teacher = case(
        generator,
        student_parts=(("in", "out"),),
        teacher_parts=(("in", "out"),),
        ce_weight=0.5,
        edge_weight=2.0,
        vertex_weight=3.0,
        transformation_weight=4.0,
    )
    label = torch.tensor([0, 1, -1, 2])
    batch = Batch(index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=label)
    terms = method(batch, student, teacher, Progress())
    known = label >= 0
    ce = F.cross_entropy(student.logits[known], label[known])
    vertex = F.mse_loss(student.logits, teacher.logits, reduction="sum") / 8
    expected = 0.5 * ce + 2 * 0.016398355117 + 3 * vertex + 4 * 0.597645981206
    torch.testing.assert_close(terms.total, expected, rtol=0, atol=1e-9)
    assert terms.parts.keys() == {"ce", "edge", "vertex", "transformation"}
    needs = IRG.needs(method.config)
    assert needs.student_layers == ("penultimate", "in", "out")
    assert method.describe() == (
        "student penultimate 3 -> teacher penultimate 5; no parameters",
        "student in 3 -> teacher in 5; no parameters",
        "student out 3 -> teacher out 5; no parameters",
    )


def test_by_default_it_is_the_authors_single_graph(generator):
    method, student, teacher = case(generator)
    batch = Batch(index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=torch.full((4,), -1))
    total = method(batch, student, teacher, Progress()).total
    assert abs(total.item() - 0.005 * 0.016398355117) < 1e-9


def test_parts_must_pair_up():
    with pytest.raises(SettingsError, match="equally many parts; got 1 and 0"):
        IRGConfig(student_parts=(("a", "b"),))
