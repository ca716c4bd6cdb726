"""Wasserstein feature distillation; B batch, C channels, H W spatial, m places of a cell."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import nn

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import wkd_feature_loss
from limbeck.methods.base import Probe
from limbeck.methods.feature.wkd_feature import WKDFeature, WKDFeatureConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["wkd_feature"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


STUDENT, TEACHER = sines((2, 3, 4, 4), 0.9, 0.1), sines((2, 3, 4, 4), 0.5, 0.3)
SEVEN = sines((2, 3, 7, 7), 0.9, 0.1), sines((2, 3, 7, 7), 0.5, 0.3)
TINY = (
    tensor([[[[1, 2], [3, 4]], [[0, 1], [0, 1]]]]),
    tensor([[[[2, 2], [2, 6]], [[1, 0], [3, 0]]]]),
)


def gaussian(covariance):
    """A map ``(1, k, 1, 2k)`` of mean 0 and just this covariance."""
    root = torch.linalg.cholesky(covariance) * math.sqrt(len(covariance))
    return torch.cat([root, -root], dim=1)[None, :, None, :]


def weighted(grid):
    found = wkd_feature_loss(STUDENT, TEACHER, grid=grid)
    return 2 * found.mean + found.covariance


def full(image, part):
    found = wkd_feature_loss(
        STUDENT[image : image + 1], TEACHER[image : image + 1], covariance="full"
    )
    return getattr(found, part)


def bures(first, second):
    return wkd_feature_loss(gaussian(first), gaussian(second), covariance="full").covariance


MATRICES = tensor([[2, 0.5], [0.5, 1]]), tensor([[1, -0.3], [-0.3, 1.5]])

COMPUTED = {
    "grid 1 mean": lambda: wkd_feature_loss(STUDENT, TEACHER).mean,
    "grid 1 covariance": lambda: wkd_feature_loss(STUDENT, TEACHER).covariance,
    "grid 2 mean": lambda: wkd_feature_loss(STUDENT, TEACHER, grid=2).mean,
    "grid 2 covariance": lambda: wkd_feature_loss(STUDENT, TEACHER, grid=2).covariance,
    "grid 1, 2 mean + covariance": lambda: weighted(1),
    "grid 2, 2 mean + covariance": lambda: weighted(2),
    "grid 4 of 7x7 mean": lambda: wkd_feature_loss(*SEVEN, grid=4).mean,
    "grid 4 of 7x7 covariance": lambda: wkd_feature_loss(*SEVEN, grid=4).covariance,
    "tiny mean": lambda: wkd_feature_loss(*TINY).mean,
    "tiny covariance": lambda: wkd_feature_loss(*TINY).covariance,
    "full, mean of image 0": lambda: full(0, "mean"),
    "full, covariance of image 0": lambda: full(0, "covariance"),
    "full, mean of image 1": lambda: full(1, "mean"),
    "full, covariance of image 1": lambda: full(1, "covariance"),
    "full, two matrices": lambda: bures(*MATRICES),
    "full, commuting matrices": lambda: bures(
        torch.diag(tensor([1, 2, 3, 4])), torch.diag(tensor([4, 1, 0.5, 2]))
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


# -- diagonal ------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_equal_maps_cost_nothing(grid, covariance):
    found = wkd_feature_loss(TEACHER, TEACHER, grid=grid, covariance=covariance)
    assert found.mean == 0
    assert abs(found.covariance) < 1e-12


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_shift_of_a_channel_is_seen_by_the_mean_alone(covariance):
    shift = tensor([0.5, -2.0, 0.1])
    found = wkd_feature_loss(TEACHER + shift[:, None, None], TEACHER, covariance=covariance)
    assert found.mean.item() == pytest.approx(shift.square().sum().item())
    assert abs(found.covariance) < 1e-12


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_places_may_change_order_within_one_cell_but_not_between_cells(covariance, generator):
    order = torch.randperm(16, generator=generator)
    shuffled = STUDENT.flatten(2)[:, :, order].unflatten(2, (4, 4))
    for grid, invariant in ((1, True), (2, False)):
        found = [
            wkd_feature_loss(student, TEACHER, grid=grid, covariance=covariance)
            for student in (STUDENT, shuffled)
        ]
        for part in ("mean", "covariance"):
            values = [getattr(each, part) for each in found]
            assert torch.allclose(*values, rtol=0, atol=1e-12) is invariant


@pytest.mark.parametrize("grid", [2, 3, 5, 7])
def test_the_cells_are_those_of_adaptive_pooling(grid):
    pooled = [F.adaptive_avg_pool2d(feature, grid) for feature in SEVEN]
    expected = (pooled[0] - pooled[1]).square().sum() / (2 * grid**2)
    for covariance in ("diagonal", "full"):
        found = wkd_feature_loss(*SEVEN, grid=grid, covariance=covariance).mean
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_cell_of_one_place_has_no_spread_and_a_finite_gradient(covariance):
    student = STUDENT.clone().requires_grad_()
    found = wkd_feature_loss(student, TEACHER, grid=4, covariance=covariance)
    assert found.covariance == 0
    (found.mean + found.covariance).backward()
    assert torch.isfinite(student.grad).all()
    assert torch.isfinite(wkd_feature_loss(student[..., :1, :1], TEACHER[..., :1, :1]).covariance)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_dead_and_constant_channels_give_finite_gradients(covariance):
    student = torch.zeros_like(STUDENT).float()
    student[0] = 1000.1
    student.requires_grad_()
    found = wkd_feature_loss(student, TEACHER.float(), covariance=covariance)
    (found.mean + found.covariance).backward()
    assert torch.isfinite(student.grad).all()


def test_maps_of_two_sizes_can_be_compared():
    twice = TEACHER.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert wkd_feature_loss(twice, TEACHER).mean < 1e-24
    assert wkd_feature_loss(twice, TEACHER, covariance="full").covariance < 1e-12


# -- full covariance -----------------------------------------------------------------------


def test_it_is_the_formula_with_matrix_roots(generator):
    features = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64, generator=generator)
    expected = 0.0
    for b in range(2):
        first, second = (np.cov(f[b].flatten(1).numpy(), bias=True) for f in features)
        root = sqrtm(second)
        expected += (first + second - 2 * sqrtm(root @ first @ root)).trace().real / 2
    found = wkd_feature_loss(*features, covariance="full").covariance
    assert abs(found.item() - expected) < 1e-9


def test_of_two_by_two_matrices_it_is_a_closed_form(generator):
    factors = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator)
    first, second = factors @ factors.mT
    roots = 2 * (first.det() * second.det()).sqrt()
    expected = first.trace() + second.trace() - 2 * ((first @ second).trace() + roots).sqrt()
    torch.testing.assert_close(bures(first, second), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(bures(second, first), expected, rtol=0, atol=1e-9)


def test_the_variances_alone_are_a_lower_bound(generator):
    features = torch.randn(2, 4, 5, 3, 3, dtype=torch.float64, generator=generator)
    deviations = [feature.flatten(2).std(dim=2, correction=0) for feature in features]
    diagonal = (deviations[0] - deviations[1]).square().sum() / 4
    assert wkd_feature_loss(*features, covariance="full").covariance >= diagonal


def test_its_root_obeys_the_triangle_inequality(generator):
    a, b, c = torch.randn(3, 1, 4, 3, 3, dtype=torch.float64, generator=generator)
    ab, bc, ac = (
        wkd_feature_loss(*pair, covariance="full").covariance.sqrt()
        for pair in ((a, b), (b, c), (a, c))
    )
    assert ac <= ab + bc


def test_singular_matrices_have_the_gradient_of_the_formula(generator):
    """More channels than places: both matrices are singular."""
    student = torch.randn(1, 9, 2, 2, dtype=torch.float64, generator=generator).requires_grad_()
    teacher = torch.randn(1, 9, 2, 2, dtype=torch.float64, generator=generator)

    def loss(feature):
        return wkd_feature_loss(feature, teacher, covariance="full").covariance

    assert torch.autograd.gradcheck(loss, student)


def test_a_constant_student_has_no_direction_to_spread_in():
    student = torch.zeros_like(STUDENT).requires_grad_()
    wkd_feature_loss(student, TEACHER, covariance="full").covariance.backward()
    assert student.grad.abs().max() == 0


def test_float32_is_as_near_as_it_says(generator):
    features = torch.randn(2, 4, 64, 7, 7, dtype=torch.float64, generator=generator) + 3
    traces = sum(f.flatten(2).var(dim=2, correction=0).sum() / 4 for f in features)
    exact, rounded = (
        wkd_feature_loss(*(f.to(dtype) for f in features), covariance="full").covariance.double()
        for dtype in (torch.float64, torch.float32)
    )
    assert abs(exact - rounded) < 1e-5 * traces


# -- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (3, 3, 4, 4), (2, 3)])
def test_other_channels_batches_and_vectors_are_refused(shape):
    with pytest.raises(ShapeError, match="same batch and channels"):
        wkd_feature_loss(torch.zeros(shape), TEACHER.float())


@pytest.mark.parametrize("grid", [0, 5])
def test_more_cells_than_places_are_refused(grid):
    with pytest.raises(SettingsError, match="from 1 to the smallest side of the maps, 4"):
        wkd_feature_loss(STUDENT, TEACHER, grid=grid)


# -- the method ----------------------------------------------------------------------------


def make(student, teacher, **settings):
    outputs = [
        Outputs(torch.zeros(len(feature), 4), features={"last": feature.float()})
        for feature in (student, teacher)
    ]
    probe = Probe(student=outputs[0], teacher=outputs[1], num_classes=4, num_images=20)
    return WKDFeature.from_probe(WKDFeatureConfig(**settings), probe), *outputs


def terms_of(method, student, teacher, **progress):
    count = len(student.logits)
    batch = Batch(
        index=torch.arange(count),
        image=torch.zeros(count, 1, 4, 4),
        label=torch.zeros(count, dtype=torch.int64),
    )
    return method(batch, student, teacher, Progress(**progress))


@pytest.mark.parametrize(
    ("epoch", "share"), [(0, 1), (149, 1), (150, 0.9997), (194, 0.5), (239, 0)]
)
def test_the_weight_falls_as_half_a_cosine_after_the_constant_epochs(epoch, share):
    method, *outputs = make(STUDENT, TEACHER)
    terms = terms_of(method, *outputs, epoch=epoch, num_epochs=240)
    both = 4 * terms.parts["mean"] + terms.parts["covariance"]
    expected = math.log(4) + share * 0.08 * both
    torch.testing.assert_close(terms.total, expected, rtol=0, atol=2e-4 * both.item())


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (2, 2), (7, 7), (1, 1)])
@pytest.mark.parametrize("projector", ["conv", "bottleneck"])
def test_both_projectors_give_the_teachers_shape_from_any_size(size, projector):
    method, student, teacher = make(torch.rand(2, 5, *size), TEACHER, projector=projector)
    maps = method.alignment(student.features["last"], teacher.features["last"])
    assert method.projector(maps.student).shape == TEACHER.shape
    assert projector == "conv" or [type(part) for part in method.projector][:3] == [nn.Conv2d] * 3
    assert torch.isfinite(terms_of(method, student, teacher).total)


def test_a_map_of_one_place_and_one_image_is_finite():
    for projector in ("conv", "bottleneck"):
        method, *outputs = make(torch.rand(1, 5, 1, 1), TEACHER[:1, :, :1, :1], projector=projector)
        terms_of(method, *outputs).total.backward()
        assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_a_grid_finer_than_the_teachers_map_is_refused_before_training():
    with pytest.raises(SettingsError, match="teacher's map has 4 x 4"):
        make(STUDENT, TEACHER, grid=5)
