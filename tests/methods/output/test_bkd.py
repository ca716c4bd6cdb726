"""B batch, K classes; float64 and 1e-9 unless a test says otherwise."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import DataError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import balanced_kd_loss, kd_loss
from limbeck.methods.base import Probe
from limbeck.methods.output.bkd import BKD, BKDConfig, effective_number_weights

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["bkd"]
EXACT = {"rtol": 0.0, "atol": 1e-9}

ZS = torch.tensor(
    [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
    dtype=torch.float64,
)
ZT = torch.tensor(
    [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
    dtype=torch.float64,
)
Y = torch.tensor([2, 3, 4])
COUNTS = (500, 200, 80, 30, 10)
WEIGHT = effective_number_weights(torch.tensor(COUNTS))


def prepared(**settings):
    """In float64 from the start, so that all printed digits show."""
    method = BKD(BKDConfig(**settings), class_counts=torch.tensor(COUNTS)).double()
    method.class_weight.copy_(effective_number_weights(torch.tensor(COUNTS)))
    return method


def probe(labels):
    outputs = Outputs(ZS)
    return Probe(student=outputs, teacher=outputs, num_classes=5, num_images=9, labels=labels)


def terms(method, epoch=0):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=Y)
    return method(batch, Outputs(ZS), Outputs(ZT), Progress(epoch=epoch, num_epochs=200))


COMPUTED = {
    **{f"class weight [{k}]": lambda k=k: prepared().class_weight[k] for k in range(5)},
    "T=2": lambda: balanced_kd_loss(ZS, ZT, WEIGHT, temperature=2),
    "CE + T=2": lambda: terms(prepared()).total,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_equal_weights_make_it_kd():
    found = balanced_kd_loss(ZS, ZT, torch.full((5,), 7.0).double(), temperature=4)
    torch.testing.assert_close(found, kd_loss(ZS, ZT, temperature=4), **EXACT)


def test_only_ratios_of_weights_count():
    found = balanced_kd_loss(ZS, ZT, 1000 * WEIGHT)
    torch.testing.assert_close(found, balanced_kd_loss(ZS, ZT, WEIGHT), **EXACT)


def target(weight, temperature=2.0):
    """The distribution whose match has no gradient, read off the gradient."""
    student = ZS.clone().requires_grad_()
    balanced_kd_loss(student, ZT, weight, temperature=temperature).backward()
    p = F.softmax(ZS / temperature, dim=1)
    return p - student.grad * len(ZS) / temperature


def test_the_target_is_the_weighted_teacher_scaled_to_one():
    q = F.softmax(ZT / 2, dim=1) * WEIGHT
    torch.testing.assert_close(target(WEIGHT), q / q.sum(1, keepdim=True), **EXACT)


@pytest.mark.parametrize("k", range(5))
def test_a_heavier_class_gets_more_of_every_image(k):
    heavier = WEIGHT.clone()
    heavier[k] *= 2
    assert (target(heavier)[:, k] > target(WEIGHT)[:, k]).all()


def test_balanced_counts_weigh_all_classes_alike():
    torch.testing.assert_close(
        effective_number_weights(torch.full((4,), 123)), torch.ones(4).double(), **EXACT
    )


def test_beta_zero_weighs_all_classes_alike_and_near_one_by_their_inverse():
    counts = torch.tensor(COUNTS)
    assert (effective_number_weights(counts, beta=0) == 1).all()
    inverse = 1 / counts.double()
    found = effective_number_weights(counts, beta=1 - 1e-9)
    torch.testing.assert_close(found, inverse / inverse.mean(), rtol=1e-5, atol=0)


def test_an_absent_class_counts_as_one_image():
    found = effective_number_weights(torch.tensor([5, 0, 1]))
    assert torch.isfinite(found).all()
    assert found[1] == found[2]


def test_it_counts_the_labelled_training_images():
    label = torch.cat([torch.full((count,), k) for k, count in enumerate(COUNTS)])
    label = torch.cat([label, torch.full((33,), -1)])
    method = BKD.from_probe(BKDConfig(), probe(label))
    torch.testing.assert_close(method.class_weight, WEIGHT.float())


def test_without_the_sets_labels_it_says_so():
    with pytest.raises(DataError, match="no labels of the training set"):
        BKD.from_probe(BKDConfig(), probe(None))


@pytest.mark.parametrize(("epoch", "balanced"), [(0, False), (159, False), (160, True)])
def test_deferred_reweighting_is_plain_kd_until_then(epoch, balanced):
    found = terms(prepared(defer_epochs=160), epoch=epoch).parts["kd"]
    expected = balanced_kd_loss(ZS, ZT, WEIGHT) if balanced else kd_loss(ZS, ZT, temperature=2)
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_cross_entropy_is_not_weighted():
    torch.testing.assert_close(terms(prepared()).parts["ce"], F.cross_entropy(ZS, Y), **EXACT)


def test_the_weights_are_in_the_checkpoint():
    other = BKD(BKDConfig(), class_counts=torch.ones(5)).double()
    other.load_state_dict(prepared().state_dict())
    torch.testing.assert_close(other.class_weight, WEIGHT, **EXACT)


def test_the_teacher_receives_no_gradient():
    student, teacher = ZS.clone().requires_grad_(), ZT.clone().requires_grad_()
    balanced_kd_loss(student, teacher, WEIGHT).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_weights_of_another_number_are_named():
    with pytest.raises(ShapeError, match=r"one number for each class; got \(4,\)"):
        balanced_kd_loss(ZS, ZT, torch.ones(4))
