"""ReviewKD; B batch, C channels, H W spatial."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import hcl_loss
from limbeck.methods.base import Probe
from limbeck.methods.feature.reviewkd import AttentionFusion, ReviewKD, ReviewKDConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["reviewkd"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


def hcl_of(side):
    return hcl_loss(sines((2, 3, side, side), 0.9, 0.1), sines((2, 3, side, side), 0.5, 0.3))


def fused():
    """The golden values' fusion: weights of known sines, batch statistics."""
    fusion = AttentionFusion(2, 4, 3, deepest=False).double()
    parameters = (
        fusion.enter[0].weight,
        fusion.leave[0].weight,
        fusion.gate.weight,
        fusion.gate.bias,
    )
    with torch.no_grad():
        for k, parameter in enumerate(parameters):
            parameter.copy_(0.3 * sines(parameter.shape, 0.7, k))
    return fusion(sines((2, 2, 4, 4), 0.9, 0.1), sines((2, 4, 2, 2), 0.5, 0.3), (4, 4))


COMPUTED = {
    "HCL of 8x8": lambda: hcl_of(8),
    "HCL of 4x4": lambda: hcl_of(4),
    "HCL of 1x1": lambda: hcl_of(1),
    "fusion, sum of absolute output": lambda: fused()[0].abs().sum(),
    "fusion, sum passed on": lambda: fused()[1].sum(),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8])
def test_a_constant_difference_costs_its_square_at_every_size(side):
    feature = sines((2, 3, side, side), 0.9, 0.1)
    assert hcl_loss(feature, feature) == 0
    assert hcl_loss(feature + 3, feature).item() == pytest.approx(9)


def test_it_is_the_mean_square_of_averages_at_halving_weights():
    student, teacher = sines((2, 3, 6, 6), 0.9, 0.1), sines((2, 3, 6, 6), 0.5, 0.3)
    total, weights = F.mse_loss(student, teacher), 1.0
    for weight, side in ((0.5, 4), (0.25, 2), (0.125, 1)):
        pooled = [F.adaptive_avg_pool2d(feature, side) for feature in (student, teacher)]
        total, weights = total + weight * F.mse_loss(*pooled), weights + weight
    torch.testing.assert_close(hcl_loss(student, teacher), total / weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5), (2, 4, 4, 4)])
def test_features_of_other_shapes_are_refused(shape):
    with pytest.raises(ShapeError, match="batch, channels and size"):
        hcl_loss(torch.zeros(shape), torch.zeros(2, 3, 4, 4))


def test_gates_without_weights_are_a_half_each():
    fusion = AttentionFusion(2, 4, 3, deepest=False).eval()
    for parameter in fusion.gate.parameters():
        torch.nn.init.zeros_(parameter)
    student, deeper = torch.rand(2, 2, 4, 4), torch.rand(2, 4, 2, 2)
    _, joined = fusion(student, deeper, (4, 4))
    nearest = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(joined, (fusion.enter(student) + nearest) / 2)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (2, 2)])
def test_what_comes_out_has_the_teachers_shape(size):
    fusion = AttentionFusion(2, 4, 3, deepest=True)
    assert fusion.gate is None
    imitation, joined = fusion(torch.rand(2, 2, 4, 4), None, size)
    assert imitation.shape == (2, 3, *size)
    assert joined.shape == (2, 4, *size)


# -- the method ----------------------------------------------------------------------------


def make(*, size=2, stages=2, **settings):
    generator = torch.Generator().manual_seed(0)

    def features(prefix, channels):
        maps = {
            f"{prefix}stage{k}": torch.randn(
                size, channels * k, 2 ** (4 - k), 2 ** (4 - k), generator=generator
            )
            for k in range(1, stages + 1)
        }
        return {**maps, "penultimate": torch.randn(size, 5 * channels, generator=generator)}

    student = Outputs(torch.zeros(size, 4), features=features("", 3))
    teacher = Outputs(torch.zeros(size, 4), features=features("pre_activation:", 6))
    probe = Probe(student=student, teacher=teacher, num_classes=4, num_images=20)
    method = ReviewKD.from_probe(ReviewKDConfig(**settings), probe)
    batch = Batch(
        index=torch.arange(size),
        image=torch.zeros(size, 1, 4, 4),
        label=torch.zeros(size, dtype=torch.int64),
    )
    return method, lambda **progress: method(batch, student, teacher, Progress(**progress))


@pytest.mark.parametrize(("epoch", "share"), [(0, 0), (5, 0.25), (20, 1), (200, 1)])
def test_the_weight_grows_from_nothing_in_the_first_epoch(epoch, share):
    _, terms_at = make()
    terms = terms_at(epoch=epoch, num_epochs=240)
    torch.testing.assert_close(terms.total, math.log(4) + 5 * share * terms.parts["review"])


def test_without_warm_up_the_weight_is_whole_at_once():
    _, terms_at = make(warmup_epochs=0)
    terms = terms_at()
    torch.testing.assert_close(terms.total, math.log(4) + 5 * terms.parts["review"])


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_any_number_of_stages_is_reviewed(stages):
    method, terms_at = make(stages=stages, warmup_epochs=0)
    terms_at().total.backward()
    assert len(method.fusions) == stages + 1
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
    assert [fusion.gate is None for fusion in method.fusions] == [False] * stages + [True]


def test_the_common_width_is_the_last_layers_and_bounded():
    assert make()[0].fusions[0].enter[0].out_channels == 15
    assert make(max_channels=8)[0].fusions[0].enter[0].out_channels == 8


def test_each_stage_sees_the_deeper_ones_and_no_shallower_one():
    method, terms_at = make(warmup_epochs=0)
    terms_at()
    seen = {}
    for k, fusion in enumerate(method.fusions):
        fusion.register_forward_hook(lambda _, args, out, k=k: seen.update({k: (args, out)}))
    terms_at()
    assert seen[2][0][1] is None
    assert seen[1][0][1] is seen[2][1][1]
    assert seen[0][0][1] is seen[1][1][1]


def test_one_image_is_finite():
    """The vector is then one value a channel, which has no variance."""
    method, terms_at = make(size=1, warmup_epochs=0)
    terms_at().total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
