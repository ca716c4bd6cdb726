"""B batch, K classes; float64 and 1e-9 unless a test says otherwise."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import kd_loss, mlkd_loss, standardize_logits
from limbeck.methods.output.mlkd import MLKD, MLKDConfig, _lower_half, _relations, mlkd_terms

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["mlkd"]
EXACT = {"rtol": 0.0, "atol": 1e-9}
TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)

ZS = torch.tensor(
    [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
    dtype=torch.float64,
)
ZT = torch.tensor(
    [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
    dtype=torch.float64,
)
Y = torch.tensor([2, 3, 4])
ZS2 = torch.tensor(
    [[0.5, -0.2, 1.1, 0.4, -0.7], [0.0, 0.3, -0.5, 1.0, 0.2], [-1.0, 0.2, 0.5, 0.1, 0.9]],
    dtype=torch.float64,
)
ZT2 = torch.tensor(
    [[1.8, -0.6, 2.2, 0.3, -1.1], [0.4, 0.8, -1.0, 2.6, 0.1], [-0.7, 1.5, 0.4, -0.1, 0.9]],
    dtype=torch.float64,
)
VIEWS = (ZS, ZT, ZS2, ZT2)
# Shares of images and of classes that the masks pick: 2 of 3 and 3 of 5.
SHARE_IMAGES, SHARE_CLASSES = 2 / 3, 3 / 5


def terms(label=Y, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=label)
    student = Outputs(ZS, views={"strong": Outputs(ZS2)})
    teacher = Outputs(ZT, views={"strong": Outputs(ZT2)})
    return MLKD(MLKDConfig(**settings))(batch, student, teacher, Progress())


def levels(mode="official", views=VIEWS, **settings):
    return mlkd_terms(*views, mode=mode, **settings)


def relations(which, temperature=4.0):
    found = _relations(ZS, ZT, temperature)[which]
    return found.sum() / len(found)


def kd_sum(student, teacher, temperatures=TEMPERATURES):
    return sum(kd_loss(student, teacher, temperature=t) for t in temperatures)


def masked_weak_instance():
    """The masked sum less the strong view's, which no mask touches."""
    return levels("masked").instance - kd_sum(ZS2, ZT2)


COMPUTED = {
    "images T=4": lambda: relations(0),
    "classes T=4": lambda: relations(1),
    "0.1 CE": lambda: 0.1 * terms().parts["ce"],
    "0.9 instance": lambda: 0.9 * terms().parts["instance"],
    "0.9 batch": lambda: 0.9 * terms().parts["batch"],
    "0.9 classes": lambda: 0.9 * terms().parts["classes"],
    "total": lambda: terms().total,
    "share of images": lambda: _lower_half(F.softmax(ZT, dim=1).amax(1)).mean(),
    "share of classes": lambda: _lower_half(F.softmax(ZT, dim=1).sum(0)).mean(),
    "instance, weak": lambda: kd_sum(ZS, ZT),
    "instance, strong": lambda: kd_sum(ZS2, ZT2),
    "batch, unscaled": lambda: levels().batch / SHARE_IMAGES,
    "classes, unscaled": lambda: levels().classes / SHARE_CLASSES,
    "masked instance, weak": masked_weak_instance,
    "masked batch": lambda: levels("masked").batch,
    "masked classes": lambda: levels("masked").classes,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


@pytest.fixture
def views(generator):
    """Student and teacher of two views, ``(4, 4, 6)``."""
    return 2 * torch.randn(4, 4, 6, dtype=torch.float64, generator=generator)


def test_the_official_sum_sees_the_weak_view_at_its_last_two_temperatures():
    found = levels().instance
    expected = SHARE_IMAGES * kd_sum(ZS, ZT) + kd_sum(ZS2, ZT2, (4, 3, 5)) + kd_sum(ZS, ZT, (2, 6))
    torch.testing.assert_close(found, expected, **EXACT)


def loops(views):
    """The masked form, an image, a class and a pair at a time."""
    instance, batch, classes = 0.0, 0.0, 0.0
    size, num_classes = views.shape[1:]
    teacher = F.softmax(views[1], dim=1)
    confidence, mass = teacher.amax(1).tolist(), teacher.sum(0).tolist()
    middle = [sorted(x)[(len(x) - 1) // 2] for x in (confidence, mass)]
    for t in TEMPERATURES:
        ps, pt, qs, qt = F.softmax(views / t, dim=2).tolist()
        for b in range(size):
            weak = t**2 * sum(v * math.log(v / u) for u, v in zip(ps[b], pt[b], strict=True))
            strong = t**2 * sum(v * math.log(v / u) for u, v in zip(qs[b], qt[b], strict=True))
            instance += (weak * (confidence[b] <= middle[0]) + strong) / size
            for a in range(size):
                gap = sum(pt[a][k] * pt[b][k] - ps[a][k] * ps[b][k] for k in range(num_classes))
                batch += gap**2 * (confidence[b] <= middle[0]) / size
        for j in range(num_classes):
            for k in range(num_classes):
                gap = sum(pt[b][j] * pt[b][k] - ps[b][j] * ps[b][k] for b in range(size))
                classes += gap**2 * (mass[k] <= middle[1]) / num_classes
    return instance, batch, classes


def test_the_masked_form_is_its_plain_loops(views):
    for found, expected in zip(levels("masked", views), loops(views), strict=True):
        assert abs(found.item() - expected) < 1e-9


@pytest.mark.parametrize("mode", ["official", "masked"])
def test_networks_that_agree_have_no_loss(views, mode):
    agreeing = views[[1, 1, 3, 3]]
    assert all(level.abs() < 1e-12 for level in levels(mode, agreeing))


@pytest.mark.parametrize("mode", ["official", "masked"])
def test_adding_constants_to_rows_changes_nothing(views, mode, generator):
    shift = 9 * torch.randn(4, 4, 1, dtype=torch.float64, generator=generator)
    found = mlkd_loss(*(views + shift), mode=mode)
    torch.testing.assert_close(found, mlkd_loss(*views, mode=mode), **EXACT)


@pytest.mark.parametrize("mode", ["official", "masked"])
@pytest.mark.parametrize("dim", [1, 2], ids=["images", "classes"])
def test_reordering_everything_alike_changes_nothing(views, dim, mode, generator):
    order = torch.randperm(views.shape[dim], generator=generator)
    found = mlkd_loss(*views.index_select(dim, order), mode=mode)
    torch.testing.assert_close(found, mlkd_loss(*views, mode=mode), **EXACT)


def test_relations_of_images_are_blind_to_the_names_of_the_students_classes(views):
    student, teacher = views[:2]
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    before, after = (_relations(z, teacher, 2.0) for z in (student, student[:, order]))
    torch.testing.assert_close(after[0], before[0], **EXACT)
    assert (after[1] - before[1]).abs().max() > 1e-2


def test_relations_of_classes_are_blind_to_the_order_of_the_students_images(views):
    student, teacher = views[:2]
    before, after = (_relations(z, teacher, 2.0) for z in (student, student[[2, 0, 3, 1]]))
    torch.testing.assert_close(after[1], before[1], **EXACT)
    assert (after[0] - before[0]).abs().max() > 1e-2


def test_repeating_the_batch_doubles_batch_and_quadruples_classes(views):
    once, twice = levels("official", views), levels("official", views.repeat(1, 2, 1))
    torch.testing.assert_close(twice.instance, once.instance, **EXACT)
    torch.testing.assert_close(twice.batch, 2 * once.batch, **EXACT)
    torch.testing.assert_close(twice.classes, 4 * once.classes, **EXACT)


@pytest.mark.parametrize(("values", "share"), [((4, 1, 3, 2), 0.5), ((5, 1, 3), 2 / 3), ((7,), 1)])
def test_half_the_values_are_at_most_the_median(values, share):
    found = _lower_half(torch.tensor(values).double())
    assert found.mean().item() == pytest.approx(share)


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_the_picked_half_carries_no_gradient(views, whose):
    """The teacher receives none; and the student's only way is through the differences."""
    leaves = [z.clone().requires_grad_() for z in views]
    mlkd_loss(*leaves).backward()
    assert all(z.grad is None for z in (leaves[1], leaves[3]))
    assert all(z.grad is not None for z in (leaves[0], leaves[2]))


def test_standardising_is_for_single_answers_alone():
    found, raw = levels(standardize=True), levels()
    assert found.batch == raw.batch
    assert found.classes == raw.classes
    weak, strong = ([standardize_logits(z) for z in pair] for pair in ((ZS, ZT), (ZS2, ZT2)))
    expected = SHARE_IMAGES * kd_sum(*weak) + kd_sum(*strong, (4, 3, 5)) + kd_sum(*weak, (2, 6))
    torch.testing.assert_close(found.instance, expected, **EXACT)
    torch.testing.assert_close(terms(standardize=True).parts["ce"], terms().parts["ce"], **EXACT)


def test_both_views_learn_the_labels():
    found = terms().parts["ce"]
    expected = F.cross_entropy(ZS, Y) + F.cross_entropy(ZS2, Y)
    torch.testing.assert_close(found, expected, **EXACT)


def test_it_asks_for_the_strong_view():
    assert MLKD.needs(MLKDConfig()).views == ("strong",)


def test_an_unknown_mode_and_a_bad_temperature_are_refused():
    with pytest.raises(SettingsError, match="'official' or 'masked', got 'soft'"):
        levels("soft")
    with pytest.raises(SettingsError, match="temperature must be above 0"):
        levels(temperatures=(4.0, 0.0))
    with pytest.raises(SettingsError, match="temperatures"):
        MLKDConfig(temperatures=())


def test_views_of_other_shapes_are_named():
    with pytest.raises(ShapeError, match=r"got student \(3, 5\), teacher \(2, 5\)"):
        mlkd_loss(ZS, ZT, ZS2[:2], ZT2[:2])
