"""B batch, D features; float64 and 1e-9 unless a test says otherwise."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import pdist, squareform

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.functional.relations import angle_cosines, relative_distances
from limbeck.losses import rkd_angle_loss, rkd_distance_loss
from limbeck.methods.base import Probe
from limbeck.methods.relation import rkd
from limbeck.methods.relation.rkd import RKD, RKDConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["rkd"]
EXACT = {"rtol": 0.0, "atol": 1e-9}
LOSSES = [rkd_distance_loss, rkd_angle_loss]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


S = tensor([[math.sin(1.0 * (3 * i + j) + 0.5) for j in range(3)] for i in range(4)])
T = tensor([[math.cos(0.7 * (5 * i + j)) for j in range(5)] for i in range(4)])
SL, TL = tensor([[1, 0], [0, 2], [-1, 1]]), tensor([[2, 1, 0], [0, 1, 3], [-1, 0, 1]])
EQUAL, OTHER = tensor([[1, 2], [1, 2], [3, 5]]), tensor([[1, 0], [2, 1], [0, 3]])


def weighted(distance, angle, student=S):
    return distance * rkd_distance_loss(student, T) + angle * rkd_angle_loss(student, T)


def gradient(distance, angle):
    student = S.clone().requires_grad_()
    weighted(distance, angle, student).backward()
    return student.grad


def mean_distance(embedding):
    """The divisor that was used, from one distance known otherwise."""
    return (embedding[0] - embedding[1]).norm() / relative_distances(embedding)[0, 1]


COMPUTED = {
    "distance": lambda: rkd_distance_loss(S, T),
    "distance, norm of gradient": lambda: gradient(1, 0).norm(),
    "distance, gradient [0,0]": lambda: gradient(1, 0)[0, 0],
    "angle": lambda: rkd_angle_loss(S, T),
    "angle, norm of gradient": lambda: gradient(0, 1).norm(),
    "angle, gradient [0,0]": lambda: gradient(0, 1)[0, 0],
    "25 distance + 50 angle": lambda: weighted(25, 50),
    "25 distance + 50 angle, norm of gradient": lambda: gradient(25, 50).norm(),
    "1 distance + 2 angle": lambda: weighted(1, 2),
    "student's mean distance": lambda: mean_distance(S),
    "teacher's mean distance": lambda: mean_distance(T),
    **{
        f"student's distance [0,{j}]": lambda j=j: relative_distances(S)[0, j] * pdist(S).mean()
        for j in (1, 2, 3)
    },
    "student's cosine [0,1,2]": lambda: angle_cosines(S)[0, 1, 2],
    "literal distance": lambda: rkd_distance_loss(SL, TL),
    "literal angle": lambda: rkd_angle_loss(SL, TL),
    "angle with equal rows": lambda: rkd_angle_loss(EQUAL, OTHER),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def huber(difference):
    size = abs(difference)
    return 0.5 * size**2 if size < 1 else size - 0.5


def test_the_distance_loss_is_the_formula_in_plain_loops():
    student, teacher = (squareform(pdist(e)) / pdist(e).mean() for e in (S, 40 * T**3))
    terms = [huber(student[i, j] - teacher[i, j]) for i in range(4) for j in range(4)]
    assert abs(rkd_distance_loss(S, 40 * T**3).item() - sum(terms) / 16) < 1e-9


def cosine(embedding, i, j, k):
    ways = [
        [b - a for a, b in zip(embedding[i], embedding[other], strict=True)] for other in (j, k)
    ]
    lengths = [math.hypot(*way) for way in ways]
    if 0 in lengths:
        return 0.0
    return sum(a * b for a, b in zip(*ways, strict=True)) / (lengths[0] * lengths[1])


@pytest.mark.parametrize(("student", "teacher"), [(S, T), (SL, TL), (EQUAL, OTHER)])
def test_the_angle_loss_is_the_formula_in_plain_loops(student, teacher):
    size = len(student)
    rows = student.tolist(), teacher.tolist()
    places = [(i, j, k) for i in range(size) for j in range(size) for k in range(size)]
    terms = [huber(cosine(rows[0], *place) - cosine(rows[1], *place)) for place in places]
    assert abs(rkd_angle_loss(student, teacher).item() - sum(terms) / size**3) < 1e-9


def test_a_right_angle_against_a_straight_line():
    """At the corner (two orders) the cosines are 0 and -1: Huber 0.5 each; at the two ends,
    sqrt(1/2) and 1, two orders each.
    """
    right, straight = tensor([[1, 0], [0, 0], [0, 1]]), tensor([[1], [0], [-1]])
    expected = (2 * 0.5 + 4 * 0.5 * (1 - math.sqrt(0.5)) ** 2) / 27
    assert abs(rkd_angle_loss(right, straight).item() - expected) < 1e-9


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda e: 7.5 * e, id="scaling"),
        pytest.param(lambda e: e + tensor([3.0, -1.0, 20.0]), id="translation"),
        pytest.param(lambda e: e @ torch.linalg.qr(S[:3])[0], id="rotation"),
    ],
)
def test_similar_student_embeddings_have_the_same_loss(loss, change):
    torch.testing.assert_close(loss(change(S), T), loss(S, T), **EXACT)


@pytest.mark.parametrize("loss", LOSSES)
def test_reordering_the_batch_changes_nothing(loss):
    order = [2, 0, 3, 1]
    torch.testing.assert_close(loss(S[order], T[order]), loss(S, T), **EXACT)
    assert abs(loss(S[order], T) - loss(S, T)) > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_rescaling_single_rows_changes_it(loss):
    assert abs(loss(tensor([[1], [2], [3], [4]]) * S, T) - loss(S, T)) > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_relations_have_no_loss(loss):
    assert loss(S, S.clone()).item() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_the_teacher_receives_no_gradient(loss):
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss):
    student = S.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, T), (student,))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([[1, 2], [1, 2], [3, 5]], id="two equal"),
        pytest.param([[1, 2], [1, 2], [1, 2]], id="all equal"),
        pytest.param([[0, 0], [0, 0], [0, 0]], id="all zero"),
        pytest.param([[1, 2], [1 + 1e-6, 2], [3, 5]], id="nearly equal"),
    ],
)
def test_equal_rows_give_a_bounded_gradient(loss, dtype, rows):
    if dtype == torch.float64:
        rows = [[round(value, 3) for value in row] for row in rows]  # 1e-6 is far in float64
    student = torch.tensor(rows, dtype=dtype, requires_grad=True)
    value = loss(student, OTHER.to(dtype))
    value.backward()
    assert torch.isfinite(value)
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("loss", LOSSES)
def test_a_teacher_with_equal_rows_gives_a_finite_loss(loss):
    student = OTHER.clone().requires_grad_()
    value = loss(student, torch.ones(3, 4).double())
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("most", [1, 40, 100])
def test_corners_taken_in_chunks_give_the_same_value_and_gradient(most, generator, monkeypatch):
    student, teacher = torch.randn(2, 7, 5, dtype=torch.float64, generator=generator)
    found = []
    for size in (rkd._MOST_ENTRIES, most):
        monkeypatch.setattr(rkd, "_MOST_ENTRIES", size)
        leaf = student.clone().requires_grad_()
        value = rkd_angle_loss(leaf, teacher)
        value.backward()
        found.append((value, leaf.grad))
    torch.testing.assert_close(found[0], found[1], **EXACT)


def test_chunks_begin_where_the_docstring_says():
    """All corners of 64 images of 512 features at once; 21 of 256."""
    for size, width, at_once in ((64, 512, 64), (256, 512, 21)):
        assert min(size, rkd._MOST_ENTRIES // (size * (size + width))) == at_once


def test_equal_rows_do_not_enter_the_mean_distance():
    distances = relative_distances(EQUAL)
    torch.testing.assert_close(distances[0], tensor([0.0, 0.0, 1.0]), **EXACT)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_of_one_has_no_loss_and_no_gradient(loss):
    student = S[:1].clone().requires_grad_()
    value = loss(student, T[:1])
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_even_under_autocast(loss, dtype, generator):
    student, teacher = torch.randn(2, 4, 16, generator=generator).to(dtype)
    expected = loss(student.double(), teacher.double()).float()
    ours = [loss(student, teacher)]
    with torch.autocast("cpu", dtype=dtype):
        ours += [loss(student, teacher), loss(student.float(), teacher.float())]
    for value in ours:
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_distant_clusters_lose_no_digits_in_float32(loss):
    """Distances from the Gram matrix would cancel here."""
    far = S + 100.0
    torch.testing.assert_close(
        loss(far.float(), T.float()), loss(far.float().double(), T).float(), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 3), (3, 3)), ((4,), (4,)), ((4, 3, 1, 1), (4, 3)), ((4, 3), (4, 3, 2))],
)
def test_other_shapes_are_named(loss, student, teacher):
    with pytest.raises(ShapeError, match=r"\(batch, features\).*got student \(4.*pooling"):
        loss(torch.zeros(student), torch.zeros(teacher))


def probe_of(student, teacher):
    return Probe(student=student, teacher=teacher, num_classes=3, num_images=20)


def test_maps_and_tokens_are_averaged_over_their_places(generator):
    """As their mean vectors, given as vectors."""
    places = torch.randn(4, 9, 3, dtype=torch.float64, generator=generator)
    tokens = torch.randn(4, 17, 5, dtype=torch.float64, generator=generator)
    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    batch = Batch(
        index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=torch.tensor([0, 1, -1, 2])
    )
    pairs = (
        (places.transpose(1, 2).reshape(4, 3, 3, 3), tokens),
        (sum(places.unbind(1)) / 9, sum(tokens.unbind(1)[1:]) / 16),
    )
    totals = []
    for pair in pairs:
        student, teacher = (Outputs(logits, features={"penultimate": f}) for f in pair)
        method = RKD.from_probe(RKDConfig(), probe_of(student, teacher))
        totals.append(method(batch, student, teacher, Progress()).total)
        lines = method.describe()
        assert len(lines) == 1
    torch.testing.assert_close(*totals, **EXACT)
    assert lines[0] == "student penultimate 3 -> teacher penultimate 5; no parameters"


def test_the_total_weighs_the_three_terms(generator):
    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    batch = Batch(
        index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=torch.tensor([0, 1, -1, 2])
    )
    student = Outputs(logits, features={"penultimate": S})
    teacher = Outputs(logits, features={"penultimate": T})
    method = RKD.from_probe(RKDConfig(), probe_of(student, teacher))
    terms = method(batch, student, teacher, Progress())
    known = batch.label >= 0
    ce = F.cross_entropy(logits[known], batch.label[known])
    torch.testing.assert_close(terms.total, ce + 0.5107955276, rtol=0, atol=1e-9)
    assert terms.parts.keys() == {"ce", "distance", "angle"}


def test_it_reads_the_layers_of_its_settings():
    needs = RKD.needs(RKDConfig(student_layer="a", teacher_layer="b"))
    assert (needs.student_layers, needs.teacher_layers) == (("a",), ("b",))
