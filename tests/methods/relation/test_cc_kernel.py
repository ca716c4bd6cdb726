"""B batch, D features; float64 and 1e-9 unless a test says otherwise. More in
test_invariances.py.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import rbf_kernel

from limbeck.core.errors import SettingsError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import kd_loss, kernel_correlation_loss
from limbeck.methods.base import Probe
from limbeck.methods.relation.cc_kernel import CCKernel, CCKernelConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["cc_kernel"]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


S = tensor([[math.sin(1.0 * (3 * i + j) + 0.5) for j in range(3)] for i in range(4)])
T = tensor([[math.cos(0.7 * (5 * i + j)) for j in range(5)] for i in range(4)])
COMPUTED = {"correlation": lambda: kernel_correlation_loss(S, T)}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_number_of_the_papers_form(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_a_long_series_is_scikit_learns_gaussian_kernel():
    kernels = [rbf_kernel(F.normalize(rows).numpy(), gamma=0.7) for rows in (S, T)]
    expected = ((kernels[0] - kernels[1]) ** 2).mean()
    ours = kernel_correlation_loss(S, T, gamma=0.7, order=25)
    assert abs(ours.item() - expected) < 1e-9


def test_without_a_power_all_images_are_equally_correlated():
    assert kernel_correlation_loss(S, T, order=0).item() == 0


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"gamma": -1.0}, {"order": -1}])
def test_other_kernels_are_refused(wrong):
    with pytest.raises(SettingsError, match=r"gamma > 0 and order >= 0, got gamma"):
        kernel_correlation_loss(S, T, **wrong)


def test_the_total_weighs_the_three_terms_on_its_own_layers(generator):
    logits, theirs = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    label = torch.tensor([0, 1, -1, 2])
    batch = Batch(index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=label)
    config = CCKernelConfig(
        student_layer="a",
        teacher_layer="b",
        ce_weight=0.5,
        kd_weight=2.0,
        cc_weight=10.0,
        temperature=3.0,
    )
    student, teacher = Outputs(logits, features={"a": S}), Outputs(theirs, features={"b": T})
    needs = CCKernel.needs(config)
    assert (needs.student_layers, needs.teacher_layers) == (("a",), ("b",))
    probe = Probe(student=student, teacher=teacher, num_classes=3, num_images=20)
    method = CCKernel.from_probe(config, probe)
    assert method.describe() == ("student a 3 -> teacher b 5; no parameters",)
    terms = method(batch, student, teacher, Progress())
    known = label >= 0
    ce = F.cross_entropy(logits[known], label[known])
    kd = kd_loss(logits, theirs, temperature=3.0)
    expected = 0.5 * ce + 2 * kd + 0.033861915
    torch.testing.assert_close(terms.total, expected, rtol=0, atol=1e-9)
    assert terms.parts.keys() == {"ce", "kd", "correlation"}
