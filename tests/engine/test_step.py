import copy

import pytest
import torch
from torch import nn

from limbeck.core.errors import NonFiniteError
from limbeck.core.types import LossTerms, Progress
from limbeck.engine.checkpoint import CheckpointStore
from limbeck.engine.config import TrainConfig
from limbeck.engine.optim import OptimConfig, ScheduleConfig, build_optimizer, build_scheduler
from limbeck.engine.step import FiniteGuard, Stepper

CPU = torch.device("cpu")


def stepper_of(learner, *, clip_grad=None, momentum=0.9, **config):
    optimizer = build_optimizer([learner], OptimConfig(lr=0.1, momentum=momentum))
    schedule = ScheduleConfig(epochs=10, sched="constant")
    scheduler = build_scheduler(optimizer, schedule, updates_per_epoch=5)
    return Stepper(
        learner,
        learner,
        optimizer,
        scheduler,
        TrainConfig(**config),
        device=CPU,
        clip_grad=clip_grad,
    )


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_is_torchs_own_sgd_step(learner, teacher, small):
    batch = small.make_batch()
    twin = copy.deepcopy(learner)
    stepper_of(learner).step(batch, teacher(batch.image), Progress(), share=1.0, update=True)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    twin(batch, teacher(batch.image)).terms.total.backward()
    optimizer.step()
    assert equal(weights(learner), weights(twin))


def test_two_accumulated_halves_give_the_gradient_of_their_mean(teacher, small):
    # Without batch-norm, which sees each half by itself.
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 4))
    method = small.Mimic(small.MimicConfig(), channels=(3, 5))
    from limbeck.engine.learner import Learner

    learner = Learner(network, method)
    twin = copy.deepcopy(learner)
    whole = small.make_batch(8)
    halves = [
        type(whole)(index=whole.index[s], image=whole.image[s], label=whole.label[s])
        for s in (slice(4), slice(4, 8))
    ]
    accumulating = stepper_of(learner, grad_accum_steps=2)
    for half, last in zip(halves, (False, True), strict=True):
        accumulating.step(half, teacher(half.image), Progress(), share=0.5, update=last)
    stepper_of(twin).step(whole, teacher(whole.image), Progress(), share=1.0, update=True)
    for ours, theirs in zip(learner.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_clipping_limits_the_step(learner, teacher, small):
    batch = small.make_batch()
    before = weights(learner.student)
    stepper = stepper_of(learner, clip_grad=1e-4, momentum=0.0)
    stepper.optimizer.param_groups[0]["weight_decay"] = 0.0
    stepper.step(batch, teacher(batch.image), Progress(), share=1.0, update=True)
    moved = sum(
        (value - before[name]).square().sum() for name, value in learner.student.named_parameters()
    )
    assert 0 < moved.sqrt() <= 0.1 * 1e-4 * 1.001


def poison(batch, where):
    image = batch.image.clone()
    image[0, 0, 0, 0] = float("nan") if where == "nan" else float("inf")
    return type(batch)(index=batch.index + 40, image=image, label=batch.label)


@pytest.mark.parametrize("where", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_and_names_the_batch(
    learner, teacher, small, where
):
    stepper = stepper_of(learner)
    batch = poison(small.make_batch(), where)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    with pytest.raises(
        NonFiniteError, match=r"ce, near is not finite at step 17.*40, 41"
    ) as caught:
        stepper.step(batch, teacher(batch.image), Progress(step=17), share=1.0, update=True)
    assert isinstance(caught.value, FloatingPointError)
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())


def test_a_gradient_that_is_not_finite_stops_too(learner, teacher, small):
    learner.method.adapter.weight.register_hook(lambda g: g * float("nan"))
    batch = small.make_batch()
    with pytest.raises(NonFiniteError, match="gradient is not finite"):
        stepper_of(learner).step(batch, teacher(batch.image), Progress(), share=1.0, update=True)


def test_a_lazy_guard_remembers_the_first_fault_until_it_is_read(small):
    guard = FiniteGuard(CPU)
    guard._eager = False  # as on a GPU
    for step, value in enumerate([1.0, float("nan"), float("inf")]):
        terms = LossTerms(torch.tensor(value), {"kd": torch.tensor(value)})
        guard.see(terms, torch.tensor(1.0), small.make_batch(start=10 * step), Progress(step=step))
    assert guard.found == 1
    with pytest.raises(NonFiniteError, match=r"kd is not finite at step 1 .*10, 11"):
        guard.read()


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_fused_optimisers_skip_an_update_that_the_guard_found_wrong(opt):
    # What the GPU path relies on; torch's fused CPU kernels read the same flag.
    network = nn.Linear(3, 2)
    kind = torch.optim.SGD if opt == "sgd" else torch.optim.AdamW
    optimizer = kind(network.parameters(), lr=0.1, fused=True)
    network(torch.ones(1, 3)).sum().backward()
    before = weights(network)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert equal(weights(network), before)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not equal(weights(network), before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_trains_in_lower_precision_with_a_float32_loss(learner, teacher, small, dtype):
    stepper = stepper_of(learner, amp_dtype=dtype)
    batch = small.make_batch()
    before = weights(learner.student)
    for _ in range(3):
        terms = stepper.step(batch, teacher(batch.image), Progress(), share=1.0, update=True)
    assert terms.total.dtype == torch.float32
    assert stepper.scaler.is_enabled() == (dtype == "float16")
    assert not equal(weights(learner.student), before)


def test_the_average_follows_the_weights_and_is_what_is_evaluated(learner, teacher, small):
    stepper = stepper_of(learner, model_ema_decay=0.5)
    batch = small.make_batch()
    first = None
    for _ in range(2):
        stepper.step(batch, teacher(batch.image), Progress(), share=1.0, update=True)
        first = first or weights(learner.student)
    ours = stepper.evaluated.student[0].weight
    torch.testing.assert_close(ours, 0.5 * first["0.weight"] + 0.5 * learner.student[0].weight)
    assert stepper.evaluated is not learner


@pytest.mark.parametrize("config", [{}, {"model_ema_decay": 0.9}, {"amp_dtype": "float16"}])
def test_a_saved_step_continues_exactly(learner, teacher, small, config):
    batches = [small.make_batch(seed=s) for s in range(4)]
    straight, broken = copy.deepcopy(learner), copy.deepcopy(learner)
    one = stepper_of(straight, **config)
    for batch in batches:
        one.step(batch, teacher(batch.image), Progress(), share=1.0, update=True)
    two = stepper_of(broken, **config)
    for batch in batches[:2]:
        two.step(batch, teacher(batch.image), Progress(), share=1.0, update=True)
    saved = copy.deepcopy(two.state())
    three = stepper_of(copy.deepcopy(learner), **config)
    three.load_state(saved)
    for batch in batches[2:]:
        three.step(batch, teacher(batch.image), Progress(), share=1.0, update=True)
    assert equal(weights(one.evaluated), weights(three.evaluated))
    assert equal(weights(one.learner), weights(three.learner))


def test_a_fault_in_an_accumulated_batch_names_that_batch(learner, teacher, small):
    stepper = stepper_of(learner, grad_accum_steps=2)
    batch = poison(small.make_batch(), "nan")
    with pytest.raises(NonFiniteError, match=r"ce, near is not finite at step 4 .*40, 41"):
        stepper.step(batch, teacher(batch.image), Progress(step=4), share=0.5, update=False)


def test_float16_skips_an_infinite_gradient_and_warns_of_nothing(learner, teacher, small):
    learner.method.adapter.weight.register_hook(lambda g: g * float("inf"))
    batch = small.make_batch()
    stepper = stepper_of(learner, amp_dtype="float16")
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    scale = stepper.scaler.get_scale()
    stepper.step(batch, teacher(batch.image), Progress(), share=1.0, update=True)
    assert stepper.scaler.get_scale() == scale / 2
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())


def test_float16_does_not_skip_for_ever(learner, teacher, small):
    """A gradient that no scale makes finite would leave the weights as they are, in silence."""
    learner.method.adapter.weight.register_hook(lambda g: g * float("nan"))
    batch = small.make_batch()
    stepper = stepper_of(learner, amp_dtype="float16")

    def train():
        for step in range(100):
            stepper.step(batch, teacher(batch.image), Progress(step=step), share=1.0, update=True)

    with pytest.raises(NonFiniteError, match="gradient is not finite at step 24 "):
        train()


SCHEDULES = [
    {"sched": "multistep", "decay_epochs": (3, 4), "warmup_epochs": 2},
    {"sched": "multistep", "decay_epochs": (1, 5)},
    {"sched": "cosine", "warmup_epochs": 1.5},
    {"sched": "constant", "warmup_epochs": 1},
    {"sched": "onecycle"},
]


@pytest.mark.parametrize("settings", SCHEDULES, ids=str)
def test_a_schedule_continues_from_a_checkpoint_at_any_step(learner, tmp_path, settings):
    schedule = ScheduleConfig(epochs=6, **settings)

    def make():
        optimizer = build_optimizer([learner], OptimConfig(lr=0.1))
        scheduler = build_scheduler(optimizer, schedule, updates_per_epoch=3)
        return Stepper(learner, learner, optimizer, scheduler, TrainConfig(), device=CPU)

    def rates(stepper, count):
        found = []
        for _ in range(count):
            found.append(stepper.optimizer.param_groups[0]["lr"])
            stepper.optimizer.step()
            stepper.scheduler.step()
        return found

    whole = rates(make(), 18)
    store = CheckpointStore(tmp_path)
    for stop in range(1, 18):
        first = make()
        begun = rates(first, stop)
        store.save(stop, first.state())
        again = make()
        again.load_state(store.load_newest()[0])
        assert begun + rates(again, 18 - stop) == whole
