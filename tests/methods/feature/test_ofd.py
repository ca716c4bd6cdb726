"""OFD; B batch, C channels, H W spatial. What LONDON shares is in functional/test_overhaul.py."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import ModelError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.functional.overhaul import batch_norm_margins
from limbeck.losses import ofd_loss
from limbeck.methods.base import BatchNormInfo, Probe
from limbeck.methods.feature.ofd import OFD, OFDConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["ofd"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


STUDENT, TEACHER = sines((2, 3, 4, 4), 0.9, 0.1), sines((2, 3, 4, 4), 0.5, 0.3)
MARGIN = torch.tensor([-0.2, -0.4, -0.6]).double()  # rounded to float32, as theirs

COMPUTED = {
    "sum": lambda: 2 * ofd_loss(STUDENT, TEACHER, MARGIN),
    "mean over the batch": lambda: ofd_loss(STUDENT, TEACHER, MARGIN),
    "margin 0": lambda: batch_norm_margins(tensor([0.5]), tensor([0.2])),
    "margin 1": lambda: batch_norm_margins(tensor([2.0]), tensor([-1.0])),
    "margin 2": lambda: batch_norm_margins(tensor([0.3]), tensor([1.5])),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (-1.0, -0.1, 0.0),
        (-0.05, -0.1, 0.0025),
        (0.5, -0.1, 0.36),
        (-0.5, -0.3, 0.0),
        (-0.1, -0.3, 0.01),
        (0.2, 0.7, 0.25),
    ],
)
def test_one_value_at_a_margin_of_a_fifth(student, teacher, expected):
    leaf = torch.full((1, 1, 1, 1), student, dtype=torch.float64, requires_grad=True)
    loss = ofd_loss(leaf, torch.full_like(leaf, teacher), tensor([-0.2]))
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert (leaf.grad.item() == 0) is (expected == 0)


def test_a_teacher_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match="equal in shape"):
        ofd_loss(STUDENT, TEACHER[:, :2], MARGIN)


# -- the method ----------------------------------------------------------------------------


def make(*, norms=3, size=2, **settings):
    generator = torch.Generator().manual_seed(0)

    def features(channels, sides):
        return {
            f"pre_activation:stage{k}": torch.randn(size, channels, side, side, generator=generator)
            for k, side in enumerate(sides, 1)
        }

    student = Outputs(torch.zeros(size, 4), features=features(2, (8, 4)))
    teacher = Outputs(torch.zeros(size, 4), features=features(3, (16, 8, 8)))
    probe = Probe(
        student=student,
        teacher=teacher,
        num_classes=4,
        num_images=20,
        teacher_batch_norms={
            f"pre_activation:stage{k}": BatchNormInfo(
                name=f"bn{k}", weight=torch.full((3,), 1.0 * k), bias=torch.zeros(3)
            )
            for k in range(1, norms + 1)
        },
    )
    method = OFD.from_probe(OFDConfig(**settings), probe)
    batch = Batch(
        index=torch.arange(size),
        image=torch.zeros(size, 1, 4, 4),
        label=torch.zeros(size, dtype=torch.int64),
    )
    return method, method(batch, student, teacher, Progress()), student, teacher


def test_the_last_stage_counts_twice_the_one_before_at_the_margins_of_its_batch_norm():
    method, terms, student, teacher = make()
    half_normal = -math.sqrt(2 / math.pi)  # the mean of a Gaussian's negative half
    expected = 0.0
    for place, ours, theirs, share in ((0, 1, 2, 0.5), (1, 2, 3, 1.0)):
        feature = student.features[f"pre_activation:stage{ours}"]
        target = teacher.features[f"pre_activation:stage{theirs}"]
        target = F.adaptive_avg_pool2d(target, feature.shape[2:])
        imitation = method.regressors[place](feature)
        margin = torch.full((3,), theirs * half_normal)
        expected = expected + share * ofd_loss(imitation, target, margin)
    torch.testing.assert_close(terms.total, math.log(4) + 1e-3 * expected)
    assert "teacher pre_activation:stage1 3x16x16 is left out: it has no partner" in (
        method.describe()
    )


def test_the_margins_are_in_the_checkpoint():
    method = make()[0]
    assert {"margin0", "margin1"} < method.state_dict().keys()


def test_a_teacher_without_batch_norm_is_refused_by_name():
    with pytest.raises(ModelError, match="no batch-norm gives the teacher's layer 'pre_activation"):
        make(norms=2)


def test_one_image_of_one_place_is_finite():
    method, terms, *_ = make(size=1)
    terms.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
