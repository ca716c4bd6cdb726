"""B batch, K classes; float64 and 1e-9 unless a test says otherwise."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import dkd_loss, kd_loss, standardize_logits
from limbeck.methods.output.dkd import DKD, DKDConfig, decoupled_kl

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["dkd"]
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
MINI = torch.tensor([[[2.0, 1.0, 0.0]], [[1.0, 3.0, 0.5]]], dtype=torch.float64)
MINI_Y = torch.tensor([1])


def terms(epoch=0, label=Y, student=ZS, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=label)
    progress = Progress(epoch=epoch, num_epochs=240)
    return DKD(DKDConfig(**settings))(batch, Outputs(student), Outputs(ZT), progress)


def parts(temperature, pair=(ZS, ZT), label=Y):
    return decoupled_kl(*pair, label, temperature=temperature)


def at_label(teacher, label, temperature):
    return F.softmax(teacher / temperature, dim=1).gather(1, label[:, None]).squeeze(1)


def gradient(student=ZS, **settings):
    student = student.clone().requires_grad_()
    dkd_loss(student, ZT, Y, **({"alpha": 1, "beta": 8, "temperature": 4} | settings)).backward()
    return student.grad


def weighed(alpha, beta, temperature, pair=(ZS, ZT), label=Y):
    return dkd_loss(*pair, label, alpha=alpha, beta=beta, temperature=temperature)


CASES = [(1, 8, 4), (1, 6, 4), (1, 2, 4), (1, 1, 4), (1, 0.5, 1), (1, 2, 1)]
COMPUTED = {
    **{
        f"alpha, beta, T = {', '.join(map(str, case))}": lambda case=case: weighed(*case)
        for case in CASES
    },
    **{f"TCKD T={t}": lambda t=t: parts(t).target.mean() for t in (4, 1)},
    **{f"NCKD T={t}": lambda t=t: parts(t).non_target.mean() for t in (4, 1)},
    **{f"TCKD T=4 [{b}]": lambda b=b: parts(4).target[b] for b in range(3)},
    **{f"NCKD T=4 [{b}]": lambda b=b: parts(4).non_target[b] for b in range(3)},
    **{
        f"teacher's probability of the label T=4 [{b}]": lambda b=b: at_label(ZT, Y, 4)[b]
        for b in range(3)
    },
    **{f"gradient [0,{k}]": lambda k=k: gradient()[0, k] for k in (0, 1, 3, 4)},
    "1, 8, 4 in float32": lambda: weighed(1, 8, 4, (ZS.float(), ZT.float())),
    "CE + DKD": lambda: terms(warmup_epochs=0).total,
    "CE + DKD, epoch 5 of 20": lambda: terms(epoch=4).total,
    "mini TCKD": lambda: parts(4, MINI, MINI_Y).target.mean(),
    "mini NCKD": lambda: parts(4, MINI, MINI_Y).non_target.mean(),
    "mini teacher's probability": lambda: at_label(MINI[1], MINI_Y, 4)[0],
    "mini 1, 8, 4": lambda: weighed(1, 8, 4, MINI, MINI_Y),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


@pytest.fixture
def case(generator):
    """Student and teacher logits ``(4, 6)`` and labels."""
    logits = 3 * torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    return *logits, torch.tensor([5, 0, 2, 2])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_the_formula_in_plain_loops(case, temperature):
    student, teacher, label = case
    target, non_target = 0.0, 0.0
    for zs, zt, y in zip(student.tolist(), teacher.tolist(), label.tolist(), strict=True):
        ps, pt = ([math.exp(z / temperature) for z in row] for row in (zs, zt))
        sums, rests = [sum(p) for p in (ps, pt)], [sum(p) - p[y] for p in (ps, pt)]
        s, t = ps[y] / sums[0], pt[y] / sums[1]
        target += t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s))
        for k in range(6):
            if k != y:
                a, b = ps[k] / rests[0], pt[k] / rests[1]
                non_target += b * math.log(b / a)
    expected = temperature**2 * (2 * target + 3 * non_target) / 4
    found = dkd_loss(student, teacher, label, alpha=2, beta=3, temperature=temperature)
    assert abs(found.item() - expected) < 1e-9


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_two_parts_make_up_kd_image_by_image(case, temperature):
    """The paper's identity: KL = TCKD + (1 - teacher's probability of the label) * NCKD."""
    student, teacher, label = case
    target, non_target = decoupled_kl(student, teacher, label, temperature=temperature)
    recomposed = target + (1 - at_label(teacher, label, temperature)) * non_target
    for b in range(4):
        expected = kd_loss(student[b : b + 1], teacher[b : b + 1], temperature=temperature)
        torch.testing.assert_close(recomposed[b], expected, **EXACT)


def test_the_gradient_at_the_label_is_kds():
    """The part of the other classes adds nothing there."""
    student = ZS.clone().requires_grad_()
    kd_loss(student, ZT, temperature=4).backward()
    rows = torch.arange(3)
    torch.testing.assert_close(gradient()[rows, Y], student.grad[rows, Y], **EXACT)


def test_networks_that_agree_have_no_loss(case):
    _, teacher, label = case
    assert dkd_loss(teacher, teacher, label, alpha=1, beta=8, temperature=4).item() == 0


@pytest.mark.parametrize("whose", [0, 1])
def test_adding_a_constant_to_a_row_changes_nothing(case, whose):
    logits, label = list(case[:2]), case[2]
    expected = dkd_loss(*logits, label, alpha=1, beta=8, temperature=4)
    logits[whose] = logits[whose] + torch.tensor([[1.0], [-7.0], [30.0], [0.5]])
    found = dkd_loss(*logits, label, alpha=1, beta=8, temperature=4)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("whose", [0, 1])
def test_the_other_classes_part_ignores_the_labels_score(case, whose):
    logits, label = list(case[:2]), case[2]
    rows = torch.arange(4)
    expected = decoupled_kl(*logits, label, temperature=4).non_target
    logits[whose] = logits[whose].clone()
    logits[whose][rows, label] += torch.tensor([5.0, -50.0, 2000.0, 1e6]).double()
    logits[0].requires_grad_()
    found = decoupled_kl(*logits, label, temperature=4).non_target
    torch.testing.assert_close(found, expected, **EXACT)
    found.sum().backward()
    assert (logits[0].grad[rows, label] == 0).all()


def test_the_labels_part_sees_the_others_as_one(case):
    """Any scores with the same logsumexp do."""
    student, teacher, label = case
    others = student.scatter(1, label[:, None], -torch.inf)
    even = (others.logsumexp(1, keepdim=True) - math.log(5)).expand(-1, 6)
    levelled = even.scatter(1, label[:, None], student.gather(1, label[:, None]))
    expected = decoupled_kl(student, teacher, label, temperature=1).target
    found = decoupled_kl(levelled, teacher, label, temperature=1).target
    torch.testing.assert_close(found, expected, **EXACT)


def test_reordering_the_other_classes_changes_neither_part(case):
    student, teacher, label = case
    order = torch.tensor([5, 0, 2, 4, 1, 3])
    moved = order.argsort()[label]
    expected = decoupled_kl(student, teacher, label, temperature=4)
    found = decoupled_kl(student[:, order], teacher[:, order], moved, temperature=4)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_with_two_classes_the_label_is_all_there_is(generator):
    student, teacher = torch.randn(2, 5, 2, dtype=torch.float64, generator=generator)
    target, non_target = decoupled_kl(
        student, teacher, torch.tensor([0, 1, 1, 0, 1]), temperature=3
    )
    assert (non_target == 0).all()
    expected = kd_loss(student, teacher, temperature=3)
    torch.testing.assert_close(target.mean(), expected, **EXACT)


def test_it_is_linear_in_both_weights(case):
    student, teacher, label = case

    def loss(alpha, beta):
        return dkd_loss(student, teacher, label, alpha=alpha, beta=beta, temperature=4)

    torch.testing.assert_close(loss(2, 5), 2 * loss(1, 0) + 5 * loss(0, 1), **EXACT)
    assert loss(0, 0) == 0


@pytest.mark.parametrize("repeats", [3])
def test_repeating_the_batch_changes_nothing(case, repeats):
    student, teacher, label = case
    expected = dkd_loss(student, teacher, label)
    found = dkd_loss(student.repeat(repeats, 1), teacher.repeat(repeats, 1), label.repeat(repeats))
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_weight_of_zero_leaves_a_part_out_even_where_it_is_infinite():
    """0 times infinity would be no number."""
    student, teacher = torch.tensor([[3e38, -3e38, 0.0]]), torch.tensor([[-3e38, 3e38, 0.0]])
    label = torch.tensor([0])
    assert not torch.isfinite(decoupled_kl(student, teacher, label, temperature=1e-3).target)
    assert dkd_loss(student, teacher, label, alpha=0, beta=0, temperature=1e-3) == 0


def test_an_unlabelled_image_is_taken_apart_at_the_teachers_choice():
    found = terms(label=torch.tensor([2, -1, -1]), warmup_epochs=0)
    chosen = torch.tensor([2, 3, 1])
    torch.testing.assert_close(found.parts["tckd"], parts(4, label=chosen).target.mean(), **EXACT)
    expected = F.cross_entropy(ZS[:1], Y[:1]) + dkd_loss(ZS, ZT, chosen)
    torch.testing.assert_close(found.total, expected, **EXACT)


def test_the_teacher_receives_no_gradient(case):
    student, teacher, label = case
    student, teacher = student.requires_grad_(), teacher.clone().requires_grad_()
    dkd_loss(student, teacher, label).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("epoch", "rise"), [(0, 1 / 20), (4, 5 / 20), (18, 19 / 20), (19, 1), (200, 1)]
)
def test_both_parts_rise_over_the_first_epochs(epoch, rise):
    found = terms(epoch=epoch)
    whole = dkd_loss(ZS, ZT, Y, alpha=1, beta=8, temperature=4)
    expected = F.cross_entropy(ZS, Y) + rise * whole
    torch.testing.assert_close(found.total, expected, **EXACT)
    assert found.parts.keys() == {"ce", "tckd", "nckd"}
    torch.testing.assert_close(found.parts["nckd"], parts(4).non_target.mean(), **EXACT)


@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_without_warmup_they_are_whole_at_once(warmup_epochs):
    assert terms(warmup_epochs=warmup_epochs).total == terms(epoch=100).total


def test_standardising_leaves_the_cross_entropy_alone():
    found = terms(warmup_epochs=0, standardize=True, temperature=2, alpha=9, beta=72)
    torch.testing.assert_close(found.parts["ce"], F.cross_entropy(ZS, Y), **EXACT)
    seen = [(z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) for z in (ZS, ZT)]
    expected = F.cross_entropy(ZS, Y) + dkd_loss(*seen, Y, alpha=9, beta=72, temperature=2)
    torch.testing.assert_close(found.total, expected, rtol=0, atol=1e-5)  # without the 1e-7
    population = terms(warmup_epochs=0, standardize="population", alpha=9, beta=72, temperature=2)
    seen = [standardize_logits(z, population=True) for z in (ZS, ZT)]
    expected = F.cross_entropy(ZS, Y) + dkd_loss(*seen, Y, alpha=9, beta=72, temperature=2)
    torch.testing.assert_close(population.total, expected, **EXACT)


@pytest.mark.parametrize("label", [torch.zeros(4), torch.zeros(3, 5), torch.zeros(2)])
def test_labels_of_another_shape_are_named(label):
    with pytest.raises(ShapeError, match="one class index for each image"):
        dkd_loss(ZS, ZT, label.long())


def test_a_temperature_must_be_positive():
    with pytest.raises(SettingsError, match="temperature must be above 0"):
        dkd_loss(ZS, ZT, Y, temperature=0)
