"""Several methods in one run.

B batch, C channels, H W spatial, K classes.
"""

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError, UnknownNameError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.methods import METHODS, find_method
from limbeck.methods.base import Probe
from limbeck.methods.combine import method_names

K = 4


def world(name, settings=None, *, seed=0):
    """A combination built on made-up features of two networks, and one batch of them."""
    generator = torch.Generator().manual_seed(seed)

    def outputs(channels):
        maps = torch.randn(4, channels, 4, 4, generator=generator)
        return Outputs(
            torch.randn(4, K, generator=generator, requires_grad=True),
            features={"stage1": maps, "last": maps, "penultimate": maps.mean(dim=(2, 3))},
        )

    student, teacher = outputs(6), outputs(8)
    label = torch.arange(4) % K
    batch = Batch(index=torch.arange(4), image=torch.zeros(4, 1, 2, 2), label=label)
    probe = Probe(student=student, teacher=teacher, num_classes=K, num_images=4, labels=label)
    (stage,) = find_method(name).stages(find_method(name).config.read(settings or {}))
    return stage.method.from_probe(stage.config, probe), batch, student, teacher


# -- the loss ------------------------------------------------------------------------------


def test_the_loss_is_the_methods_sum_with_one_cross_entropy():
    """By hand: Hinton's divergence, the published reduction of AT, one cross-entropy at 0.3."""
    method, batch, student, teacher = world(
        "kd+at", {"kd": {"ce_weight": 0.3, "temperature": 2}, "at": {"at_weight": 7}}
    )
    ce = F.cross_entropy(student.logits, batch.label)
    soft = F.log_softmax(student.logits / 2, dim=1), F.log_softmax(teacher.logits / 2, dim=1)
    kd = 4 * F.kl_div(*soft, log_target=True, reduction="batchmean")
    maps = [
        F.normalize(o.features["stage1"].square().mean(dim=1).flatten(1), dim=1)
        for o in (student, teacher)
    ]
    at = (maps[0] - maps[1]).square().mean()
    terms = method(batch, student, teacher, Progress())
    torch.testing.assert_close(terms.total, 0.3 * ce + 0.9 * kd + 7 * at)
    expected = {"kd.ce": ce, "kd.kd": kd, "at.attention": at}
    assert terms.parts.keys() == expected.keys()
    for name, part in expected.items():
        torch.testing.assert_close(terms.parts[name], part.detach())


ALONE = {
    "born_again": "it trains in stages of its own",
    "ce": "it has no ce_weight, since its loss is the cross-entropy",
    "dgkd": "it trains assistants in stages of their own",
    "dml": "it trains in stages of its own",
    "fitnet": "it trains in stages of its own",
    "fsp": "it trains in stages of its own",
    "noise_label": "it has no ce_weight",
    "simkd": "it deploys another network than the student",
    "takd": "it trains assistants in stages of their own",
}


@pytest.mark.parametrize("second", ALONE)
def test_what_cannot_be_combined_says_why(second):
    with pytest.raises(SettingsError, match=f"{second} cannot be combined: {ALONE[second]}"):
        find_method(f"kd+{second}")


def test_the_first_method_says_what_the_cross_entropy_weighs():
    for name, weight in (("kd+at", 0.1), ("at+kd", 1.0)):
        method, batch, student, teacher = world(name)
        terms = method(batch, student, teacher, Progress())
        others = 0.9 * terms.parts["kd.kd"] + 1000 * terms.parts["at.attention"]
        ce = F.cross_entropy(student.logits, batch.label)
        torch.testing.assert_close(terms.total.detach(), (weight * ce + others).detach())


@pytest.mark.parametrize("second", [name for name in METHODS if name not in {"kd", *ALONE}])
def test_any_other_methods_cross_entropy_is_off(second):
    config = find_method(f"kd+{second}").config()
    assert getattr(config, second).ce_weight == 0
    assert config.kd.ce_weight == 0.1


def test_label_smoothing_is_one_for_all():
    method, batch, student, teacher = world("kd+at", {"label_smoothing": 0.2})
    terms = method(batch, student, teacher, Progress())
    ce = F.cross_entropy(student.logits, batch.label, label_smoothing=0.2)
    torch.testing.assert_close(terms.parts["kd.ce"], ce.detach())


# -- what the methods need and own ---------------------------------------------------------


def test_needs_are_united_and_asked_for_once():
    (stage,) = find_method("ofd+crd+cat_kd+mlkd").stages(
        find_method("ofd+crd+cat_kd+mlkd").config()
    )
    needs = stage.method.needs(stage.config)
    assert needs.student_layers == ("pre_activation:stage*", "penultimate", "last")
    assert needs.teacher_layers == ("pre_activation:stage*", "penultimate", "last")
    assert needs.teacher_batch_norms
    assert needs.student_classifier
    assert needs.teacher_classifier
    assert (
        needs.views
        == METHODS["mlkd"]
        .stages(METHODS["mlkd"].config())[0]
        .method.needs(METHODS["mlkd"].config())
        .views
    )
    assert not needs.stop_student


def test_every_methods_parameters_and_memory_are_its_own():
    method, batch, student, teacher = world("crd+vid+kd")
    names = {name.split(".")[1] for name, _ in method.named_parameters()}
    assert names == {"crd", "vid"}
    before = method.methods["crd"].student_bank.clone()
    method.train()(batch, student, teacher, Progress()).total.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert not torch.equal(method.methods["crd"].student_bank, before)


def test_buffers_that_a_method_keeps_equal_are_named_as_the_combination_has_them():
    method, *_ = world("kd+crd")
    assert "methods.crd.student_bank" in method.buffers_kept_equal
    assert set(method.buffers_kept_equal) <= {name for name, _ in method.named_buffers()}


def test_each_method_has_its_own_pass_over_the_data():
    """Two that need one see the same batches, and find what each finds alone."""
    method, batch, _, teacher = world("wkd_logit+at+sinkhorn_logit")
    batches = [batch, batch]
    method.prepare(lambda image: teacher, batches)
    for name in ("wkd_logit", "sinkhorn_logit"):
        (stage,) = METHODS[name].stages(METHODS[name].config())
        probe = Probe(student=teacher, teacher=teacher, num_classes=K, num_images=4)
        alone = stage.method.from_probe(stage.config, probe)
        untouched = alone.class_cost.clone()
        alone.prepare(lambda image: teacher, batches)
        assert not torch.equal(alone.class_cost, untouched)
        assert torch.equal(method.methods[name].class_cost, alone.class_cost)


def test_it_says_whose_cross_entropy_counts():
    method, *_ = world("at+kd+crd")
    first, *others = method.describe()
    assert first == "one cross-entropy: that of at, weight 1; in kd, crd its weight is 0"
    assert any(line.startswith("at: student stage1") for line in others)
    assert any(line.startswith("crd: memory banks") for line in others)


# -- names and settings --------------------------------------------------------------------


def test_settings_come_back_from_what_was_written():
    config = find_method("kd+at").config.read({"kd": {"temperature": 2}, "at": {"p": 1}})
    assert (config.kd.temperature, config.at.p, config.at.ce_weight) == (2, 1, 0)
    assert type(config).read(config.plain()) == config
    assert find_method("kd+at").config is type(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kd+simkd", "simkd cannot be combined: it deploys another network than the student"),
        ("fitnet+kd", r"fitnet cannot be combined: it trains in stages of its own \(hint, then d"),
        ("kd+fsp", "fsp cannot be combined: it trains in stages"),
        (
            "ce+kd",
            "ce cannot be combined: it has no ce_weight, since its loss is the cross-entropy",
        ),
        ("kd+at+kd", r"'kd\+at\+kd' names kd more than once"),
        ("kd+", r"a combination reads 'kd\+at'"),
        ("+", r"a combination reads 'kd\+at'"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(name, message):
    with pytest.raises(SettingsError, match=message):
        find_method(name)


def test_an_unknown_method_in_a_combination_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="no method called 'fitnets'; did you mean"):
        find_method("kd+fitnets")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at": {"ce_weight": 0.5}}, r"at\.ce_weight must be 0, got 0\.5.*set kd\.ce_weight"),
        ({"at": {"label_smoothing": 0.1}}, "one smoothing is for all methods"),
        ({"kd": {"temprature": 2}}, r"kd\.temprature: no such setting; did you mean 'temperature'"),
        ({"rkd": {}}, "rkd: no such setting; did you mean 'kd'"),
        ({"kd": 3}, r"kd: .*got 3"),
    ],
)
def test_settings_that_a_combination_cannot_have_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        find_method("kd+at").config.read(settings)


def test_a_single_name_is_no_combination():
    assert method_names("kd") == ("kd",)
    assert find_method("kd") is METHODS["kd"]
