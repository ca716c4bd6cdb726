"""B batch, K classes; float64 and 1e-9 unless a test says otherwise."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import DataError, ShapeError
from limbeck.core.types import Batch, Classifier, Outputs, Progress
from limbeck.functional.class_cost import cka_cost, cosine_cost, sharpened
from limbeck.functional.sinkhorn import sinkhorn_cost
from limbeck.losses import wkd_logit_loss
from limbeck.methods.base import Probe
from limbeck.methods.output.wkd_logit import WKDLogit, WKDLogitConfig, falling, wkd_terms
from limbeck.teacher import Teacher

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["wkd_logit"]
EXACT = {"rtol": 0.0, "atol": 1e-9}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def wave(shape, a, b):
    """``G(shape; a, b)`` of the golden values: sin(a * i + b) in row-major order."""
    count = torch.Size(shape).numel()
    return torch.sin(a * torch.arange(count, dtype=torch.float64) + b).reshape(shape)


TINY = tensor([[2, 0, -1]]), tensor([[1, 2, 0]])
# The authors keep costs in float32, and computed this case in float64.
TINY_COST = tensor([[0, 0.2, 0.6], [0.2, 0, 0.5], [0.6, 0.5, 0]]).float().double()
TINY_P = tuple(F.softmax(z / 2, dim=1) for z in TINY)
BATCH = 2 * wave((2, 5), 1.3, 0.2), 2 * wave((2, 5), 0.7, 0.5)
PLACES = torch.arange(5).double()
BATCH_COST = 1 - torch.exp(-(PLACES[:, None] - PLACES).abs() / 5)
BATCH_Y = torch.tensor([1, 3])
FEATURES = wave((3, 5, 2), 0.9, 0.1)
PAIRS = [(0, 1), (0, 2), (1, 2)]


def whole_rows(pair, cost, temperature, iterations=10):
    """The transport cost without taking a label out."""
    rows = [F.softmax(z / temperature, dim=1) for z in pair]
    start = torch.full_like(rows[0], 1 / rows[0].shape[1])
    return sinkhorn_cost(
        *rows, cost + 1e-8, start=start, regularization=0.05, iterations=iterations
    ).mean()


def tiny_plan():
    """The plan whose cost the function gives, from its own loop."""
    price = TINY_COST + 1e-8
    kernel = torch.exp(-price / 0.05)
    u = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    for _ in range(10):
        v = TINY_P[1] / (u @ kernel + 1e-8)
        u = TINY_P[0] / (v @ kernel.T + 1e-8)
    plan = u.T * kernel * v
    cost = whole_rows(TINY, TINY_COST, 2)
    torch.testing.assert_close((plan * price).sum(), cost, **EXACT)
    return plan


def separated(weight, pair=BATCH, label=BATCH_Y, cost=BATCH_COST, temperature=4.0):
    return wkd_logit_loss(*pair, label, cost, temperature=temperature, weight=weight)


def gradient(function, student):
    student = student.clone().requires_grad_()
    function(student).backward()
    return student.grad


def self_gradient():
    return gradient(lambda z: whole_rows((z, BATCH[1]), BATCH_COST, 4), BATCH[1])


COMPUTED = {
    **{f"tiny student [{k}]": lambda k=k: TINY_P[0][0, k] for k in range(3)},
    **{f"tiny teacher [{k}]": lambda k=k: TINY_P[1][0, k] for k in range(3)},
    **{
        f"tiny, {m} iterations": lambda m=m: whole_rows(TINY, TINY_COST, 2, m)
        for m in (1, 2, 10, 2000)
    },
    **{f"tiny plan [0,{k}]": lambda k=k: tiny_plan()[0, k] for k in range(3)},
    **{f"tiny column sum [{k}]": lambda k=k: tiny_plan().sum(0)[k] for k in range(3)},
    **{
        f"tiny, weight {w}": lambda w=w: separated(w, TINY, torch.tensor([1]), TINY_COST, 2)
        for w in (0, 1, 10)
    },
    "batch, whole rows": lambda: whole_rows(BATCH, BATCH_COST, 4),
    "batch, whole rows in float32": lambda: whole_rows(
        [z.float() for z in BATCH], BATCH_COST.float(), 4
    ),
    **{f"batch, weight {w}": lambda w=w: separated(w) for w in (0, 1, 30)},
    **{
        f"batch, gradient [0,{k}]": lambda k=k: gradient(
            lambda z: separated(1, (z, BATCH[1])), BATCH[0]
        )[0, k]
        for k in range(5)
    },
    "batch, itself": lambda: whole_rows((BATCH[1], BATCH[1]), BATCH_COST, 4),
    "batch, itself, norm of gradient": lambda: self_gradient().norm(),
    **{f"CKA cost [{i},{j}]": lambda i=i, j=j: cka_cost(FEATURES)[i, j] for i, j in PAIRS},
    **{
        f"CKA cost, kappa {kappa} [{i},{j}]": lambda i=i, j=j, kappa=kappa: sharpened(
            cka_cost(FEATURES), kappa
        )[i, j]
        for i, j in PAIRS
        for kappa in (1, 2)
    },
    **{
        f"classifier cost [{i},{j}]": lambda i=i, j=j: cosine_cost(wave((3, 4), 0.9, 0.1))[i, j]
        for i, j in PAIRS
    },
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


# -- the loss ------------------------------------------------------------------------------


@pytest.fixture
def case(generator):
    """Student and teacher logits ``(4, 6)``, labels, and a cost."""
    logits = 2 * torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    cost = torch.rand(6, 6, dtype=torch.float64, generator=generator).fill_diagonal_(0)
    return *logits, torch.tensor([5, 0, 2, 2]), cost


def removed(student, teacher, label, cost, *, temperature, iterations):
    """The authors' way: the label's column, and its row and column of the cost, taken out."""
    total = 0.0
    for zs, zt, y in zip(student, teacher, label.tolist(), strict=True):
        keep = [k for k in range(len(zs)) if k != y]
        p, q = (F.softmax(z[keep] / temperature, dim=0) for z in (zs, zt))
        price = cost[keep][:, keep].relu() + 1e-8
        kernel = torch.exp(-price / 0.05)
        u = torch.full_like(p, 1 / len(keep))
        for _ in range(iterations):
            v = q / (kernel.T @ u + 1e-8)
            u = p / (kernel @ v + 1e-8)
        total = total + (u[:, None] * kernel * v * price).sum()
    return total / len(student)


@pytest.mark.parametrize("iterations", [1, 10])
def test_one_kernel_for_all_equals_one_for_each_image_without_its_label(case, iterations):
    """In value to 1e-15 and in gradient; the cost need not be symmetric."""
    student, teacher, label, cost = case

    def ours(z):
        return wkd_terms(
            z,
            teacher,
            label,
            cost,
            temperature=4.0,
            regularization=0.05,
            iterations=iterations,
            solver="official",
        ).transport

    def theirs(z):
        return removed(z, teacher, label, cost, temperature=4.0, iterations=iterations)

    torch.testing.assert_close(ours(student), theirs(student), rtol=0, atol=1e-14)
    found, expected = (gradient(function, student) for function in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_a_weight_of_zero_leaves_the_labels_part(case):
    student, teacher, label, cost = case
    rows = torch.arange(4)
    p = F.softmax(teacher, dim=1)[rows, label]
    expected = -(p * F.log_softmax(student, dim=1)[rows, label]).mean()
    found = wkd_logit_loss(student, teacher, label, cost, weight=0)
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_transport_has_no_gradient_at_the_labels_score(case):
    student, teacher, label, cost = case

    def transport(z):
        with_it = wkd_logit_loss(z, teacher, label, cost, weight=1)
        return with_it - wkd_logit_loss(z, teacher, label, cost, weight=0)

    moved = student.clone()
    moved[torch.arange(4), label] += 50
    torch.testing.assert_close(transport(moved), transport(student), **EXACT)
    assert gradient(transport, student)[torch.arange(4), label].abs().max() < 1e-15


@pytest.mark.parametrize("whose", [0, 1])
def test_adding_a_constant_to_a_row_changes_nothing(case, whose):
    logits, label, cost = list(case[:2]), case[2], case[3]
    expected = wkd_logit_loss(*logits, label, cost)
    logits[whose] = logits[whose] + tensor([[1], [-7], [30], [0.5]])
    torch.testing.assert_close(wkd_logit_loss(*logits, label, cost), expected, rtol=0, atol=1e-8)


def test_reordering_classes_in_logits_labels_and_cost_changes_nothing(case):
    student, teacher, label, cost = case
    order = torch.tensor([5, 0, 2, 4, 1, 3])
    found = wkd_logit_loss(
        student[:, order], teacher[:, order], order.argsort()[label], cost[order][:, order]
    )
    torch.testing.assert_close(
        found, wkd_logit_loss(student, teacher, label, cost), rtol=0, atol=1e-8
    )


def test_prices_below_zero_count_as_zero(case):
    student, teacher, label, cost = case
    expected = wkd_logit_loss(student, teacher, label, cost)
    found = wkd_logit_loss(student, teacher, label, cost - 5 * torch.eye(6).double())
    torch.testing.assert_close(found, expected, **EXACT)


def test_an_unlabelled_image_takes_the_teachers_choice(case):
    student, teacher, label, cost = case
    some = torch.where(torch.arange(4) < 2, label, -1)
    chosen = torch.where(torch.arange(4) < 2, label, teacher.argmax(1))
    expected = wkd_logit_loss(student, teacher, chosen, cost)
    torch.testing.assert_close(wkd_logit_loss(student, teacher, some, cost), expected, **EXACT)


def test_the_teacher_receives_no_gradient(case):
    student, teacher, label, cost = case
    teacher = teacher.clone().requires_grad_()
    student = student.clone().requires_grad_()
    cost = cost.clone().requires_grad_()
    wkd_logit_loss(student, teacher, label, cost).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert cost.grad is None


def test_a_cost_of_another_size_is_named(case):
    student, teacher, label, cost = case
    with pytest.raises(ShapeError, match=r"two of 6 classes; got \(5, 6\)"):
        wkd_logit_loss(student, teacher, label, cost[:5])


# -- the weight over epochs ------------------------------------------------------------------


def test_the_weight_is_constant_and_then_falls_to_zero_in_the_last_epoch():
    found = [falling(epoch, 150, 240) for epoch in range(1, 241)]
    assert found[:150] == [1.0] * 150
    assert found == sorted(found, reverse=True)
    assert found[194] == pytest.approx(0.5)
    assert found[-1] == pytest.approx(0, abs=1e-12)
    assert falling(1, 0, 100) < 1
    assert falling(20, 150, 20) == 1


@pytest.mark.parametrize(("epoch", "share"), [(0, 1), (149, 1), (194, 0.5), (239, 0)])
def test_the_total_weighs_its_parts_by_epoch(case, epoch, share):
    student, teacher, label, cost = case
    method = WKDLogit(WKDLogitConfig(), cost=cost)
    batch = Batch(index=torch.arange(4), image=torch.zeros(4, 1, 1, 1), label=label)
    progress = Progress(epoch=epoch, num_epochs=240)
    found = method(batch, Outputs(student), Outputs(teacher), progress)
    parts = found.parts
    torch.testing.assert_close(parts["ce"], F.cross_entropy(student, label), **EXACT)
    expected = parts["ce"] + parts["target"] + 600 * share * parts["transport"]
    torch.testing.assert_close(found.total, expected, **EXACT)


# -- the cost from the teacher -----------------------------------------------------------------


def small_teacher():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
        )
    return network.double()


def images(generator, count=22):
    image = torch.rand(count, 1, 4, 4, dtype=torch.float64, generator=generator)
    label = torch.randint(4, (count,), generator=generator)
    label[:8] = torch.arange(8) % 4
    label[-3:] = -1
    return image, label


def made(config, network):
    needs = WKDLogit.needs(config)
    teacher = Teacher(network, layers=needs.teacher_layers, classifier=needs.teacher_classifier)
    outputs = teacher(torch.zeros(2, 1, 4, 4).double())
    probe = Probe(student=outputs, teacher=outputs, num_classes=4, num_images=22)
    return WKDLogit.from_probe(config, probe).double(), teacher


def batches(image, label, order):
    for part in order.split(7):
        yield Batch(index=part, image=image[part], label=label[part])


def by_class(rows, label):
    """The first images of each class, as many as the rarest has, in the set's order."""
    found = [rows[label == k] for k in range(4)]
    fewest = min(map(len, found))
    return torch.stack([part[:fewest].reshape(-1, rows.shape[-1]) for part in found])


@pytest.mark.parametrize("kind", ["features", "logits"])
def test_one_pass_over_the_images_finds_the_cost(kind, generator):
    image, label = images(generator)
    network = small_teacher()
    config = WKDLogitConfig(cost=kind, teacher_layer="1", cost_sharpness=2)
    method, teacher = made(config, network)
    method.prepare(teacher, batches(image, label, torch.arange(22)))
    with torch.no_grad():
        rows = network[:2](image).flatten(2).mT if kind == "features" else network(image)[:, None]
    expected = sharpened(cka_cost(by_class(rows, label)), 2)
    torch.testing.assert_close(method.class_cost, expected, **EXACT)
    other = made(config, network)[0]
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.class_cost, method.class_cost)


def test_the_number_of_images_can_be_bounded(generator):
    image, label = images(generator)
    network = small_teacher()
    method, teacher = made(WKDLogitConfig(cost="logits", images_per_class=2), network)
    method.prepare(teacher, batches(image, label, torch.arange(22)))
    with torch.no_grad():
        rows = by_class(network(image)[:, None], label)[:, :2]
    torch.testing.assert_close(method.class_cost, sharpened(cka_cost(rows), 1), **EXACT)


def test_the_classifiers_cost_takes_no_pass():
    network = small_teacher()
    method, teacher = made(WKDLogitConfig(cost="classifier", cost_sharpness=0), network)
    expected = 1 - F.cosine_similarity(network[3].weight[:, None], network[3].weight[None], dim=2)
    torch.testing.assert_close(method.class_cost, expected, **EXACT)
    method.prepare(teacher, None)
    torch.testing.assert_close(method.class_cost, expected, **EXACT)
    assert isinstance(teacher(torch.zeros(2, 1, 4, 4).double()).classifier, Classifier)


def test_it_says_which_layer_sets_the_cost():
    method, _ = made(WKDLogitConfig(teacher_layer="1"), small_teacher())
    assert method.describe() == ("cost between classes from teacher 1 3x4x4 as 16x3 tokens",)
    assert made(WKDLogitConfig(cost="logits"), small_teacher())[0].describe() == ()


def test_a_class_without_two_labelled_images_is_named(generator):
    image, label = images(generator)
    label[label == 2] = -1
    method, teacher = made(WKDLogitConfig(cost="logits"), small_teacher())
    with pytest.raises(DataError, match=r"classes \[2\] have fewer.*cost=classifier"):
        method.prepare(teacher, batches(image, label, torch.arange(22)))
