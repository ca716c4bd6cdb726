"""B batch, D features; float64 and 1e-9 unless a test says otherwise. More in
test_invariances.py.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import pkt_loss
from limbeck.methods.base import Probe
from limbeck.methods.relation.pkt import PKT, PKTConfig, _neighbours

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["pkt"]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


S = tensor([[math.sin(1.0 * (3 * i + j) + 0.5) for j in range(3)] for i in range(4)])
T = tensor([[math.cos(0.7 * (5 * i + j)) for j in range(5)] for i in range(4)])
SL, TL = tensor([[1, 0], [0, 2], [-1, 1]]), tensor([[2, 1, 0], [0, 1, 3], [-1, 0, 1]])


def gradient():
    student = S.clone().requires_grad_()
    pkt_loss(student, T).backward()
    return student.grad


COMPUTED = {
    "divergence": lambda: pkt_loss(S, T),
    "norm of gradient": lambda: gradient().norm(),
    "gradient [0,0]": lambda: gradient()[0, 0],
    "literal divergence": lambda: pkt_loss(SL, TL),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_it_is_the_mean_row_divergence_over_the_batch_size():
    """scipy's divergence of cosines by torch, but for the two epsilons of 1e-7."""

    def probabilities(rows):
        cosines = torch.stack([F.cosine_similarity(row, rows, dim=1) for row in rows])
        return (cosines + 1) / (cosines + 1).sum(dim=1, keepdim=True)

    divergence = rel_entr(probabilities(T).numpy(), probabilities(S).numpy()).sum(axis=1).mean()
    assert abs(pkt_loss(S, T).item() - divergence / 4) < 1e-6


def test_a_row_of_zeros_is_equally_far_from_all_and_has_no_gradient():
    student = torch.cat([torch.zeros(1, 3, dtype=torch.float64), S[1:]]).requires_grad_()
    torch.testing.assert_close(
        _neighbours(student)[0], torch.full((4,), 0.25, dtype=torch.float64), rtol=0, atol=1e-9
    )
    pkt_loss(student, T).backward()
    assert student.grad[0].abs().sum() == 0
    assert torch.isfinite(student.grad).all()


def test_the_total_weighs_both_terms_and_averages_maps_over_their_places(generator):
    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    label = torch.tensor([0, 1, -1, 2])
    batch = Batch(index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=label)
    config = PKTConfig(student_layer="a", teacher_layer="b")
    maps = S[:, :, None, None] + tensor([[-1, 1], [2, -2]])
    student, teacher = Outputs(logits, features={"a": maps}), Outputs(logits, features={"b": T})
    needs = PKT.needs(config)
    assert (needs.student_layers, needs.teacher_layers) == (("a",), ("b",))
    probe = Probe(student=student, teacher=teacher, num_classes=3, num_images=20)
    method = PKT.from_probe(config, probe)
    assert method.describe() == ("student a 3x2x2, mean of 4 places -> teacher b 5; no parameters",)
    terms = method(batch, student, teacher, Progress())
    known = label >= 0
    ce = F.cross_entropy(logits[known], label[known])
    torch.testing.assert_close(terms.total, ce + 30000 * 0.0176276856, rtol=0, atol=2e-6)
    assert terms.parts.keys() == {"ce", "divergence"}
