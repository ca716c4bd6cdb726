"""CKA as a loss; what it computes is tested in functional/test_cka.py."""

import math

import pytest
import torch

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import debiased_cka, linear_cka, rbf_cka
from limbeck.methods.base import Probe
from limbeck.methods.feature.cka import CKA, CKAConfig


def make(generator, *, size=6, **settings):
    """A student of two stages and a teacher of three, of other shapes."""

    def random(*shape):
        return torch.randn(size, *shape, dtype=torch.float64, generator=generator)

    student = {"stage1": random(2, 4, 4), "stage2": random(3, 2, 2)}
    teacher = {"stage1": random(5), "stage2": random(7, 3), "stage3": random(4, 4, 4)}
    outputs = [
        Outputs(torch.zeros(size, 4, dtype=torch.float64), features=features)
        for features in (student, teacher)
    ]
    probe = Probe(student=outputs[0], teacher=outputs[1], num_classes=4, num_images=20)
    batch = Batch(
        index=torch.arange(size),
        image=torch.zeros(size, 1, 4, 4),
        label=torch.zeros(size, dtype=torch.int64),
    )
    method = CKA.from_probe(CKAConfig(**settings), probe)
    return method, method(batch, *outputs, Progress()), student, teacher


@pytest.mark.parametrize(
    ("kernel", "function"), [("linear", linear_cka), ("debiased", debiased_cka), ("rbf", rbf_cka)]
)
def test_the_last_layers_go_together_and_the_mean_is_missing_to_one(kernel, function, generator):
    method, terms, student, teacher = make(generator, kernel=kernel, cka_weight=3.0)
    pairs = [("stage1", "stage2"), ("stage2", "stage3")]
    expected = 1 - sum(function(student[one], teacher[other]) for one, other in pairs) / 2
    torch.testing.assert_close(terms.total, math.log(4) + 3 * expected)
    assert method.describe() == (
        "student stage1 2x4x4 - teacher stage2 7x3",
        "student stage2 3x2x2 - teacher stage3 4x4x4",
        "teacher stage1 5 is left out: it has no partner",
    )


def test_the_width_of_the_gaussian_kernel_can_be_set(generator):
    state = generator.get_state()
    totals = []
    for threshold in (0.5, 1.0):
        generator.set_state(state)
        totals.append(make(generator, kernel="rbf", threshold=threshold)[1].total)
    assert totals[0] != totals[1]


@pytest.mark.parametrize("kernel", ["linear", "debiased", "rbf"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_short_batch_is_finite(kernel, size, generator):
    terms = make(generator, size=size, kernel=kernel)[1]
    assert torch.isfinite(terms.total)
