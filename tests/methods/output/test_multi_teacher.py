"""B batch, C classes; float64 and 1e-9 unless a test says otherwise."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import ModelError, SettingsError, ShapeError
from limbeck.core.types import Batch, Classifier, Outputs, Progress
from limbeck.functional.teacher_weights import (
    agreement_weights,
    confidence_weights,
    mean_kd_gradients,
)
from limbeck.losses import confidence_hint_loss, fused_kd_loss, kd_loss
from limbeck.methods.base import Probe
from limbeck.methods.output.multi_teacher import MultiTeacher, MultiTeacherConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["multi_teacher"]
EXACT = {"rtol": 0.0, "atol": 1e-9}
FUSIONS = ["average_loss", "average_probability", "average_logit", "ebkd", "ca_mkd", "aekd"]

ZS, ZT, ZA, ZB = torch.tensor(
    [
        [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
        [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
        [[1.5, 0.0, 2.2, 0.5, -1.0], [0.3, 0.6, -0.4, 2.5, 0.2], [-0.5, 1.0, 0.9, 0.0, 1.4]],
        [[0.2, 0.1, 0.9, 0.8, -0.3], [0.9, 0.5, 0.0, 0.7, -0.6], [0.4, -0.2, 0.3, 0.1, 0.5]],
    ],
    dtype=torch.float64,
)
TEACHERS = [ZT, ZA, ZB]
Y = torch.tensor([2, 3, 4])
S1, S2, T1, T2 = torch.tensor(
    [
        [[0.1, 0.2], [0.3, -0.4], [0.0, 1.0]],
        [[0.5, 0.0], [0.2, 0.2], [-0.3, 0.8]],
        [[0.0, 0.4], [0.1, -0.2], [0.5, 0.9]],
        [[0.7, 0.1], [0.0, 0.0], [-0.1, 0.6]],
    ],
    dtype=torch.float64,
)[..., None, None]


def fused(fusion, teachers=TEACHERS, *, student=ZS, label=Y, temperature=4, **switches):
    return fused_kd_loss(
        student, teachers, label, fusion=fusion, temperature=temperature, **switches
    )


def alpha(max_weight, k, *, unit_gradients=False):
    return agreement_weights(
        ZS,
        torch.stack(TEACHERS),
        temperature=4,
        max_weight=max_weight,
        unit_gradients=unit_gradients,
    )[k]


COMPUTED = {
    "KD of za": lambda: fused("average_loss", [ZA]),
    "KD of zb": lambda: fused("average_loss", [ZB]),
    "average_loss": lambda: fused("average_loss"),
    "average_probability": lambda: fused("average_probability"),
    "average_logit": lambda: fused("average_logit"),
    **{
        f"ca_mkd weight [{k},{b}]": lambda k=k, b=b: confidence_weights(torch.stack(TEACHERS), Y)[
            k, b
        ]
        for k in range(3)
        for b in range(3)
    },
    "ca_mkd official scale": lambda: fused("ca_mkd", official_scale=True),
    "ca_mkd": lambda: fused("ca_mkd"),
    "ca_mkd soft cross-entropy": lambda: fused("ca_mkd", soft_cross_entropy=True),
    "ca_mkd hint": lambda: confidence_hint_loss(
        [S1, S2], [T1, T2], [ZT, ZA], Y, official_scale=True
    ),
    "ebkd official scale": lambda: fused("ebkd", official_scale=True),
    **{
        f"aekd C={c} weight [{k}]": lambda c=c, k=k: alpha(c, k)
        for c in (0.6, 0.4)
        for k in range(3)
    },
    **{f"aekd C={c}": lambda c=c: fused("aekd", max_weight=c) for c in (0.6, 0.4)},
    **{
        f"aekd C=0.6 unit gradients weight [{k}]": lambda k=k: alpha(0.6, k, unit_gradients=True)
        for k in (0, 2)
    },
    "aekd C=0.6 unit gradients": lambda: fused("aekd", unit_gradients=True),
    **{
        f"aekd mean gradient of zt [{c}]": lambda c=c: mean_kd_gradients(
            ZS, ZT[None], temperature=4
        )[0, c]
        for c in range(5)
    },
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_with_the_full_weight_allowed_aekd_listens_to_the_nearest_teacher_here():
    """As the authors' solver does on these numbers: weights (0, 1, 0)."""
    weights = torch.stack([alpha(1, k) for k in range(3)])
    torch.testing.assert_close(weights, torch.tensor([0.0, 1.0, 0.0]).double(), **EXACT)
    found = fused("aekd", max_weight=1)
    torch.testing.assert_close(found, kd_loss(ZS, ZA, temperature=4), **EXACT)


# -- what the card promises --------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_teachers_that_agree_give_kd(fusion, count):
    for temperature in (1, 4):
        found = fused(fusion, [ZT] * count, temperature=temperature)
        torch.testing.assert_close(found, kd_loss(ZS, ZT, temperature=temperature), **EXACT)


@pytest.mark.parametrize(("fusion", "factor"), [("ebkd", 2 / 3), ("ca_mkd", 1 / 3)])
def test_on_the_authors_scale_they_give_less(fusion, factor):
    found = fused(fusion, [ZT] * 3, official_scale=True)
    torch.testing.assert_close(found, factor * kd_loss(ZS, ZT, temperature=4), **EXACT)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_order_of_the_teachers_does_not_matter(fusion):
    torch.testing.assert_close(fused(fusion, [ZB, ZT, ZA]), fused(fusion), rtol=0, atol=1e-7)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_it_is_never_negative_and_zero_for_a_student_that_agrees_with_all(fusion, generator):
    assert fused(fusion) > 0
    assert fused(fusion, [ZS, ZS]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_repeating_the_batch_does_not_change_it(fusion):
    twice = [teacher.repeat(2, 1) for teacher in TEACHERS]
    found = fused(fusion, twice, student=ZS.repeat(2, 1), label=Y.repeat(2))
    torch.testing.assert_close(found, fused(fusion), rtol=0, atol=1e-7)


def gradient(fusion, **switches):
    student = ZS.clone().requires_grad_()
    fused(fusion, student=student, **switches).backward()
    return student.grad


def test_average_loss_and_average_probability_have_one_gradient_and_two_values():
    there, here = gradient("average_loss"), gradient("average_probability")
    torch.testing.assert_close(there, here, **EXACT)
    assert fused("average_loss") > fused("average_probability") + 0.1


def test_the_two_values_differ_by_how_far_teachers_are_from_their_mean():
    """The mean teacher's Jensen-Shannon term, of the softened probabilities."""
    p = torch.stack([F.softmax(z / 4, dim=1) for z in TEACHERS])
    apart = (p * (p / p.mean(dim=0)).log()).sum(dim=2).mean()
    difference = fused("average_loss") - fused("average_probability")
    torch.testing.assert_close(difference, 16 * apart, **EXACT)


def test_average_logit_is_kd_from_the_mean_of_the_logits():
    mean = torch.stack(TEACHERS).mean(dim=0)
    torch.testing.assert_close(fused("average_logit"), kd_loss(ZS, mean, temperature=4), **EXACT)


def test_average_probability_is_kd_from_the_mean_of_the_softened_probabilities():
    mean = torch.stack([F.softmax(z / 4, dim=1) for z in TEACHERS]).mean(dim=0)
    expected = F.kl_div(F.log_softmax(ZS / 4, dim=1), mean, reduction="batchmean") * 16
    torch.testing.assert_close(fused("average_probability"), expected, **EXACT)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_gradient_is_that_of_the_weighted_kds_with_weights_held_fixed(fusion):
    found = gradient(fusion)
    match fusion:
        case "average_loss" | "average_probability":
            weights = torch.full((3, 3), 1 / 3, dtype=torch.float64)
        case "average_logit":
            student = ZS.clone().requires_grad_()
            kd_loss(student, torch.stack(TEACHERS).mean(dim=0), temperature=4).backward()
            torch.testing.assert_close(found, student.grad, **EXACT)
            return
        case "ebkd":
            p = torch.stack([F.softmax(z, dim=1) for z in TEACHERS])
            entropy = -(p * p.log()).sum(dim=2)
            weights = (1 - entropy / entropy.sum(dim=0)) / 2
        case "ca_mkd":
            ce = torch.stack([F.cross_entropy(z, Y, reduction="none") for z in TEACHERS])
            weights = (1 - ce.softmax(dim=0)) / 2
        case "aekd":
            weights = torch.stack([alpha(0.6, k) for k in range(3)])[:, None].expand(3, 3)
    softened = torch.stack([F.softmax(z / 4, dim=1) for z in TEACHERS])
    apart = F.softmax(ZS / 4, dim=1) - softened
    expected = 4 / 3 * (weights[:, :, None] * apart).sum(dim=0)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_teacher_receives_a_gradient(fusion):
    teachers = [z.clone().requires_grad_() for z in TEACHERS]
    student = ZS.clone().requires_grad_()
    fused(fusion, teachers, student=student).backward()
    assert student.grad.abs().sum() > 0
    assert all(z.grad is None for z in teachers)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_labels_count_under_ca_mkd_alone(fusion):
    changes = not torch.equal(fused(fusion, label=Y.roll(1)), fused(fusion))
    assert changes is (fusion == "ca_mkd")


def test_without_labels_ca_mkd_is_the_average():
    found = fused("ca_mkd", label=torch.full((3,), -1))
    torch.testing.assert_close(found, fused("average_loss"), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_it_is_finite_at_a_gap_of_200_in_value_and_gradient(fusion, dtype):
    one_hot = F.one_hot(torch.tensor([[0, 1, 2], [0, 0, 1], [4, 4, 4]]), 5)
    teachers = [(200 * one_hot[k]).to(dtype) for k in (1, 2)] + [(-200 * one_hot[0]).to(dtype)]
    student = (200 * one_hot[0]).to(dtype).requires_grad_()
    for temperature in (1, 4):
        loss = fused(fusion, teachers, student=student, temperature=temperature)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        (found,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(found).all()


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"teachers": []}, ShapeError, "one teacher at least"),
        ({"teachers": [ZT, ZT[:, :4]]}, ShapeError, r"teacher \(3, 4\)"),
        ({"teachers": [ZT[:2]]}, ShapeError, r"teacher \(2, 5\)"),
        ({"label": Y[:2]}, ShapeError, r"one class index for each image; got \(2,\)"),
        ({"temperature": 0}, SettingsError, "temperature must be above 0"),
        ({"fusion": "best"}, SettingsError, "one of average_loss, .*, aekd; got 'best'"),
        ({"soft_cross_entropy": True, "fusion": "ebkd"}, SettingsError, "of fusion 'ca_mkd'"),
        ({"official_scale": True, "fusion": "aekd"}, SettingsError, "'ebkd' and 'ca_mkd'"),
        ({"max_weight": 0.2, "fusion": "aekd"}, SettingsError, "from 1 / 3"),
    ],
)
def test_bad_input_is_answered_with_what_is_wanted(arguments, error, message):
    with pytest.raises(error, match=message):
        fused(**{"fusion": "ca_mkd"} | arguments)


# -- the distance of maps ----------------------------------------------------------------------


def hint(student=(S1, S2), teacher=(T1, T2), heads=(ZT, ZA), label=Y, **switches):
    return confidence_hint_loss(student, teacher, heads, label, **switches)


def test_the_distance_is_the_formula_in_plain_loops(generator):
    ours = [torch.randn(3, c, 2, 2, generator=generator).double() for c in (4, 6)]
    theirs = [torch.randn(3, c, 2, 2, generator=generator).double() for c in (4, 6)]
    expected = 0.0
    for b in range(3):
        error = torch.stack([F.cross_entropy(z[b], Y[b]) for z in (ZT, ZA)])
        for k in range(2):
            share = 1 - error.softmax(dim=0)[k]
            expected += share * F.mse_loss(ours[k][b], theirs[k][b]) / 3
    found = hint(ours, theirs)
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_authors_scale_divides_it_by_the_number_of_teachers():
    torch.testing.assert_close(hint(official_scale=True), hint() / 2, **EXACT)


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_flows_through_its_weights_unless_they_are_detached(detach):
    heads = [z.clone().requires_grad_() for z in (ZT, ZA)]
    ours = [z.clone().requires_grad_() for z in (S1, S2)]
    hint(ours, heads=heads, detach_weights=detach).backward()
    assert all((z.grad is None) is detach for z in heads)
    assert all(z.grad.abs().sum() > 0 for z in ours)


def test_maps_that_agree_are_at_no_distance():
    assert hint((T1, T2)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": [T1]}, "got 2, 1 and 2"),
        ({"teacher": [T1, T2[:, :1]]}, r"teacher \(3, 1, 1, 1\)"),
        ({"student": [], "teacher": [], "heads": []}, "got 0, 0 and 0"),
    ],
)
def test_lists_and_maps_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ShapeError, match=message):
        hint(**changes)


# -- the method --------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_chosen_rule():
    assert (MultiTeacherConfig().kd_weight, MultiTeacherConfig().hint_weight) == (1.0, 0.0)
    assert MultiTeacherConfig(fusion="aekd").kd_weight == 0.9
    assert MultiTeacherConfig(fusion="aekd", kd_weight=2).kd_weight == 2
    assert MultiTeacherConfig(fusion="ca_mkd").hint_weight == 50
    assert MultiTeacherConfig(fusion="ca_mkd", hint_weight=0).hint_weight == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hint_weight": 1}, "hint_weight is of fusion 'ca_mkd'; got 1.0 for 'average_loss'"),
        ({"soft_cross_entropy": True}, "soft_cross_entropy is of fusion 'ca_mkd'"),
        ({"official_scale": True}, "official_scale is of fusion 'ebkd' and 'ca_mkd'"),
        ({"fusion": "mean"}, "'ca_mkd' or 'aekd'"),
    ],
)
def test_a_switch_of_another_rule_is_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        MultiTeacherConfig(**settings)


class Scene:
    """A student and two teachers of different shapes, whose heads take the mean of their maps."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.student = Outputs(
            ZS.float(), features={"last": torch.randn(3, 4, 4, 4, generator=generator)}
        )
        members = []
        for channels, side in ((6, 2), (8, 8)):
            feature = torch.randn(3, channels, side, side, generator=generator)
            head = Classifier(
                torch.randn(5, channels, generator=generator), torch.zeros(5) if side == 2 else None
            )
            logits = F.linear(feature.mean(dim=(2, 3)), head.weight, head.bias)
            members.append(Outputs(logits, features={"last": feature}, classifier=head))
        self.members = tuple(members)

    def probe(self, members=None):
        members = self.members if members is None else members
        teacher = Outputs(members[0].logits, members=members)
        return Probe(student=self.student, teacher=teacher, num_classes=5, num_images=3)

    def method(self, **settings):
        return MultiTeacher.from_probe(MultiTeacherConfig(**settings), self.probe())

    def terms(self, method, *, label=Y, epoch=5):
        batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=label)
        teacher = Outputs(self.members[0].logits, members=self.members)
        return method(batch, self.student, teacher, Progress(epoch=epoch, num_epochs=9))


@pytest.fixture
def scene():
    return Scene()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_its_terms_are_the_weighted_losses(scene, fusion):
    method = scene.method(fusion=fusion, ce_weight=0.3, kd_weight=0.7, temperature=2)
    terms = scene.terms(method)
    logits = [member.logits for member in scene.members]
    kd = fused_kd_loss(ZS.float(), logits, Y, fusion=fusion, temperature=2)
    torch.testing.assert_close(terms.parts["kd"], kd)
    torch.testing.assert_close(terms.parts["ce"], F.cross_entropy(ZS.float(), Y))
    expected = 0.3 * terms.parts["ce"] + 0.7 * kd + 50 * terms.parts.get("hint", torch.zeros(()))
    torch.testing.assert_close(terms.total, expected)


@pytest.mark.parametrize("fusion", ["ebkd", "ca_mkd", "aekd"])
def test_it_logs_how_much_each_teacher_counted(scene, fusion):
    parts = scene.terms(scene.method(fusion=fusion)).parts
    assert parts["weight1"] + parts["weight2"] == pytest.approx(1)


def test_the_adapters_bring_the_students_map_to_each_teachers_size_and_channels(scene):
    method = scene.method(fusion="ca_mkd")
    assert [adapter.regressor[0].weight.shape[:2] for adapter in method.adapters] == [
        (6, 4),
        (8, 4),
    ]
    kinds = [type(part) for part in method.adapters[0].regressor]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    student = scene.student.features["last"]
    for adapter, member in zip(method.adapters, scene.members, strict=True):
        pair = adapter(student, member.features["last"])
        assert pair.student.shape == pair.teacher.shape == member.features["last"].shape
    assert [line[:10] for line in method.describe()] == ["teacher 1:", "teacher 2:"]


def test_the_distance_reads_each_teachers_own_classifier(scene):
    method = scene.method(fusion="ca_mkd").eval()
    student = scene.student.features["last"]
    maps, heads = [], []
    for adapter, member in zip(method.adapters, scene.members, strict=True):
        size = member.features["last"].shape[2:]
        resized = (
            F.adaptive_avg_pool2d(student, size)
            if size[0] < 4
            else F.interpolate(student, size=size, mode="bilinear")
        )
        maps.append(adapter.regressor(resized))
        pooled = maps[-1].flatten(2).mean(dim=2)
        bias = 0 if member.classifier.bias is None else member.classifier.bias
        heads.append(pooled @ member.classifier.weight.T + bias)
    theirs = [member.features["last"] for member in scene.members]
    expected = confidence_hint_loss(maps, theirs, heads, Y)
    torch.testing.assert_close(scene.terms(method).parts["hint"], expected)


@pytest.mark.parametrize(("epoch", "counts"), [(0, False), (1, True)])
def test_the_distance_counts_from_the_second_epoch_on_and_its_gradient_is_there_before(
    scene, epoch, counts
):
    method = scene.method(fusion="ca_mkd")
    terms = scene.terms(method, epoch=epoch)
    terms.total.backward()
    gradients = [p.grad for p in method.parameters()]
    assert all(g is not None for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients) is counts


def test_without_the_distance_it_has_no_parameters_and_reads_logits_alone(scene):
    config = MultiTeacherConfig(fusion="ca_mkd", hint_weight=0)
    needs = MultiTeacher.needs(config)
    assert needs.members
    assert not needs.teacher_layers
    assert not needs.one_teacher
    assert list(scene.method(fusion="ca_mkd", hint_weight=0).parameters()) == []


@pytest.mark.parametrize("kind", ["dead", "flat", "far apart"])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_awkward_maps_give_a_finite_distance_and_gradient(scene, kind, half):
    student = scene.student.features["last"]
    changed = {"dead": torch.zeros_like, "flat": lambda f: torch.full_like(f, 100.1)}.get(
        kind, lambda f: 200 * f.sign()
    )
    method = scene.method(fusion="ca_mkd")
    leaf = changed(student).requires_grad_()
    scene.student = Outputs(scene.student.logits, features={"last": leaf})
    with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
        terms = scene.terms(method, label=torch.tensor([2, -1, 4]))
    assert terms.total.dtype == torch.float32
    terms.total.backward()
    assert all(torch.isfinite(part) for part in (terms.total, *terms.parts.values()))
    assert all(torch.isfinite(p.grad).all() for p in (leaf, *method.parameters()))


def test_one_teacher_is_refused_with_what_to_do(scene):
    for members in (scene.members[:1], ()):
        probe = Probe(
            student=scene.student,
            teacher=Outputs(ZT, members=members),
            num_classes=5,
            num_images=3,
        )
        with pytest.raises(ModelError, match="two teachers or more, and got one; give several"):
            MultiTeacher.from_probe(MultiTeacherConfig(), probe)


def test_a_bound_that_so_many_teachers_cannot_keep_is_refused_before_training(scene):
    with pytest.raises(SettingsError, match="from 1 / 2"):
        scene.method(fusion="aekd", max_weight=0.4)


def test_a_teacher_whose_classifier_reads_something_else_is_named(scene):
    second = scene.members[1]
    other = Outputs(second.logits + 1, features=second.features, classifier=second.classifier)
    config = MultiTeacherConfig(fusion="ca_mkd")
    with pytest.raises(ModelError, match=r"of teacher 2, layer 'last' .* off by 1"):
        MultiTeacher.from_probe(config, scene.probe((scene.members[0], other)))
