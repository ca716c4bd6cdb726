import hashlib
from itertools import pairwise

import pytest
import torch

from limbeck.core.errors import DataError
from limbeck.data.splits import (
    keep_labels,
    long_tailed_subset,
    stratified_split,
    stratified_subset,
)


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
    with pytest.raises(DataError, match="and 4, all there are, or 0; got 5"):
        keep_labels(labels, 5, seed=0)


def test_too_few_labels_for_the_classes_are_refused(labels):
    with pytest.raises(DataError, match=r"between 5, one for each class, and 400.*got 4"):
        keep_labels(labels, 4, seed=0)


def test_which_labels_are_kept_depends_on_the_seed(labels):
    assert not torch.equal(keep_labels(labels, 50, seed=0), keep_labels(labels, 50, seed=1))
    assert torch.equal(keep_labels(labels, 50, seed=0), keep_labels(labels, 50, seed=0))


# -- long tails ----------------------------------------------------------------------------------


def sizes(labels, positions):
    return torch.bincount(labels[positions]).tolist()


@pytest.mark.parametrize(
    ("num_classes", "factor", "total"),
    [
        (10, 10, 20_431),
        (10, 50, 13_996),
        (10, 100, 12_406),
        (100, 10, 19_573),
        (100, 50, 12_608),
        (100, 100, 10_847),
    ],
)
def test_cifars_classes_have_the_sizes_of_the_benchmark(num_classes, factor, total):
    """Of Cui's formula, and in sum the sizes that papers on CIFAR-LT print."""
    labels = torch.arange(num_classes).repeat(50_000 // num_classes)
    found = sizes(labels, long_tailed_subset(labels, factor, seed=0))
    largest = 50_000 // num_classes
    assert found == [
        int(largest * (1 / factor) ** (k / (num_classes - 1.0))) for k in range(num_classes)
    ]
    assert sum(found) == total


def test_a_class_gets_no_more_images_than_it_has_and_no_fewer_than_one():
    labels = torch.tensor([0] * 40 + [1] * 5 + [2] * 60 + [3] * 60)
    assert sizes(labels, long_tailed_subset(labels, 8, seed=0)) == [40, 5, 15, 7]
    assert sizes(labels, long_tailed_subset(labels, 1e6, seed=0)) == [40, 1, 1, 1]


def test_a_factor_of_one_keeps_classes_of_one_size_whole():
    labels = torch.arange(3).repeat(7)
    assert long_tailed_subset(labels, 1, seed=0).tolist() == list(range(21))


def test_a_longer_tail_lies_within_a_shorter_one(labels):
    parts = [set(long_tailed_subset(labels, f, seed=2).tolist()) for f in (100, 20, 5, 1)]
    assert all(small <= large for small, large in pairwise(parts))
    assert parts[0] < parts[2]


def test_which_images_are_the_tail_depends_on_the_seed_alone():
    labels = torch.arange(4).repeat(50)
    once, again, other = (long_tailed_subset(labels, 10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert (once.diff() > 0).all()
    assert sizes(labels, once) == sizes(labels, other) == [50, 23, 10, 5]
    assert not torch.equal(once, other)


def test_images_without_a_class_are_no_part_of_the_tail():
    labels = torch.tensor([-1, 0, 1, -1, 0, 1, 0, 1])
    kept = long_tailed_subset(labels, 3, seed=0)
    assert labels[kept].tolist().count(-1) == 2
    assert torch.bincount(labels[kept] + 1).tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    ("labels", "factor", "said"), [([0, 1], 0.01, "factor 0.01"), ([1, 1, -1], 10, "1 classes")]
)
def test_a_tail_that_would_be_none_is_refused(labels, factor, said):
    with pytest.raises(DataError, match=said):
        long_tailed_subset(torch.tensor(labels), factor, seed=0)


def test_no_label_is_kept_where_none_is_asked_for(labels):
    assert (keep_labels(labels, 0, seed=0) == -1).all()
