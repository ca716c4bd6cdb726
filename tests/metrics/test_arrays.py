import numpy as np
import pytest
import torch

from limbeck.core.errors import DataError, NonFiniteError, ShapeError
from limbeck.core.types import UNLABELLED
from limbeck.metrics.arrays import as_label, as_labelled, as_logits, as_logits_pair


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tensors_and_arrays_are_the_same_logits(dtype):
    tensor = torch.tensor([[0.1, 2.0], [3.0, -1.0]], dtype=dtype)
    found = as_logits(tensor)
    assert found.dtype == np.float64
    assert found.tolist() == tensor.double().tolist()
    assert as_logits(tensor.numpy()).tolist() == found.tolist()


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3), (3, 0)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match=r"scores must be \(images, classes\), at least one"):
        as_logits(np.zeros(shape), name="scores")


def test_logits_that_are_not_finite_are_counted():
    logits = np.zeros((5, 4))
    logits[1, :2] = np.nan
    logits[3, 0] = -np.inf
    with pytest.raises(NonFiniteError, match="3 of 20 values, in 2 of 5 images, are NaN or inf"):
        as_logits(logits)


def test_images_without_a_label_are_refused_and_counted():
    label = [0, UNLABELLED, 2, UNLABELLED]
    with pytest.raises(DataError, match=r"2 of 4 have -1, which means unlabelled\. Leave"):
        as_label(label, num_images=4, num_classes=3)


@pytest.mark.parametrize("wrong", [3, -2])
def test_labels_that_are_no_class_are_refused(wrong):
    with pytest.raises(DataError, match=f"0 to 2; 1 of 3 are not, the first {wrong}"):
        as_label([0, wrong, 1], num_images=3, num_classes=3)


def test_labels_that_are_no_whole_numbers_are_refused():
    with pytest.raises(DataError, match="whole numbers, class indices; got float64"):
        as_label([0.0, 1.0], num_images=2, num_classes=2)


@pytest.mark.parametrize("label", [[0], [0, 1, 0], [[0, 1]]])
def test_every_image_has_one_label(label):
    with pytest.raises(ShapeError, match=r"label must be \(images,\) = \(2,\)"):
        as_labelled(np.zeros((2, 2)), label)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3)])
def test_two_networks_must_answer_the_same_images(shape):
    with pytest.raises(ShapeError, match=r"got student \(2, 3\), teacher"):
        as_logits_pair(np.zeros((2, 3)), np.zeros(shape))


@pytest.mark.parametrize("bad", ["student", "teacher"])
def test_of_two_networks_the_one_that_diverged_is_named(bad):
    logits = {"student": np.zeros((1, 2)), "teacher": np.zeros((1, 2))}
    logits[bad] = np.full((1, 2), np.nan)
    with pytest.raises(NonFiniteError, match=f"^{bad}_logits must be finite; 2 of 2 values"):
        as_logits_pair(logits["student"], logits["teacher"])


def test_what_the_caller_gave_is_left_alone():
    logits, label = np.zeros((1, 2)), np.zeros(1, dtype=np.int64)
    scores, classes = as_labelled(logits, label)
    scores[:] = 1
    classes[:] = 1
    assert (logits.sum(), label.sum()) == (0, 0)
