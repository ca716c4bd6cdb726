"""The two stages, their loss and their numbers; float64 and 1e-9 unless a test says otherwise."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.engine.probe import build_learner
from limbeck.losses import fsp_loss
from limbeck.methods.base import Probe
from limbeck.methods.ce import CE
from limbeck.methods.relation.fsp import FSPConfig, FSPInit, fsp_stages
from limbeck.models.digits_cnn import digits_cnn, digits_cnn_tiny
from limbeck.teacher import Teacher

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["fsp"]
EXACT = {"rtol": 0.0, "atol": 1e-9}


def wave(function, step, start, shape):
    count = torch.Size(shape).numel()
    return function(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


LARGE, SMALL = (2, 3, 4, 4), (2, 2, 2, 2)
S1, S2 = wave(torch.sin, 1.0, 0.3, LARGE), wave(torch.sin, 0.9, 0.1, SMALL)
T1, T2 = wave(torch.cos, 0.5, 0.0, LARGE), wave(torch.cos, 0.8, 0.0, SMALL)
S3, T3 = wave(torch.sin, 0.6, 0.2, SMALL), wave(torch.cos, 1.1, 0.0, SMALL)


def gradient():
    first = S1.clone().requires_grad_()
    fsp_loss([first, S2], [T1, T2]).backward()
    return first.grad


COMPUTED = {
    "flow": lambda: fsp_loss([S1, S2], [T1, T2]),
    "norm of gradient": lambda: gradient().norm(),
    "gradient [0,0,0,0]": lambda: gradient()[0, 0, 0, 0],
    "two flows": lambda: fsp_loss([S1, S2, S3], [T1, T2, T3]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_benchmarks_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_the_teachers_maps_may_be_of_another_size():
    """Doubled pixels give the same flow: the larger of a pair is pooled."""
    doubled = [nn.functional.interpolate(feature, scale_factor=2) for feature in (T1, T2)]
    torch.testing.assert_close(
        fsp_loss([S1, S2], doubled), fsp_loss([S1, S2], [T1, T2]), rtol=0, atol=1e-9
    )


def test_where_in_the_image_something_is_does_not_matter(generator):
    """Pixels of both maps moved alike, when both are of one size."""
    order = torch.randperm(4, generator=generator)
    maps = [
        [feature.flatten(2)[..., order].reshape(feature.shape) for feature in (one, other)]
        for one, other in ((S2, S3), (T2, T3))
    ]
    torch.testing.assert_close(fsp_loss(*maps), fsp_loss([S2, S3], [T2, T3]), **EXACT)


def test_equal_flows_have_no_loss_and_the_teacher_no_gradient():
    assert fsp_loss([S1, S2], [S1, S2]).item() == 0
    teacher = T1.clone().requires_grad_()
    fsp_loss([S1.clone().requires_grad_(), S2], [teacher, T2]).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    halves = [[feature.to(dtype) for feature in maps] for maps in ((S1, S2), (T1, T2))]
    expected = fsp_loss(*[[feature.double() for feature in maps] for maps in halves]).float()
    with torch.autocast("cpu", dtype=dtype):
        ours = fsp_loss(*halves)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [([S1], [T1]), ([S1, S2], [S1, S1]), ([S1, S2], [T1]), ([S1[:, 0], S2], [T1, T2])],
    ids=["one map", "other widths", "other number", "no map"],
)
def test_maps_that_do_not_pair_are_named(student, teacher):
    with pytest.raises(ShapeError, match=r"of equal widths, are needed; got student \(2, .*1x1"):
        fsp_loss(student, teacher)


def test_the_first_stage_ends_with_the_last_map_and_the_second_is_plain_training():
    config = FSPConfig(label_smoothing=0.1, init_share=0.25)
    first, second = fsp_stages(config)
    assert (first.method, first.share, first.schedule) == (FSPInit, 0.25, "constant")
    assert first.method.needs(config).stop_student
    assert (second.method, second.share, second.schedule) == (CE, 0.75, "run")
    assert second.config.label_smoothing == 0.1


def test_equal_widths_take_no_connector():
    features = {"a": S1, "b": S2}
    student, teacher = Outputs(features=features), Outputs(features={"a": T1, "b": T2})
    probe = Probe(student=student, teacher=teacher, num_classes=3, num_images=20)
    config = FSPConfig(student_layers=("a", "b"), teacher_layers=("a", "b"), fsp_weight=3.0)
    method = FSPInit.from_probe(config, probe)
    assert list(method.parameters()) == []
    assert method.describe() == (
        "student a 3x4x4 -> teacher a 3x4x4; no parameters",
        "student b 2x2x2 -> teacher b 2x2x2; no parameters",
    )
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 2, 2), label=torch.zeros(2).long())
    terms = method(batch, student, teacher, Progress())
    torch.testing.assert_close(terms.total, 3 * fsp_loss([S1, S2], [T1, T2]), **EXACT)


def build(config):
    teacher = Teacher(digits_cnn(), layers=config.teacher_layers)
    batch = Batch(index=torch.arange(4), image=torch.rand(4, 1, 8, 8), label=torch.zeros(4).long())
    return build_learner(
        fsp_stages(config)[0],
        digits_cnn_tiny(),
        teacher,
        batch,
        normalization=Normalization(),
        num_images=4,
        num_classes=10,
        seed=0,
    )


def test_other_widths_take_a_trained_1x1_convolution_at_every_stage():
    method = build(FSPConfig()).method
    assert [c.weight.shape for c in method.connectors] == [
        (24, 4, 1, 1),
        (48, 8, 1, 1),
        (96, 16, 1, 1),
    ]
    assert method.describe()[0] == (
        "student stage1 4x8x8 -> 1x1 conv -> teacher stage1 24x8x8; 120 parameters"
    )


def test_layers_must_be_two_at_least_and_pair_up():
    with pytest.raises(SettingsError, match=r"one layer of each network\. Name two"):
        build(FSPConfig(student_layers=("stage1",), teacher_layers=("stage1",)))
    with pytest.raises(SettingsError, match=r"equally many layers.*got 2 and 1"):
        build(FSPConfig(student_layers=("stage1", "stage2"), teacher_layers=("stage1",)))
