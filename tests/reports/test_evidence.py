import numpy as np
import pytest

from limbeck.core.errors import RunFolderError
from limbeck.reports.compared import read_comparison
from limbeck.reports.evidence import Evidence


def test_every_row_has_its_line_of_the_table_and_its_answers(evidence):
    assert list(evidence.cells) == ["ce", "kd", "fitnet", "rkd", "full"]
    assert {label: sorted(runs) for label, runs in evidence.answers.items()} == {
        label: [0, 1, 2] for label in evidence.cells
    }
    for label, runs in evidence.answers.items():
        for seed, found in runs.items():
            assert found.correct.mean() == evidence.rows[label].last[seed]
    assert evidence.teacher.correct.sum() == 116
    assert evidence.baseline == "ce"


def test_a_row_looks_like_its_family_and_a_reference_like_none(evidence):
    kinds = [evidence.kind(label) for label in evidence.cells]
    assert kinds == ["none", "output", "feature", "relation", "reference"]


def test_accuracies_are_no_finer_than_the_test_split(evidence, write_full):
    assert (evidence.num_test, evidence.decimals) == (120, 1)
    assert evidence.test_images == "120 test images"
    hits = {"ce": {0: 2000, 1: 2010}, "kd": {0: 2100, 1: 2150}}
    large = Evidence(compared=read_comparison(write_full(hits, num_images=2400, name="large")))
    assert large.decimals == 2


def test_seeds_are_those_that_finished(write_full):
    hits = {"ce": {0: 80, 1: 81, 2: 82}, "kd": {0: 90, 1: "it failed", 2: None}}
    found = Evidence(compared=read_comparison(write_full(hits)))
    assert found.seeds == "1 to 3 of 3 seeds"


def test_runs_without_answers_are_left_out(write_full):
    folder = write_full()
    for path in (folder / "runs").glob("*/predictions.safetensors"):
        path.unlink()
    found = Evidence(compared=read_comparison(folder))
    assert found.teacher is None
    assert not any(found.answers.values())


def test_damaged_answers_are_named(write_full):
    folder = write_full()
    (folder / "runs" / "kd-seed1" / "predictions.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunFolderError, match="kd-seed1"):
        _ = Evidence(compared=read_comparison(folder)).answers


def test_classes_have_their_images(evidence):
    assert np.array_equal(evidence.answers["kd"][0].class_images, [20] * 6)
