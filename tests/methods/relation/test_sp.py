"""B batch; float64 and 1e-9 unless a test says otherwise. More in test_invariances.py."""

import json
import math
from pathlib import Path

import pytest
import torch

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import sp_loss
from limbeck.methods.base import Probe
from limbeck.methods.relation.sp import SP, SPConfig, _similarities

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["sp"]
EXACT = {"rtol": 0.0, "atol": 1e-9}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


S = tensor([[math.sin(1.0 * (3 * i + j) + 0.5) for j in range(3)] for i in range(4)])
T = tensor([[math.cos(0.7 * (5 * i + j)) for j in range(5)] for i in range(4)])
SL, TL = tensor([[1, 0], [0, 2], [-1, 1]]), tensor([[2, 1, 0], [0, 1, 3], [-1, 0, 1]])


def gradient():
    student = S.clone().requires_grad_()
    sp_loss(student, T).backward()
    return student.grad


COMPUTED = {
    "similarity": lambda: sp_loss(S, T),
    "norm of gradient": lambda: gradient().norm(),
    "gradient [0,0]": lambda: gradient()[0, 0],
    **{f"student's similarity [0,{j}]": lambda j=j: _similarities(S)[0, j] for j in range(4)},
    "literal similarity": lambda: sp_loss(SL, TL),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_it_is_the_formula_in_plain_loops():
    def normalised(rows):
        gram = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
        return [[value / math.hypot(*row) for value in row] for row in gram]

    ours, theirs = normalised(S.tolist()), normalised(T.tolist())
    terms = [(ours[i][j] - theirs[i][j]) ** 2 for i in range(4) for j in range(4)]
    assert abs(sp_loss(S, T).item() - sum(terms) / 16) < 1e-9


def test_a_map_is_its_flattened_row(generator):
    maps = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=generator)
    flat = maps.reshape(4, 75)
    torch.testing.assert_close(sp_loss(maps, T), sp_loss(flat, T), **EXACT)
    torch.testing.assert_close(sp_loss(S, maps), sp_loss(S, flat), **EXACT)


def test_a_student_of_zeros_has_one_over_the_batch_size_and_no_gradient():
    student = torch.zeros_like(SL).requires_grad_()
    value = sp_loss(student, TL)
    value.backward()
    assert abs(value.item() - 1 / 3) < 1e-9
    assert student.grad.abs().sum() == 0


def test_the_loss_is_at_most_four_over_the_batch_size(generator):
    """Reached where every row of one matrix is the other's, reversed; one image's never is."""
    for size in (2, 5, 9):
        student, teacher = torch.randn(2, size, 4, dtype=torch.float64, generator=generator)
        assert sp_loss(student, teacher) <= 4 / size


@pytest.mark.parametrize(("student", "teacher"), [((4,), (4,)), ((4, 2), (3, 2))])
def test_other_shapes_are_named(student, teacher):
    with pytest.raises(ShapeError, match=r"\(batch, \.\.\.\), of the same batch; got student \(4"):
        sp_loss(torch.zeros(student), torch.zeros(teacher))


def test_the_total_weighs_both_terms_on_its_own_layers(generator):
    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    label = torch.tensor([0, 1, -1, 2])
    batch = Batch(index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=label)
    config = SPConfig(student_layer="a", teacher_layer="b")
    student, teacher = Outputs(logits, features={"a": S}), Outputs(logits, features={"b": T})
    needs = SP.needs(config)
    assert (needs.student_layers, needs.teacher_layers) == (("a",), ("b",))
    probe = Probe(student=student, teacher=teacher, num_classes=3, num_images=20)
    method = SP.from_probe(config, probe)
    assert method.describe() == ("student a 3 -> teacher b 5, flattened; no parameters",)
    terms = method(batch, student, teacher, Progress())
    known = label >= 0
    ce = torch.nn.functional.cross_entropy(logits[known], label[known])
    torch.testing.assert_close(terms.total, ce + 3000 * 0.0050992042, rtol=0, atol=3e-7)
    assert terms.parts.keys() == {"ce", "similarity"}
