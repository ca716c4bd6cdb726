"""The paper's two stages, their loss and their numbers."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.engine.learner import Learner
from limbeck.engine.probe import build_learner, freeze_idle
from limbeck.losses import hint_loss
from limbeck.methods.adapters import LayoutConfig, align
from limbeck.methods.base import Probe
from limbeck.methods.feature.fitnet import FitNetConfig, FitNetDistil, FitNetHint, fitnet_stages
from limbeck.models.digits_cnn import digits_cnn, digits_cnn_tiny
from limbeck.teacher import Teacher, state_hash

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["fitnet"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


STUDENT, TEACHER = sines((2, 3, 4, 4), 0.9, 0.1), sines((2, 3, 4, 4), 0.5, 0.3)
COMPUTED = {
    "F0 mean squared error": lambda: hint_loss(STUDENT, TEACHER),
    "F3 paper": lambda: 0.5 * 3 * 4 * 4 * hint_loss(STUDENT, TEACHER),
    "F4 authors' code": lambda: 0.5 * 4 * hint_loss(STUDENT, TEACHER),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_the_papers_form_is_half_the_squared_norm_of_each_image():
    halves = [
        0.5 * torch.linalg.vector_norm(s - t) ** 2 for s, t in zip(STUDENT, TEACHER, strict=True)
    ]
    paper = torch.stack(halves).mean()
    torch.testing.assert_close(24 * hint_loss(STUDENT, TEACHER), paper, rtol=0, atol=1e-9)


def probe_of(student, teacher):
    return Probe(
        student=Outputs(features={"stage2": student}, missing="stopped"),
        teacher=Outputs(torch.zeros(2, 4), features={"stage2": teacher}),
        num_classes=4,
        num_images=20,
    )


def aligned(student, teacher):
    layouts = {"student_layout": LayoutConfig(), "teacher_layout": LayoutConfig()}
    return align(student, teacher, purpose="map", **layouts)


@pytest.mark.parametrize("student_size", [4, 5, 8])
def test_the_regressor_gives_the_hints_shape(student_size, generator):
    student = torch.rand(2, 3, student_size, student_size, generator=generator)
    hint = torch.rand(2, 6, 4, 4, generator=generator)
    method = FitNetHint.from_probe(FitNetConfig(), probe_of(student, hint))
    assert method.regressor(student).shape == hint.shape
    weights = sum(p.numel() for p in method.parameters())
    assert weights == (student_size - 4 + 1) ** 2 * 3 * 6 + 6  # as the paper counts, and a bias


CNN, SMALL, VIT, SWIN = (2, 3, 4, 4), (2, 3, 3, 3), (2, 17, 6), (2, 2, 2, 8)


@pytest.mark.parametrize(
    ("student", "teacher", "line"),
    [
        (CNN, CNN, "s 3x4x4 -> 1x1 conv, ReLU -> teacher t 3x4x4; 12"),
        (CNN, SMALL, "s 3x4x4 -> 2x2 conv, ReLU -> teacher t 3x3x3; 39"),
        (SMALL, CNN, "s 3x3x3 resized to 4x4 -> 1x1 conv, ReLU -> teacher t 3x4x4; 12"),
        (
            SMALL,
            VIT,
            "3x3x3 resized to 4x4 -> 1x1 conv, ReLU -> teacher t 17x6 tokens as 6x4x4; 24",
        ),
        (
            CNN,
            SWIN,
            "resized to 2x2 -> 1x1 conv, ReLU -> teacher t 2x2x8 channels-last as 8x2x2; 32",
        ),
        (VIT, CNN, "17x6 tokens as 6x4x4 -> 1x1 conv, ReLU -> teacher t 3x4x4; 21"),
        (SWIN, VIT, "2x2x8 channels-last as 8x2x2 resized to 4x4 -> 1x1 conv, ReLU -> teacher t"),
    ],
)
def test_any_two_layers_with_places_are_compared(student, teacher, line, generator):
    """The paper's convolution on two maps that it fits, and behind a resizing for all others."""
    features = torch.rand(student, generator=generator), torch.rand(teacher, generator=generator)
    config = FitNetConfig(student_layer="s", teacher_layer="t")
    outputs = [
        Outputs(torch.zeros(2, 4), features={name: feature})
        for name, feature in zip("st", features, strict=True)
    ]
    probe = Probe(student=outputs[0], teacher=outputs[1], num_classes=4, num_images=20)
    method = FitNetHint.from_probe(config, probe)
    assert line in method.describe()[0]
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=torch.zeros(2).long())
    method(batch, *outputs, Progress()).total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_a_hint_of_tokens_is_the_map_of_their_places(generator):
    feature = torch.rand(2, 3, 2, 2, generator=generator)
    tokens = torch.cat([torch.full((2, 1, 3), 9.0), feature.flatten(2).transpose(1, 2)], dim=1)
    alignment = aligned(feature, tokens)
    method = FitNetHint(FitNetConfig(), alignment=alignment, regressor=nn.Identity())
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=torch.zeros(2).long())
    outputs = (Outputs(features={"stage2": f}) for f in (feature, tokens))
    assert method(batch, *outputs, Progress()).total.item() == 0


def test_an_open_layout_is_settled_by_the_settings(generator):
    probe = probe_of(torch.rand(2, 3, 4, 4, generator=generator), torch.rand(2, 9, 6))
    with pytest.raises(ShapeError, match=r"teacher_layout\.prefix_tokens"):
        FitNetHint.from_probe(FitNetConfig(), probe)
    config = FitNetConfig.read({"teacher_layout": {"prefix_tokens": 0}})
    assert "as 6x3x3" in FitNetHint.from_probe(config, probe).describe()[0]


def test_a_vector_has_no_hint_for_a_map():
    with pytest.raises(ShapeError, match="before the pooling"):
        FitNetHint.from_probe(FitNetConfig(), probe_of(torch.zeros(2, 3, 4, 4), torch.zeros(2, 6)))


@pytest.mark.parametrize("signed", [False, True])
def test_the_regressor_has_the_hints_range(signed, generator):
    student = torch.rand(8, 3, 4, 4, generator=generator)
    hint = torch.randn(8, 6, 4, 4, generator=generator)
    hint = hint if signed else hint.relu()
    method = FitNetHint.from_probe(FitNetConfig(), probe_of(student, hint))
    reached = method.regressor(10 * (student - 0.5))
    assert bool((reached < 0).any()) is signed


def test_a_perfect_imitation_has_no_loss(generator):
    feature = torch.rand(2, 3, 4, 4, generator=generator)
    config = FitNetConfig(hint_weight=7.0)
    method = FitNetHint(config, alignment=aligned(feature, feature), regressor=nn.Identity())
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=torch.zeros(2).long())
    for offset, expected in ((0.0, 0.0), (2.0, 7.0 * 4)):
        teacher = Outputs(features={"stage2": feature + offset})
        terms = method(batch, Outputs(features={"stage2": feature}), teacher, Progress())
        torch.testing.assert_close(terms.total, torch.tensor(expected), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(terms.parts["hint"], torch.tensor(expected / 7))


@pytest.fixture
def networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return digits_cnn_tiny(), digits_cnn()


@pytest.fixture
def batch(generator):
    return Batch(
        index=torch.arange(8),
        image=torch.rand(8, 1, 8, 8, generator=generator),
        label=torch.randint(10, (8,), generator=generator),
    )


def build(stage, student, teacher, batch):
    return build_learner(
        stage,
        student,
        teacher,
        batch,
        normalization=Normalization(),
        num_images=8,
        num_classes=10,
        seed=0,
    )


def train(learner, teacher, batch, num_steps=3):
    """A few steps; weight decay, so that an idle parameter would move if it were trained."""
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, weight_decay=0.1)
    learner.train()
    for step in range(num_steps):
        outputs = teacher(batch.image)
        progress = Progress(step=step, num_steps=num_steps)
        optimizer.zero_grad()
        learner(batch, outputs, progress).terms.total.backward()
        optimizer.step()


def test_the_hint_stage_trains_the_student_up_to_its_guided_layer_and_nothing_else(networks, batch):
    student, teacher_network = networks
    hint, _ = fitnet_stages(FitNetConfig())
    teacher = Teacher(teacher_network, layers=["stage2"])
    learner = build(hint, student, teacher, batch)
    idle = freeze_idle(learner, teacher(batch.image), batch, num_epochs=1, num_steps=3, seed=0)
    network = "observed.network."
    assert {name.removeprefix(network).split(".")[0] for name in idle} == {"stage3", "fc"}
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    frozen = state_hash(teacher_network)
    train(learner, teacher, batch)
    after = learner.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {
        n for n in before if n.startswith((f"{network}stage1", f"{network}stage2", "method"))
    }
    assert moved == expected  # the batch-norm statistics of stage3 among those that stay
    assert state_hash(teacher_network) == frozen


def test_the_distil_stage_starts_where_the_hint_stage_ended_and_has_no_regressor(networks, batch):
    student, teacher_network = networks
    hint, distil = fitnet_stages(FitNetConfig())
    teacher = Teacher(teacher_network, layers=["stage2"])
    learner = build(hint, student, teacher, batch)
    train(learner, teacher, batch)
    learner.observed.tap.close()
    before = state_hash(student)
    second = build(distil, student, Teacher(teacher_network), batch)
    assert state_hash(second.student) == before
    assert list(second.method.parameters()) == []
    assert {name.split(".")[0] for name, _ in second.named_parameters()} == {"observed"}


def test_the_shares_are_the_settings_and_the_hint_stage_keeps_its_rate():
    hint, distil = fitnet_stages(FitNetConfig(hint_share=0.25))
    assert (hint.share, distil.share) == (0.25, 0.75)
    assert (hint.schedule, distil.schedule) == ("constant", "run")
    assert FitNetHint.needs(hint.config).stop_student
    assert not FitNetDistil.needs(distil.config).stop_student


def test_the_hints_layers_may_differ_between_the_networks():
    config = FitNetConfig(student_layer="stage1", teacher_layer="stage3")
    needs = FitNetHint.needs(config)
    assert (needs.student_layers, needs.teacher_layers) == (("stage1",), ("stage3",))
    assert FitNetDistil.needs(config).student_layers == ()


@pytest.mark.parametrize(
    ("step", "num_steps", "weight"), [(0, 101, 4.0), (50, 101, 2.5), (100, 101, 1.0), (0, 1, 4.0)]
)
def test_lambda_falls_linearly_and_has_no_squared_temperature(step, num_steps, weight, generator):
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
    label = torch.randint(4, (6,), generator=generator)
    batch = Batch(index=torch.arange(6), image=torch.zeros(6, 1, 2, 2), label=label)
    method = FitNetDistil(FitNetConfig(ce_weight=0.5))
    progress = Progress(step=step, num_steps=num_steps)
    terms = method(batch, Outputs(student), Outputs(teacher), progress)
    kd = F.kl_div(F.log_softmax(student / 3, 1), F.softmax(teacher / 3, 1), reduction="batchmean")
    expected = 0.5 * F.cross_entropy(student, label) + weight * kd
    torch.testing.assert_close(terms.total, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(terms.parts["kd"], kd, rtol=0, atol=1e-9)


def test_its_gradient_is_that_of_the_papers_cross_entropies(generator):
    """Eq. 2: cross-entropy between the softened outputs, not KL."""
    raw, teacher = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
    label = torch.randint(4, (6,), generator=generator)
    batch = Batch(index=torch.arange(6), image=torch.zeros(6, 1, 2, 2), label=label)
    student = raw.clone().requires_grad_()
    FitNetDistil(FitNetConfig())(
        batch, Outputs(student), Outputs(teacher), Progress()
    ).total.backward()
    again = raw.clone().requires_grad_()
    soft = F.cross_entropy(again / 3, F.softmax(teacher / 3, dim=1))
    (F.cross_entropy(again, label) + 4 * soft).backward()
    torch.testing.assert_close(student.grad, again.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_each_stage_has_a_share(share):
    with pytest.raises(SettingsError, match="hint_share"):
        FitNetConfig(hint_share=share)


def test_a_stopped_student_gives_no_logits(networks, batch):
    student, teacher_network = networks
    alignment = aligned(torch.zeros(2, 8, 4, 4), torch.zeros(2, 48, 4, 4))
    method = FitNetHint(FitNetConfig(), alignment=alignment, regressor=nn.Conv2d(8, 48, 1))
    teacher = Teacher(teacher_network, layers=["stage2"])
    output = Learner(student, method)(batch, teacher(batch.image))
    assert output.logits is None
    assert output.terms.parts.keys() == {"hint"}
