import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.core.normalization import Normalization
from limbeck.engine.probe import build_learner, freeze_idle, make_probe
from limbeck.methods.base import Needs, Stage
from limbeck.methods.output.kd import KD, KDConfig
from limbeck.teacher import Teacher, TeacherEnsemble


def build(small, student, teacher, *, seed=0, stop=False, prepare=None):
    stage = Stage(name="mimic", method=small.Mimic, config=small.MimicConfig(stop=stop))
    return build_learner(
        stage,
        student,
        teacher,
        small.make_batch(),
        normalization=Normalization(),
        num_images=30,
        num_classes=4,
        seed=seed,
        prepare=prepare,
    )


def test_the_method_fits_both_networks_and_nothing_is_left_behind(small, teacher):
    student = small.make_network(3, seed=0, dropout=0.5)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    stream = torch.get_rng_state()
    learner = build(small, student, teacher)
    assert learner.method.adapter.weight.shape == (5, 3, 1, 1)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in student.modules())
    assert hooks == 1  # the learner's own


def test_the_methods_weights_depend_on_the_seed_alone(small, teacher):
    weights = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        student = small.make_network(3, seed=noise)
        weights.append(build(small, student, teacher, seed=seed).method.adapter.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_parameters_without_gradient_are_named_and_rest(small, teacher):
    learner = build(small, small.make_network(3, seed=0), teacher, stop=True)
    batch = small.make_batch()
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    idle = freeze_idle(learner, teacher(batch.image), batch, num_epochs=1, num_steps=5, seed=0)
    prefix = "observed.network."
    assert idle == [f"{prefix}1.weight", f"{prefix}1.bias", f"{prefix}5.weight", f"{prefix}5.bias"]
    assert not any(learner.get_parameter(name).requires_grad for name in idle)
    assert learner.method.adapter.weight.requires_grad
    assert all(p.grad is None for p in learner.parameters())
    assert all(torch.equal(v, before[k]) for k, v in learner.state_dict().items())


def test_prepare_gets_the_fresh_method(small, teacher):
    seen = []
    learner = build(small, small.make_network(3, seed=0), teacher, prepare=seen.append)
    assert seen == [learner.method]


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_other_class_counts_are_named(small, whose):
    odd = small.make_network(3, seed=0)
    odd[5] = nn.Linear(48, 7)
    good = small.make_network(3, seed=1)
    student, teacher = (odd, good) if whose == "student" else (good, odd)
    with pytest.raises(ModelError, match=f"data has 4 classes, the {whose} gives 7"):
        build(small, student, Teacher(teacher, layers=["0"]))


def test_images_that_do_not_fit_are_the_networks_fault_by_name(small, teacher):
    student = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(48, 4))
    message = r"student failed on images of shape \(1, 4, 4\).*: RuntimeError: Given groups=1"
    with pytest.raises(ModelError, match=message):
        build(small, student, teacher)


def test_a_probe_is_made_without_a_method_and_leaves_the_student_as_it_was(small, teacher):
    """Features as a forward pass in training mode gives them: by the batch's own statistics."""
    student = small.make_network(3, seed=0)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    batch = small.make_batch()
    probe = make_probe(
        Needs(student_layers=("1",), teacher_layers=("0",)),
        student.eval(),
        teacher,
        batch,
        normalization=Normalization(),
        num_images=30,
        num_classes=4,
        seed=0,
    )
    expected = F.batch_norm(student[0](batch.image), None, None, training=True)
    torch.testing.assert_close(probe.feature("student", "1"), expected)
    torch.testing.assert_close(probe.feature("teacher", "0"), teacher.network[0](batch.image))
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert not student.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())


def test_batch_norms_before_the_teachers_layers_are_found_where_a_method_asks(small):
    """By the one dry pass; the network in the fixture has its batch-norm before its ReLU."""
    network, probes = small.make_network(5, seed=1), []

    class Asking(small.Mimic):
        asks = True

        @classmethod
        def needs(cls, config):
            needs = super().needs(config)
            return dataclasses.replace(
                needs, teacher_layers=("2:input", config.layer), teacher_batch_norms=cls.asks
            )

        @classmethod
        def from_probe(cls, config, probe):
            probes.append(probe)
            return super().from_probe(config, probe)

    for asks in (True, False):
        Asking.asks = asks
        build_learner(
            Stage(name="ask", method=Asking, config=small.MimicConfig()),
            small.make_network(3, seed=0),
            Teacher(network, layers=["2:input", "0"]),
            small.make_batch(),
            normalization=Normalization(),
            num_images=30,
            num_classes=4,
            seed=0,
        )
    assert probes[0].batch_norm("2:input").name == "1"
    assert torch.equal(probes[0].batch_norm("2:input").weight, network[1].weight)
    for layer, probe in (("0", probes[0]), ("2:input", probes[1])):
        with pytest.raises(ModelError, match="no batch-norm"):
            probe.batch_norm(layer)


def test_a_method_that_reads_one_teachers_layers_is_not_given_several(small, teacher):
    several = TeacherEnsemble([teacher, Teacher(small.make_network(4, seed=2), layers=["0"])])
    with pytest.raises(ModelError, match=r"Mimic reads layers of one teacher, and got 2 teachers"):
        build(small, small.make_network(3, seed=0), several)


def test_several_teachers_of_different_classes_are_named(small, teacher):
    student = small.make_network(3, seed=0)
    several = TeacherEnsemble([teacher, Teacher(nn.Sequential(nn.Flatten(), nn.Linear(16, 7)))])
    stage = Stage(name="kd", method=KD, config=KDConfig())
    with pytest.raises(ModelError, match="they give 4, 7 logits"):
        build_learner(
            stage,
            student,
            several,
            small.make_batch(),
            normalization=Normalization(),
            num_images=30,
            num_classes=4,
            seed=0,
        )
