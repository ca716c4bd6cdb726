"""Attention transfer; B batch, C channels, H W spatial."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import at_loss, attention_map
from limbeck.methods.base import Probe
from limbeck.methods.feature.at import AT, ATConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["at"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


STUDENT, TEACHER = sines((2, 3, 4, 4), 0.9, 0.1), sines((2, 5, 4, 4), 0.5, 0.3)
LARGER = sines((2, 3, 8, 8), 0.9, 0.1)
WIDE_TEACHER = TEACHER.repeat_interleave(2, 2).repeat_interleave(2, 3)


def distance(image):
    maps = [attention_map(feature)[image] for feature in (STUDENT, TEACHER)]
    return (maps[0] - maps[1]).norm()


COMPUTED = {
    "A1": lambda: at_loss(STUDENT, TEACHER),
    "A1 distance of image 0": lambda: distance(0),
    "A1 distance of image 1": lambda: distance(1),
    **{f"A1 student's map [0,{k}]": lambda k=k: attention_map(STUDENT)[0, k] for k in range(4)},
    "A2 larger student": lambda: at_loss(LARGER, TEACHER),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0])
def test_it_is_the_formula_in_plain_loops(p):
    total = 0.0
    for b in range(2):
        units = []
        for feature in (STUDENT, TEACHER):
            places = [(h, w) for h in range(4) for w in range(4)]
            energy = [sum(abs(v) ** p for v in feature[b, :, h, w].tolist()) for h, w in places]
            units.append([e / math.hypot(*energy) for e in energy])
        total += sum((a - b) ** 2 for a, b in zip(*units, strict=True))
    assert abs(at_loss(STUDENT, TEACHER, p=p).item() - total / (2 * 16)) < 1e-9


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_signs_order_and_number_of_channels_and_the_scale_of_an_image_do_not_matter(p):
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([3.0, 1e-3], dtype=torch.float64)[:, None, None, None]
    changed = scale * (signs * STUDENT).flip(1).repeat(1, 2, 1, 1)
    torch.testing.assert_close(
        at_loss(changed, TEACHER, p=p), at_loss(STUDENT, TEACHER, p=p), rtol=0, atol=1e-12
    )
    assert at_loss(changed, STUDENT, p=p) < 1e-18


def test_moving_both_maps_alike_changes_nothing():
    moved = [feature.roll((1, 2), dims=(2, 3)) for feature in (STUDENT, TEACHER)]
    torch.testing.assert_close(at_loss(*moved), at_loss(STUDENT, TEACHER), rtol=0, atol=1e-15)


def test_the_larger_map_is_averaged_before_the_power():
    pooled = F.avg_pool2d(LARGER, 2)
    torch.testing.assert_close(at_loss(LARGER, TEACHER), at_loss(pooled, TEACHER))
    torch.testing.assert_close(at_loss(TEACHER, LARGER), at_loss(TEACHER, pooled))
    alternating = torch.ones(1, 1, 4, 4)
    alternating[..., ::2] = -1  # its averages are 0, those of its squares are not
    assert at_loss(alternating, torch.ones(1, 1, 2, 2)).item() == pytest.approx(1 / 4)


def test_it_is_at_most_two_over_the_number_of_places():
    apart = torch.zeros(2, 1, 1, 1, 4)
    apart[0, 0, 0, 0, 0] = apart[1, 0, 0, 0, 3] = 5.0
    assert at_loss(apart[0], apart[1]).item() == pytest.approx(2 / 4)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e15])
def test_dead_and_extreme_maps_give_finite_values_and_gradients(p, scale):
    student = (scale * STUDENT).float().requires_grad_()
    student.data[:, :, 0] = 0.0
    loss = at_loss(student, TEACHER.float(), p=p)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    if scale == 0:
        assert student.grad.abs().max() == 0


@pytest.mark.parametrize("p", [0.0, -1.0, math.nan])
def test_a_power_that_is_not_positive_is_refused(p):
    with pytest.raises(SettingsError, match="p > 0"):
        at_loss(STUDENT, TEACHER, p=p)


@pytest.mark.parametrize("shape", [(2, 3), (2, 16, 3), (3, 3, 4, 4)])
def test_what_is_no_map_of_the_same_batch_is_refused(shape):
    with pytest.raises(ShapeError, match="same batch"):
        at_loss(torch.zeros(shape), TEACHER.float())


# -- the method ----------------------------------------------------------------------------


def make(student, teacher, **settings):
    """The method and the two outputs, for stages of these sizes."""
    outputs = [
        Outputs(
            torch.zeros(2, 4, dtype=torch.float64),
            features={f"stage{k}": feature for k, feature in enumerate(features, 1)},
        )
        for features in (student, teacher)
    ]
    probe = Probe(student=outputs[0], teacher=outputs[1], num_classes=4, num_images=20)
    return AT.from_probe(ATConfig(**settings), probe), *outputs


def loss(method, *outputs):
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=torch.tensor([3, 0]))
    return method(batch, *outputs, Progress())


def test_the_total_is_cross_entropy_and_a_thousand_times_the_sum_over_stages():
    terms = loss(*make([LARGER, STUDENT], [WIDE_TEACHER, TEACHER]))
    expected = 0.002497272752 + at_loss(LARGER, WIDE_TEACHER).item()
    assert abs(terms.total.item() - math.log(4) - 1000 * expected) < 1e-8
    assert terms.parts.keys() == {"ce", "attention"}


def test_the_papers_reading_is_half_the_norm():
    terms = loss(*make([STUDENT], [TEACHER], distance="norm"))
    expected = (0.198335165141 + 0.201434580808) / 2 / 2
    assert abs(terms.parts["attention"].item() - expected) < 1e-11


def test_equal_maps_give_the_papers_reading_no_gradient():
    student = STUDENT.clone().requires_grad_()
    loss(*make([student], [STUDENT], distance="norm")).total.backward()
    assert student.grad.abs().max() == 0


def test_a_list_that_begins_a_stage_later_is_not_off_by_one():
    """ResNet50 and MobileNetV1 in mdistiller's lists."""
    sizes = [torch.rand(2, 3, size, size, dtype=torch.float64) for size in (8, 4, 2)]
    teacher = [torch.rand(2, 3, 16, 16, dtype=torch.float64), *sizes]
    method, *_ = make(sizes, teacher)
    found = [(pair.student, pair.teacher) for pair in method.layers.pairs]
    assert found == [("stage1", "stage2"), ("stage2", "stage3"), ("stage3", "stage4")]
    assert loss(*make(sizes, teacher)).parts["attention"] == 0
    assert "teacher stage1 3x16x16 is left out: it has no partner" in method.describe()
