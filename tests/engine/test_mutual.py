"""Networks that take turns, against the paper's algorithm written out with an optimiser each."""

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import NonFiniteError
from limbeck.core.types import Outputs, Progress
from limbeck.engine.config import TrainConfig
from limbeck.engine.learner import Learner
from limbeck.engine.mutual import AlternatingStepper
from limbeck.engine.optim import OptimConfig, ScheduleConfig, build_optimizer, build_scheduler
from limbeck.methods.output.dml import DML, DMLConfig

CPU = torch.device("cpu")
OPTIM = OptimConfig(lr=0.2)


@pytest.fixture
def learner(small):
    """Three networks of different widths, with batch-norm."""
    peers = [Learner(small.make_network(width, seed=width), DML(DMLConfig())) for width in (4, 5)]
    return Learner(small.make_network(3, seed=2), DML(DMLConfig()), peers=peers)


def stepper_of(learner, *, clip_grad=None, **config):
    optimizer = build_optimizer([learner], OPTIM)
    scheduler = build_scheduler(
        optimizer, ScheduleConfig(epochs=4, sched="cosine"), updates_per_epoch=1
    )
    return AlternatingStepper(
        learner,
        learner,
        optimizer,
        scheduler,
        TrainConfig(**config),
        device=CPU,
        clip_grad=clip_grad,
    )


def step(stepper, batch, number=0):
    return stepper.step(batch, Outputs(), Progress(step=number), share=1.0, update=True)


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_hand(networks, batch, lr=0.2, clip=None):
    """One step of the paper's algorithm; the networks' statistics move in the first pass alone."""
    said = [network(batch.image) for network in networks]
    losses = []
    for place, network in enumerate(networks):
        others = [z.detach() for position, z in enumerate(said) if position != place]
        log_p = F.log_softmax(said[place], dim=1)
        loss = F.cross_entropy(said[place], batch.label)
        for other in others:
            divergence = F.kl_div(log_p, F.softmax(other, dim=1), reduction="batchmean")
            loss = loss + divergence / len(others)
        losses.append(loss.detach())
        optimizer = torch.optim.SGD(network.parameters(), lr=lr, weight_decay=5e-4)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        twin = copy.deepcopy(network)
        said[place] = twin(batch.image).detach()
    return losses


@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_step_is_the_papers_algorithm(learner, small, clip):
    batch = small.make_batch(8)
    networks = [copy.deepcopy(one.student).train() for one in learner.everyone]
    learner.train()
    terms = step(stepper_of(learner, clip_grad=clip), batch)
    losses = by_hand(networks, batch, clip=clip)
    for one, network in zip(learner.everyone, networks, strict=True):
        for name, value in one.student.state_dict().items():
            torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.total, sum(losses))
    torch.testing.assert_close(terms.parts["peer2"], losses[2])


def test_each_batch_is_counted_once_by_every_network(learner, small):
    learner.train()
    stepper = stepper_of(learner)
    for number in range(3):
        step(stepper, small.make_batch(8, seed=number), number)
    assert [one.student[1].num_batches_tracked.item() for one in learner.everyone] == [3, 3, 3]


def test_the_schedule_and_the_average_move_once_a_step(learner, small):
    learner.train()
    stepper = stepper_of(learner, model_ema_decay=0.5)
    for number in range(2):
        step(stepper, small.make_batch(8, seed=number), number)
    assert stepper.scheduler.last_epoch == 2
    assert stepper.average.n_averaged == 2


def test_a_loss_that_is_not_finite_stops_before_any_weight(learner, small):
    """In the first network, whose answer all others would hear."""
    batch = small.make_batch(8)
    batch.image[0, 0, 0, 0] = float("nan")
    before = {name: value.clone() for name, value in learner.named_parameters()}
    with pytest.raises(NonFiniteError, match="ce, mutual is not finite at step 7"):
        step(stepper_of(learner.train()), batch, 7)
    assert all(torch.equal(value, before[name]) for name, value in learner.named_parameters())


@pytest.mark.parametrize("config", [{}, {"model_ema_decay": 0.9}, {"amp_dtype": "float16"}])
def test_a_saved_step_continues_exactly(learner, small, config):
    batches = [small.make_batch(8, seed=seed) for seed in range(4)]
    learner.train()
    begun, fresh = copy.deepcopy(learner), copy.deepcopy(learner)
    whole = stepper_of(learner, **config)
    for number, batch in enumerate(batches):
        step(whole, batch, number)
    first = stepper_of(begun, **config)
    for number, batch in enumerate(batches[:2]):
        step(first, batch, number)
    second = stepper_of(fresh, **config)
    second.load_state(copy.deepcopy(first.state()))
    for number, batch in enumerate(batches[2:], start=2):
        step(second, batch, number)
    assert equal(weights(second.learner), weights(whole.learner))
    assert equal(weights(second.evaluated), weights(whole.evaluated))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_networks_learn_in_lower_precision(learner, small, dtype):
    learner.train()
    before = [weights(one.student) for one in learner.everyone]
    stepper = stepper_of(learner, amp_dtype=dtype)
    batch = small.make_batch(8)
    for number in range(20):
        terms = step(stepper, batch, number)
    assert terms.total.dtype == torch.float32
    for one, then in zip(learner.everyone, before, strict=True):
        assert not equal(weights(one.student), then)
