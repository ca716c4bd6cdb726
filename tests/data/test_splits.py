import hashlib

import pytest
import torch

from limbeck.core.errors import DataError
from limbeck.data.splits import keep_labels, stratified_split, stratified_subset


@pytest.fixture
def labels(generator):
    """400 labels of five classes of quite different sizes, in random order."""
    sizes = torch.tensor([200, 100, 60, 30, 10])
    return torch.arange(5).repeat_interleave(sizes)[torch.randperm(400, generator=generator)]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3, 0.9])
def test_split_is_disjoint_whole_and_within_one_image_of_each_share(labels, fraction):
    rest, held_out = stratified_split(labels, fraction, seed=0)
    assert sorted(rest.tolist() + held_out.tolist()) == list(range(400))
    assert len(held_out) == round(400 * fraction)
    for label in range(5):
        size = int((labels == label).sum())
        assert abs(int((labels[held_out] == label).sum()) - size * fraction) <= 1


def test_equal_classes_are_split_equally():
    labels = torch.arange(10).repeat(50)
    held_out = stratified_split(labels, 0.1, seed=3).held_out
    assert torch.bincount(labels[held_out]).tolist() == [5] * 10


def test_positions_ascend(labels):
    for part in stratified_split(labels, 0.3, seed=0):
        assert part.dtype == torch.int64
        assert (part.diff() > 0).all()


def test_split_depends_on_the_seed_alone(labels):
    once, again = (stratified_split(labels, 0.2, seed=1).held_out for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, stratified_split(labels, 0.2, seed=2).held_out)


def test_which_images_are_chosen_follows_from_a_hash():
    """The rule in plain Python: one class, the lowest digests are held out."""
    lots = [hashlib.sha256(f"split\x1f7\x1f{n}".encode()).hexdigest() for n in range(20)]
    expected = sorted(sorted(range(20), key=lots.__getitem__)[:5])
    held_out = stratified_split(torch.zeros(20, dtype=torch.int64), 0.25, seed=7).held_out
    assert held_out.tolist() == expected


def test_the_chosen_images_are_spread_evenly():
    """Over many seeds each of ten images is held out as often as any other."""
    labels = torch.zeros(10, dtype=torch.int64)
    counts = torch.zeros(10)
    for seed in range(1000):
        counts[stratified_split(labels, 0.3, seed=seed).held_out] += 1
    assert (counts - 300).abs().max() < 5 * (1000 * 0.3 * 0.7) ** 0.5


def test_images_without_a_class_are_shared_out_too():
    labels = torch.tensor([0, 1] * 10 + [-1] * 20)
    held_out = stratified_split(labels, 0.5, seed=0).held_out
    assert int((labels[held_out] == -1).sum()) == 10


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_shares_outside_the_open_interval_are_refused(labels, fraction):
    with pytest.raises(DataError, match=r"\(0, 1\)"):
        stratified_split(labels, fraction, seed=0)


def test_holding_out_nothing_is_refused():
    with pytest.raises(DataError, match="not one whole image"):
        stratified_split(torch.tensor([0, 1, 0, 1]), 0.1, seed=0)


def test_a_class_is_never_held_out_whole():
    with pytest.raises(DataError, match="none of class 1"):
        stratified_split(torch.tensor([0] * 9 + [1]), 0.7, seed=0)


def test_smaller_parts_lie_in_larger_ones(labels):
    subsets = [
        set(stratified_subset(labels, fraction, seed=4).tolist()) for fraction in (0.1, 0.3, 1)
    ]
    assert subsets[0] < subsets[1] < subsets[2] == set(range(400))
    kept = [
        set((keep_labels(labels, count, seed=4) >= 0).nonzero().flatten().tolist())
        for count in (5, 100, 399)
    ]
    assert kept[0] < kept[1] < kept[2]


def test_subset_holds_every_class_and_the_asked_number(labels):
    positions = stratified_subset(labels, 0.0125, seed=0)
    assert sorted(labels[positions].tolist()) == [0, 1, 2, 3, 4]
    assert len(stratified_subset(labels, 0.5, seed=0)) == 200
    assert torch.bincount(labels[stratified_subset(labels, 0.5, seed=0)]).tolist() == pytest.approx(
        [100, 50, 30, 15, 5], abs=3
    )


def test_subset_of_fewer_images_than_classes_is_refused(labels):
    with pytest.raises(DataError, match="is 4, fewer than the 5 classes"):
        stratified_subset(labels, 0.01, seed=0)
    with pytest.raises(DataError, match=r"\(0, 1\]"):
        stratified_subset(labels, 0, seed=0)


@pytest.mark.parametrize("count", [5, 50, 400])
def test_kept_labels_are_the_true_ones_and_of_every_class(labels, count):
    hidden = keep_labels(labels, count, seed=0)
    kept = hidden != -1
    assert int(kept.sum()) == count
    assert torch.equal(hidden[kept], labels[kept])
    assert set(hidden[kept].tolist()) == {0, 1, 2, 3, 4}


def test_labels_already_hidden_stay_hidden():
    labels = torch.tensor([0, -1, 1, -1, 0, 1])
    hidden = keep_labels(labels, 3, seed=0)
    assert hidden[[1, 3]].tolist() == [-1, -1]
    assert int((hidden >= 0).sum()) == 3
    with pytest.raises(DataError, match="and 4, all there are; got 5"):
        keep_labels(labels, 5, seed=0)


def test_too_few_labels_for_the_classes_are_refused(labels):
    with pytest.raises(DataError, match=r"between 5, one for each class, and 400.*got 4"):
        keep_labels(labels, 4, seed=0)


def test_which_labels_are_kept_depends_on_the_seed(labels):
    assert not torch.equal(keep_labels(labels, 50, seed=0), keep_labels(labels, 50, seed=1))
    assert torch.equal(keep_labels(labels, 50, seed=0), keep_labels(labels, 50, seed=0))
