import copy
import dataclasses

import pytest
import torch

from limbeck.core.errors import SettingsError
from limbeck.core.types import LossTerms
from limbeck.engine.learner import Learner, check_takes_mixed
from limbeck.losses import mutual_loss
from limbeck.methods.base import Method, MethodConfig
from limbeck.methods.output.dml import DML, DMLConfig


def test_it_holds_student_and_method_and_nothing_else(learner, teacher):
    names = {name.split(".")[0] for name, _ in learner.named_parameters()}
    assert names == {"observed", "method"}
    theirs = {id(p) for p in teacher.parameters()}
    assert not any(id(p) in theirs for p in learner.parameters())


def test_one_step_gives_gradient_to_student_and_adapter(learner, teacher, small):
    batch = small.make_batch()
    learner(batch, teacher(batch.image)).terms.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.method.parameters())
    assert all(p.grad is not None for p in learner.student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_copy_learns_alone(learner, teacher, small):
    batch = small.make_batch()
    twin = copy.deepcopy(learner)
    with torch.no_grad():
        for parameter in twin.student.parameters():
            parameter.zero_()
    before = learner(batch, teacher(batch.image)).terms.total
    twin_total = twin(batch, teacher(batch.image)).terms.total
    assert not torch.equal(before, twin_total)
    torch.testing.assert_close(learner(batch, teacher(batch.image)).terms.total, before)


def test_a_stopped_learner_has_no_logits(small, teacher):
    method = small.Mimic(small.MimicConfig(stop=True), channels=(3, 5))
    learner = Learner(small.make_network(3, seed=2), method)
    batch = small.make_batch()
    statistics = learner.student[1].running_mean.clone()
    output = learner(batch, teacher(batch.image))
    assert output.logits is None
    assert set(output.terms.parts) == {"near"}
    assert torch.equal(learner.student[1].running_mean, statistics)


def test_ddp_is_told_of_the_buffers_that_the_method_keeps_equal(small):
    class Remembering(small.Mimic):
        buffers_kept_equal = ("bank",)

    learner = Learner(small.make_network(3, seed=2), Remembering(small.MimicConfig()))
    learner.method.register_buffer("bank", torch.zeros(3))
    names = learner._ddp_params_and_buffers_to_ignore  # the attribute's name is torch's
    assert names == ["method.bank"]
    assert set(names) <= {name for name, _ in learner.named_buffers()}


@pytest.mark.parametrize("takes", [True, False])
def test_mixed_images_are_for_methods_that_take_them(small, teacher, takes):
    class Mixing(small.Mimic):
        takes_mixed = takes

    learner = Learner(small.make_network(3, seed=2), Mixing(small.MimicConfig(), channels=(3, 5)))
    batch = small.make_batch()
    mixed = dataclasses.replace(
        batch, other_label=batch.label.flip(0), label_share=torch.full((len(batch),), 0.4)
    )
    if takes:
        assert learner(mixed, teacher(mixed.image)).terms.total.isfinite()
        return
    with pytest.raises(SettingsError, match="'Mixing' takes one label an image"):
        learner(mixed, teacher(mixed.image))
    with pytest.raises(SettingsError, match="'mimic' takes one label"):
        check_takes_mixed(learner.method, "mimic")


def test_frozen_parts_of_the_student_rest_in_training_too(small):
    student = small.make_network(3, seed=2)
    learner = Learner(student, small.Mimic(small.MimicConfig()), frozen=("0", "1"))
    learner.train()
    assert learner.training
    assert not student[1].training
    assert student[5].training
    frozen = {name for name, value in student.named_parameters() if not value.requires_grad}
    assert (
        frozen
        == {"0.weight", "0.bias", "1.weight", "1.bias"} & dict(student.named_parameters()).keys()
    )


@pytest.fixture
def group(small):
    """A student with two peers of other widths."""
    peers = [Learner(small.make_network(width, seed=width), DML(DMLConfig())) for width in (4, 5)]
    return Learner(small.make_network(3, seed=2), DML(DMLConfig()), peers=peers)


def test_peers_learn_from_each_other_at_once(group, small):
    """The sum of each network's loss from the same predictions; none teaches by gradient."""
    batch = small.make_batch()
    networks = [copy.deepcopy(one.student) for one in group.everyone]
    output = group(batch)
    output.terms.total.backward()
    logits = [network(batch.image) for network in networks]
    losses = [
        mutual_loss(z, [other for other in logits if other is not z], batch.label) for z in logits
    ]
    torch.testing.assert_close(output.terms.total, sum(losses))
    torch.testing.assert_close(output.terms.parts["peer1"], losses[1])
    torch.testing.assert_close(output.logits, logits[0])
    for one, network, loss in zip(group.everyone, networks, losses, strict=True):
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for parameter, expected in zip(one.student.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, expected)


def test_peers_are_part_of_the_state_and_change_mode_with_the_student(group):
    names = {name.partition(".")[0] for name in group.state_dict()}
    assert names == {"observed", "peers"}
    group.eval()
    assert not any(part.training for part in group.modules())
    group.train()
    assert all(peer.student[1].training for peer in group.peers)


def test_a_part_of_a_peer_can_rest_as_well(small):
    peer = Learner(small.make_network(4, seed=4), DML(DMLConfig()), frozen=["1"])
    group = Learner(small.make_network(3, seed=2), DML(DMLConfig()), peers=[peer]).train()
    assert not peer.student[1].training
    assert group.student[1].training


class Near(Method[MethodConfig]):
    """A loss that would send a gradient to whom it hears, if it could."""

    def forward(self, batch, student, teacher, progress):
        (other,) = teacher.members
        gap = (student.logits - other.logits).square().sum()
        return LossTerms(gap, {"gap": gap})


def test_what_a_network_hears_is_constant_whatever_the_method_does(small):
    peer = Learner(small.make_network(4, seed=4), Near(MethodConfig()))
    group = Learner(small.make_network(3, seed=2), Near(MethodConfig()), peers=[peer]).eval()
    batch = small.make_batch()
    group(batch).terms.total.backward()
    gap = group.student(batch.image) - peer.student(batch.image)
    # Of its own loss alone; with the peer's, which is the same number, it would be doubled.
    torch.testing.assert_close(group.student[-1].bias.grad, 2 * gap.sum(dim=0))
