import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from limbeck.core.errors import ShapeError
from limbeck.core.types import UNLABELLED
from limbeck.metrics.accuracy import ClassificationTotals


def totals_of(logits, label):
    totals = ClassificationTotals()
    totals.add(logits, label)
    return totals


@pytest.fixture
def case(generator):
    logits = 3 * torch.randn(50, 9, generator=generator, dtype=torch.float64)
    return logits, torch.randint(9, (50,), generator=generator)


def test_all_three_numbers_are_scikit_learns(case):
    logits, label = case
    found = totals_of(logits, label).result()
    classes, p = np.arange(9), logits.softmax(dim=1).numpy()
    assert found["top1"] == accuracy_score(label, logits.argmax(dim=1))
    assert found["top5"] == top_k_accuracy_score(label, logits, k=5, labels=classes)
    assert found["loss"] == pytest.approx(log_loss(label, p, labels=classes), rel=1e-9)
    assert 0 < found["top1"] < found["top5"] < 1


def test_batches_of_any_sizes_give_the_same_numbers(case):
    logits, label = case
    parts = ClassificationTotals()
    for size in (slice(0, 1), slice(1, 33), slice(33, 50)):
        parts.add(logits[size], label[size])
    assert parts.result() == pytest.approx(totals_of(logits, label).result(), rel=1e-12)


def test_totals_of_several_ranks_add_up(case):
    logits, label = case
    ranks = [totals_of(logits[:20], label[:20]), totals_of(logits[20:], label[20:])]
    summed = sum(rank.as_tensor() for rank in ranks)
    found = ClassificationTotals.from_tensor(summed, num_ranks=2).result()
    assert found == pytest.approx(totals_of(logits, label).result(), rel=1e-12)


def test_ranks_add_up_images_and_not_classes():
    rank = totals_of(torch.zeros(1, 4), torch.tensor([0])).as_tensor()
    assert "top5" not in ClassificationTotals.from_tensor(rank + rank, num_ranks=2).result()


def test_images_without_a_label_do_not_count(case):
    logits, label = case
    hidden = label.clone()
    hidden[::3] = UNLABELLED
    known = hidden != UNLABELLED
    found = totals_of(logits, hidden).result()
    assert found == pytest.approx(totals_of(logits[known], label[known]).result(), rel=1e-12)


def test_without_any_label_there_is_no_number():
    found = totals_of(torch.zeros(2, 7), torch.full((2,), UNLABELLED)).result()
    assert sorted(found) == ["loss", "top1", "top5"]
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_is_given_where_it_can_be_wrong(num_classes, has_top5):
    found = totals_of(torch.zeros(1, num_classes), torch.tensor([0])).result()
    assert ("top5" in found) is has_top5


def test_of_equal_logits_the_first_class_wins():
    """A network whose logits are all equal is right for class 0 and five classes in the top 5."""
    found = totals_of(torch.zeros(10, 10), torch.arange(10)).result()
    assert (found["top1"], found["top5"]) == (0.1, 0.5)
    assert found["loss"] == pytest.approx(math.log(10))


def test_half_precision_is_widened_before_the_sums():
    logits = torch.tensor([[300.0, 0.0]], dtype=torch.float16).repeat(1000, 1)
    found = totals_of(logits, torch.ones(1000, dtype=torch.int64)).result()
    assert found["loss"] == pytest.approx(300.0)  # the sum, 300 000, is beyond float16


def test_counting_leaves_the_caller_no_handle_on_the_counts():
    totals = totals_of(torch.zeros(1, 3), torch.tensor([0]))
    totals.as_tensor().zero_()
    assert totals.result()["top1"] == 1


@pytest.mark.parametrize(("logits", "label"), [((3, 4), (2,)), ((3,), (3,)), ((3, 4), (3, 1))])
def test_logits_and_labels_that_do_not_belong_together_are_refused(logits, label):
    with pytest.raises(ShapeError, match=r"must be \(batch, classes\)"):
        ClassificationTotals().add(torch.zeros(logits), torch.zeros(label, dtype=torch.int64))
