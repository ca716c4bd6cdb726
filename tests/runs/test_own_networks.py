"""Runs with further networks: chains of assistants, generations, peers; kept, reused, resumed.

Oracles are runs of plain methods, and numbers computed by hand from what a run has left.
"""

import dataclasses
import functools
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.core.errors import (
    CheckpointError,
    LimbeckError,
    ModelError,
    RunFolderError,
    SettingsError,
    TeacherChangedError,
)
from limbeck.core.normalization import Normalization
from limbeck.engine.checkpoint import CheckpointStore
from limbeck.engine.loop import InterruptedRun
from limbeck.runs.distill import distill
from limbeck.runs.execute import check, rehearse
from limbeck.runs.networks import load_student
from limbeck.runs.summary import read_summary
from limbeck.teacher import state_hash

STEPS = 10  # an epoch of the small world
CHAIN = {"name": "dgkd", "assistants": ["digits_cnn", "digits_cnn_tiny"], "temperature": 2}


def stop_after(small, stage, step):
    return small.Act(stage, step, functools.partial(os.kill, os.getpid(), signal.SIGTERM))


def same(small, one, other):
    """Whether two run folders tell and hold the same, own networks included."""
    assert small.rows(one) == small.rows(other)
    first, second = read_summary(one), read_summary(other)
    assert first.student_hash == second.student_hash
    assert (first.last, first.test, first.scores) == (second.last, second.test, second.scores)
    assert first.further == second.further
    for path in sorted(one.glob("stages/*/*")):
        ours, theirs = path, other / path.relative_to(one)
        if path.suffix == ".json":
            assert ours.read_text() == theirs.read_text()
        else:
            a, b = load_file(ours), load_file(theirs)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def chained(small, tmp_path_factory):
    """A densely guided chain of three networks, one epoch each, and what it said."""
    folder = tmp_path_factory.mktemp("chained") / "run"
    ear = small.Ear()
    summary = small.run(small.config(CHAIN, epochs=1), folder, observer=ear)
    return folder, ear, summary


def test_one_run_trains_the_whole_chain_and_keeps_every_network(chained, small):
    folder, ear, summary = chained
    assert [row["stage"] for row in ear.rows] == ["assistant1", "assistant2", "student"]
    assert {name: further.model for name, further in summary.further.items()} == {
        "assistant1": "digits_cnn",
        "assistant2": "digits_cnn_tiny",
    }
    for name, further in summary.further.items():
        loaded, card = load_student(folder / "stages" / name)
        assert state_hash(loaded.network) == further.state_hash
        assert card.model == further.model
        assert further.run is None
        (row,) = [row for row in ear.rows if row["stage"] == name]
        assert further.val == row["val"]  # judged again at the end, from the same weights
        assert summary.scores[name]["top1"] == further.test["top1"]
    assert {path.name for path in (folder / "stages").iterdir()} == set(summary.further)
    assert summary.student == small.student
    assert json.loads((folder / "environment.json").read_text())["num_epochs"] == 3
    assert summary.last.val == ear.rows[-1]["val"]


def test_each_network_is_judged_and_kept_as_its_average_and_with_its_own_normalisation(
    small, tmp_path
):
    """In the epoch's row by the loop, and at the end from what was kept: the same numbers."""
    config = small.config(CHAIN, epochs=1, train={"model_ema_decay": 0.8})
    own = Normalization(mean=(0.9,), std=(0.1,))
    config = config.changed(student=config.student.changed(normalization=own))
    summary = small.run(config, tmp_path)
    rows = {row["stage"]: row["val"] for row in small.rows(tmp_path)}
    assert {name: further.val for name, further in summary.further.items()} == {
        name: rows[name] for name in ("assistant1", "assistant2")
    }
    assert summary.last.val == rows["student"]


def test_what_all_networks_answered_is_kept(chained):
    folder, _, summary = chained
    found = load_file(folder / "predictions.safetensors")
    label = found["test.label"]
    for name, further in summary.further.items():
        top1 = (found[f"test.{name}"].argmax(1) == label).double().mean().item()
        assert top1 == pytest.approx(further.test["top1"])


@pytest.mark.parametrize("name", ["takd", "dgkd"])
def test_the_students_stage_is_kd_from_those_that_teach_it(name, small, tmp_path):
    """A run of plain KD, from the folder that the assistant's stage left, is bit-equal."""
    share = {"kd_share": 0.25, "temperature": 3.0}
    student = {"student": small.without_norm, "epochs": 1}  # without dropout and its stream
    method = {"name": name, "assistants": ["digits_cnn"], **share}
    if name == "dgkd":
        method |= {"drop_count": 0}
    chain = small.run(small.config(method, **student), tmp_path / "chain")
    assistant = str(tmp_path / "chain" / "stages" / "assistant1")
    if name == "takd":
        kd = {"name": "kd", "temperature": 3.0, "ce_weight": 0.75, "kd_weight": 0.25}
        plain = small.config(kd, teacher={"run": assistant}, **student)
        assert small.run(plain, tmp_path / "kd").student_hash == chain.student_hash
    reused = small.config(method | {"assistants": [assistant]}, **student)
    again = small.run(reused, tmp_path / "reused")
    assert again.student_hash == chain.student_hash
    assert again.further["assistant1"].run == assistant
    assert again.further["assistant1"].test == chain.further["assistant1"].test
    assert [row["stage"] for row in small.rows(tmp_path / "reused")] == ["student"]
    assert not (tmp_path / "reused" / "stages").exists()


def test_dense_guidance_hears_every_teacher(small, tmp_path):
    """Without the teacher's or the assistant's part, another student comes out."""
    student = {"student": small.without_norm, "epochs": 1}
    method = {"name": "dgkd", "assistants": ["digits_cnn"]}
    dense = small.run(small.config(method | {"drop_count": 0}, **student), tmp_path / "dense")
    assistant = str(tmp_path / "dense" / "stages" / "assistant1")
    hashes = {dense.student_hash}
    for teacher in (small.teacher, assistant):
        kd = {"name": "kd", "temperature": 5.0, "ce_weight": 0.0, "kd_weight": 1.0}
        config = small.config(kd, teacher={"run": teacher}, **student)
        hashes.add(small.run(config, tmp_path / f"kd{len(hashes)}").student_hash)
    dropping = small.run(small.config(method, **student), tmp_path / "dropping")
    hashes.add(dropping.student_hash)
    assert len(hashes) == 4
    assert dropping.further["assistant1"].state_hash == dense.further["assistant1"].state_hash


def test_assistants_have_epochs_of_their_own_on_top_of_the_students(small, tmp_path):
    method = {"name": "takd", "assistants": ["digits_cnn_tiny"], "assistant_epochs": 3}
    config = small.config(method, epochs=2, schedule={"sched": "multistep", "decay_epochs": (1,)})
    assert config.stage_epochs() == (3, 2)
    small.run(config, tmp_path)
    rows = small.rows(tmp_path)
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        *(("assistant1", epoch) for epoch in range(3)),
        *(("student", epoch) for epoch in range(2)),
    ]
    # The run's milestone after half of the epochs, squeezed into three and then two.
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.01, 0.01, 0.01, 0.01])


def test_a_chain_whose_assistants_are_all_there_needs_no_teacher(chained, small, tmp_path):
    folder, _, _ = chained
    assistant = str(folder / "stages" / "assistant1")
    config = small.config({"name": "takd", "assistants": [assistant]}, epochs=1)
    with_teacher = small.run(config, tmp_path / "with")
    without = small.run(config.changed(teacher=None), tmp_path / "without")
    assert with_teacher.student_hash == without.student_hash
    assert (without.teacher, without.teacher_val) == (None, None)
    assert without.teacher_seconds > 0
    said = " ".join(without.notices)
    assert f"assistant1: digits_cnn of {assistant}, trained already" in said
    assert "assistant1 digits_cnn: " in said  # and how good it is
    with pytest.raises(SettingsError, match="'dgkd' needs a teacher"):
        config.changed(method={"name": "dgkd", "assistants": [assistant]}, teacher=None)


def test_python_takes_assistants_as_settings(small, tmp_path):
    summary = distill(
        student="digits_cnn_tiny",
        teacher=small.teacher,
        data="digits",
        output=tmp_path,
        method="takd",
        settings={
            "method": {"assistants": ["digits_cnn"]},
            "data": {"fraction": 0.1, "split_seed": 0},
            "schedule": {"epochs": 1, "sched": "cosine"},
            "train": {"device": "cpu"},
        },
    )
    assert summary.further.keys() == {"assistant1"}


# -- interrupted and continued ---------------------------------------------------------------

KILLED = {
    "epochs": 2,
    "schedule": {"sched": "multistep", "decay_epochs": (1,), "warmup_epochs": 1},
    "train": {"model_ema_decay": 0.8, "checkpoint_steps": 3},
    "data": {"augment": {"crop_padding": 1}},
}

CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from limbeck.engine.recorder import SilentObserver
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import execute, prepare_parts
from limbeck.runs.folder import read_json

settings, folder, stage, step, *typed = sys.argv[1:]

class Kill(SilentObserver):
    def step(self, name, done, total):
        if (name, done) == (stage, int(step)):
            os.kill(os.getpid(), signal.SIGKILL)

config = RunConfig.read(read_json(Path(settings)))
execute(config, folder, prepare_parts(config, typed=typed), observer=Kill())
"""


def test_killed_in_the_second_stage_a_chain_ends_bit_equal_and_trains_no_stage_twice(
    small, tmp_path
):
    """The student has dropout, so the random stream counts; weights are averaged."""
    config = small.config(CHAIN, **KILLED)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(config.plain()))
    child = [sys.executable, "-c", CHILD, settings, tmp_path / "killed", "assistant2", 14]
    done = subprocess.run(
        [*map(str, child), *small.typed], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = (tmp_path / "killed" / "stages" / "assistant1" / "student.safetensors").stat()
    with pytest.raises(InterruptedRun):  # and once more, in the third
        small.resume(tmp_path / "killed", observer=stop_after(small, "student", 5))
    ear = small.Ear()
    small.resume(tmp_path / "killed", observer=ear)
    assert {row["stage"] for row in ear.rows} == {"student"}
    again = (tmp_path / "killed" / "stages" / "assistant1" / "student.safetensors").stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    small.run(config, tmp_path / "whole")
    same(small, tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("step", [STEPS, 1])
def test_stopped_between_two_stages_a_chain_ends_the_same(chained, small, tmp_path, step):
    """At the last step of one, whose network is then not yet kept; and at the next one's first."""
    whole, _, _ = chained
    stage = "assistant1" if step == STEPS else "assistant2"
    with pytest.raises(InterruptedRun):
        small.run(small.config(CHAIN, epochs=1), tmp_path, observer=stop_after(small, stage, step))
    assert (tmp_path / "stages" / "assistant1").exists() == (step == 1)
    small.resume(tmp_path)
    same(small, tmp_path, whole)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "dml", "peers": ["digits_cnn", {}]},
        {"name": "dml", "peers": ["digits_cnn", {}], "update": "alternating"},
        {"name": "born_again", "generations": 2},
    ],
    ids=["simultaneous", "alternating", "born_again"],
)
def test_peers_and_generations_go_through_an_interruption(method, small, tmp_path):
    config = small.config(method, epochs=1)
    stage = "train" if "peers" in method else "generation2"
    small.run(config, tmp_path / "whole")
    with pytest.raises(InterruptedRun):
        small.run(config, tmp_path / "halves", observer=stop_after(small, stage, 4))
    small.resume(tmp_path / "halves")
    same(small, tmp_path / "halves", tmp_path / "whole")


@pytest.fixture
def stopped(small, tmp_path):
    """A chain stopped in its last stage."""
    with pytest.raises(InterruptedRun):
        small.run(small.config(CHAIN, epochs=1), tmp_path, observer=stop_after(small, "student", 5))
    return tmp_path


def test_a_kept_network_that_is_gone_or_another_is_not_made_up(small, stopped):
    path = stopped / "stages" / "assistant2" / "student.safetensors"
    weights = load_file(path)
    weights["fc.bias"][0] += 1
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"assistant2/student.safetensors is not what this"):
        small.resume(stopped)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"assistant2/student.safetensors is not there"):
        small.resume(stopped)


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_is_not_continued_with_another_assistant(chained, small, tmp_path, finished):
    folder, _, _ = chained
    assistant = tmp_path / "assistant"
    assistant.mkdir()
    for file in ("student.json", "student.safetensors"):
        (assistant / file).write_bytes((folder / "stages" / "assistant1" / file).read_bytes())
    config = small.config({"name": "takd", "assistants": [str(assistant)]}, epochs=1)
    if finished:
        small.run(config, tmp_path / "run")
    else:
        with pytest.raises(InterruptedRun):
            small.run(config, tmp_path / "run", observer=stop_after(small, "student", 5))
    weights = load_file(assistant / "student.safetensors")
    weights["fc.bias"][0] += 1
    save_file(weights, assistant / "student.safetensors")
    with pytest.raises(TeacherChangedError, match="begun with another assistant1"):
        small.resume(tmp_path / "run")


def test_an_assistant_that_was_written_into_ends_the_run_without_a_summary(small, tmp_path):
    config = small.config(CHAIN, epochs=1)
    parts = small.parts(config)

    def write():
        with torch.no_grad():
            parts.own["assistant1"].network.fc.bias[0] += 1

    with pytest.raises(TeacherChangedError, match="cannot be trusted"):
        small.run(config, tmp_path, parts=parts, observer=small.Act("student", 3, write))
    assert not (tmp_path / "summary.json").exists()


# -- generations and peers ---------------------------------------------------------------------


def mean_probability(found, names):
    return sum(torch.softmax(found[f"test.{name}"].double(), dim=1) for name in names) / len(names)


def test_generations_are_drawn_anew_and_judged_one_by_one_and_together(small, tmp_path):
    config = small.config({"name": "born_again"}, epochs=1)
    parts = small.parts(config)
    drawn = [parts.student.network, *(named.network for named in parts.own.values())]
    assert len({state_hash(network) for network in drawn}) == 3
    summary = small.run(config, tmp_path, parts=parts)
    assert summary.further.keys() == {"generation1", "generation2"}
    assert {further.model for further in summary.further.values()} == {small.student}
    found = load_file(tmp_path / "predictions.safetensors")
    mean = mean_probability(found, ["generation1", "generation2", "last"])
    torch.testing.assert_close(found["test.ensemble"].double().exp(), mean, rtol=1e-5, atol=1e-6)
    top1 = (mean.argmax(1) == found["test.label"]).double().mean().item()
    assert summary.scores["ensemble"]["top1"] == pytest.approx(top1)
    assert "val.ensemble" in found


def test_each_generation_is_taught_by_the_one_before(small, tmp_path):
    """The last stage is plain KD at temperature 1 from the folder that the one before left."""
    student = {"student": small.without_norm, "epochs": 1}
    config = small.config({"name": "born_again", "generations": 2}, **student)
    chain = small.run(config, tmp_path / "chain")
    kd = {"name": "kd", "temperature": 1.0, "ce_weight": 0.0, "kd_weight": 1.0}
    before = str(tmp_path / "chain" / "stages" / "generation1")
    with pytest.raises(ModelError, match="is code, and is not run"):
        load_student(before)
    parts = small.parts(small.config(kd, **student))
    network = small.network(config)
    network.load_state_dict(load_file(f"{before}/student.safetensors"))
    teacher = dataclasses.replace(parts.student, network=network)
    parts = dataclasses.replace(parts, teacher=teacher)
    plain = small.run(small.config(kd, **student), tmp_path / "kd", parts=parts)
    assert plain.student_hash == chain.student_hash


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
def test_peers_of_other_kinds_learn_are_kept_and_judged_together(small, tmp_path, update):
    method = {"name": "dml", "peers": ["digits_cnn", {}], "update": update}
    config = small.config(method, epochs=2)
    with pytest.raises(SettingsError, match="'dml' uses no teacher"):
        small.config(method, teacher={"run": small.teacher})
    summary = small.run(config, tmp_path)
    (row, last) = small.rows(tmp_path)
    assert {"loss", "ce", "mutual", "peer1", "peer2"} == row["train"].keys()
    student = row["train"]["ce"] + row["train"]["mutual"]
    total = student + row["train"]["peer1"] + row["train"]["peer2"]
    assert row["train"]["loss"] == pytest.approx(total, rel=1e-6)
    assert last["train"]["loss"] < row["train"]["loss"]
    assert {n: f.model for n, f in summary.further.items()} == {
        "peer1": "digits_cnn",
        "peer2": small.student,
    }
    assert (summary.teacher, summary.teacher_seconds) == (None, None)
    loaded, _ = load_student(tmp_path / "stages" / "peer1")
    assert state_hash(loaded.network) == summary.further["peer1"].state_hash
    found = load_file(tmp_path / "predictions.safetensors")
    mean = mean_probability(found, ["peer1", "peer2", "last"])
    top1 = (mean.argmax(1) == found["test.label"]).double().mean().item()
    assert summary.scores["ensemble"]["top1"] == pytest.approx(top1)


def test_a_rehearsal_leaves_every_network_as_it_was(small, tmp_path, chained):
    _, _, whole = chained
    config = small.config(CHAIN, epochs=1)
    parts = small.parts(config)
    networks = [parts.student.network, *(named.network for named in parts.own.values())]
    before = [state_hash(network) for network in networks]
    found = rehearse(config, parts, tmp_path / "run")
    assert [stage["name"] for stage in found.stages] == ["assistant1", "assistant2", "student"]
    assert [stage["steps"] for stage in found.stages] == [STEPS] * 3
    assert [state_hash(network) for network in networks] == before
    assert small.run(config, tmp_path / "run", parts=parts).student_hash == whole.student_hash


# -- what does not fit -------------------------------------------------------------------------


def test_assistants_must_be_given_and_are_asked_for(small):
    for name in ("takd", "dgkd"):
        with pytest.raises(SettingsError, match=rf"'{name}' needs assistants: .*--assistants A,B"):
            small.config(name)


@pytest.mark.parametrize("given", ["assistants", "peers"])
def test_a_method_that_takes_none_says_who_does(small, given):
    who = {"assistants": "dgkd, takd", "peers": "dml"}[given]
    with pytest.raises(SettingsError, match=f"'kd' takes no {given}; those that do: {who}"):
        small.config({"name": "kd", given: ["digits_cnn"]})


def test_the_student_is_no_assistant_of_its_own(chained, small):
    with pytest.raises(SettingsError, match="assistant1 'digits_cnn_tiny' is the student's own"):
        small.config({"name": "takd", "assistants": ["digits_cnn_tiny"]}, student="digits_cnn_tiny")
    folder, _, _ = chained
    run = str(folder / "stages" / "assistant2")
    config = small.config({"name": "takd", "assistants": [run]}, student="digits_cnn_tiny")
    with pytest.raises(ModelError, match=f"assistant1 {run} is of the student's own model"):
        small.parts(config)


@pytest.mark.parametrize(
    ("assistant", "error", "message"),
    [
        ("digits_cn", ModelError, r"assistant1: no model called 'digits_cn'; did you mean"),
        ("runs/none", ModelError, r"Nor is there a folder of this name, with a finished run"),
        ("net.py:f", ModelError, "is code, and is not run"),
        ({"run": "runs/none"}, RunFolderError, "student.json is missing"),
    ],
    ids=str,
)
def test_an_assistant_that_is_nothing_is_answered(small, assistant, error, message):
    config = small.config({"name": "dgkd", "assistants": [assistant]})
    with pytest.raises(error, match=message):
        small.parts(config)


def test_an_unfinished_run_is_no_assistant(small, tmp_path):
    with pytest.raises(InterruptedRun):
        small.run(small.config(), tmp_path, observer=stop_after(small, "train", 2))
    config = small.config({"name": "takd", "assistants": [str(tmp_path)]})
    with pytest.raises(RunFolderError, match="not a finished one"):
        small.parts(config)


def test_an_assistant_is_a_model_or_a_run_and_not_both(small):
    both = {"model": "digits_cnn", "run": "x"}
    with pytest.raises(SettingsError, match="either model, which is then trained, or run"):
        small.config({"name": "takd", "assistants": [both]})


def test_an_assistant_that_cannot_take_the_images_is_found_before_training(small, tmp_path):
    config = small.config({"name": "takd", "assistants": ["digits_cnn", "plane2"]})
    for begin in (
        lambda: small.run(config, tmp_path / "run"),
        lambda: check(config, small.parts(config)),
    ):
        with pytest.raises(LimbeckError, match="takes images of 32x32"):
            begin()
    assert not (tmp_path / "run").exists()


def test_networks_that_take_turns_take_each_batch(small):
    method = {"name": "dml", "update": "alternating"}
    with pytest.raises(SettingsError, match=r"got grad_accum_steps 2\. Use 1"):
        small.config(method, train={"grad_accum_steps": 2})


def test_a_peer_that_would_be_the_students_copy_is_refused(chained, small):
    folder, _, _ = chained
    start = {"initial_checkpoint": str(folder / "stages" / "assistant2")}
    config = small.config("dml", student="digits_cnn_tiny")
    config = config.changed(student=config.student.changed(**start))
    with pytest.raises(ModelError, match="would start from the same weights and stay its copy"):
        small.parts(config)
    other = {"name": "dml", "peers": ["digits_cnn"]}
    assert small.parts(config.changed(method=other)).own.keys() == {"peer1"}


def test_a_module_has_no_further_generations(small, tmp_path):
    config = small.config("born_again", epochs=1)
    network = small.network(config)
    with pytest.raises(ModelError, match="generation1 is another network like the student"):
        distill(
            student=network,
            teacher=small.teacher,
            data="digits",
            output=tmp_path / "run",
            method="born_again",
            settings={"schedule": {"epochs": 1, "sched": "cosine"}, "train": {"device": "cpu"}},
        )


# -- several processes -------------------------------------------------------------------------

RANKS = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import execute, prepare_parts

out = Path(sys.argv[1])
for name, settings in json.loads((out / "settings.json").read_text()).items():
    config = RunConfig.read(settings)
    execute(config, out / name, prepare_parts(config, typed=sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def two_ranks(small, tmp_path_factory):
    """Where two gloo processes made two runs, and the settings of the first."""
    out = tmp_path_factory.mktemp("ranks")
    own = {"model": small.without_norm}
    # 364 images: the last batch of twelve can be shared equally.
    fields = {
        "student": "digits_cnn_tiny",
        "epochs": 1,
        "data": {"fraction": 0.3},
        "train": {"batch_size": 16},
    }
    dml = {"name": "dml", "peers": [own], "update": "alternating"}
    configs = {
        "dml": small.config(dml, **fields | {"student": small.without_norm}),
        "dgkd": small.config({"name": "dgkd", "assistants": [own]}, **fields),
    }
    settings = {name: config.plain() for name, config in configs.items()}
    (out / "settings.json").write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(out), *small.typed],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return out, configs["dml"]


@pytest.mark.slow
def test_two_ranks_of_peers_are_one_process_with_twice_the_batch(two_ranks, small, tmp_path):
    """Networks without batch-norm, by which each rank normalises its own."""
    out, config = two_ranks
    train = config.train.changed(batch_size=32)
    small.run(config.changed(train=train), tmp_path)
    for file in ("student.safetensors", "stages/peer1/student.safetensors"):
        ours, theirs = load_file(out / "dml" / file), load_file(tmp_path / file)
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_ranks_train_a_chain(two_ranks):
    out, _ = two_ranks
    summary = read_summary(out / "dgkd")
    state, _ = CheckpointStore(out / "dgkd" / "checkpoints").load_newest()
    assert state["own_hashes"] == {"assistant1": summary.further["assistant1"].state_hash}
