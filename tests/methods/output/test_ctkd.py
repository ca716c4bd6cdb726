"""B batch, K classes; float64 and 1e-9 unless a test says otherwise."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import kd_loss
from limbeck.methods.output.ctkd import (
    CTKD,
    CTKDConfig,
    curriculum_strength,
    reversed_gradient,
)

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["ctkd"]
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


def made(**settings):
    return CTKD(CTKDConfig(**settings)).double()


def terms(method=None, epoch=0, student=ZS, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=Y)
    method = made(**settings) if method is None else method
    progress = Progress(epoch=epoch, num_epochs=240)
    return method(batch, Outputs(student), Outputs(ZT), progress)


def gradients(epoch=19, student=ZS, **settings):
    """Of theta and of the student, by the divergence alone."""
    method = made(ce_weight=0, kd_weight=1, **settings)
    student = student.clone().requires_grad_()
    terms(method, epoch, student).total.backward()
    return method.theta.grad, student.grad


COMPUTED = {
    "temperature": lambda: terms().parts["temperature"],
    "KD": lambda: terms().parts["kd"],
    "gradient of theta, epoch 3": lambda: gradients(epoch=2)[0],
    "gradient of theta, epoch 20": lambda: gradients(epoch=19)[0],
    **{f"gradient [0,{k}]": lambda k=k: gradients()[1][0, k] for k in range(5)},
    **{
        f"strength, epoch {epoch}": lambda epoch=epoch: torch.tensor(
            -curriculum_strength(epoch - 1, 10), dtype=torch.float64
        )
        for epoch in (1, 3)
    },
    "standardised KD": lambda: terms(standardize=True).parts["kd"],
    "standardised gradient of theta": lambda: gradients(standardize=True)[0],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_it_is_kd_at_the_temperature_of_theta():
    method = made(temperature_start=2, temperature_range=3)
    with torch.no_grad():
        method.theta.fill_(-0.7)
    temperature = 2 + 3 / (1 + math.exp(0.7))
    found = terms(method)
    expected = kd_loss(ZS, ZT, temperature=temperature)
    torch.testing.assert_close(found.parts["kd"], expected, **EXACT)
    assert found.parts["temperature"].item() == pytest.approx(temperature, abs=1e-12)
    total = 0.1 * F.cross_entropy(ZS, Y) + 0.9 * expected
    torch.testing.assert_close(found.total, total, **EXACT)


@pytest.mark.parametrize("epoch", [0, 3, 40])
def test_theta_climbs_where_the_student_descends(epoch):
    """Its gradient is minus the strength times that of the loss, by differences."""
    step, values = 1e-5, []
    for sign in (1, -1):
        method = made(ce_weight=0, kd_weight=1)
        with torch.no_grad():
            method.theta.add_(sign * step)
        values.append(terms(method).total.item())
    slope = (values[0] - values[1]) / (2 * step)
    expected = -curriculum_strength(epoch, 10) * slope
    assert gradients(epoch=epoch)[0].item() == pytest.approx(expected, rel=1e-5)


def test_the_students_gradient_is_not_reversed():
    temperature = 1 + 20 / (1 + math.exp(-1))
    p_student, p_teacher = (F.softmax(z / temperature, dim=1) for z in (ZS, ZT))
    expected = temperature / 3 * (p_student - p_teacher)
    for epoch in (0, 50):
        torch.testing.assert_close(gradients(epoch=epoch)[1], expected, **EXACT)


def test_the_curriculum_rises_from_almost_nothing_to_one():
    strengths = [curriculum_strength(epoch, 10) for epoch in range(12)]
    assert strengths == sorted(strengths)
    assert 0 < strengths[0] < 0.03
    assert strengths[9:] == [1, 1, 1]
    assert curriculum_strength(0, 1) == 1


def test_the_temperature_stays_between_its_bounds():
    method = made()
    for theta, expected in ((-1e4, 1), (1e4, 21)):
        with torch.no_grad():
            method.theta.fill_(theta)
        assert terms(method).parts["temperature"].item() == expected


def test_reversal_keeps_values_and_turns_gradients():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reversed_gradient(x, 0.25)
    assert torch.equal(y, x)
    (3 * y).sum().backward()
    assert torch.equal(x.grad, torch.tensor([-0.75, -0.75]))


def test_theta_is_learnt_and_in_the_checkpoint():
    method = made()
    assert [name for name, _ in method.named_parameters()] == ["theta"]
    assert "theta" in method.state_dict()
