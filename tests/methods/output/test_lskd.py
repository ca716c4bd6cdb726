"""B batch, K classes; float64 and 1e-9 unless a test says otherwise."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import dkd_loss, kd_loss, standardize_logits
from limbeck.methods.output.kd import KD
from limbeck.methods.output.lskd import LSKDConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["lskd"]
EXACT = {"rtol": 0.0, "atol": 1e-9}

ZS = torch.tensor(
    [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
    dtype=torch.float64,
)
ZT = torch.tensor(
    [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
    dtype=torch.float64,
)
Y = torch.tensor([2, 3, 4])
MINI = torch.tensor([[[2.0, 1.0, 0.0]], [[1.0, 3.0, 0.5]]], dtype=torch.float64)


def terms(student=ZS, teacher=ZT, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=Y)
    return KD(LSKDConfig(**settings))(batch, Outputs(student), Outputs(teacher), Progress())


def lskd(temperature, student=ZS, teacher=ZT, **settings):
    return terms(student, teacher, temperature=temperature, **settings).parts["kd"]


def gradient(student=ZS):
    student = student.clone().requires_grad_()
    seen = standardize_logits(student), standardize_logits(ZT)
    kd_loss(*seen, temperature=2.0).backward()
    return student.grad


def standardised_dkd(alpha, beta):
    seen = standardize_logits(ZS), standardize_logits(ZT)
    return dkd_loss(*seen, Y, alpha=alpha, beta=beta, temperature=2)


COMPUTED = {
    **{f"T={t}": lambda t=t: lskd(t) for t in (1, 2, 3, 4)},
    "0.1 CE + 9 T=2": lambda: terms().total,
    "population T=2": lambda: lskd(2, standardize="population"),
    **{f"standardised [0,{k}]": lambda k=k: standardize_logits(ZS)[0, k] for k in range(5)},
    **{f"gradient T=2 [0,{k}]": lambda k=k: gradient()[0, k] for k in range(5)},
    **{f"DKD 9, {beta}, 2": lambda beta=beta: standardised_dkd(9, beta) for beta in (72, 18, 9)},
    "mini T=2": lambda: kd_loss(*(standardize_logits(z) for z in MINI), temperature=2),
    "mirrored T=2": lambda: lskd(2, student=-ZT),
    "T=2 in float32": lambda: lskd(2, ZS.float(), ZT.float()),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_it_is_kd_with_the_setting_on_and_the_papers_defaults():
    config = LSKDConfig()
    assert (config.temperature, config.ce_weight, config.kd_weight) == (2, 0.1, 9)
    assert config.standardize is True


@pytest.mark.parametrize("standardize", [True, "population"])
def test_size_and_offset_of_a_row_are_free(standardize):
    """1e-6: the 1e-7 beside the deviation is not scaled with it."""
    scale = torch.tensor([[0.01], [3.0], [100.0]], dtype=torch.float64)
    offset = torch.tensor([[7.0], [-50.0], [0.1]], dtype=torch.float64)
    expected = lskd(2, standardize=standardize)
    for student, teacher in ((scale * ZS + offset, ZT), (ZS, scale * ZT + offset)):
        found = lskd(2, student, teacher, standardize=standardize)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_a_scaled_and_shifted_teacher_is_no_loss():
    assert lskd(2, 3 * ZT - 1, ZT) < 1e-12
    assert lskd(2, -ZT, ZT) > 1


def test_the_gradient_is_orthogonal_to_the_row_and_to_the_constants():
    found = gradient()
    assert found.sum(1).abs().max() < 1e-12
    # 1e-7 beside the deviation leaves that much along the row.
    assert (found * (ZS - ZS.mean(1, keepdim=True))).sum(1).abs().max() < 1e-7


def test_the_cross_entropy_sees_raw_scores():
    torch.testing.assert_close(terms().parts["ce"], F.cross_entropy(ZS, Y), **EXACT)


def test_the_temperature_stays_with_the_loss():
    expected = kd_loss(standardize_logits(ZS), standardize_logits(ZT), temperature=3)
    torch.testing.assert_close(lskd(3), expected, **EXACT)


def test_a_zero_initialised_classifier_has_a_gradient_of_ordinary_size():
    student = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    terms(student).total.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 1
