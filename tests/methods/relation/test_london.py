"""B batch, C channels, H W spatial; float64 and 1e-9 unless a test says otherwise."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import ModelError, SettingsError, ShapeError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.engine.probe import build_learner
from limbeck.functional.overhaul import batch_norm_margins, overhaul_loss
from limbeck.functional.relations import transmitting_matrix
from limbeck.losses import lipschitz_loss, spectral_norms
from limbeck.methods.base import BatchNormInfo, Probe, Stage
from limbeck.methods.relation.london import LONDON, LONDONConfig
from limbeck.models.digits_cnn import digits_cnn, digits_cnn_tiny
from limbeck.teacher import Teacher

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["london"]
EXACT = {"rtol": 0.0, "atol": 1e-9}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def wave(function, step, start, shape):
    count = torch.Size(shape).numel()
    return function(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


LARGE, SMALL = (2, 3, 4, 4), (2, 2, 2, 2)
S1, S2 = wave(torch.sin, 1.0, 0.3, LARGE), wave(torch.sin, 0.9, 0.1, SMALL)
T1, T2 = wave(torch.cos, 0.5, 0.0, LARGE), wave(torch.cos, 0.8, 0.0, SMALL)
# Maps whose transmitting matrix is diag(2, 1, 0.5), and its square diag(4, 1, 0.25).
STRETCHED = torch.diag(tensor([6.0, 3.0, 1.5])).reshape(1, 3, 3, 1)
UNIT = torch.eye(3, dtype=torch.float64).reshape(1, 3, 3, 1)


def gradient():
    first = S1.clone().requires_grad_()
    lipschitz_loss([first, S2], [T1, T2], iterations=5).backward()
    return first.grad


def overhaul():
    student, teacher = tensor([[[[-1, 0.5], [2, -3]]]]), tensor([[[[-2, 1], [-0.5, -5]]]])
    return overhaul_loss(student, teacher, tensor([-1.5]))


def margins():
    return batch_norm_margins(tensor([1, 0.5, 2]), tensor([0, -0.2, 7]))


COMPUTED = {
    **{
        f"student's matrix [{i},{j}] of the first image": lambda i=i, j=j: transmitting_matrix(
            S1, S2
        )[0, i, j]
        for i in range(3)
        for j in range(2)
    },
    **{
        f"student's spectral norm [{b}]": lambda b=b: spectral_norms(S1, S2, iterations=5)[b]
        for b in range(2)
    },
    **{
        f"teacher's spectral norm [{b}]": lambda b=b: spectral_norms(T1, T2, iterations=5)[b]
        for b in range(2)
    },
    "lipschitz": lambda: lipschitz_loss([S1, S2], [T1, T2], iterations=5),
    "norm of gradient": lambda: gradient().norm(),
    "gradient [0,0,0,0]": lambda: gradient()[0, 0, 0, 0],
    **{
        f"power iteration, {k} steps": lambda k=k: spectral_norms(STRETCHED, UNIT, iterations=k)[0]
        for k in (1, 2, 3, 5, 10)
    },
    "overhaul": overhaul,
    **{f"margin {i}": lambda i=i: margins()[i] for i in range(3)},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


# -- spectral norms ------------------------------------------------------------------------


def test_more_steps_come_to_the_singular_value(generator):
    first = torch.randn(5, 4, 6, 6, dtype=torch.float64, generator=generator)
    second = torch.randn(5, 7, 3, 3, dtype=torch.float64, generator=generator)
    exact = torch.linalg.svdvals(transmitting_matrix(first, second))[:, 0]
    torch.testing.assert_close(spectral_norms(first, second, iterations="exact"), exact, **EXACT)
    errors = [
        (exact - spectral_norms(first, second, iterations=k)).max().item() for k in (2, 5, 20, 300)
    ]
    assert errors == sorted(errors, reverse=True)
    assert -1e-9 < errors[-1] < 1e-6
    lower = spectral_norms(first, second, iterations=2)
    assert (lower <= exact + 1e-9).all()


def test_the_golden_loss_is_the_same_by_more_steps_and_by_singular_values():
    five, ten, exact = (
        lipschitz_loss([S1, S2], [T1, T2], iterations=k).item() for k in (5, 10, "exact")
    )
    assert abs(five - exact) < 1e-14
    assert abs(ten - exact) < 1e-14


@pytest.mark.parametrize("iterations", [1, 5, "exact"])
def test_it_scales_with_either_map_and_never_is_negative(iterations):
    whole = spectral_norms(S1, S2, iterations=iterations)
    assert (whole > 0).all()
    for scaled in ((-3 * S1, S2), (S1, 3 * S2)):
        torch.testing.assert_close(
            spectral_norms(*scaled, iterations=iterations), 3 * whole, **EXACT
        )


def test_it_ignores_where_things_are_and_how_channels_are_mixed(generator):
    first = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=generator)
    second = torch.randn(2, 5, 3, 3, dtype=torch.float64, generator=generator)
    whole = spectral_norms(first, second, iterations="exact")
    order = torch.randperm(9, generator=generator)
    moved = [f.flatten(2)[..., order].reshape(f.shape) for f in (first, second)]
    torch.testing.assert_close(spectral_norms(*moved, iterations="exact"), whole, **EXACT)
    for which, channels in ((0, 4), (1, 5)):
        square = torch.randn(channels, channels, dtype=torch.float64, generator=generator)
        maps = [first, second]
        rotation = torch.linalg.qr(square).Q
        maps[which] = torch.einsum("cd,bdhw->bchw", rotation, maps[which])
        torch.testing.assert_close(spectral_norms(*maps, iterations="exact"), whole, **EXACT)


@pytest.mark.parametrize("iterations", [1, 3, "exact"])
def test_gradient_goes_through_every_step(iterations):
    first, second = S1.clone().requires_grad_(), S2.clone().requires_grad_()

    def norms(a, b):
        return spectral_norms(a, b, iterations=iterations)

    assert torch.autograd.gradcheck(norms, (first, second))


@pytest.mark.parametrize("iterations", [1, 10, "exact"])
@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e15])
def test_zeros_and_extremes_are_finite_in_float32(iterations, scale):
    first = (scale * S1).float().requires_grad_()
    value = spectral_norms(first, S2.float(), iterations=iterations)
    value.sum().backward()
    expected = scale * spectral_norms(S1, S2, iterations=iterations)
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-5, atol=0)
    assert torch.isfinite(first.grad).all()
    if scale == 0:
        assert first.grad.abs().sum() == 0


def test_a_start_that_is_blind_to_the_matrix_gives_zero_and_no_gradient():
    """Ones, where each column sums to zero: a known weakness of the start of ones."""
    first = torch.stack([S1[:, 0], -S1[:, 0]], dim=1).requires_grad_()
    value = spectral_norms(first, S2, iterations=5)
    value.sum().backward()
    assert value.abs().max() < 1e-9
    assert torch.isfinite(first.grad).all()
    found = spectral_norms(first, S2, iterations=5, start=tensor([0.2, 0.7]))
    exact = spectral_norms(first, S2, iterations="exact")
    torch.testing.assert_close(found, exact, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("iterations", [5, "exact"])
def test_half_precision_is_computed_in_float32_even_under_autocast(dtype, iterations):
    halves = [feature.to(dtype) for feature in (S1, S2)]
    expected = spectral_norms(*[f.double() for f in halves], iterations=iterations).float()
    with torch.autocast("cpu", dtype=dtype):
        ours = spectral_norms(*halves, iterations=iterations)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


def test_no_step_is_no_iteration():
    with pytest.raises(SettingsError, match="1 or more, or 'exact'; got 0"):
        spectral_norms(S1, S2, iterations=0)


# -- the loss ------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_parts():
    student, teacher = [S1, S2, S2], [T1, T2, S2]
    parts = [
        F.mse_loss(
            spectral_norms(*student[i : i + 2], iterations=10),
            spectral_norms(*teacher[i : i + 2], iterations=10),
        )
        for i in range(2)
    ]
    torch.testing.assert_close(lipschitz_loss(student, teacher), sum(parts), **EXACT)
    weighted = lipschitz_loss(student, teacher, weights=[3.0, 0.5])
    torch.testing.assert_close(weighted, 3 * parts[0] + 0.5 * parts[1], **EXACT)


def test_repeating_the_batch_does_not_change_the_loss():
    once = lipschitz_loss([S1, S2], [T1, T2])
    maps = [[feature.repeat(2, 1, 1, 1) for feature in pair] for pair in ((S1, S2), (T1, T2))]
    torch.testing.assert_close(lipschitz_loss(*maps), once, **EXACT)


def test_equal_networks_have_no_loss_and_the_teacher_no_gradient():
    assert lipschitz_loss([S1, S2], [S1, S2]).item() == 0
    student, teacher = S2.clone().requires_grad_(), T1.clone().requires_grad_()
    lipschitz_loss([S1, student], [teacher, T2]).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_networks_may_differ_in_widths_and_sizes():
    assert lipschitz_loss([S1, S2], [T2, T1]) > 0


@pytest.mark.parametrize(
    ("student", "teacher", "weights"),
    [([S1], [T1], None), ([S1, S2], [T1], None), ([S1, S2], [T1, T2], [1.0, 2.0])],
)
def test_what_does_not_pair_up_is_named(student, teacher, weights):
    with pytest.raises(ShapeError, match=f"got {len(student)} of the student, {len(teacher)} of"):
        lipschitz_loss(student, teacher, weights=weights)


def test_another_batch_is_refused():
    with pytest.raises(ShapeError, match="same batch; got 2 and 1 images"):
        lipschitz_loss([S1, S2], [T1[:1], T2[:1]])


# -- the method ----------------------------------------------------------------------------


def build(config, teacher=None):
    network = digits_cnn() if teacher is None else teacher
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(index=torch.arange(4), image=images, label=torch.arange(4))
    frozen = Teacher(network, layers=config.teacher_layers)
    learner = build_learner(
        Stage(name="train", method=LONDON, config=config),
        digits_cnn_tiny(),
        frozen,
        batch,
        normalization=Normalization(),
        num_images=4,
        num_classes=10,
        seed=0,
    )
    return learner, frozen, batch


def test_the_margins_are_those_of_the_batch_norm_before_each_relu():
    teacher = digits_cnn()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    method = build(LONDONConfig(), teacher)[0].method
    for i, stage in enumerate((teacher.stage1, teacher.stage2, teacher.stage3)):
        norm = stage[4]
        expected = batch_norm_margins(norm.weight, norm.bias)
        torch.testing.assert_close(method.get_buffer(f"margin{i}"), expected)


def test_the_connectors_bring_each_stage_to_the_teachers_width():
    method = build(LONDONConfig())[0].method
    assert [c[0].weight.shape for c in method.connectors] == [
        (24, 4, 1, 1),
        (48, 8, 1, 1),
        (96, 16, 1, 1),
    ]
    spread = method.connectors[2][0].weight.std().item()
    assert abs(spread / (2 / 96) ** 0.5 - 1) < 0.1
    assert method.describe()[1] == (
        "student pre_activation:stage2 8x4x4 -> 1x1 conv, batch norm -> "
        "teacher pre_activation:stage2 48x4x4; 480 parameters"
    )


@pytest.fixture
def case(generator):
    """Three maps of each network, their margins 0, and connectors that only double."""
    shapes = {"a": (4, 2, 6, 6), "b": (4, 3, 6, 6), "c": (4, 2, 3, 3)}

    def draw():
        return {
            name: torch.randn(shape, dtype=torch.float64, generator=generator)
            for name, shape in shapes.items()
        }

    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    student, teacher = Outputs(logits, features=draw()), Outputs(logits, features=draw())
    norms = {
        name: BatchNormInfo(name="bn", weight=torch.zeros(c), bias=torch.zeros(c))
        for name, (_, c, _, _) in shapes.items()
    }
    probe = Probe(
        student=student, teacher=teacher, num_classes=3, num_images=4, teacher_batch_norms=norms
    )

    def make(**settings):
        names = tuple(shapes)
        config = LONDONConfig(student_layers=names, teacher_layers=names, **settings)
        method = LONDON.from_probe(config, probe).double()
        method.connectors = nn.ModuleList(Doubled() for _ in names)
        return method

    batch = Batch(index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=torch.arange(4) % 3)
    return make, batch, student, teacher


class Doubled(nn.Module):
    def forward(self, feature):
        return 2 * feature


def test_the_total_is_the_released_codes_combination(case):
    """Weights 1/4, 1/2, 1; the student's second map of a pair before its connector."""
    make, batch, student, teacher = case
    method = make(ofd_weight=0.3, lipschitz_weight=0.7, iterations="exact")
    terms = method(batch, student, teacher, Progress())
    s, t = ([outputs.features[name] for name in "abc"] for outputs in (student, teacher))
    ofd = sum(
        w * ((2 * a - b.clamp(min=0)) ** 2 * ((2 * a > b.clamp(min=0)) | (b > 0))).sum() / 4
        for w, a, b in zip((0.25, 0.5, 1.0), s, t, strict=True)
    )
    lipschitz = sum(
        w * lipschitz_loss([2 * s[i], s[i + 1]], t[i : i + 2], iterations="exact")
        for i, w in enumerate((0.25, 0.5))
    )
    ce = F.cross_entropy(student.logits, batch.label)
    expected = ce + 0.3 * ofd + 0.7 * lipschitz
    torch.testing.assert_close(terms.total, expected, rtol=0, atol=1e-9)
    assert terms.parts.keys() == {"ce", "ofd", "lipschitz"}


def test_each_part_can_be_switched_off(case):
    make, batch, student, teacher = case
    off = make(ofd_weight=0.0, lipschitz_weight=0.0)(batch, student, teacher, Progress())
    torch.testing.assert_close(off.total, off.parts["ce"], **EXACT)
    assert off.parts["ofd"] == 0  # not even computed
    assert off.parts["lipschitz"] > 0
    assert list(make(ofd_weight=0.0).buffers()) == []
    assert not LONDON.needs(LONDONConfig(ofd_weight=0.0)).teacher_batch_norms


# The authors' settings a and d: alpha, its factor, and alpha in the epochs around 60 % of 200.
@pytest.mark.parametrize(("alpha", "factor", "late"), [(0.8, 0.25, 0.2), (1.0, 2.0, 2.0)])
def test_the_weight_changes_at_sixty_percent_of_the_epochs(case, alpha, factor, late):
    make, batch, student, teacher = case
    method = make(lipschitz_weight=alpha, late_lipschitz_factor=factor, iterations="exact")
    for epoch, expected in {0: alpha, 119: alpha, 120: late, 199: late}.items():
        terms = method(batch, student, teacher, Progress(epoch=epoch, num_epochs=200))
        rest = terms.parts["ce"] + method.config.ofd_weight * terms.parts["ofd"]
        weighted = (terms.total - rest) / terms.parts["lipschitz"]
        torch.testing.assert_close(weighted.item(), expected, **EXACT)


def test_a_random_start_depends_on_the_step_alone(case):
    make, batch, student, teacher = case
    method = make(iterations=1)

    def loss(step):
        return method(batch, student, teacher, Progress(step=step)).parts["lipschitz"]

    assert loss(3) == loss(3)
    assert abs(loss(3) - loss(4)) > 1e-6
    ones = make(iterations=1, start="ones")
    values = [ones(batch, student, teacher, Progress(step=k)).parts["lipschitz"] for k in (3, 4)]
    assert values[0] == values[1]


def test_a_teacher_without_batch_norm_is_named_with_the_way_out():
    bare = digits_cnn()
    for stage in (bare.stage1, bare.stage2, bare.stage3):
        for place in (1, 4):
            stage[place] = nn.Identity()
    with pytest.raises(ModelError, match=r"no batch-norm.*'pre_activation:stage1'.*switch off"):
        build(LONDONConfig(), bare)
    learner, frozen, batch = build(LONDONConfig(ofd_weight=0.0), bare)
    assert torch.isfinite(learner(batch, frozen(batch.image), Progress()).terms.total)


def test_layers_must_be_two_at_least_and_pair_up():
    with pytest.raises(SettingsError, match=r"one layer of each network\. Name two"):
        build(LONDONConfig(student_layers=("stage1",), teacher_layers=("stage1",), ofd_weight=0))
    with pytest.raises(SettingsError, match=r"equally many layers.*got 2 and 1"):
        build(LONDONConfig(student_layers=("stage1", "stage2"), teacher_layers=("stage1",)))


def test_a_black_batch_is_finite():
    """K = 0, where the released code divides 0 by 0."""
    learner, frozen, batch = build(LONDONConfig(start="ones"))
    for module in [*learner.modules(), *frozen.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.zero_()
                module.bias.zero_()
    terms = learner(batch, frozen(batch.image), Progress()).terms
    terms.total.backward()
    assert terms.parts["lipschitz"] == 0
    gradients = [p.grad for p in learner.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
