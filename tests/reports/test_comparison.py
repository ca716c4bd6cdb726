import json

import pytest

from limbeck.core.errors import RunFolderError, UnknownNameError
from limbeck.reports.comparison import compare_runs
from limbeck.reports.runs import read_run


@pytest.fixture
def group(write_run):
    """Finished runs of one method from their test accuracies by seed."""

    def make(method, top1_by_seed, **fields):
        base = f"{method}-changed" if fields else method
        return [
            read_run(write_run(f"{base}/{seed}", method=method, seed=seed, top1=top1, **fields))
            for seed, top1 in top1_by_seed.items()
        ]

    return make


def test_gains_are_paired_by_seed_and_not_by_position(group):
    """Every seed gains exactly 0.1, so the gain has no spread, though both accuracies have."""
    none = group("none", {0: 0.5, 1: 0.7, 2: 0.6})
    kd = group("kd", {2: 0.7, 0: 0.6, 1: 0.8})
    base, ours = compare_runs({"none": none, "kd": kd}, baseline="none")
    assert ours.gain.mean == pytest.approx(0.1)
    assert ours.gain.sd == pytest.approx(0, abs=1e-12)
    assert ours.gain.count == 3
    assert ours.accuracy.sd == pytest.approx(0.1)
    assert list(ours.last) == [0, 1, 2]
    assert base.gain is None


def test_a_loss_against_the_baseline_is_negative(group):
    groups = {"none": group("none", {0: 0.75}), "fitnet": group("fitnet", {0: 0.5})}
    _, ours = compare_runs(groups, baseline="none")
    assert ours.gain.mean == -0.25
    assert ours.gain.sd is None


def test_only_shared_seeds_are_paired(group):
    groups = {"none": group("none", {0: 0.5, 1: 0.5}), "kd": group("kd", {1: 0.75, 7: 0.9})}
    _, ours = compare_runs(groups, baseline="none")
    assert (ours.gain.mean, ours.gain.count) == (0.25, 1)
    assert ours.accuracy.count == 2


def test_without_a_shared_seed_there_is_no_gain(group):
    groups = {"none": group("none", {0: 0.5}), "kd": group("kd", {1: 0.75})}
    assert compare_runs(groups, baseline="none")[1].gain is None


def test_rows_keep_the_order_given_and_references_have_no_gain(group):
    groups = {
        "all labels": group("full", {0: 0.9}),
        "kd": group("kd", {0: 0.8}),
        "none": group("none", {0: 0.7}),
    }
    rows = compare_runs(groups, baseline="none", references=["all labels"])
    assert [(row.label, row.role) for row in rows] == [
        ("all labels", "reference"),
        ("kd", "method"),
        ("none", "baseline"),
    ]
    assert [row.gain is None for row in rows] == [True, False, True]


def test_the_best_epoch_is_reported_beside_the_last_and_never_instead(group):
    groups = {"none": group("none", {0: 0.5, 1: 0.75}, best=0.875)}
    (row,) = compare_runs(groups, baseline="none")
    assert row.last == {0: 0.5, 1: 0.75}
    assert row.best_on_validation == {0: 0.875, 1: 0.875}
    assert row.best_accuracy.mean == 0.875


def test_without_validation_there_is_no_best_epoch(group):
    (row,) = compare_runs({"none": group("none", {0: 0.5})}, baseline="none")
    assert row.best_accuracy is None


def test_seconds_are_the_mean_over_runs(group):
    (row,) = compare_runs({"none": group("none", {0: 0.5, 4: 0.5})}, baseline="none")
    assert row.seconds == 4.0  # the fixture writes 2 + seed
    assert row.num_parameters == 1702


def test_an_unknown_baseline_is_answered_with_the_nearest_label(group):
    groups = {"none": group("none", {0: 0.5})}
    with pytest.raises(UnknownNameError, match="did you mean 'none'"):
        compare_runs(groups, baseline="nonne")
    with pytest.raises(UnknownNameError, match="ceiling"):
        compare_runs(groups, baseline="none", references=["ceiling"])


def test_an_empty_group_is_refused():
    with pytest.raises(RunFolderError, match="'none' has no runs"):
        compare_runs({"none": []}, baseline="none")


def test_a_seed_that_is_there_twice_is_refused(group):
    runs = group("none", {0: 0.5}) + group("none", {0: 0.6}, best=0.5)
    with pytest.raises(RunFolderError, match="seed 0 twice"):
        compare_runs({"none": runs}, baseline="none")


def test_a_group_of_different_students_is_refused(group):
    runs = group("none", {0: 0.5}) + group("none", {1: 0.5}, summary={"student": "digits_cnn"})
    with pytest.raises(RunFolderError, match="mixes students"):
        compare_runs({"none": runs}, baseline="none")


@pytest.mark.parametrize("part", ["method", "optim", "schedule"])
def test_a_group_of_different_settings_is_refused(group, part):
    runs = group("kd", {0: 0.5}) + group("kd", {1: 0.5}, config={part: {"changed": 1}})
    with pytest.raises(RunFolderError, match=f"mixes settings: '{part}'"):
        compare_runs({"kd": runs}, baseline="kd")


def test_a_gain_of_one_student_over_another_is_refused(group):
    groups = {
        "none": group("none", {0: 0.5}),
        "kd": group("kd", {0: 0.5}, summary={"student": "digits_cnn"}),
    }
    with pytest.raises(RunFolderError, match="one student with itself"):
        compare_runs(groups, baseline="none")
    assert compare_runs(groups, baseline="none", references=["kd"])[1].gain is None


def test_a_run_without_test_result_is_refused(group):
    with pytest.raises(RunFolderError, match="no test result"):
        compare_runs({"none": group("none", {0: 0.5}, summary={"test": None})}, baseline="none")


# -- the same data -------------------------------------------------------------------------------


def matched(group, *, hashes=({}, {}), names=(None, None), **summary):
    """A baseline and KD, with split hashes and class names of their own."""
    base = {"test": "t", "val": "v", "train": "r"}
    found = []
    for method, own, classes in zip(("none", "kd"), hashes, names, strict=True):
        (run,) = group(method, {0: 0.5}, summary={"split_hashes": base | own, **summary})
        if classes is not None:
            (run.folder / "student.json").write_text(json.dumps({"class_names": classes}))
        found.append(read_run(run.folder))
    return {"none": found[:1], "kd": found[1:]}


@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_runs_on_other_images_are_refused_by_the_split_that_differs(group, split):
    groups = matched(group, hashes=({}, {split: "other"}))
    with pytest.raises(RunFolderError, match=f"the {split} images or labels"):
        compare_runs(groups, baseline="none")


def test_a_reference_may_learn_from_other_images_and_not_be_judged_on_them(group):
    groups = matched(group, hashes=({}, {"train": "other"}))
    assert len(compare_runs(groups, baseline="none", references=["kd"])) == 2


def test_a_reference_judged_on_other_images_is_refused(group):
    groups = matched(group, hashes=({}, {"test": "other"}))
    with pytest.raises(RunFolderError, match="the test images"):
        compare_runs(groups, baseline="none", references=["kd"])


def test_another_order_of_classes_is_refused_by_name(group):
    groups = matched(group, names=(["cat", "dog"], ["dog", "cat"]))
    with pytest.raises(RunFolderError, match="the order of the classes"):
        compare_runs(groups, baseline="none")


def test_other_classes_are_refused(group):
    groups = matched(group, names=(["cat", "dog"], ["cat", "eel"]))
    with pytest.raises(RunFolderError, match="the classes of"):
        compare_runs(groups, baseline="none")


def test_methods_of_different_teachers_are_refused(group):
    groups = {
        "none": group("none", {0: 0.5}),
        "kd": group("kd", {0: 0.5}),
        "rkd": group("rkd", {0: 0.5}, summary={"teacher_hash": "another"}),
    }
    with pytest.raises(RunFolderError, match="had different teachers"):
        compare_runs(groups, baseline="none")
