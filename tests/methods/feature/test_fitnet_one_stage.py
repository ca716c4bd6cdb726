"""The joint form of the CIFAR-100 tables."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import hint_loss
from limbeck.methods.adapters import LayoutConfig, align
from limbeck.methods.base import Probe
from limbeck.methods.feature.fitnet_one_stage import (
    FitNetOneStage,
    FitNetOneStageConfig,
    normed_regressor,
)

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["fitnet_one_stage"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


STUDENT, TEACHER = sines((2, 2, 4, 4), 0.9, 0.1), sines((2, 3, 4, 4), 0.5, 0.3)
LARGER = sines((2, 2, 8, 8), 0.9, 0.1)


def regressor_of(student, *, scale=1.0):
    """The golden values' regressor: weights of known sines, batch statistics."""
    regressor = normed_regressor(student, TEACHER).double().train()
    convolution = regressor[0]
    with torch.no_grad():
        for start, parameter in enumerate((convolution.weight, convolution.bias)):
            parameter.copy_(scale * 0.3 * sines(parameter.shape, 0.7, start))
    return regressor


def imitation(student, **options):
    return regressor_of(student, **options)(student)


COMPUTED = {
    "F1 regressed": lambda: hint_loss(imitation(STUDENT), TEACHER),
    "F1 sum of the regressed map": lambda: imitation(STUDENT).sum(),
    "F2 regressed with stride 2": lambda: hint_loss(imitation(LARGER), TEACHER),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel"),
    [
        ((4, 4), (4, 4), nn.Conv2d, (1, 1)),
        ((8, 8), (4, 4), nn.Conv2d, (3, 3)),
        ((4, 4), (8, 8), nn.ConvTranspose2d, (4, 4)),
        ((7, 7), (4, 4), nn.Conv2d, (4, 4)),
        ((6, 8), (3, 4), nn.Conv2d, (3, 3)),
        ((6, 5), (4, 5), nn.Conv2d, (3, 1)),
    ],
)
def test_the_regressor_gives_the_teachers_shape(student, teacher, kind, kernel):
    features = torch.zeros(2, 3, *student), torch.zeros(2, 6, *teacher)
    regressor = normed_regressor(*features)
    kinds = kind, nn.BatchNorm2d, nn.ReLU
    assert [isinstance(*pair) for pair in zip(regressor, kinds, strict=True)] == [True] * 3
    assert regressor[0].kernel_size == kernel
    assert regressor[0].bias is not None
    assert regressor(features[0]).shape == features[1].shape


@pytest.mark.parametrize(("student", "teacher"), [(3, 4), (2, 8), (2, 5)])
def test_a_smaller_student_map_is_refused_unless_it_is_half(student, teacher):
    with pytest.raises(ShapeError, match="at least as large"):
        normed_regressor(torch.zeros(1, 2, student, student), torch.zeros(1, 2, teacher, teacher))


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 4)])
def test_vectors_and_tokens_are_refused(shape):
    with pytest.raises(ShapeError, match="feature maps"):
        normed_regressor(torch.zeros(shape), torch.zeros(shape))


def test_the_scale_of_the_convolution_changes_nothing():
    """Batch-norm removes it, up to its epsilon."""
    expected = hint_loss(imitation(STUDENT), TEACHER)
    scaled = hint_loss(imitation(STUDENT, scale=5.0), TEACHER)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-3)


def test_the_total_is_cross_entropy_and_a_hundred_times_the_mean_square(generator):
    logits = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=torch.tensor([3, 0]))
    layouts = {"student_layout": LayoutConfig(), "teacher_layout": LayoutConfig()}
    alignment = align(STUDENT, TEACHER, purpose="map", **layouts)
    method = FitNetOneStage(
        FitNetOneStageConfig(), alignment=alignment, regressor=regressor_of(STUDENT)
    )
    student = Outputs(logits, features={"stage2": STUDENT})
    terms = method(batch, student, Outputs(logits, features={"stage2": TEACHER}), Progress())
    expected = F.cross_entropy(logits, batch.label) + 100 * 0.962547075843
    torch.testing.assert_close(terms.total, expected, rtol=0, atol=1e-9)
    assert terms.parts.keys() == {"ce", "hint"}


def test_the_probes_shapes_make_the_regressor():
    config = FitNetOneStageConfig(student_layer="stage1", teacher_layer="stage3")
    needs = FitNetOneStage.needs(config)
    assert (needs.student_layers, needs.teacher_layers) == (("stage1",), ("stage3",))
    assert not needs.stop_student
    probe = Probe(
        student=Outputs(features={"stage1": LARGER}),
        teacher=Outputs(features={"stage3": TEACHER}),
        num_classes=4,
        num_images=20,
    )
    method = FitNetOneStage.from_probe(config, probe)
    assert method.regressor(LARGER.float()).shape == TEACHER.shape


@pytest.mark.parametrize(
    ("student", "teacher", "line"),
    [
        ((2, 3, 4, 4), (2, 3, 4, 4), "s 3x4x4 -> 1x1 conv, batch norm, ReLU -> teacher t"),
        ((2, 3, 8, 8), (2, 3, 4, 4), "s 3x8x8 -> 3x3 conv of stride 2, batch norm, ReLU -> "),
        ((2, 3, 4, 4), (2, 3, 8, 8), "s 3x4x4 -> 4x4 transposed conv of stride 2, batch norm"),
        ((2, 3, 7, 7), (2, 3, 4, 4), "s 3x7x7 -> 4x4 conv, batch norm, ReLU -> teacher t"),
        ((2, 3, 4, 4), (2, 3, 7, 7), "s 3x4x4 resized to 7x7 -> 1x1 conv, batch norm, ReLU -> "),
        ((2, 3, 8, 8), (2, 17, 6), "s 3x8x8 resized to 4x4 -> 1x1 conv, batch norm, ReLU -> "),
        ((2, 17, 6), (2, 3, 4, 4), "s 17x6 tokens as 6x4x4 -> 1x1 conv, batch norm, ReLU -> "),
        ((2, 2, 2, 8), (2, 18, 6), "s 2x2x8 channels-last as 8x2x2 resized to 4x4 -> 1x1 conv"),
    ],
)
def test_any_two_layers_with_places_are_compared(student, teacher, line, generator):
    """RepDistiller's convolution on two maps that it fits, behind a resizing for all others."""
    features = torch.rand(student, generator=generator), torch.rand(teacher, generator=generator)
    config = FitNetOneStageConfig(student_layer="s", teacher_layer="t")
    outputs = [
        Outputs(torch.zeros(2, 4), features={name: feature})
        for name, feature in zip("st", features, strict=True)
    ]
    probe = Probe(student=outputs[0], teacher=outputs[1], num_classes=4, num_images=20)
    method = FitNetOneStage.from_probe(config, probe)
    assert line in method.describe()[0]
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=torch.zeros(2).long())
    method(batch, *outputs, Progress()).total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
