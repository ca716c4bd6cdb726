import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

from limbeck.engine.distributed import World
from limbeck.engine.evaluate import KeptLogits
from limbeck.runs import predictions
from limbeck.runs.predictions import judge_answers, write_predictions


@pytest.fixture
def answers(generator):
    """Two networks' logits for one split of eight classes; the last image has no label."""

    def make(count=40, names=("last", "teacher"), **changed):
        kept = KeptLogits()
        for name in names:
            kept.add(name, torch.randn(count, 8, generator=generator))
        label = torch.randint(8, (count,), generator=generator)
        label[-1] = -1
        kept.add_label(label)
        kept.close(names, World())
        kept.logits |= changed
        return kept

    return make


def test_logits_and_labels_come_back_without_torch(answers, tmp_path):
    val, test = answers(10), answers()
    path = tmp_path / "predictions.safetensors"
    assert write_predictions({"val": val, "test": test}, path) is None
    found = load_file(path)
    assert found.keys() == {
        f"{s}.{n}" for s in ("val", "test") for n in ("label", "last", "teacher")
    }
    assert found["test.last"].dtype == np.float32
    np.testing.assert_array_equal(found["test.last"], test.logits["last"].numpy())
    np.testing.assert_array_equal(found["val.label"], val.label.numpy())


def test_too_many_logits_are_not_written_and_that_is_said(answers, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "MOST_BYTES", 1000)
    path = tmp_path / "predictions.safetensors"
    assert "the logits are not kept" in write_predictions({"test": answers()}, path)
    assert not path.exists()


def test_every_network_is_judged_on_the_images_that_have_a_label(answers):
    test = answers()
    scores, faults = judge_answers(test, None)
    assert faults == []
    assert scores.keys() == {"last", "teacher"}
    known = test.label >= 0
    nll = F.cross_entropy(test.logits["last"][known].double(), test.label[known])
    assert scores["last"]["nll"] == pytest.approx(nll.item())
    same = test.logits["last"].argmax(1) == test.logits["teacher"].argmax(1)
    assert scores["last"]["agreement"] == pytest.approx(same[known].double().mean().item())
    assert "agreement" not in scores["teacher"]
    assert "nll_scaled" not in scores["last"]


def test_calibration_is_fitted_on_validation(answers):
    scores, _ = judge_answers(answers(), answers(30))
    assert scores["last"]["nll_scaled"] <= scores["last"]["nll"]
    assert scores["teacher"]["temperature"] > 0


def test_an_independent_teacher_is_the_control(answers):
    scores, _ = judge_answers(answers(names=("last", "teacher", "independent")), None)
    excess = scores["last"]["agreement"] - scores["last"]["agreement_independent"]
    assert scores["last"]["agreement_excess"] == pytest.approx(excess)
    assert "agreement_independent" not in scores["teacher"]


def test_what_is_over_no_images_is_none(answers):
    test = answers()
    perfect = F.one_hot(test.label.clamp(min=0), 8).float()
    test.logits["teacher"] = perfect
    scores, _ = judge_answers(test, None)
    assert scores["last"]["agreement_on_teacher_errors"] is None


def test_a_network_that_has_diverged_leaves_a_sentence_and_the_others_their_scores(answers):
    test = answers(last=torch.full((40, 8), float("nan")))
    scores, (fault,) = judge_answers(test, None)
    assert scores.keys() == {"teacher"}
    assert fault.startswith("no scores of last: ")


@pytest.mark.parametrize("labels", ["none", "unknown"])
def test_without_labels_there_are_no_scores(answers, labels):
    test = answers()
    test.label.fill_(-1)
    assert judge_answers(None if labels == "none" else test, None) == ({}, [])


def test_a_long_tail_is_told_by_training_images_of_a_class(answers):
    test = answers()
    tail = [500, 300, 150, 60, 40, 25, 10, 5]
    scores, _ = judge_answers(test, None, tail)
    known = test.label >= 0
    hits = test.logits["last"].argmax(1)[known] == test.label[known]
    of_class = {
        k: hits[test.label[known] == k].double().mean().item()
        for k in test.label[known].unique().tolist()
    }
    many = [value for k, value in of_class.items() if k < 3]
    assert scores["last"]["many_shot"] == pytest.approx(sum(many) / len(many))
    assert {"many_shot", "medium_shot", "few_shot"} <= scores["teacher"].keys()


@pytest.mark.parametrize("counts", [None, [50] * 8, [50, 40, 40, 30, 20, 20, 20, 11]])
def test_without_a_long_tail_nothing_is_told_by_training_images(answers, counts):
    scores, _ = judge_answers(answers(), None, counts)
    assert "few_shot" not in scores["last"]
