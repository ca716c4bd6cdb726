import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from limbeck.core.errors import (
    CacheError,
    LimbeckError,
    ModelError,
    RunFolderError,
    SettingsError,
)
from limbeck.data import TrainLoader, eval_batches
from limbeck.engine.loop import InterruptedRun
from limbeck.engine.step import Stepper
from limbeck.methods import METHODS
from limbeck.runs.caching import CacheConfig, check_cache, make_cache, open_teacher, plan_cache
from limbeck.runs.config import RunConfig, TeacherConfig
from limbeck.runs.distill import distill
from limbeck.runs.execute import execute, rehearse
from limbeck.runs.folder import RunFolder
from limbeck.runs.summary import read_summary
from limbeck.teacher import Teacher
from limbeck.teacher_cache import CachedTeacher

AUGMENT = {"crop_padding": 1, "cycle": 2}
# Of the methods with a teacher, those whose steps read its logits alone.
CACHED = sorted(
    name
    for name, entry in METHODS.items()
    if any(stage.uses_run_teacher for stage in entry.stages(entry.config()))
    and all(s.method.needs(s.config).logits_suffice for s in entry.stages(entry.config()))
)
OUTPUT = sorted(name for name, entry in METHODS.items() if entry.family == "output")
# What a run of it cannot do without; an assistant asks the teacher in a stage of its own.
MORE = {name: {"name": name, "assistants": ["digits_cnn"]} for name in ("takd", "dgkd")}


def cache_config(small, method="kd", *, augment=AUGMENT, **fields):
    """Of the runs that ``small.config`` makes."""
    method = method if isinstance(method, dict) else {"name": method}
    data = {"fraction": 0.25, "split_seed": 0, "augment": augment}
    teacher = fields.pop("teacher", {"run": small.teacher})
    train = {"device": "cpu", **fields.pop("train", {})}
    return CacheConfig.read(
        {"data": data, "teacher": teacher, "method": method, "train": train, **fields}
    )


def run_config(small, method="kd", *, cache=None, augment=AUGMENT, **fields):
    if cache is not None:
        fields["teacher"] = {"cache": str(cache)}
    return small.config(method, data={"augment": augment}, **fields)


@pytest.fixture(scope="module")
def cached(small, tmp_path_factory):
    """``cached(method)``: a cache for it, made once."""
    made = {}

    def make(method="kd", **fields):
        key = json.dumps([method, fields], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("cache") / "cache"
            make_cache(plan_cache(cache_config(small, method, **fields), made[key]))
        return made[key]

    return make


@pytest.fixture
def losses(monkeypatch):
    """The loss of every step, as it comes."""
    seen = []
    real = Stepper.step

    def step(self, *arguments, **fields):
        terms = real(self, *arguments, **fields)
        seen.append(terms.total.item())
        return terms

    monkeypatch.setattr(Stepper, "step", step)
    return seen


# -- what is stored ----------------------------------------------------------------------------


def test_a_draw_holds_what_the_teacher_says_of_the_images_of_that_epoch(small, cached):
    """Asked online, in a run's own batches."""
    config = run_config(small, "mlkd")
    parts = small.parts(config)
    loader = TrainLoader(
        parts.data.train,
        batch_size=32,
        seed=0,
        augment=config.data.augment.changed(cycle=None),
        views=("strong",),
    )
    named = parts.teacher
    teacher = Teacher(named.network, normalization=named.normalization)
    folder = cached("mlkd")
    for draw in range(2):
        ours = np.load(folder / f"train-{draw:04}.npy")["logits"]
        strong = np.load(folder / f"train-strong-{draw:04}.npy")["logits"]
        assert len(ours) == len(strong) == len(parts.data.train)
        for batch in loader.epoch(draw):
            said = teacher(batch.image, batch.views)
            torch.testing.assert_close(torch.from_numpy(ours[batch.index]), said.logits)
            torch.testing.assert_close(
                torch.from_numpy(strong[batch.index]), said.views["strong"].logits
            )
    assert not np.array_equal(*(np.load(folder / f"train-000{d}.npy") for d in range(2)))


def test_held_out_images_are_stored_whole_whatever_the_storage(small, cached):
    folder = cached(storage={"dtype": "float16", "top_k": 2})
    parts = small.parts(run_config(small))
    network = parts.teacher.answering()
    for split, source in (("val", parts.data.val), ("test", parts.data.test)):
        said = torch.cat([network(b.image).detach() for b in eval_batches(source, 50)])
        stored = torch.from_numpy(np.load(folder / f"{split}.npy")["logits"])
        torch.testing.assert_close(stored, said)


def test_the_size_that_is_said_is_the_size_that_it_has(small, cached):
    for storage in ({}, {"dtype": "float16"}, {"top_k": 3}):
        folder = cached(storage=storage)
        there = sum(path.stat().st_size for path in folder.glob("*.npy"))
        said = plan_cache(cache_config(small, storage=storage), folder).num_bytes
        assert 0 < there - said <= 256 * 4


def test_without_augmentation_one_draw_serves_every_epoch_and_every_seed(small, cached, tmp_path):
    folder = cached(augment={})
    assert CachedTeacher(folder).card.draws == 1
    assert CachedTeacher(folder).card.seed is None
    for seed in (0, 1):
        config = run_config(small, cache=folder, augment={}, seed=seed)
        small.run(config, tmp_path / f"run{seed}")


# -- training from it --------------------------------------------------------------------------


def test_every_output_method_is_among_those_that_a_cache_serves():
    """But for the one that has no teacher: its networks teach each other."""
    assert set(OUTPUT) - set(CACHED) == {"dml"}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name == "kd" else pytest.mark.slow)
        for name in CACHED
        if name != "multi_teacher"
    ],
)
def test_every_step_has_the_loss_of_the_online_run(small, cached, losses, tmp_path, method):
    """Over three epochs of a cycle of two; the teacher's folder is not there meanwhile."""
    settings = MORE.get(method, method)
    online = small.run(run_config(small, settings, epochs=3), tmp_path / "online")
    taught = list(losses)
    folder = cached(method)
    losses.clear()
    away = f"{small.teacher}-away"
    os.rename(small.teacher, away)  # noqa: PTH104
    try:
        config = run_config(small, settings, cache=folder, epochs=3)
        offline = small.run(config, tmp_path / "offline")
    finally:
        os.rename(away, small.teacher)  # noqa: PTH104
    assert len(losses) == 10 * sum(config.stage_epochs())
    np.testing.assert_allclose(losses, taught, rtol=0, atol=1e-5)
    assert offline.teacher_hash == online.teacher_hash
    assert offline.teacher == online.teacher
    assert offline.scores["last"].keys() == online.scores["last"].keys()
    for name, value in online.scores["last"].items():
        assert offline.scores["last"][name] == pytest.approx(value, abs=1e-4), name
    assert offline.teacher_test == pytest.approx(online.teacher_test, abs=1e-6)
    assert offline.teacher_val == pytest.approx(online.teacher_val, abs=1e-6)


def test_several_teachers_answer_each_from_its_cache(small, cached, losses, tmp_path):
    online = small.run(
        run_config(small, "multi_teacher", teacher=small.several, epochs=3), tmp_path / "online"
    )
    taught = list(losses)
    losses.clear()
    folders = [cached(teacher=teacher) for teacher in small.several]
    caches = [{"cache": str(folder)} for folder in folders]
    config = run_config(small, "multi_teacher", teacher=caches, epochs=3)
    offline = small.run(config, tmp_path / "offline")
    np.testing.assert_allclose(losses, taught, rtol=0, atol=1e-5)
    assert (offline.teacher_hash, offline.teacher) == (online.teacher_hash, online.teacher)
    assert offline.teacher_test == pytest.approx(online.teacher_test, abs=1e-6)
    assert len(offline.teachers) == 2
    for one, same in zip(offline.teachers, online.teachers, strict=True):
        assert (one.name, one.state_hash) == (same.name, same.state_hash)
        assert one.test == pytest.approx(same.test, abs=1e-6)
    assert small.resume(tmp_path / "offline") == offline


def test_caches_of_the_same_teacher_and_of_some_teachers_only_are_refused(small, cached):
    one = {"cache": str(cached())}
    with pytest.raises(ModelError, match="teachers 1 and 2 are the same"):
        small.parts(run_config(small, "multi_teacher", teacher=[one, one]))
    with pytest.raises(SettingsError, match="give one for each, or none"):
        run_config(small, "multi_teacher", teacher=[one, small.several[1]])


def test_less_storage_teaches_a_little_differently(small, cached, losses, tmp_path):
    def gap(**storage):
        """The largest difference to the online run's loss in any step."""
        losses.clear()
        config = run_config(small, cache=cached(storage=storage), epochs=1)
        small.run(config, tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        return max(abs(a - b) for a, b in zip(losses, taught, strict=True))

    small.run(run_config(small, epochs=1), tmp_path / "online")
    taught = list(losses)
    assert gap(top_k=9) < 1e-5  # the one class left out keeps its own logit
    assert 1e-6 < gap(dtype="float16") < 1e-2
    # The method's temperature is 4: at 1 the others get too much of it.
    assert gap(top_k=2) < 0.75 * gap(top_k=2, temperature=1)


def test_the_others_are_right_at_the_methods_temperature(small, tmp_path):
    def temperature(method, **storage):
        config = cache_config(small, method, storage={"top_k": 2, **storage})
        return plan_cache(config, tmp_path / "cache").card.storage.temperature

    assert temperature({"name": "kd", "temperature": 3}) == 3
    assert temperature("kd") == 4
    assert temperature("kd", temperature=1.5) == 1.5
    assert temperature("dist") == METHODS["dist"].config().plain().get("temperature", 1)
    assert temperature("vrm") == 1


def test_a_run_shorter_than_the_cache_needs_no_cycle(small, cached, losses, tmp_path):
    augment = {"crop_padding": 1}
    small.run(run_config(small, augment=augment), tmp_path / "online")
    taught = list(losses)
    losses.clear()
    small.run(run_config(small, cache=cached(), augment=augment), tmp_path / "offline")
    np.testing.assert_allclose(losses, taught, rtol=0, atol=1e-5)


def test_a_run_may_go_through_the_first_draws_alone(small, cached, losses, tmp_path):
    augment = {**AUGMENT, "cycle": 1}
    small.run(run_config(small, augment=augment), tmp_path / "online")
    taught = list(losses)
    losses.clear()
    small.run(run_config(small, cache=cached(), augment=augment), tmp_path / "offline")
    np.testing.assert_allclose(losses, taught, rtol=0, atol=1e-5)


def test_another_seed_takes_the_cached_changes_in_its_own_order(small, cached, losses, tmp_path):
    augment = {**AUGMENT, "seed": 0}
    small.run(run_config(small, seed=4, augment=augment), tmp_path / "online")
    taught = list(losses)
    losses.clear()
    small.run(run_config(small, cache=cached(), seed=4, augment=augment), tmp_path / "offline")
    np.testing.assert_allclose(losses, taught, rtol=0, atol=1e-5)


def test_an_interrupted_run_ends_bit_equal(small, cached, tmp_path):
    folder = cached()
    config = run_config(small, cache=folder, epochs=3)
    whole = small.run(config, tmp_path / "whole")
    stop = small.Act("train", 17, lambda: os.kill(os.getpid(), 15))
    with pytest.raises(InterruptedRun):
        small.run(config, tmp_path / "stopped", observer=stop)
    resumed = small.resume(tmp_path / "stopped")
    assert resumed.student_hash == whole.student_hash
    assert small.rows(tmp_path / "stopped") == small.rows(tmp_path / "whole")
    assert whole.teacher_cache == CachedTeacher(folder).card.hash()


def test_a_run_does_not_go_on_from_another_cache(small, cached, tmp_path):
    place = tmp_path / "cache"
    shutil.copytree(cached(), place)
    config = run_config(small, cache=place)
    small.run(config, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(place)
    make_cache(plan_cache(cache_config(small, storage={"dtype": "float16"}), place))
    with pytest.raises(LimbeckError, match="begun with another cache of its teacher"):
        small.resume(tmp_path / "run")


def test_a_rehearsal_needs_no_teacher(small, cached):
    config = run_config(small, cache=cached())
    found = rehearse(config, small.parts(config))
    assert any("by its logits in" in notice for notice in found.notices)


def test_from_python_a_cache_stands_in_the_teachers_place(small, cached, tmp_path):
    config = run_config(small, cache=cached())
    values = {k: v for k, v in config.plain().items() if k not in ("student", "method", "seed")}
    summary = distill(
        student=small.network(config),
        teacher=None,
        data=small.parts(config).data,
        output=tmp_path / "run",
        settings=values,
    )
    assert summary.teacher == "digits_cnn_tiny"
    assert "cka" not in summary.scores["last"]


# -- refusals ----------------------------------------------------------------------------------

CHANGES = [
    ({"data": {"fraction": 0.5}}, r"other train and val images.*data\.fraction \(0\.25 cached, 0"),
    ({"data": {"split_seed": 1}}, r"data\.split_seed \(0 cached, 1 now\)"),
    ({"data": {"num_labels": 50}}, r"other train images.*data\.num_labels \(null cached, 50 now\)"),
    ({"augment": {**AUGMENT, "flip": True}}, r"data\.augment\.flip \(false cached, true now\)"),
    ({"augment": {**AUGMENT, "crop_padding": 2}}, r"crop_padding \(1 cached, 2 now\)"),
    ({"augment": {}}, r"crop_padding \(1 cached, 0 now\)"),
    ({"augment": {**AUGMENT, "cycle": 3}}, "3 epochs are augmented.*2 were cached: --augment-cyc"),
    ({"augment": {"crop_padding": 1}, "epochs": 3}, "3 epochs are.*--augment-cycle 2"),
    ({"seed": 1}, r"seed of the augmentation \(0 cached, 1 now\): --augment-seed 0"),
    ({"method": "mlkd"}, "the view 'strong'.*not cached: limbeck cache --method mlkd"),
    ({"method": "wkd_logit"}, "more of its teacher than logits.*--method wkd_logit"),
]


@pytest.mark.parametrize(("changes", "reason"), CHANGES)
def test_what_was_not_asked_is_not_answered(small, cached, tmp_path, changes, reason):
    changes = dict(changes)
    method, augment = changes.pop("method", "kd"), changes.pop("augment", AUGMENT)
    data = {"augment": augment, **changes.pop("data", {})}
    teacher = {"cache": str(cached())}
    config = small.config(method, data=data, teacher=teacher, **changes)
    with pytest.raises(CacheError, match=rf"(?s){reason}.*Train with what was cached"):
        small.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_that_differs_is_said_at_once(small, cached, tmp_path):
    config = run_config(small, cache=cached(), augment={"flip": True}, seed=2)
    with pytest.raises(CacheError) as error:
        small.run(config, tmp_path / "run")
    assert str(error.value).count("\n") == 4


def test_a_methods_other_settings_may_differ_from_those_it_was_prepared_with(
    small, cached, tmp_path
):
    folder = cached("wkd_logit")
    tuned = {"name": "wkd_logit", "temperature": 2.0}
    small.run(run_config(small, tuned, cache=folder, epochs=1), tmp_path / "run")
    other = {"name": "wkd_logit", "cost": "logits"}
    with pytest.raises(CacheError, match=r'method\.cost \("features" cached, "logits" now\)'):
        small.run(run_config(small, other, cache=folder), tmp_path / "other")


@pytest.mark.parametrize("cost", ["logits", "classifier"])
def test_what_a_method_prepares_is_what_it_prepares_online(small, cached, losses, tmp_path, cost):
    method = {"name": "wkd_logit", "cost": cost}
    small.run(run_config(small, method, epochs=1), tmp_path / "online")
    taught = list(losses)
    losses.clear()
    small.run(run_config(small, method, cache=cached(method), epochs=1), tmp_path / "offline")
    np.testing.assert_allclose(losses, taught, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    sorted(
        n for n, e in METHODS.items() if e.family in ("feature", "relation") and n not in CACHED
    ),
)
def test_a_method_of_features_is_refused_by_name_before_anything_is_read(small, method):
    with pytest.raises(SettingsError, match=f"method '{method}' reads its teacher's features"):
        run_config(small, method, cache="nowhere")
    with pytest.raises(SettingsError, match=f"method '{method}' reads its teacher's features"):
        cache_config(small, method)


def test_a_teacher_named_beside_its_cache_must_be_the_cached_one(small, cached, tmp_path):
    data = small.parts(run_config(small)).data
    given = TeacherConfig(run=small.teacher, cache=str(cached()))
    assert isinstance(open_teacher(given, data), CachedTeacher)
    other = small.config("ce", student="digits_cnn_tiny", epochs=1)
    small.run(other, tmp_path / "other")
    given = TeacherConfig(run=str(tmp_path / "other"), cache=str(cached()))
    with pytest.raises(CacheError, match=r"another teacher than .*weights \(\w{12} cached, \w{12}"):
        open_teacher(given, data)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cache": "c", "checkpoint": "w"}, "no network that checkpoint could be of"),
        ({"cache": "c", "run": "r", "name": "n"}, "give either run, or name"),
        ({}, "give either run, or name and checkpoint; or a cache"),
    ],
)
def test_a_teacher_is_a_network_or_its_cache(fields, reason):
    with pytest.raises(SettingsError, match=reason):
        TeacherConfig(**fields)


def test_random_changes_without_an_end_cannot_be_stored(small):
    with pytest.raises(SettingsError, match=r"anew in every epoch.*--augment-cycle 10"):
        cache_config(small, augment={"flip": True})
    with pytest.raises(SettingsError, match="anew in every epoch"):
        cache_config(small, "mlkd", augment={})
    assert cache_config(small, "mlkd", augment={"cycle": 2}).views() == ("strong",)


def test_a_cache_of_a_cache_is_refused(small):
    with pytest.raises(SettingsError, match="made from the teacher itself"):
        CacheConfig(teacher=TeacherConfig(cache="c"))


def test_several_processes_make_no_cache(small, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="without torchrun"):
        plan_cache(cache_config(small), tmp_path / "cache")


def test_too_many_kept_classes_are_refused_before_the_teacher_works(small, tmp_path):
    with pytest.raises(SettingsError, match="below the number of classes, 10; got 10"):
        plan_cache(cache_config(small, storage={"top_k": 10}), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# -- interruptions -----------------------------------------------------------------------------


def stop_at(count, error=KeyboardInterrupt):
    """An observer that ends the making when so many images were seen."""

    def step(stage, done, total):
        if done >= count:
            raise error

    return SimpleNamespace(step=step, note=None, epoch=None)


HELD_OUT = 34 + 449  # of validation and test in the small world


@pytest.mark.parametrize("images", [10, HELD_OUT + 10, HELD_OUT + 303 + 10])
def test_an_interrupted_cache_is_none_and_goes_on(small, cached, tmp_path, images):
    folder = tmp_path / "cache"
    config = cache_config(small, train={"eval_batch_size": 8})
    with pytest.raises(KeyboardInterrupt):
        make_cache(plan_cache(config, folder), observer=stop_at(images))
    assert not [path for path in folder.iterdir() if path.name.startswith(".train")]
    with pytest.raises(CacheError, match="not finished"):
        CachedTeacher(folder)
    with pytest.raises(CacheError, match="not finished"):
        small.run(run_config(small, cache=folder), tmp_path / "run")
    there = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    plan = plan_cache(config, folder)
    assert plan.num_done == len(there) == sum(images > n for n in (34, HELD_OUT, HELD_OUT + 303))
    make_cache(plan)
    assert all(path.stat().st_mtime_ns == when for path, when in there.items())
    again = tmp_path / "again"
    make_cache(plan_cache(config, again))
    assert CachedTeacher(folder).card.hash() == CachedTeacher(again).card.hash()
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in again.iterdir())


def test_a_killed_process_leaves_nothing_that_counts(small, tmp_path):
    folder = tmp_path / "cache"
    config = cache_config(small)
    with pytest.raises(KeyboardInterrupt):
        make_cache(plan_cache(config, folder), observer=stop_at(HELD_OUT + 10))
    half = folder / ".train-0001.npy.4242"
    half.write_bytes(b"half")
    make_cache(plan_cache(config, folder))
    assert not half.exists()
    CachedTeacher(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"storage": {"dtype": "float16"}}, 'storage .*"float32".* there, .*"float16"'),
        ({"augment": {"crop_padding": 1, "cycle": 3}}, r"draws \(2 there, 3 now\)"),
        ({"train": {"amp_dtype": "bfloat16"}}, 'amp_dtype .*"bfloat16" now'),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_something_else_is_not_mixed_in(small, cached, tmp_path, changes, reason, finished):
    folder = tmp_path / "cache"
    shutil.copytree(cached(), folder)
    if not finished:
        (folder / "cache.json").rename(folder / ".unfinished.json")
    with pytest.raises(CacheError, match=f"holds another cache, or a part of one.*{reason}"):
        plan_cache(cache_config(small, **changes), folder)


def test_a_finished_cache_is_left_as_it_is(small, cached, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cached(), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    plan = plan_cache(cache_config(small), folder)
    assert plan.finished
    make_cache(plan, observer=stop_at(0))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_of_something_else_is_not_written_into(small, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunFolderError, match="is not an empty folder"):
        plan_cache(cache_config(small), tmp_path)


def test_two_processes_do_not_make_one_cache(small, tmp_path):
    plan = plan_cache(cache_config(small), tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    held = RunFolder(tmp_path / "cache").locked()
    with held, pytest.raises(RunFolderError, match="in use by process"):
        make_cache(plan)


def test_a_full_disk_is_said_and_the_rest_is_made_later(small, tmp_path, full_disk):
    folder = tmp_path / "cache"
    config = cache_config(small)
    plan = plan_cache(config, folder)
    with (
        full_disk(),
        pytest.raises(RunFolderError, match=r"npy could not be written"),
    ):
        make_cache(plan)
    with pytest.raises(CacheError, match="not finished"):
        CachedTeacher(folder)
    make_cache(plan_cache(config, folder))
    CachedTeacher(folder)


def test_too_small_a_disk_is_said_before_the_teacher_works(small, tmp_path):
    plan = plan_cache(cache_config(small), tmp_path / "cache")
    plan = dataclasses.replace(plan, num_bytes_free=1000)
    with pytest.raises(
        RunFolderError, match=r"the cache takes .* MiB, and 0 MiB are free.*float16"
    ):
        make_cache(plan, observer=stop_at(0))
    assert not (tmp_path / "cache").exists()


def test_a_teacher_with_other_classes_is_named(small, tmp_path):
    wrong = small.parts(run_config(small)).data
    names = tuple(f"x{k}" for k in range(10))
    data = dataclasses.replace(
        wrong, **{s: dataclasses.replace(v, class_names=names) for s, v in wrong.splits.items()}
    )
    with pytest.raises(LimbeckError, match="was trained on 10 classes"):
        plan_cache(cache_config(small), tmp_path / "cache", data=data)


def test_the_settings_of_a_cache_are_those_of_a_run():
    fields = RunConfig.model_fields.keys()
    assert set(CacheConfig.model_fields) - {"storage"} <= set(fields)


def test_the_check_asks_for_every_split_that_the_run_has(small, cached):
    config = run_config(small, cache=cached())
    teacher = CachedTeacher(cached())
    hashes = small.parts(config).data.split_fingerprints()
    check_cache(teacher, config, hashes)
    check_cache(teacher, config, {"train": hashes["train"]})  # a trial of tuning sees no test
    with pytest.raises(CacheError, match="other test images, labels or classes: the settings are"):
        check_cache(teacher, config, {**hashes, "test": "0"})


def test_its_summary_says_what_it_learnt_from(small, cached, tmp_path):
    execute(
        config := run_config(small, cache=cached(), epochs=1),
        tmp_path / "run",
        small.parts(config),
    )
    assert read_summary(tmp_path / "run").teacher_cache == CachedTeacher(cached()).card.hash()
    online = small.run(run_config(small, epochs=1), tmp_path / "online")
    assert online.teacher_cache is None
