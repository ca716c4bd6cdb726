import json
from pathlib import Path

import pytest
import torch

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.methods.output.kd import KD
from limbeck.methods.output.soft_label import SoftLabelConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["soft_label"]

ZT = torch.tensor(
    [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
    dtype=torch.float64,
)
ZA = torch.tensor(
    [[1.5, 0.0, 2.2, 0.5, -1.0], [0.3, 0.6, -0.4, 2.5, 0.2], [-0.5, 1.0, 0.9, 0.0, 1.4]],
    dtype=torch.float64,
)


def terms(label=(2, 3, 4), student=ZA, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=torch.tensor(label))
    return KD(SoftLabelConfig(**settings))(batch, Outputs(student), Outputs(ZT), Progress())


COMPUTED = {"T=1": lambda: terms().total, "T=5": lambda: terms(temperature=5).total}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_number_of_the_source(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def gradient(label):
    student = ZA.clone().requires_grad_()
    terms(label, student).total.backward()
    return student.grad


def test_labels_have_no_effect():
    expected = gradient((2, 3, 4))
    for label in ((0, 0, 0), (-1, -1, -1), (2, -1, 4)):
        assert torch.equal(gradient(label), expected)
