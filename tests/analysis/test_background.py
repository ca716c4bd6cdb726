import torch

from limbeck.analysis.background import Background, RunFacts


def test_a_background_may_know_of_the_images_alone():
    found = Background(
        train_images=torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        train_labels=torch.tensor([0, -1]),
        num_train=2,
        num_labelled=1,
    )
    assert (found.distilled, found.independent, found.stretches) == ({}, {}, None)


def test_a_run_may_have_left_its_time_alone():
    found = RunFacts(seconds=3.0)
    assert (found.teacher_seconds, list(found.epochs), list(found.snapshots)) == (None, [], [])
