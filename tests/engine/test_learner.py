import copy

import torch

from limbeck.engine.learner import Learner


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
