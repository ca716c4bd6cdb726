"""The method and the authors' numbers; the loss's own properties are in functional/."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import kd_loss
from limbeck.methods.output.kd import KD, KDConfig

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "methods.json").read_text("utf-8"))[
    "kd"
]

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


def terms(label=Y, student=ZS, teacher=ZT, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=label)
    return KD(KDConfig(**settings))(batch, Outputs(student), Outputs(teacher), Progress())


def gradient(column):
    student = ZS.clone().requires_grad_()
    kd_loss(student, ZT, temperature=4.0).backward()
    return student.grad[0, column]


def centred_difference():
    """Half the mean over images of the squared norm over the classes' number."""
    difference = (ZS - ZS.mean(1, keepdim=True)) - (ZT - ZT.mean(1, keepdim=True))
    return difference.square().sum(1).mean() / (2 * 5)


COMPUTED = {
    "CE": lambda: terms().parts["ce"],
    "KD T=1": lambda: kd_loss(ZS, ZT, temperature=1.0),
    "KD T=2": lambda: kd_loss(ZS, ZT, temperature=2.0),
    "KD T=4": lambda: kd_loss(ZS, ZT, temperature=4.0),
    "KD T=10": lambda: kd_loss(ZS, ZT, temperature=10.0),
    "KD T=1e4": lambda: kd_loss(ZS, ZT, temperature=1e4),
    "limit of T": centred_difference,
    "KD T=4 in float32": lambda: kd_loss(ZS.float(), ZT.float(), temperature=4.0),
    "0.1 CE + 0.9 KD T=4": lambda: terms().total,
    "0.5 CE + 0.5 KD T=1": lambda: terms(temperature=1, ce_weight=0.5, kd_weight=0.5).total,
    **{f"gradient T=4 [0,{k}]": lambda k=k: gradient(k) for k in range(5)},
    "mini T=1": lambda: kd_loss(*MINI, temperature=1.0),
    "mini T=4": lambda: kd_loss(*MINI, temperature=4.0),
    "mean over entries T=4": lambda: kd_loss(ZS, ZT, temperature=4.0) / 5,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    # All printed digits; at T = 1e4 the divergence itself is 5e-9, and its rounding shows.
    tolerance = 2e-8 if name == "KD T=1e4" else 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_at_a_high_temperature_it_matches_centred_logits():
    near = kd_loss(ZS, ZT, temperature=1e3)
    torch.testing.assert_close(near, centred_difference(), rtol=1e-3, atol=0)


def test_the_total_weighs_torchs_own_terms():
    log_p, p = F.log_softmax(ZS / 2, dim=1), F.softmax(ZT / 2, dim=1)
    expected = 0.3 * F.cross_entropy(ZS, Y) + 0.6 * 2**2 * F.kl_div(log_p, p, reduction="batchmean")
    total = terms(temperature=2, ce_weight=0.3, kd_weight=0.6).total
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-9)


def test_unlabelled_images_count_for_the_teacher_alone():
    some = terms(label=torch.tensor([2, -1, -1]))
    torch.testing.assert_close(some.parts["ce"], F.cross_entropy(ZS[:1], Y[:1]), rtol=0, atol=1e-9)
    assert torch.equal(some.parts["kd"], terms().parts["kd"])


def test_without_any_label_it_learns_from_the_teacher_alone():
    """As KD whose cross-entropy weighs nothing, in value and in gradient."""
    found, expected = [], []
    for results, label, ce_weight in ((found, [-1, -1, -1], 0.1), (expected, [2, 3, 4], 0.0)):
        student = ZS.clone().requires_grad_()
        loss = terms(torch.tensor(label), student, ce_weight=ce_weight).total
        loss.backward()
        results += [loss.detach(), student.grad]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("standardize", [True, "population"])
def test_standardising_changes_what_the_divergence_sees_alone(standardize):
    found = terms(standardize=standardize)
    assert torch.equal(found.parts["ce"], terms().parts["ce"])
    correction = 0 if standardize == "population" else 1
    seen = [
        (z - z.mean(1, keepdim=True)) / z.std(1, correction=correction, keepdim=True)
        for z in (ZS, ZT)
    ]
    expected = kd_loss(*seen, temperature=4.0)  # 1e-6: without the 1e-7 beside the deviation
    torch.testing.assert_close(found.parts["kd"], expected, rtol=0, atol=1e-6)


def test_no_other_deviation_is_known():
    with pytest.raises(SettingsError, match="standardize"):
        KDConfig(standardize="sample")


@pytest.mark.parametrize("field", ["temperature", "ce_weight", "kd_weight"])
def test_a_negative_setting_is_refused_by_name(field):
    with pytest.raises(SettingsError, match=field):
        KDConfig(**{field: -1})
