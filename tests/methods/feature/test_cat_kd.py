"""Class attention transfer; B batch, K classes, D features, H W spatial, r pooled size."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import ModelError, SettingsError, ShapeError
from limbeck.core.types import Batch, Classifier, Outputs, Progress
from limbeck.losses import cat_loss, class_maps
from limbeck.methods.base import Probe
from limbeck.methods.feature.cat_kd import CATKD, CATKDConfig, binary_maps, kept_classes

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["cat_kd"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


STUDENT, TEACHER = sines((2, 4, 4, 4), 0.9, 0.1), sines((2, 4, 4, 4), 0.5, 0.3)
LABEL = torch.tensor([1, 3])


def of_highest(count):
    kept = kept_classes(TEACHER.mean(dim=(2, 3)), count, which="highest")
    chosen = [
        torch.stack([maps[b, kept[b]] for b in range(len(maps))]) for maps in (STUDENT, TEACHER)
    ]
    return cat_loss(*chosen, pool_size=2, normalize=True)


COMPUTED = {
    "r=2 raw": lambda: cat_loss(STUDENT, TEACHER, pool_size=2, normalize=False),
    "r=2 normalised": lambda: cat_loss(STUDENT, TEACHER, pool_size=2, normalize=True),
    "r=4 raw": lambda: cat_loss(STUDENT, TEACHER, pool_size=4, normalize=False),
    "r=4 normalised": lambda: cat_loss(STUDENT, TEACHER, pool_size=4, normalize=True),
    "r=1 raw": lambda: cat_loss(STUDENT, TEACHER, pool_size=1, normalize=False),
    "paper's sum, r=2 normalised": lambda: 4 * cat_loss(STUDENT, TEACHER, normalize=True),
    "larger teacher, r=2 normalised": lambda: cat_loss(
        STUDENT, sines((2, 4, 8, 8), 0.5, 0.3), pool_size=2, normalize=True
    ),
    "binary teacher, r=2 normalised": lambda: cat_loss(
        STUDENT, binary_maps(TEACHER), pool_size=2, normalize=True
    ),
    "CE": lambda: terms_of().parts["ce"],
    "15 times r=2 raw": lambda: terms_of().total - terms_of().parts["ce"],
    "2 highest classes, r=2 normalised": lambda: of_highest(2),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_the_mean_of_a_class_map_and_the_bias_are_the_networks_score(generator):
    feature = torch.randn(3, 5, 4, 6, dtype=torch.float64, generator=generator)
    head = torch.nn.Linear(5, 7).double()
    scores = class_maps(feature, head.weight).mean(dim=(2, 3)) + head.bias
    torch.testing.assert_close(scores, head(feature.mean(dim=(2, 3))), rtol=0, atol=1e-12)


def test_class_maps_are_a_convolution_and_in_float32_under_autocast(generator):
    feature = torch.randn(2, 5, 3, 3, generator=generator)
    weight = torch.randn(7, 5, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = class_maps(feature, weight)
    torch.testing.assert_close(found, F.conv2d(feature, weight[:, :, None, None]))


@pytest.mark.parametrize("normalize", [False, True])
def test_equal_maps_cost_nothing(normalize):
    assert cat_loss(TEACHER, TEACHER, pool_size=2, normalize=normalize) == 0


def test_only_normalised_maps_do_not_see_the_scale_of_a_class():
    scale = torch.tensor([0.1, 2.0, 30.0, 1.0], dtype=torch.float64)[:, None, None]
    for normalize in (True, False):
        losses = [
            cat_loss(factor * STUDENT, TEACHER, pool_size=2, normalize=normalize)
            for factor in (1, scale)
        ]
        assert torch.allclose(*losses, rtol=0, atol=1e-12) is normalize


@pytest.mark.parametrize("r", [1, 2, 4])
def test_normalised_it_reaches_four_over_the_places_for_opposite_maps(r):
    assert cat_loss(STUDENT, -STUDENT, pool_size=r, normalize=True).item() == pytest.approx(
        4 / r**2
    )


def test_at_one_place_normalised_maps_have_no_gradient():
    student = STUDENT.abs().requires_grad_()
    loss = cat_loss(student, TEACHER.abs(), pool_size=1, normalize=True)
    loss.backward()
    assert loss == 0
    assert student.grad.abs().max() < 1e-12


def test_pixels_may_move_inside_a_cell_and_cells_and_classes_together():
    def swap_inside(maps):
        return maps.unflatten(3, (2, 2)).flip(4).flatten(3)

    expected = cat_loss(STUDENT, TEACHER, pool_size=2, normalize=True)
    for changed in (
        (swap_inside(STUDENT), TEACHER),
        (STUDENT.roll(2, 2), TEACHER.roll(2, 2)),
        (STUDENT.flip(1), TEACHER.flip(1)),
    ):
        found = cat_loss(*changed, pool_size=2, normalize=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_dead_maps_give_finite_values_and_gradients(normalize):
    student = torch.zeros_like(STUDENT).float().requires_grad_()
    loss = cat_loss(student, TEACHER.float(), normalize=normalize)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    if normalize:  # each class counts 1 / r^2, and nothing tells it where to go
        assert loss.item() == pytest.approx(1 / 4)
        assert student.grad.abs().max() == 0


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("which", ["highest", "lowest"])
def test_as_many_classes_are_kept_as_were_asked_for(count, which, generator):
    """The code keeps one fewer of the highest and one more of the lowest."""
    logits = torch.randn(5, 4, generator=generator)
    kept = kept_classes(logits, count, which=which)
    ordered = logits.argsort(dim=1, descending=which == "highest")
    assert [set(row) for row in kept.tolist()] == [set(row[:count]) for row in ordered.tolist()]


@pytest.mark.parametrize(
    ("feature", "weight"), [((2, 3), (5, 3)), ((2, 3, 4, 4), (5, 4)), ((2, 16, 3), (5, 3))]
)
def test_a_feature_that_the_classifier_does_not_take_is_refused(feature, weight):
    with pytest.raises(ShapeError, match="class maps need a feature map"):
        class_maps(torch.zeros(feature), torch.zeros(weight))


def test_maps_of_other_classes_are_refused():
    with pytest.raises(ShapeError, match="of one batch and its classes"):
        cat_loss(STUDENT, TEACHER[:, :3])


# -- the method ----------------------------------------------------------------------------


def make(student=STUDENT, teacher=TEACHER, **settings):
    """The method and two networks whose classifiers pass each channel on as a class."""
    outputs = [
        Outputs(
            feature.mean(dim=(2, 3)) if feature.ndim == 4 else torch.zeros(len(feature), 4),
            features={"last": feature},
            classifier=Classifier(torch.eye(4, dtype=torch.float64), torch.ones(4)),
        )
        for feature in (student, teacher)
    ]
    probe = Probe(student=outputs[0], teacher=outputs[1], num_classes=4, num_images=20)
    return CATKD.from_probe(CATKDConfig(**settings), probe), *outputs


def terms_of(label=LABEL, **settings):
    method, *outputs = make(**settings)
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=label)
    return method(batch, *outputs, Progress())


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"normalize": True}, 0.506705572455),
        ({"binarize": True, "normalize": True}, 0.520787792894),
        ({"num_kept_classes": 2, "normalize": True}, 0.503013653344),
        ({"pool_size": 4}, 0.982195836865),
    ],
)
def test_its_settings_reach_the_loss(settings, value):
    assert abs(terms_of(**settings).parts["cat"].item() - value) < 1e-11


def test_without_cross_entropy_the_labels_cannot_matter():
    totals = [
        terms_of(label=torch.tensor(label), ce_weight=0.0).total
        for label in ([1, 3], [-1, 0], [99, -7])
    ]
    assert totals[0] == totals[1] == totals[2]
    assert terms_of(ce_weight=0.0).parts.keys() == {"cat"}


def test_the_gradient_reaches_the_students_feature_and_classifier_and_not_the_teacher():
    method, student, teacher = make()
    leaves = [
        student.features["last"].clone().requires_grad_(),
        torch.eye(4, dtype=torch.float64).requires_grad_(),
        teacher.features["last"].clone().requires_grad_(),
    ]
    student = Outputs(
        student.logits, features={"last": leaves[0]}, classifier=Classifier(leaves[1])
    )
    teacher = Outputs(
        teacher.logits, features={"last": leaves[2]}, classifier=Classifier(torch.eye(4).double())
    )
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=LABEL)
    method(batch, student, teacher, Progress()).total.backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves[:2])
    assert leaves[2].grad is None


def test_tokens_are_the_map_of_their_places():
    tokens = torch.cat([torch.full((2, 1, 4), 9.0), TEACHER.flatten(2).mT], dim=1)
    method, student, teacher = make(teacher=tokens, num_kept_classes=None)
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=LABEL)
    terms = method(batch, student, teacher, Progress())
    assert abs(terms.parts["cat"].item() - 0.162878391784) < 1e-11
    assert "17x4 tokens as 4x4x4" in method.describe()[0]


def test_a_classifier_behind_further_layers_is_refused_by_name():
    wide = Outputs(
        torch.zeros(2, 4),
        features={"last": torch.zeros(2, 8, 4, 4)},
        classifier=Classifier(torch.zeros(4, 16)),
    )
    probe = Probe(student=make()[1], teacher=wide, num_classes=4, num_images=20)
    with pytest.raises(ModelError, match="takes 16, and layer 'last' has 8"):
        CATKD.from_probe(CATKDConfig(), probe)


def test_more_classes_than_there_are_cannot_be_kept():
    with pytest.raises(SettingsError, match="has 4 classes"):
        make(num_kept_classes=5)
