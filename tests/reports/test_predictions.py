import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from limbeck.core.errors import RunFolderError
from limbeck.reports.predictions import mean_class_accuracy, pooled, read_answers

LABEL = np.array([0, 0, 1, 1, 2, -1])
LOGITS = np.array(
    [[4, 0, 0], [0, 4, 0], [0, 4, 0], [0, 4, 0], [0, 0, 4], [4, 0, 0]], dtype=np.float32
)


@pytest.fixture
def run(tmp_path):
    save_file({"test.label": LABEL, "test.last": LOGITS}, tmp_path / "predictions.safetensors")
    return tmp_path


def test_answers_are_counted_by_image_and_by_class_and_unlabelled_ones_are_not(run):
    found = read_answers(run)
    assert found.num_images == 5
    assert found.correct.tolist() == [True, False, True, True, True]
    assert found.class_images.tolist() == [2, 2, 1]
    assert found.class_accuracy.tolist() == [0.5, 1, 1]
    assert found.reliability.num_images.sum() == 5
    assert found.reliability.num_correct.sum() == 4


def test_what_was_not_kept_is_none(run, tmp_path):
    assert read_answers(run, "teacher") is None
    assert read_answers(tmp_path / "elsewhere") is None


def test_a_network_that_diverged_or_has_no_label_has_no_answers(run):
    path = run / "predictions.safetensors"
    save_file({"test.label": LABEL, "test.last": LOGITS * np.float32("nan")}, path)
    assert read_answers(run) is None
    save_file({"test.label": LABEL * 0 - 1, "test.last": LOGITS}, path)
    assert read_answers(run) is None


@pytest.mark.parametrize(
    "content", [b"", b"no such thing", b"\xff" * 64, json.dumps({"a": 1}).encode()]
)
def test_a_damaged_file_is_named(run, content):
    (run / "predictions.safetensors").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"predictions\.safetensors is not what a run writes"):
        read_answers(run)


@pytest.mark.parametrize("label", [LABEL[:3], LABEL.astype(np.float32), LABEL + 7])
def test_labels_that_do_not_belong_to_the_answers_are_refused(run, label):
    save_file({"test.label": label, "test.last": LOGITS}, run / "predictions.safetensors")
    with pytest.raises(RunFolderError, match="is not what a run writes"):
        read_answers(run)


def test_pooled_bins_hold_the_images_of_all_runs(run):
    one = read_answers(run)
    both = pooled([one.reliability, one.reliability])
    assert both.num_images.sum() == 10
    assert both.num_correct.sum() == 8
    assert both.summed_confidence.sum() == pytest.approx(
        2 * one.reliability.summed_confidence.sum()
    )
    with pytest.raises(ValueError, match="no run to pool"):
        pooled([])


def test_classes_are_averaged_over_runs(run):
    first = read_answers(run)
    save_file(
        {"test.label": LABEL, "test.last": LOGITS[:, ::-1].copy()}, run / "predictions.safetensors"
    )
    second = read_answers(run)
    expected = [(0.5 + 0) / 2, (1 + 1) / 2, (1 + 0) / 2]
    assert mean_class_accuracy([first, second]).tolist() == expected
