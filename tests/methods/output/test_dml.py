"""Mutual learning against the numbers of the authors' formula."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import mutual_loss
from limbeck.methods.base import OwnNetwork
from limbeck.methods.output.dml import DML, DMLConfig, dml_stages

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "methods.json").read_text("utf-8"))[
    "dml"
]

ZS = torch.tensor(
    [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
    dtype=torch.float64,
)
ZA = torch.tensor(
    [[1.5, 0.0, 2.2, 0.5, -1.0], [0.3, 0.6, -0.4, 2.5, 0.2], [-0.5, 1.0, 0.9, 0.0, 1.4]],
    dtype=torch.float64,
)
ZB = torch.tensor(
    [[0.2, 0.1, 0.9, 0.8, -0.3], [0.9, 0.5, 0.0, 0.7, -0.6], [0.4, -0.2, 0.3, 0.1, 0.5]],
    dtype=torch.float64,
)
Y = torch.tensor([2, 3, 4])


def terms(others, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=Y)
    heard = Outputs(members=tuple(Outputs(z) for z in others))
    return DML(DMLConfig(**settings))(batch, Outputs(ZS), heard, Progress())


COMPUTED = {
    "L_1": lambda: mutual_loss(ZS, [ZA], Y),
    "L_2": lambda: mutual_loss(ZA, [ZS], Y),
    "KL from za": lambda: mutual_loss(ZS, [ZA], Y, ce_weight=0.0),
    "KL from zs": lambda: mutual_loss(ZA, [ZS], Y, ce_weight=0.0),
    "three networks": lambda: mutual_loss(ZS, [ZA, ZB], Y),
    "three networks, sum": lambda: mutual_loss(ZS, [ZA, ZB], Y, reduction="sum"),
    "three networks, from their mean": lambda: mutual_loss(ZS, [ZA, ZB], Y, target="mean"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_identical_networks_have_their_cross_entropy_and_no_further_gradient():
    for settings in ({}, {"reduction": "sum"}, {"target": "mean"}):
        student = ZS.clone().requires_grad_()
        loss = mutual_loss(student, [ZS, ZS], Y, **settings)
        loss.backward()
        alone = ZS.clone().requires_grad_()
        F.cross_entropy(alone, Y).backward()
        torch.testing.assert_close(loss.detach(), F.cross_entropy(ZS, Y), rtol=0, atol=1e-12)
        torch.testing.assert_close(student.grad, alone.grad, rtol=0, atol=1e-12)


def test_one_network_alone_learns_from_labels():
    torch.testing.assert_close(mutual_loss(ZS, [], Y), F.cross_entropy(ZS, Y), rtol=0, atol=1e-12)
    assert terms([]).parts["mutual"] == 0


def test_with_two_networks_the_divergence_has_the_factor_one():
    expected = F.kl_div(F.log_softmax(ZS, dim=1), F.softmax(ZA, dim=1), reduction="batchmean")
    for settings in ({}, {"reduction": "sum"}, {"target": "mean"}):
        found = mutual_loss(ZS, [ZA], Y, ce_weight=0.0, **settings)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_one_networks_loss_gives_no_gradient_to_another():
    one, other = (z.clone().requires_grad_() for z in (ZS, ZA))
    mutual_loss(one, [other], Y).backward()
    assert other.grad is None
    assert one.grad.abs().sum() > 0


def test_a_divergence_from_the_mean_is_at_most_the_mean_of_divergences():
    """KL is convex in its first argument."""
    mean = mutual_loss(ZS, [ZA, ZB], Y, target="mean")
    assert mean < mutual_loss(ZS, [ZA, ZB], Y)


def test_the_method_is_the_loss_over_all_others():
    found = terms([ZA, ZB], ce_weight=0.5, mutual_weight=2.0)
    expected = mutual_loss(ZS, [ZA, ZB], Y, ce_weight=0.5, mutual_weight=2.0)
    assert torch.equal(found.total, expected)
    assert found.parts.keys() == {"ce", "mutual"}


@pytest.mark.parametrize("name", ["target", "reduction"])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be .*got 'other'"):
        mutual_loss(ZS, [ZA], Y, **{name: "other"})
    with pytest.raises(SettingsError, match=name):
        DMLConfig(**{name: "other"})


def test_networks_of_other_classes_are_refused():
    with pytest.raises(ShapeError, match="different heads"):
        mutual_loss(ZS, [ZA[:, :4]], Y)


def test_a_network_needs_another_one():
    with pytest.raises(SettingsError, match=r"two at least; name another one \(--peers\)"):
        DMLConfig(peers=[])


def test_a_trained_network_is_no_peer(tmp_path):
    with pytest.raises(SettingsError, match=f"peers learn from scratch.*{tmp_path}"):
        DMLConfig(peers=[str(tmp_path)])


def test_there_is_one_stage_with_all_peers():
    (stage,) = dml_stages(DMLConfig(peers=["resnet20", "wrn_16_2"]))
    assert stage.own_networks() == {
        "peer1": OwnNetwork(model="resnet20"),
        "peer2": OwnNetwork(model="wrn_16_2"),
    }
    assert stage.ensemble == ("peer1", "peer2")
    assert not stage.uses_run_teacher
    assert not stage.in_turn
    assert dml_stages(DMLConfig(update="alternating"))[0].in_turn


def test_unnamed_there_is_one_peer_like_the_student():
    (stage,) = dml_stages(DMLConfig())
    assert stage.peers == (OwnNetwork(),)
