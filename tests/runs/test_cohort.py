import os
import signal

import pytest
import torch

from limbeck.core.errors import NonFiniteError, SettingsError
from limbeck.core.types import LossTerms
from limbeck.engine.loop import InterruptedRun, Interruption
from limbeck.engine.recorder import SilentObserver
from limbeck.methods.output.dkd import DKD
from limbeck.runs.cohort import together
from limbeck.runs.execute import asking_resumed, asking_run
from limbeck.runs.orchestrate import compare
from limbeck.runs.summary import RunSummary, read_summary

# Logits alone; two stages; a further view; features and classifier; a pass over the data.
METHODS = ("kd", "fitnet", "mlkd", "cat_kd", "wkd_logit")
STEPS = 10  # an epoch of the small world


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    """Method to the summary and the rows of its run by itself."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for method in METHODS:
        summary = small.run(small.config(method), folder / method)
        found[method] = summary, small.rows(folder / method)
    return found


def started(small, folder, methods, watch, *, observers=None, **fields):
    """Runs of one teacher that wait for their first question."""
    runs, teacher = {}, None
    for method in methods:
        config = small.config(method, **fields)
        parts = small.parts(config)
        teacher = teacher or parts.teacher
        parts = type(parts)(parts.data, parts.student, teacher)
        observer = (observers or {}).get(method)
        place = folder / method
        runs[method] = (
            asking_resumed(place, parts, config, observer=observer, watch=watch)
            if place.exists()
            else asking_run(config, place, parts, observer=observer, watch=watch)
        )
    return runs, teacher


@pytest.fixture(autouse=True)
def no_floor(monkeypatch):
    """What is measured after training makes passes of its own."""
    monkeypatch.setattr("limbeck.runs.execute.floor_images_per_second", lambda *_, **__: 1.0)


@pytest.fixture
def passes():
    """``passes(teacher)``: the sizes of the batches that its network is shown from now on."""
    handles = []

    def count(named):
        sizes = []
        handles.append(
            named.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        )
        return sizes

    yield count
    for handle in handles:
        handle.remove()


def assert_equal(small, folder, alone, summary, method):
    own, rows = alone[method]
    assert summary.student_hash == own.student_hash
    assert summary.scores == own.scores
    assert small.rows(folder / method) == rows
    assert read_summary(folder / method) == summary


def test_each_run_ends_bit_equal_to_itself_alone(small, alone, tmp_path):
    """The students have dropout: each must draw from its own stream."""
    watch = Interruption()
    runs, _ = started(small, tmp_path, METHODS, watch)
    before = torch.get_rng_state()
    ended = dict(together(runs, watch))
    assert torch.equal(torch.get_rng_state(), before)
    assert ended.keys() == set(METHODS)
    for method, summary in ended.items():
        assert_equal(small, tmp_path, alone, summary, method)


def test_the_teacher_sees_a_batch_once_for_all(small, tmp_path, passes):
    """Ten steps an epoch, two epochs; nothing else has batches of 32 or the last one's size."""
    watch = Interruption()
    methods = ("kd", "dkd", "dist", "cat_kd")
    runs, teacher = started(small, tmp_path, methods, watch, train={"eval_batch_size": 1000})
    sizes = passes(teacher)
    dict(together(runs, watch))
    assert sizes.count(32) == 2 * (STEPS - 1)


def test_a_view_that_one_of_them_wants_is_shown_once(small, tmp_path, passes):
    watch = Interruption()
    methods = ("kd", "mlkd", "dkd")
    runs, teacher = started(small, tmp_path, methods, watch, train={"eval_batch_size": 1000})
    sizes = passes(teacher)
    dict(together(runs, watch))
    assert sizes.count(32) == 2 * 2 * (STEPS - 1)


def test_no_hook_stays_on_the_teacher(small, tmp_path):
    watch = Interruption()
    runs, teacher = started(small, tmp_path, ("kd", "cat_kd"), watch, epochs=1)
    dict(together(runs, watch))
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in teacher.network.modules()
    )


def test_one_runs_failure_is_not_the_others(small, alone, tmp_path, monkeypatch):
    real = DKD.forward

    def forward(self, batch, student, teacher, progress):
        terms = real(self, batch, student, teacher, progress)
        bad = float("nan") if progress.step == 7 else 1.0
        return LossTerms(terms.total * bad, terms.parts)

    monkeypatch.setattr(DKD, "forward", forward)
    watch = Interruption()
    runs, _ = started(small, tmp_path, ("dkd", "kd", "mlkd"), watch)
    ended = dict(together(runs, watch))
    assert list(ended) == ["dkd", "kd", "mlkd"]
    assert isinstance(ended["dkd"], NonFiniteError)
    for method in ("kd", "mlkd"):
        assert_equal(small, tmp_path, alone, ended[method], method)


def test_a_run_that_cannot_start_is_not_the_others(small, alone, tmp_path):
    watch = Interruption()
    wrong = {"name": "fitnet", "teacher_layer": "stage9"}
    runs, teacher = started(small, tmp_path, ("kd",), watch)
    config = small.config(wrong)
    parts = small.parts(config)
    parts = type(parts)(parts.data, parts.student, teacher)
    runs = {"wrong": asking_run(config, tmp_path / "wrong", parts, watch=watch), **runs}
    ended = dict(together(runs, watch))
    assert isinstance(ended["wrong"], KeyError)
    assert not (tmp_path / "wrong").exists()
    assert_equal(small, tmp_path, alone, ended["kd"], "kd")


def test_a_signal_saves_all_and_they_end_the_same_together_or_alone(small, alone, tmp_path):
    watch = Interruption()
    stop = small.Act("train", 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    methods = ("kd", "mlkd", "fitnet")
    handlers = signal.getsignal(signal.SIGTERM)
    runs, _ = started(small, tmp_path, methods, watch, observers={"kd": stop})
    ended = dict(together(runs, watch))
    assert all(isinstance(error, InterruptedRun) for error in ended.values())
    assert signal.getsignal(signal.SIGTERM) is handlers
    found = {"fitnet": small.resume(tmp_path / "fitnet")}
    watch = Interruption()
    runs, _ = started(small, tmp_path, ("kd", "mlkd"), watch)
    found |= dict(together(runs, watch))
    for method, summary in found.items():
        assert_equal(small, tmp_path, alone, summary, method)


def test_those_behind_catch_up_and_then_share(small, alone, tmp_path, passes):
    """One was interrupted after 4 steps and one after 13: nine passes are for one alone."""
    for method, step in (("kd", 4), ("mlkd", 13)):
        act = small.Act("train", step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(InterruptedRun):
            small.run(small.config(method), tmp_path / method, observer=act)
    watch = Interruption()
    runs, teacher = started(small, tmp_path, ("kd", "mlkd"), watch)
    sizes = passes(teacher)
    ended = dict(together(runs, watch))
    for method, summary in ended.items():
        assert_equal(small, tmp_path, alone, summary, method)
    # Steps 5 to 13, but for the short one at 10, of one view; 14 to 19 of two.
    assert sizes.count(32) == 8 + 2 * 6


def test_a_second_ctrl_c_leaves_at_once_and_lets_go_of_the_folders(small, tmp_path):
    watch = Interruption()

    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    observers = {"dkd": small.Act("train", 5, twice)}
    runs, _ = started(small, tmp_path, ("kd", "dkd"), watch, observers=observers)
    with pytest.raises(KeyboardInterrupt):
        dict(together(runs, watch))
    assert not list(tmp_path.glob("*/.lock"))


def test_what_the_teacher_took_counts_in_full_for_each(small, tmp_path):
    watch = Interruption()
    runs, _ = started(small, tmp_path, ("kd", "dkd"), watch)
    for summary in dict(together(runs, watch)).values():
        assert 0 < summary.teacher_seconds < summary.seconds


# -- in a comparison ---------------------------------------------------------------------------


class Hearer:
    """What a comparison says."""

    def __init__(self):
        self.said = []

    def started(self, task, number, total):
        self.said.append(("started", task.name))

    def finished(self, task, found):
        assert isinstance(found, RunSummary)
        self.said.append(("finished", task.name))

    def failed(self, task, reason):
        self.said.append(("failed", task.name))

    def observer(self, task):
        return SilentObserver()


def test_a_comparison_by_cohorts_is_the_same_comparison(small, tmp_path):
    methods = ("kd", "dkd", "fitnet_one_stage")
    config = small.comparison(methods, seeds=(0, 1))
    hearer = Hearer()
    cohort = compare(config, tmp_path / "cohort", cohort=2, audience=hearer)
    single = compare(config, tmp_path / "single")
    for label in ("ce", *methods):
        for seed in (0, 1):
            ours, theirs = (read_summary(f.run(label, seed)) for f in (cohort, single))
            assert ours.student_hash == theirs.student_hash
            assert ours.scores == theirs.scores
    assert [name for what, name in hearer.said if what == "started"] == [
        f"{label}-seed{seed}" for seed in (0, 1) for label in ("ce", *methods)
    ]
    assert hearer.said[:6] == [
        ("started", "ce-seed0"),
        ("finished", "ce-seed0"),
        ("started", "kd-seed0"),
        ("started", "dkd-seed0"),
        ("finished", "kd-seed0"),
        ("finished", "dkd-seed0"),
    ]


def test_a_failed_run_of_a_cohort_is_marked_and_made_again(small, tmp_path, monkeypatch):
    config = small.comparison(("kd", "dkd"), seeds=(0,))
    real = DKD.forward

    def forward(self, *arguments):
        raise RuntimeError("no")

    monkeypatch.setattr(DKD, "forward", forward)
    monkeypatch.setattr("limbeck.runs.orchestrate.check", lambda *_: None)
    hearer = Hearer()
    folder = compare(config, tmp_path / "comparison", cohort=4, audience=hearer)
    assert ("failed", "dkd-seed0") in hearer.said
    assert ("finished", "kd-seed0") in hearer.said
    assert "no" in folder.read_failure("dkd-seed0").reason
    monkeypatch.setattr(DKD, "forward", real)
    compare(config, tmp_path / "comparison", cohort=4)
    assert folder.read_failure("dkd-seed0") is None
    assert read_summary(folder.run("dkd", 0)).method == "dkd"


def test_an_interrupted_cohort_goes_on(small, tmp_path, monkeypatch):
    config = small.comparison(("kd", "dkd"), seeds=(0,))
    whole = compare(config, tmp_path / "whole")
    act = small.Act("train", 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    hearer = Hearer()
    hearer.observer = lambda task: act if task.name == "kd-seed0" else small.Ear()
    with pytest.raises(InterruptedRun):
        compare(config, tmp_path / "comparison", cohort=2, audience=hearer)
    folder = compare(config, tmp_path / "comparison", cohort=2)
    for label in ("kd", "dkd"):
        ours, theirs = (read_summary(f.run(label, 0)) for f in (folder, whole))
        assert ours.student_hash == theirs.student_hash


def test_a_cohort_is_one_process(small, tmp_path):
    with pytest.raises(SettingsError, match="several; give one of the two"):
        compare(small.comparison(), tmp_path / "comparison", jobs=2, cohort=2)
    config = small.comparison(shared={"train": {"torchcompile": True}})
    with pytest.raises(SettingsError, match="not compiled; leave --torchcompile out"):
        compare(config, tmp_path / "comparison", cohort=2)
    assert not (tmp_path / "comparison").exists()
