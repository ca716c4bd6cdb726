import pytest

from limbeck.core.errors import NonFiniteError, RunFolderError
from limbeck.runs.comparison import (
    ComparisonFolder,
    ComparisonRecord,
    FailedTask,
    check_record,
    clear_stillborn,
    is_tuned,
    on_device,
    row_facts,
    utc_now,
)
from limbeck.runs.folder import RunFolder
from limbeck.runs.provenance import code_version


@pytest.fixture
def record(small):
    def make(**fields):
        config = small.comparison().resolved()
        hashes = {label: {"train": "r", "val": "v", "test": "t"} for label in config.contenders}
        values = {
            "settings": config,
            "code": code_version(),
            "data": hashes,
            "teacher_hash": "a",
            "rows": row_facts(config, {}),
        }
        return ComparisonRecord(**values | fields)

    return make


def test_a_record_comes_back_from_its_file(record, tmp_path):
    folder = ComparisonFolder(tmp_path / "new")
    assert not folder.exists
    folder.begin(record())
    found = folder.read()
    assert found.changed(begun="", command=()) == record()
    assert found.begun.endswith("+00:00")


def test_facts_are_what_a_reader_without_torch_needs(record):
    facts = record().rows
    assert (facts["ce"].role, facts["ce"].family, facts["ce"].chosen) == ("baseline", "none", {})
    assert (facts["kd"].title, facts["kd"].method, facts["kd"].family) == ("kd", "kd", "output")


@pytest.mark.parametrize("text", ["", "[]", '{"settings": {}}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"comparison\.json"):
        ComparisonFolder(tmp_path).read()


def test_a_folder_without_a_comparison_says_so(tmp_path):
    with pytest.raises(RunFolderError, match="holds no comparison"):
        ComparisonFolder(tmp_path).read()


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not an empty folder"):
        ComparisonFolder(tmp_path).check_free()


def test_two_processes_are_never_at_work_in_one(record, tmp_path):
    folder = ComparisonFolder(tmp_path / "new")
    folder.begin(record())
    with folder.locked(), pytest.raises(RunFolderError, match="in use by process"):
        folder.locked().__enter__()


def diverge():
    raise NonFiniteError("at step 3")


def test_a_failure_is_kept_with_its_traceback_until_it_is_cleared(tmp_path):
    folder = ComparisonFolder(tmp_path)
    with pytest.raises(NonFiniteError) as caught:
        diverge()
    folder.fail(FailedTask.of("kd-seed0", caught.value))
    found = folder.read_failure("kd-seed0")
    assert found.reason == "NonFiniteError: at step 3"
    assert "test_comparison.py" in found.traceback
    folder.clear_failure("kd-seed0")
    assert folder.read_failure("kd-seed0") is None


# -- what may not be mixed -----------------------------------------------------------------------


def test_the_same_comparison_goes_on(record, tmp_path):
    check_record(record(), record(), tmp_path)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_other_data_are_refused_by_split(record, tmp_path, split):
    now = record(data={"ce": {"train": "r", "val": "v", "test": "t"} | {split: "other"}})
    with pytest.raises(RunFolderError, match=f"the {split} images, labels or classes"):
        check_record(record(), now, tmp_path)


def test_other_code_is_refused_by_file(record, tmp_path):
    code = code_version()
    changed = code.changed(sources=code.sources | {"engine/loop.py": "edited"})
    with pytest.raises(RunFolderError, match=r"limbeck's engine/loop\.py"):
        check_record(record(), record(code=changed), tmp_path)


def test_another_teacher_is_refused(record, tmp_path):
    with pytest.raises(RunFolderError, match="the weights of the teacher"):
        check_record(record(), record(teacher_hash="b"), tmp_path)


def test_everything_that_differs_is_named_at_once(record, small, tmp_path):
    settings = small.comparison(shared={"optim": {"lr": 0.5}}).resolved()
    now = record(settings=settings, data={"ce": {"test": "x"}}, teacher_hash="b")
    with pytest.raises(RunFolderError) as error:
        check_record(record(), now, tmp_path)
    for part in ("shared.optim.lr (0.1 then, 0.5 now)", "test and train and val", "the teacher"):
        assert part in str(error.value)


# -- runs that were killed while they were made --------------------------------------------------


def test_what_a_killed_run_left_before_its_settings_is_taken_away(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".owner.json", "environment.json", ".config.json.123"):
        (run / name).touch()
    clear_stillborn(run)
    assert not run.exists()


def test_a_run_that_has_begun_is_left_alone(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / ".lock").touch()
    clear_stillborn(tmp_path)
    assert (tmp_path / ".lock").exists()


def test_what_is_not_a_runs_is_never_taken_away(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"thesis\.tex"):
        clear_stillborn(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_run_that_is_being_made_is_never_taken_away(tmp_path):
    (tmp_path / "environment.json").touch()
    with RunFolder(tmp_path).locked(), pytest.raises(RunFolderError, match="in use"):
        clear_stillborn(tmp_path)
    assert (tmp_path / "environment.json").exists()


# -- small things --------------------------------------------------------------------------------


def test_references_are_not_tuned(small):
    rows = {"few": {"role": "reference", "method": {"name": "ce"}}}
    config = small.comparison(rows, tuning={"trials": 2})
    assert [is_tuned(config, label) for label in ("ce", "few")] == [True, False]
    assert not is_tuned(small.comparison(), "ce")


def test_a_run_moves_to_another_device_and_stays_the_same_run(small):
    run = small.config("ce")
    assert on_device(run, "cuda:1").train.device == "cuda:1"
    assert on_device(run, "cuda:1").hash() == run.hash()
    assert on_device(run, None) is run


def test_times_are_utc():
    assert utc_now().endswith("+00:00")


def test_an_assistant_whose_weights_have_changed_is_named(record, tmp_path):
    hashes = {"takd": {"assistant1": "a", "assistant2": "b"}}
    then = record(own_hashes=hashes)
    check_record(then, record(own_hashes=hashes | {"new": {"assistant1": "c"}}), tmp_path)
    changed = {"takd": {"assistant1": "a", "assistant2": "c"}}
    with pytest.raises(RunFolderError, match="the weights of takd's assistant2"):
        check_record(then, record(own_hashes=changed), tmp_path)
