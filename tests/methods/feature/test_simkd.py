"""SimKD; B batch, C channels, H W spatial. Whole runs and reloading: runs/test_networks.py."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Classifier, Outputs, Progress
from limbeck.engine.probe import build_learner
from limbeck.features import ObservedNetwork
from limbeck.methods import METHODS
from limbeck.methods.base import Probe
from limbeck.methods.feature.simkd import ReusedClassifier, SimKD, SimKDConfig
from limbeck.models.digits_cnn import digits_cnn, digits_cnn_tiny
from limbeck.models.summary import summarise
from limbeck.teacher import Teacher

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["simkd"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


STUDENT = sines((2, 2, 4, 4), 0.9, 0.1)
TEACHER = sines((2, 4, 4, 4), 0.5, 0.3).relu()
WEIGHT, BIAS = 0.3 * sines((3, 4), 0.7, 5), 0.3 * sines((3,), 0.7, 6)


def probe_of(student=STUDENT, teacher=TEACHER, *, penultimate=None, logits=None):
    """A teacher whose classifier is on the mean of its map, unless told otherwise."""
    vector = teacher.mean(dim=(2, 3)) if penultimate is None else penultimate
    logits = F.linear(vector, WEIGHT, BIAS) if logits is None else logits
    return Probe(
        student=Outputs(
            torch.zeros(len(student), 3),
            features={"last": student},
            classifier=Classifier(torch.zeros(3, student.shape[1])),
        ),
        teacher=Outputs(
            logits,
            features={"last": teacher, "penultimate": vector},
            classifier=Classifier(WEIGHT, BIAS),
        ),
        num_classes=3,
        num_images=20,
        student_addresses={"last": "0"},
        student_classifier_name="3",
    )


def make(*probed, **settings):
    probe = probe_of(*probed)
    method = SimKD.from_probe(SimKDConfig(**settings), probe).double()
    convolutions = [part for part in method.projector if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        for k, convolution in enumerate(convolutions):
            convolution.weight.copy_(0.3 * sines(convolution.weight.shape, 0.7, k))
        method.classifier.weight.copy_(WEIGHT)
        method.classifier.bias.copy_(BIAS)
    batch = Batch(
        index=torch.arange(len(probe.student.logits)),
        image=torch.zeros(len(probe.student.logits), 1, 4, 4),
        label=torch.zeros(len(probe.student.logits), dtype=torch.int64),
    )
    return method, method(batch, probe.student, probe.teacher, Progress())


def golden_logits():
    """Through what is deployed, in train mode: the batch's statistics."""
    method, _ = make()
    network = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    return method.deployed(network.train())(STUDENT)


COMPUTED = {
    "feature": lambda: make()[1].total,
    **{
        f"logit [{b},{k}]": lambda b=b, k=k: golden_logits()[b, k]
        for b in range(2)
        for k in range(3)
    },
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


# -- what is attached where ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "size"), [((8, 8), (4, 4), (4, 4)), ((2, 2), (4, 4), (2, 2))]
)
def test_the_larger_map_is_averaged(student, teacher, size):
    method, terms = make(torch.rand(2, 2, *student).double(), torch.rand(2, 4, *teacher).double())
    assert method.recipe.size == size
    assert torch.isfinite(terms.total)


def test_the_projector_is_narrower_in_between_by_the_factor():
    for factor, width in ((1, 4), (2, 2), (8, 1)):
        method, _ = make(factor=factor)
        channels = [part.out_channels for part in method.projector if isinstance(part, nn.Conv2d)]
        assert channels == [width, width, 4]
        assert all(part.bias is None for part in method.projector if isinstance(part, nn.Conv2d))


def test_it_ends_in_a_relu_unless_the_teacher_is_negative_somewhere():
    signed = sines((2, 4, 4, 4), 0.5, 0.3)
    assert [make(STUDENT, teacher)[0].recipe.relu for teacher in (TEACHER, signed)] == [True, False]


def test_a_teacher_with_another_mean_gives_its_vector_before_the_classifier():
    """As a transformer with a class token."""
    tokens, cls = torch.rand(2, 17, 4).double(), torch.randn(2, 4).double()
    tokens[:, 0] = cls
    probe = probe_of(STUDENT, tokens, penultimate=cls)
    method = SimKD.from_probe(SimKDConfig(), probe)
    assert method.teacher_layer == "penultimate"
    assert method.recipe.size == (1, 1)
    assert not method.recipe.relu
    assert "teacher last has another mean: its scores are from penultimate" in method.describe()
    with pytest.raises(ModelError, match="gives scores that are off by"):
        SimKD.from_probe(SimKDConfig(teacher_layer="last"), probe)


def test_a_teacher_whose_scores_are_not_its_classifiers_is_refused():
    probe = probe_of(logits=torch.full((2, 3), 50.0, dtype=torch.float64))
    with pytest.raises(ModelError, match="must take the mean of the teacher's layer"):
        SimKD.from_probe(SimKDConfig(), probe)


def test_one_image_of_one_place_is_finite():
    method, terms = make(torch.rand(1, 2, 1, 1).double(), torch.rand(1, 4, 1, 1).double())
    terms.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.projector.parameters())


# -- what is deployed ----------------------------------------------------------------------


@pytest.fixture
def world():
    """The digits' networks, and a step's learner on them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, network = digits_cnn_tiny(), digits_cnn()
    stage = METHODS["simkd"].stages(SimKDConfig())[0]
    needs = SimKD.needs(SimKDConfig())
    teacher = Teacher(network, layers=needs.teacher_layers, classifier=True)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(8, 1, 8, 8, generator=generator)
    batch = Batch(index=torch.arange(8), image=image, label=torch.arange(8))
    learner = build_learner(
        stage,
        student,
        teacher,
        batch,
        normalization=Normalization(),
        num_images=8,
        num_classes=10,
        seed=0,
    )
    return learner.train(), teacher, batch


class Exact(nn.Module):
    """A projector that gives what it is told."""

    def __init__(self, feature):
        super().__init__()
        self.feature = feature

    def forward(self, _):
        return self.feature


def test_features_that_equal_the_teachers_give_the_teachers_scores(world):
    learner, teacher, batch = world
    answers = teacher(batch.image)
    deployed = learner.method.deployed(learner.student.eval())
    deployed.projector = Exact(answers.features["last"])
    torch.testing.assert_close(deployed(batch.image), answers.logits)


def test_it_is_the_backbone_the_projector_the_mean_and_the_teachers_classifier(world):
    learner, teacher, batch = world
    with torch.no_grad():
        for _ in range(3):
            learner(batch, teacher(batch.image), Progress())
    student, method = learner.student.eval(), learner.method.eval()
    deployed = method.deployed(student)
    with torch.no_grad():
        x = student.halve(student.stage2(student.halve(student.stage1(batch.image))))
        projected = method.projector(student.stage3(x))
        expected = teacher.network.fc(projected.mean(dim=(2, 3)))
        torch.testing.assert_close(deployed(batch.image), expected)


def test_its_parameters_are_those_of_its_three_parts_without_the_students_classifier(world):
    learner, teacher, _ = world
    deployed = learner.method.deployed(learner.student)
    own = sum(p.numel() for p in learner.student.parameters())
    own -= sum(p.numel() for p in learner.student.fc.parameters())
    own += sum(p.numel() for p in learner.method.projector.parameters())
    own += sum(p.numel() for p in teacher.network.fc.parameters())
    assert summarise(deployed, (1, 8, 8)).num_parameters == own
    prefixes = {name.partition(".")[0] for name in deployed.state_dict()}
    assert prefixes == {"backbone", "projector", "classifier"}


def test_it_is_a_copy_and_can_be_copied(world):
    learner, _, batch = world
    before = {n: v.clone() for n, v in learner.state_dict().items()}
    deployed = learner.method.deployed(learner.student.eval())
    other = copy.deepcopy(deployed)
    expected = deployed(batch.image)
    with torch.no_grad():
        for parameter in deployed.parameters():
            parameter.zero_()
    torch.testing.assert_close(other(batch.image), expected)
    assert all(torch.equal(v, before[n]) for n, v in learner.state_dict().items())
    assert learner.student.fc.out_features == 10


def test_it_comes_back_from_its_settings_and_its_state(world):
    learner, _, batch = world
    deployed = learner.method.deployed(learner.student.eval())
    again = ReusedClassifier(digits_cnn_tiny(), deployed.config)
    again.load_state_dict(deployed.state_dict())
    torch.testing.assert_close(again.eval()(batch.image), deployed(batch.image))


def test_its_layers_can_be_asked_for_by_meaning(world):
    """So that it can teach in its turn."""
    learner, _, batch = world
    deployed = learner.method.deployed(learner.student.eval())
    asked = ["stage2", "last", "penultimate"]
    outputs = ObservedNetwork(deployed, layers=asked, classifier=True)(batch.image)
    vector = outputs.features["last"].mean(dim=(2, 3))
    torch.testing.assert_close(vector, outputs.features["penultimate"])
    torch.testing.assert_close(
        F.linear(vector, outputs.classifier.weight, outputs.classifier.bias), outputs.logits
    )


def test_it_can_be_exported(world):
    learner, _, batch = world
    deployed = learner.method.deployed(learner.student.eval())
    program = torch.export.export(deployed, (batch.image,), strict=False)
    torch.testing.assert_close(program.module()(batch.image), deployed(batch.image))


def test_neither_classifier_learns(world):
    learner, teacher, batch = world
    before = learner.method.classifier.weight.clone()
    optimizer = torch.optim.SGD(
        [p for p in learner.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    learner(batch, teacher(batch.image), Progress()).terms.total.backward()
    optimizer.step()
    assert learner.student.fc.weight.grad is None
    assert torch.equal(learner.method.classifier.weight, before)
    assert torch.equal(before, teacher.network.fc.weight)
