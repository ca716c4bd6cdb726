import copy
import os
import signal

import pytest
import torch
from torch import nn

from limbeck.core.errors import LimbeckError, NonFiniteError
from limbeck.core.normalization import Normalization
from limbeck.engine.checkpoint import CheckpointStore
from limbeck.engine.config import TrainConfig
from limbeck.engine.distributed import World
from limbeck.engine.learner import Learner
from limbeck.engine.loop import BestWeights, InterruptedRun, Interruption, StageLoop
from limbeck.engine.optim import OptimConfig, ScheduleConfig
from limbeck.engine.recorder import Recorder, SilentObserver
from limbeck.teacher import Teacher

EPOCHS = 3


@pytest.fixture
def loop_of(small, tmp_path):
    """Makes a loop from scratch, always the same one; dropout makes it need the global RNG."""

    def make(*, observer=None, store=None, loader=None, save=None, stop=False, **config):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            method = small.Mimic(small.MimicConfig(stop=stop), channels=(3, 5))
        learner = Learner(small.make_network(3, seed=2, dropout=0.3), method)
        recorder = Recorder(None, observer or SilentObserver())
        if store is not None:
            save = store.save
        return StageLoop(
            name="mimic",
            learner=learner,
            teacher=Teacher(small.make_network(5, seed=1), layers=["0"]),
            loader=loader or small.FixedLoader(),
            val_batches=lambda: iter([small.make_batch(32, seed=77)]),
            normalization=Normalization(),
            optim=OptimConfig(lr=0.05),
            schedule=ScheduleConfig(epochs=EPOCHS, sched="cosine"),
            config=TrainConfig(device="cpu", **config),
            seed=0,
            device=torch.device("cpu"),
            world=World(),
            recorder=recorder,
            save=save,
            interruption=Interruption(),
        )

    return make


class Stop(SilentObserver):
    """Sends a signal after so many steps."""

    def __init__(self, after, signum=signal.SIGTERM):
        self.after, self.signum = after, signum

    def step(self, stage, done, total):
        if done == self.after:
            os.kill(os.getpid(), self.signum)


class Rows(SilentObserver):
    def __init__(self):
        self.rows = []

    def epoch(self, row):
        self.rows.append(row)


def run(loop):
    torch.manual_seed(9)
    with loop.interruption.watching():
        loop.run()


def final(loop):
    return {k: v.clone() for k, v in loop.learner.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


VARIANTS = [
    {},
    {"model_ema_decay": 0.8},
    {"grad_accum_steps": 2},
    {"amp_dtype": "bfloat16"},
    {"eval_every": 2},
]


@pytest.mark.parametrize("after", [2, 7, 10])
@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_interrupted_and_continued_it_ends_bit_equal(loop_of, tmp_path, after, config):
    whole = loop_of(**config)
    run(whole)
    store = CheckpointStore(tmp_path)
    with pytest.raises(InterruptedRun) as stopped:
        run(loop_of(observer=Stop(after), store=store, **config))
    assert stopped.value.signum == signal.SIGTERM
    torch.manual_seed(12345)  # another process has another stream
    again = loop_of(**config)
    again.load_state(store.load_newest()[0])
    with again.interruption.watching():
        again.run()
    assert same(final(whole), final(again))
    assert same(whole.best.weights, again.best.weights)
    assert (whole.last, whole.best.epoch) == (again.last, again.best.epoch)


PARTS = {
    "optimizer": lambda s: s["stepper"]["optimizer"]["state"].clear(),
    "scheduler": lambda s: s["stepper"]["scheduler"].update(last_epoch=0),
    "rng": lambda s: s["rng"].update(cpu=torch.Generator().manual_seed(1).get_state()),
    "position": lambda s: s.update(step=0),
    "average": lambda s: s["stepper"]["average"].update(
        {k: v * 0 for k, v in s["stepper"]["average"].items()}
    ),
}


@pytest.mark.parametrize("forgotten", PARTS)
def test_forgetting_one_part_of_the_state_is_seen(loop_of, tmp_path, forgotten):
    """The test above is worth something: each part matters."""
    config = {"model_ema_decay": 0.8}
    whole = loop_of(**config)
    run(whole)
    store = CheckpointStore(tmp_path)
    with pytest.raises(InterruptedRun):
        run(loop_of(observer=Stop(7), store=store, **config))
    state = store.load_newest()[0]
    PARTS[forgotten](state)
    again = loop_of(**config)
    again.load_state(state)
    again.run()
    averages = [final_average(loop) for loop in (whole, again)]
    assert not same(*averages)


def final_average(loop):
    return {k: v.clone() for k, v in loop.stepper.evaluated.state_dict().items()}


def test_checkpoints_are_taken_by_steps_between_whole_updates(loop_of, small):
    steps = []
    loop = loop_of(
        save=lambda step, state: steps.append((step, state["step"])),
        checkpoint_steps=3,
        grad_accum_steps=2,
    )
    run(loop)
    # Of steps 3, 6, 9, 12 inside an epoch of 5, only those that close a group of two; and
    # every epoch's end.
    assert steps == [(5, 0), (9, 4), (10, 0), (12, 2), (15, 0)]


def test_rows_hold_the_epochs_means_and_validation(loop_of, small):
    seen = Rows()
    loop = loop_of(observer=seen)
    totals = []
    loop.learner.register_forward_hook(lambda *a: totals.append(float(a[-1].terms.total.detach())))
    run(loop)
    assert [row["epoch"] for row in seen.rows] == [0, 1, 2]
    assert seen.rows[0]["train"]["loss"] == pytest.approx(sum(totals[:5]) / 5)
    assert set(seen.rows[0]["train"]) == {"loss", "ce", "near"}
    assert seen.rows[2]["step"] == 15
    network = loop.learner.student.eval()
    batch = small.make_batch(32, seed=77)
    top1 = (network(batch.image).argmax(1) == batch.label).float().mean().item()
    assert seen.rows[2]["val"]["top1"] == pytest.approx(top1)


def test_the_last_epoch_is_judged_whatever_eval_every_says(loop_of):
    seen = Rows()
    run(loop_of(observer=seen, eval_every=2))
    assert [row["epoch"] for row in seen.rows] == [1, 2]


def test_a_stopped_stage_is_trained_and_not_judged(loop_of):
    seen = Rows()
    loop = loop_of(observer=seen, stop=True)
    last = loop.learner.student[5].weight.detach().clone()
    loop.learner.student[5].requires_grad_(False)
    run(loop)
    assert seen.rows[-1]["val"] is None
    assert loop.best.epoch == -1
    assert torch.equal(loop.learner.student[5].weight, last)


def test_best_weights_are_the_earliest_best_epochs():
    best = BestWeights()
    for epoch, top1 in enumerate([0.2, 0.5, 0.5, 0.4]):
        network = nn.Linear(1, 1)
        nn.init.constant_(network.weight, epoch)
        best.offer(epoch, {"top1": top1, "loss": 1.0}, network)
    assert best.epoch == 1
    assert best.metrics == {"top1": 0.5, "loss": 1.0}
    assert best.weights["weight"].item() == 1


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(loop_of, small, tmp_path):
    class Poisoned(small.FixedLoader):
        def epoch(self, epoch, start_step=0):
            for batch in super().epoch(epoch, start_step):
                bad = epoch == 1
                image = batch.image * float("nan") if bad else batch.image
                yield type(batch)(index=batch.index, image=image, label=batch.label)

    store = CheckpointStore(tmp_path)
    with pytest.raises(NonFiniteError, match="at step 5 "):
        run(loop_of(loader=Poisoned(), store=store, checkpoint_steps=100))
    state, _ = store.load_newest()
    assert (state["epoch"], state["step"]) == (1, 0)
    assert all(v.isfinite().all() for v in state["stepper"]["learner"].values())


def test_another_stages_state_is_refused(loop_of):
    loop = loop_of()
    state = {**copy.deepcopy(loop.state()), "stage": "other"}
    with pytest.raises(LimbeckError, match="'other', not 'mimic'"):
        loop.load_state(state)


def test_the_second_signal_does_not_wait():
    watch = Interruption()
    with watch.watching():
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
