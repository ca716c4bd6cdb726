import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from limbeck.analysis.background import Background, Epoch, RunFacts, Snapshot
from limbeck.analysis.base import NotApplicableError
from limbeck.analysis.training import TRAINING

LABEL = np.arange(20) % 4
RIGHT = 3.0 * np.eye(4)[LABEL]
TURNED = 3.0 * np.eye(4)[(LABEL + 1) % 4]


def half(logits, share):
    return np.where((np.arange(20) < 20 * share)[:, None], logits, TURNED)


def facts(*snapshots, epochs=5):
    curve = [Epoch(n, 0.1 * n, 2.0 / n) for n in range(1, epochs + 1)]
    return RunFacts(seconds=1.0, epochs=curve, snapshots=snapshots)


def network_of(given, logits):
    """The network that ``given`` makes of logits."""
    return given(logits, logits, logits, LABEL).teacher.network


@pytest.fixture
def make(given):
    """A case whose distilled student agrees on all images at the end, the independent on none."""

    def build(distilled, independent):
        background = Background(
            train_images=torch.zeros(1, 1, 1, 1, dtype=torch.uint8),
            train_labels=torch.zeros(1, dtype=torch.int64),
            num_train=1,
            num_labelled=1,
            distilled=distilled,
            independent=independent,
        )
        return given(RIGHT, RIGHT, TURNED, LABEL, background=background)

    return build


@pytest.fixture
def kept(given):
    """``kept(epoch, share, best=False)``: a network that agrees on a share of the images."""

    def build(epoch, share, *, best=False):
        return Snapshot(epoch, best, lambda: network_of(given, half(RIGHT, share)))

    return build


def test_checkpoints_that_all_runs_kept_are_held_against_the_teacher(make, kept):
    ours = facts(kept(2.0, 0.25), kept(4.0, 0.5), kept(3.0, 0.75, best=True))
    theirs = facts(kept(2.0, 0.1), kept(4.0, 0.2), kept(5.0, 0.3, best=True))
    found = TRAINING.measure(make({0: ours}, {0: theirs}))
    early, best = found.readings
    assert early.name == "agreement with the teacher after epoch 2"
    assert (early.distilled[0].mean(), early.independent[0].mean()) == (0.25, 0.1)
    assert (best.distilled[0].mean(), best.independent[0].mean()) == (0.75, 0.3)
    (table,) = found.tables.values()
    assert [(row[0], row[1], row[3]) for row in table[1:]] == [
        ("distilled", "2", "25.0%"),
        ("distilled", "4", "50.0%"),
        ("distilled", "best on validation (3)", "75.0%"),
        ("distilled", "last", "100.0%"),
        ("independent", "2", "10.0%"),
        ("independent", "4", "20.0%"),
        ("independent", "best on validation (5)", "30.0%"),
        ("independent", "last", "0.0%"),
    ]
    assert found.notes == ()


def test_divergence_accuracy_and_calibration_are_those_of_the_formulas(make, kept):
    found = TRAINING.measure(make({0: facts(kept(2.0, 0.5))}, {0: facts(kept(2.0, 0.5))}))
    row = next(iter(found.tables.values()))[1]
    log_p, log_q = (log_softmax(z, axis=1) for z in (RIGHT, half(RIGHT, 0.5)))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    confidence = np.exp(log_p).max()
    assert row[2] == "50.0%"
    assert row[4:] == (f"{divergence:.3f}", f"{confidence - 0.5:.1%}")


def test_runs_that_kept_the_best_epoch_alone_say_so(make, kept):
    ours, theirs = (facts(kept(3.0, share, best=True)) for share in (0.75, 0.3))
    found = TRAINING.measure(make({0: ours}, {0: theirs}))
    assert [reading.name for reading in found.readings] == [
        "agreement with the teacher at the epoch best on validation"
    ]
    assert "train.checkpoint_hist" in found.notes[0]


def test_epochs_on_validation_are_drawn_and_told(make):
    found = TRAINING.measure(make({0: facts()}, {0: facts(epochs=4)}))
    assert found.readings == ()
    (picture,) = found.pictures
    assert "accuracy on validation, %: distilled 10 to 50, independent 10 to 40" in picture.alt
    assert picture.svg.count("on validation") == 2


def test_curves_of_kept_networks_are_drawn_from_three_points_on(make, kept):
    ours = facts(kept(2.0, 0.25), kept(4.0, 0.5))
    (picture,) = TRAINING.measure(make({0: ours}, {0: ours})).pictures
    assert "agreement with the teacher, %: distilled 25 to 100" in picture.alt


def test_a_checkpoint_of_another_network_is_passed_over(make, kept):
    ours = facts(Snapshot(1.0, False, lambda: None), kept(3.0, 0.75, best=True))
    theirs = facts(kept(1.0, 0.5), kept(3.0, 0.3, best=True))
    found = TRAINING.measure(make({0: ours}, {0: theirs}))
    assert len(found.readings) == 1


def test_runs_that_kept_nothing_say_how_to_keep_more(make):
    bare = RunFacts(seconds=1.0)
    with pytest.raises(NotApplicableError, match="checkpoint_steps"):
        TRAINING.measure(make({0: bare}, {0: bare}))


def test_without_run_folders_there_is_no_course(given):
    with pytest.raises(NotApplicableError, match="run folders"):
        TRAINING.measure(given(RIGHT, RIGHT, TURNED, LABEL))
