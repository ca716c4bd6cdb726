"""B batch, D features; float64 and 1e-9 unless a test says otherwise. More in
test_invariances.py.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import cc_loss
from limbeck.methods.base import Probe
from limbeck.methods.relation.cc import CC, CCConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["cc"]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


S = tensor([[math.sin(1.0 * (3 * i + j) + 0.5) for j in range(3)] for i in range(4)])
T3 = tensor([[math.cos(0.7 * (3 * i + j)) for j in range(3)] for i in range(4)])
SL, TL2 = tensor([[1, 0], [0, 2], [-1, 1]]), tensor([[2, 1], [0, 1], [-1, 0]])


def gradient():
    student = S.clone().requires_grad_()
    cc_loss(student, T3).backward()
    return student.grad


COMPUTED = {
    "products": lambda: cc_loss(S, T3),
    "norm of gradient": lambda: gradient().norm(),
    "gradient [0,0]": lambda: gradient()[0, 0],
    "literal products": lambda: cc_loss(SL, TL2),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_benchmarks_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_it_is_the_formula_in_plain_loops():
    terms = [
        abs(S[i, d] - T3[i, d]) * abs(S[i + 1, d] - T3[i + 1, d])
        for i in range(3)
        for d in range(3)
    ]
    assert abs(cc_loss(S, T3).item() - float(sum(terms)) / 3) < 1e-9


def test_an_error_in_every_other_image_costs_nothing():
    """It is no distance: neighbours that agree hide one that does not."""
    wrong = T3 + tensor([[5.0], [0.0], [7.0], [0.0]])
    assert cc_loss(wrong, T3).item() == 0
    assert cc_loss(wrong[[0, 2, 1, 3]], T3[[0, 2, 1, 3]]) > 10


@pytest.mark.parametrize("teacher", [(4, 5), (4,)])
def test_other_shapes_are_named(teacher):
    with pytest.raises(ShapeError, match=r"got student \(4, 3\).*a linear layer each"):
        cc_loss(torch.zeros(4, 3), torch.zeros(teacher))


@pytest.fixture
def case(generator):
    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    student = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    teacher = torch.randn(4, 9, dtype=torch.float64, generator=generator)
    outputs = (
        Outputs(logits, features={"a": student}),
        Outputs(logits, features={"b": teacher}),
    )
    probe = Probe(student=outputs[0], teacher=outputs[1], num_classes=3, num_images=20)
    config = CCConfig(student_layer="a", teacher_layer="b", embedding_dim=5)
    return CC.from_probe(config, probe).double(), *outputs


def test_both_embeddings_are_trained_and_described(case):
    method, student, teacher = case
    batch = Batch(
        index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=torch.tensor([0, 1, -1, 2])
    )
    terms = method(batch, student, teacher, Progress())
    ours = F.linear(student.features["a"], *method.student_embedding.parameters())
    theirs = F.linear(teacher.features["b"], *method.teacher_embedding.parameters())
    known = batch.label >= 0
    ce = F.cross_entropy(student.logits[known], batch.label[known])
    expected = ce + 0.02 * cc_loss(ours, theirs)
    torch.testing.assert_close(terms.total, expected, rtol=0, atol=1e-9)
    terms.total.backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())
    assert method.describe() == (
        "student a 6 -> linear -> 5 <- linear <- teacher b 9; 85 parameters",
    )


def test_a_collapse_of_both_embeddings_is_its_optimum(case):
    """As the benchmark's form has it; the paper's form does not."""
    method, student, teacher = case
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
    batch = Batch(index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=torch.full((4,), -1))
    assert method(batch, student, teacher, Progress()).total.item() == 0
