import copy
import dataclasses
import functools
import hashlib
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

from limbeck.core.errors import (
    CheckpointError,
    ModelError,
    NonFiniteError,
    RunFolderError,
    SettingsError,
    TeacherChangedError,
    UnknownNameError,
)
from limbeck.core.types import LossTerms, keyed_generator
from limbeck.engine.checkpoint import CheckpointStore
from limbeck.engine.loop import InterruptedRun
from limbeck.methods.base import Method, MethodConfig, MethodEntry, Needs, Stage
from limbeck.methods.ce import CE, CEConfig
from limbeck.methods.output.kd import KD, KDConfig
from limbeck.methods.output.wkd_logit import WKDLogit
from limbeck.runs.config import RunConfig
from limbeck.runs.embedding import embed
from limbeck.runs.execute import Parts, rehearse, resume
from limbeck.runs.networks import NamedNetwork
from limbeck.runs.summary import read_summary
from limbeck.teacher import state_hash

STEPS = 10  # an epoch of the small world, the last step a short one


def sha256(path):
    """Of all tensors in a file; the file's own header has no fixed order."""
    tensors = load_file(path)
    joined = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    return hashlib.sha256(joined).hexdigest()


def signal_self(signum):
    return functools.partial(os.kill, os.getpid(), signum)


def weights(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def table_of(monkeypatch, stages, config=MethodConfig):
    """Replace the table of methods by one plan, called "toy"."""
    row = MethodEntry(family="none", config=config, stages=lambda _: stages, card="")
    monkeypatch.setattr("limbeck.methods.METHODS", {"toy": row})


# -- the run folder ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """One run, three epochs of KD, and what it said meanwhile."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = small.config(epochs=3, optim={"lr": 0.4}, schedule={"sched": "constant"})
    ear = small.Ear()
    summary = small.run(config, folder, observer=ear)
    return folder, config, ear, summary


def test_a_run_folder_holds_all_that_is_promised(finished):
    folder, config, ear, summary = finished
    found = {path.name for path in folder.iterdir()}
    events = {name for name in found if name.startswith("events.")}
    assert len(events) == 1
    assert found - events == {
        "checkpoints",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "predictions.safetensors",
        "student.json",
        "student.safetensors",
        "student_best.safetensors",
        "summary.json",
    }
    assert RunConfig.read(json.loads((folder / "config.json").read_text())) == config
    assert summary.config_hash == config.hash()
    assert read_summary(folder) == summary
    assert json.loads((folder / "environment.json").read_text())["device"] == "cpu"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == ear.rows
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    state, faults = CheckpointStore(folder / "checkpoints").load_newest()
    assert (state["loop"]["epoch"], faults) == (3, [])


def test_the_students_file_needs_torch_and_safetensors_alone(finished, small):
    """Accuracy on the official test digits, computed from the files by hand."""
    folder, config, _, summary = finished
    network = small.network(config, seed=99).eval()
    network.load_state_dict(load_file(folder / "student.safetensors"))
    card = json.loads((folder / "student.json").read_text())["normalization"]
    test = small.parts(config).data.test
    pixels = test.images.double() / 255
    image = (pixels - card["mean"][0]) / card["std"][0]
    with torch.no_grad():
        logits = network(image.float())
    top1 = np.mean(logits.argmax(1).numpy() == test.labels.numpy())
    assert summary.test.last["top1"] == pytest.approx(top1)
    assert len(test) == 449
    assert len(load_digits().target) == 1797


def test_the_summary_counts_what_is_deployed(finished, small):
    _, config, _, summary = finished
    network = small.network(config)
    assert summary.num_parameters == sum(p.numel() for p in network.parameters())
    # 3x3 convolutions of 1 -> 6 channels at 8x8 and 6 -> 6 at 4x4, and 6 -> 10.
    assert summary.num_macs == 9 * 6 * 64 + 9 * 36 * 16 + 60


def test_a_run_can_be_repeated_from_its_config(finished, small, tmp_path):
    folder, _, _, summary = finished
    config = RunConfig.read(json.loads((folder / "config.json").read_text()))
    torch.manual_seed(4321)  # the caller's own stream is nothing to a run
    again = small.run(config, tmp_path / "again")
    assert again.student_hash == summary.student_hash
    assert small.rows(tmp_path / "again") == small.rows(folder)
    other = small.run(config.changed(seed=1), tmp_path / "other")
    assert other.student_hash != summary.student_hash
    assert other.data_hash == summary.data_hash  # the split has a seed of its own


def test_the_callers_random_stream_stays_where_it_was(small, tmp_path):
    before = torch.get_rng_state()
    small.run(small.config(epochs=1), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_last_and_best_are_both_reported_and_validation_chose(finished, small):
    folder, config, _, summary = finished
    val = [row["val"] for row in small.rows(folder)]
    best = max(range(3), key=lambda epoch: (val[epoch]["top1"], -epoch))
    assert best != 2  # or this shows nothing
    assert (summary.last.epoch, summary.last.val) == (2, val[2])
    assert (summary.best_on_validation.epoch, summary.best_on_validation.val) == (best, val[best])
    network = small.network(config)
    network.load_state_dict(load_file(folder / "student_best.safetensors"))
    parts = small.parts(config)
    image = (parts.data.val.images / 255 - parts.data.normalization.mean[0]) / (
        parts.data.normalization.std[0]
    )
    top1 = (network.eval()(image).argmax(1) == parts.data.val.labels).double().mean().item()
    assert top1 == pytest.approx(val[best]["top1"])
    assert summary.test.best_on_validation != summary.test.last


def test_the_test_split_is_read_once_and_after_training(small, tmp_path):
    config = small.config()
    parts = small.parts(config)
    ear = small.Ear()
    rows_at_reading = []
    counting = small.CountingImages(parts.data.test, lambda: rows_at_reading.append(len(ear.rows)))
    summary = small.run(
        config, tmp_path / "run", parts=small.with_test(parts, counting), observer=ear
    )
    assert set(counting.reads.values()) == {1}
    assert len(counting.reads) == len(counting) == 449
    assert set(rows_at_reading) == {2}
    assert summary.test.best_on_validation is not None
    assert summary.teacher_test is not None


def test_the_answers_kept_are_those_that_were_judged(finished, small):
    """Accuracies of the summary, from the logits in the file by hand; the split's own labels."""
    folder, config, _, summary = finished
    found = load_file(folder / "predictions.safetensors")
    data = small.parts(config).data
    assert torch.equal(found["test.label"], data.test.labels)
    assert torch.equal(found["val.label"], data.val.labels)
    judged = {
        "test.last": summary.test.last,
        "test.best_on_validation": summary.test.best_on_validation,
        "test.teacher": summary.teacher_test,
        "val.last": summary.last.val,
        "val.best_on_validation": summary.best_on_validation.val,
        "val.teacher": summary.teacher_val,
    }
    assert found.keys() == {*judged, "test.label", "val.label"}
    for name, scores in judged.items():
        label = found[f"{name.partition('.')[0]}.label"]
        assert scores["top1"] == (found[name].argmax(1) == label).double().mean().item()
        loss = nn.functional.cross_entropy(found[name], label).item()
        assert scores["loss"] == pytest.approx(loss, abs=1e-5)


def test_the_summary_has_every_score_on_test_and_what_the_run_cost(finished, small):
    folder, config, _, summary = finished
    assert summary.scores.keys() == {"last", "best_on_validation", "teacher"}
    for name, scores in summary.scores.items():
        assert {"top1", "nll", "brier", "ece", "temperature", "worst_class"} <= scores.keys()
        assert ("agreement" in scores) == (name != "teacher")
    assert summary.scores["last"]["top1"] == summary.test.last["top1"]
    assert summary.scores["last"]["nll"] == pytest.approx(summary.test.last["loss"], abs=1e-5)
    weights = load_file(folder / "student.safetensors").values()
    assert summary.deployed_bytes == sum(w.numel() * w.element_size() for w in weights)
    assert 0 < summary.teacher_seconds < summary.seconds
    assert summary.peak_memory_bytes > 2**20
    assert summary.inference_images_per_second > 0
    assert summary.floor_images_per_second > 0
    splits = small.parts(config).data.splits
    assert summary.split_sizes == {name: len(split) for name, split in splits.items()}


def test_the_floor_leaves_the_student_as_it_is_and_has_the_teacher_of_the_run(
    small, tmp_path, monkeypatch
):
    seen = []

    def floor(student, teacher, image_shape, *, optim, config):
        seen.append((student.network, teacher is not None, image_shape))
        assert student.network.training
        assert all(parameter.requires_grad for parameter in student.parameters())
        return 100.0

    monkeypatch.setattr("limbeck.runs.execute.floor_images_per_second", floor)
    for method in ("ce", "kd"):
        config = small.config(method, epochs=1)
        parts = small.parts(config)
        assert small.run(config, tmp_path / method, parts=parts).floor_images_per_second == 100
        assert seen[-1][0] is not parts.student.network
    assert [(taught, shape) for _, taught, shape in seen] == [
        (False, (1, 8, 8)),
        (True, (1, 8, 8)),
    ]


def test_a_run_does_not_end_for_want_of_room_for_the_floor(small, tmp_path, monkeypatch):
    def floor(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("limbeck.runs.execute.floor_images_per_second", floor)
    summary = small.run(small.config(epochs=1), tmp_path / "run")
    assert summary.floor_images_per_second is None
    assert "no room to measure the floor" in summary.notices[-1]


def test_networks_beside_are_judged_and_teach_nothing(small, tmp_path):
    """The matched baseline with the teacher's answers kept: the same student as without."""
    config = small.config("ce", epochs=1)
    alone = small.run(config, tmp_path / "alone")
    parts = small.parts(config)
    teacher = small.parts(small.config(epochs=1)).teacher
    parts = dataclasses.replace(parts, beside={"teacher": teacher})
    hash_before = state_hash(teacher.network)
    found = small.run(config, tmp_path / "beside", parts=parts)
    assert found.student_hash == alone.student_hash
    assert (found.teacher, found.teacher_test, found.teacher_seconds) == (None, None, None)
    assert "agreement" in found.scores["last"]
    assert "agreement" not in alone.scores["last"]
    assert found.scores["teacher"]["top1"] == read_summary(small.teacher).test.last["top1"]
    assert state_hash(teacher.network) == hash_before


def test_what_the_teacher_took_and_memory_are_added_up_over_sittings(small, tmp_path):
    config = small.config(epochs=2, train={"checkpoint_steps": 1})
    with pytest.raises(InterruptedRun):
        small.run(config, tmp_path, observer=small.Act("train", 15, signal_self(signal.SIGINT)))
    state, _ = CheckpointStore(tmp_path / "checkpoints").load_newest()
    before = state["loop"]["teacher_seconds"]
    assert before > 0
    assert state["past"]["peak_memory_bytes"] > 0
    assert small.resume(tmp_path).teacher_seconds > before


def test_the_test_split_chooses_nothing(finished, small, tmp_path):
    folder, config, _, summary = finished
    test = small.parts(config).data.test
    wrong = test.with_labels((test.labels + 1) % 10)
    for name, test in (("wrong", wrong), ("none", None)):
        parts = small.with_test(small.parts(config), test)
        found = small.run(config, tmp_path / name, parts=parts)
        assert found.student_hash == summary.student_hash
        assert found.best_on_validation == summary.best_on_validation
        assert small.rows(tmp_path / name) == small.rows(folder)
    assert found.test is None


def test_without_validation_nothing_is_chosen_and_the_run_says_so(small, tmp_path):
    ear = small.Ear()
    config = small.config(epochs=1, data={"val_fraction": 0.0})
    summary = small.run(config, tmp_path / "run", observer=ear)
    assert summary.best_on_validation is None
    assert summary.last.val is None
    assert summary.test.best_on_validation is None
    assert not (tmp_path / "run" / "student_best.safetensors").exists()
    assert any("no validation split" in note for note in ear.notes)


# -- the teacher -------------------------------------------------------------------------------


def test_the_teachers_accuracy_is_said_before_training(finished, small):
    _, _, ear, summary = finished
    teacher = read_summary(small.teacher)
    top1 = teacher.last.val["top1"]
    assert summary.teacher_val == teacher.last.val
    assert summary.teacher_test == teacher.test.last
    assert f"{top1:.2%} on validation" in ear.notes[0]
    assert ear.said.index("note") < ear.said.index("step")
    assert not any("guessing" in note for note in ear.notes)
    assert summary.notices == tuple(ear.notes)


def test_a_teacher_that_knows_nothing_is_warned_of(small, tmp_path):
    config = small.config(epochs=1)
    parts = small.parts(config)
    nn.init.zeros_(parts.teacher.network.fc.weight)
    ear = small.Ear()
    small.run(config, tmp_path / "run", parts=parts, observer=ear)
    assert "warning: the teacher is hardly better than guessing (10.00%)" in ear.notes[1]


def test_a_teacher_is_the_same_after_as_before(finished, small):
    _, config, _, summary = finished
    assert summary.teacher_hash == state_hash(small.parts(config).teacher.network)
    assert summary.teacher_hash == read_summary(small.teacher).student_hash


@pytest.mark.parametrize("what", ["parameter", "statistic"])
@pytest.mark.parametrize("method", ["kd", "fitnet"])
def test_a_teacher_that_was_written_into_ends_the_run_without_a_summary(
    small, tmp_path, what, method
):
    config = small.config(method)
    parts = small.parts(config)
    teacher = parts.teacher.network
    moved = teacher.fc.weight if what == "parameter" else teacher.stage1[1].running_mean

    def write():
        with torch.no_grad():
            moved[0] += 1e-3

    stage = "train" if method == "kd" else "hint"
    with pytest.raises(TeacherChangedError, match="cannot be trusted"):
        small.run(config, tmp_path / "run", parts=parts, observer=small.Act(stage, 3, write))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_teacher_is_checked_also_where_the_last_stage_has_none(small, tmp_path, monkeypatch):
    table_of(
        monkeypatch,
        (
            Stage(name="first", method=KD, config=KDConfig(), share=0.5),
            Stage(name="second", method=CE, config=CEConfig(), share=0.5),
        ),
    )
    config = small.config("toy")
    parts = small.parts(config)

    def write():
        with torch.no_grad():
            parts.teacher.network.fc.bias[0] += 1

    with pytest.raises(TeacherChangedError):
        small.run(config, tmp_path / "run", parts=parts, observer=small.Act("second", 3, write))


# -- several teachers --------------------------------------------------------------------------


CA_MKD = {"name": "multi_teacher", "fusion": "ca_mkd"}


@pytest.fixture(scope="module")
def taught_by_two(small, tmp_path_factory):
    """A run of CA-MKD with its maps, of two teachers of different shapes."""
    folder = tmp_path_factory.mktemp("several") / "run"
    config = small.config(CA_MKD, epochs=3, teacher=small.several)
    ear = small.Ear()
    return folder, config, ear, small.run(config, folder, observer=ear)


def test_the_accuracy_of_each_and_of_all_is_said_before_training(taught_by_two, small):
    _, _, ear, summary = taught_by_two
    first, second = summary.teachers
    assert (first.name, second.name) == ("digits_cnn_tiny", "digits_cnn")
    assert summary.teacher == "digits_cnn_tiny + digits_cnn"
    assert first.val == read_summary(small.teacher).last.val
    said = [
        f"teacher 1 digits_cnn_tiny: {first.val['top1']:.2%} on validation",
        f"teacher 2 digits_cnn: {second.val['top1']:.2%} on validation",
        "warning: the teacher 2 is hardly better than guessing",
        f"the 2 teachers together, by their mean probability: {summary.teacher_val['top1']:.2%}",
    ]
    for sentence, note in zip(said, ear.notes, strict=False):
        assert sentence in note
    assert ear.said.index("step") > len(said)


def test_the_summary_names_each_teacher_and_judges_all_by_their_mean(taught_by_two, small):
    folder, config, _, summary = taught_by_two
    parts = small.parts(config)
    hashes = [state_hash(one.network) for one in parts.teacher.each]
    assert [one.state_hash for one in summary.teachers] == hashes
    assert summary.teacher_hash == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert summary.teachers[0].test == read_summary(small.teacher).test.last
    kept = load_file(folder / "predictions.safetensors")
    each = [kept[f"test.teacher{number}"].softmax(dim=1) for number in (1, 2)]
    torch.testing.assert_close(kept["test.teacher"].exp(), torch.stack(each).mean(dim=0))
    right = kept["test.teacher"].argmax(dim=1) == kept["test.label"]
    assert summary.teacher_test["top1"] == pytest.approx(right.double().mean().item())
    assert {"teacher", "teacher1", "teacher2", "last"} <= summary.scores.keys()
    assert "agreement" in summary.scores["last"]


def test_the_layers_read_of_each_teacher_are_said(taught_by_two):
    _, _, ear, _ = taught_by_two
    assert "stage train: reads teacher 1 layer last = stage3" in ear.notes
    assert "stage train: reads teacher 2 layer last = stage3" in ear.notes


def test_an_interrupted_run_of_several_teachers_ends_the_same(taught_by_two, small, tmp_path):
    whole, config, _, summary = taught_by_two
    folder = tmp_path / "run"
    stop = small.Act("train", 13, signal_self(signal.SIGTERM))
    with pytest.raises(InterruptedRun):
        small.run(config, folder, observer=stop)
    found = small.resume(folder)
    assert found.student_hash == summary.student_hash
    assert small.rows(folder) == small.rows(whole)
    assert found.teachers == summary.teachers


def test_several_teachers_in_another_order_do_not_continue_a_run(small, tmp_path):
    config = small.config("kd", teacher=small.several)
    with pytest.raises(InterruptedRun):
        small.run(config, tmp_path, observer=small.Act("train", 3, signal_self(signal.SIGINT)))
    other = small.parts(small.config("kd", teacher=small.several[::-1]))
    with pytest.raises(TeacherChangedError, match="begun with another teacher"):
        small.resume(tmp_path, parts=other)


def test_the_one_of_several_teachers_that_was_written_into_is_named(small, tmp_path):
    config = small.config("kd", teacher=small.several)
    parts = small.parts(config)

    def write():
        with torch.no_grad():
            parts.teacher.each[1].network.fc.bias[0] += 1

    with pytest.raises(TeacherChangedError, match="teacher 2, digits_cnn: the teacher's state"):
        small.run(config, tmp_path / "run", parts=parts, observer=small.Act("train", 3, write))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_one_of_several_teachers_that_has_other_classes_is_named(small, tmp_path):
    config = small.config("kd", teacher=small.several)
    parts = small.parts(config)
    parts.teacher.each[1].network.fc = nn.Linear(96, 7)
    with pytest.raises(ModelError, match=r"teacher 2, digits_cnn: the data has 10 classes, .* 7"):
        small.run(config, tmp_path / "run", parts=parts)
    assert not (tmp_path / "run").exists()


def test_afterwards_no_teacher_of_several_has_hooks_or_has_moved(small, tmp_path):
    config = small.config(CA_MKD, epochs=1, teacher=small.several)
    parts = small.parts(config)
    before = [state_hash(one.network) for one in parts.teacher.each]
    small.run(config, tmp_path / "run", parts=parts)
    assert [state_hash(one.network) for one in parts.teacher.each] == before
    for one in parts.teacher.each:
        assert not any(part._forward_hooks for part in one.network.modules())
        assert not any(part.training for part in one.network.modules())


@pytest.mark.parametrize("fusion", ["average_probability", "ebkd", "aekd"])
def test_every_rule_learns_also_from_images_without_labels(small, tmp_path, fusion):
    method = {"name": "multi_teacher", "fusion": fusion}
    teacher = small.several
    config = small.config(method, teacher=teacher, data={"num_labels": 20})
    summary = small.run(config, tmp_path / "run")
    assert math.isfinite(summary.last.val["loss"])
    assert summary.teacher_seconds > 0


def test_one_teacher_for_a_method_of_several_leaves_nothing_behind(small, tmp_path):
    config = small.config({"name": "multi_teacher"})
    with pytest.raises(ModelError, match="two teachers or more, and got one"):
        small.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- what two networks may not share -------------------------------------------------------------


def share_all(student, teacher):
    return teacher, teacher


def share_a_layer(student, teacher):
    student.stage2 = teacher.stage2
    return student, teacher


def share_memory(student, teacher):
    """Two parameters over the same numbers: another object each, and one update for both."""
    student.fc.weight = nn.Parameter(teacher.fc.weight.data)
    return student, teacher


def share_a_slice(student, teacher):
    student.fc.bias = nn.Parameter(teacher.fc.weight.data[:, 1])
    return student, teacher


@pytest.mark.parametrize("share", [share_all, share_a_layer, share_memory, share_a_slice])
def test_networks_that_share_parameters_are_refused(small, tmp_path, share):
    config = small.config(student="digits_cnn_tiny")
    parts = small.parts(config)
    student, teacher = share(parts.student.network, parts.teacher.network)
    parts = Parts(
        parts.data,
        dataclasses.replace(parts.student, network=student),
        dataclasses.replace(parts.teacher, network=teacher),
    )
    with pytest.raises(ModelError, match="share parameters; pass two networks"):
        small.run(config, tmp_path / "run", parts=parts)
    assert not (tmp_path / "run").exists()


# -- what does not fit is found before there is a folder -----------------------------------------


@pytest.mark.parametrize("method", ["kd", "fitnet"])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_class_counts_that_differ_are_named_before_training(small, tmp_path, method, whose):
    """FitNets too, whose first stage never sees the student's classes."""
    config = small.config(method)
    parts = small.parts(config)
    named = parts.student if whose == "student" else parts.teacher
    named.network.fc = nn.Linear(named.network.fc.in_features, 7)
    with pytest.raises(ModelError, match=f"data has 10 classes, the {whose} gives 7"):
        small.run(config, tmp_path / "run", parts=parts)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_layer_is_answered_with_the_nearest_before_training(small, tmp_path):
    method = {"name": "fitnet_one_stage", "student_layer": "stage_2"}
    with pytest.raises(UnknownNameError, match="did you mean 'stage2'"):
        small.run(small.config(method), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Looking(Method[MethodConfig]):
    """Cross-entropy on every view; remembers whether the second one was another picture."""

    seen: list = []  # noqa: RUF012  (what a test reads)
    view = "second"

    @classmethod
    def needs(cls, config):
        return Needs(views=(cls.view,))

    def forward(self, batch, student, teacher, progress):
        same = torch.equal(batch.views["second"], batch.image)
        self.seen.append((len(batch), same))
        ce = self.cross_entropy(student.views["second"].logits, batch.label)
        gap = (student.logits - teacher.views["second"].logits).square().mean()
        return LossTerms(ce + gap, {"ce": ce, "gap": gap})


def test_a_method_gets_the_views_it_asks_for(small, tmp_path, monkeypatch):
    table_of(monkeypatch, (Stage(name="train", method=Looking, config=MethodConfig()),))
    monkeypatch.setattr(Looking, "seen", [])
    config = small.config("toy", epochs=1, data={"augment": {"crop_padding": 2, "flip": True}})
    small.run(config, tmp_path / "run")
    dry, *training = Looking.seen
    assert dry == (8, True)
    assert [size for size, _ in training] == [32] * (STEPS - 1) + [training[-1][0]]
    assert not any(same for _, same in training)


class Alike(Method[MethodConfig]):
    """Cross-entropy; remembers mixed labels and what both networks were shown."""

    takes_mixed = True
    seen: list = []  # noqa: RUF012  (what a test reads)

    @classmethod
    def needs(cls, config):
        return Needs(student_layers=("stage1.0:input",), teacher_layers=("stage1.0:input",))

    def forward(self, batch, student, teacher, progress):
        shown = [o.features["stage1.0:input"].detach() for o in (student, teacher)]
        self.seen.append((batch.label_share, *shown))
        ce = self.label_loss(student.logits, batch)
        return LossTerms(ce, {"ce": ce})


def test_both_networks_are_shown_the_same_mixed_pixels(small, tmp_path, monkeypatch):
    table_of(monkeypatch, (Stage(name="train", method=Alike, config=MethodConfig()),))
    monkeypatch.setattr(Alike, "seen", [])
    augment = {"crop_padding": 1, "mixup_alpha": 1.0, "cutmix_alpha": 1.0}
    small.run(small.config("toy", epochs=1, data={"augment": augment}), tmp_path / "run")
    dry, *training = Alike.seen
    assert dry[0] is None
    assert len(training) == STEPS
    for share, ours, theirs in training:
        assert (share < 1).float().mean() > 0.5
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("alpha", ["mixup_alpha", "cutmix_alpha"])
def test_mixed_images_are_refused_by_name_before_training(small, tmp_path, alpha):
    config = small.config("dkd", data={"augment": {alpha: 0.2}})
    with pytest.raises(SettingsError, match="'dkd' takes one label an image"):
        small.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_view_that_no_loader_makes_is_named_before_training(small, tmp_path, monkeypatch):
    table_of(monkeypatch, (Stage(name="train", method=Looking, config=MethodConfig()),))
    monkeypatch.setattr(Looking, "view", "secnd")
    with pytest.raises(UnknownNameError, match="no view called 'secnd'; did you mean 'second'"):
        small.run(small.config("toy"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Preparing(Method[MethodConfig]):
    """Counts its images beforehand, into a buffer."""

    calls: list = []  # noqa: RUF012
    passes: list = []  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("count", torch.zeros(()))

    def prepare(self, teacher, batches):
        seen = list(batches)
        again = [batch.index for batch in batches]  # as often as is wanted
        assert torch.equal(torch.cat(again), torch.cat([batch.index for batch in seen]))
        with torch.no_grad():
            self.count += sum(len(teacher(batch.image).logits) for batch in seen)
        self.calls.append(self.count.item())
        self.passes.append(seen)

    def forward(self, batch, student, teacher, progress):
        ce = self.cross_entropy(student.logits, batch.label)
        return LossTerms(ce * self.count / 303, {"ce": ce})


def test_a_pass_over_the_data_is_made_once_and_kept_in_the_checkpoint(small, tmp_path, monkeypatch):
    table_of(monkeypatch, (Stage(name="train", method=Preparing, config=MethodConfig()),))
    monkeypatch.setattr(Preparing, "calls", [])
    monkeypatch.setattr(Preparing, "passes", [])
    config = small.config("toy", data={"augment": {"crop_padding": 2, "flip": True}})
    stop = small.Act("train", 4, signal_self(signal.SIGTERM))
    with pytest.raises(InterruptedRun):
        small.run(config, tmp_path / "run", observer=stop)
    small.resume(tmp_path / "run")
    assert len(Preparing.calls) == 1
    state, _ = CheckpointStore(tmp_path / "run" / "checkpoints").load_newest()
    assert state["loop"]["stepper"]["learner"]["method.count"] == Preparing.calls[0] == 303
    (seen,) = Preparing.passes
    assert torch.cat([batch.index for batch in seen]).tolist() == list(range(303))
    plain = small.parts(config).data.train.images
    assert torch.equal(torch.cat([batch.image for batch in seen]), plain.float() / 255)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """How often WKD-L went over the data, and the folder where it keeps what it found."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "kept"))
    calls = []
    prepare = WKDLogit.prepare

    def counting(self, teacher, batches):
        calls.append(type(self).__name__)
        prepare(self, teacher, batches)

    monkeypatch.setattr(WKDLogit, "prepare", counting)
    return SimpleNamespace(calls=calls, folder=tmp_path / "kept" / "prepared")


def wkd(small, **fields):
    settings = {"name": "wkd_logit", "cost": "logits", **fields.pop("method", {})}
    return small.config(settings, epochs=1, **fields)


def test_what_a_pass_found_is_kept_for_runs_with_the_same_teacher_and_images(
    small, tmp_path, counted
):
    first, ear = small.run(wkd(small), tmp_path / "first"), small.Ear()
    again = small.run(wkd(small), tmp_path / "again", observer=ear)
    assert len(counted.calls) == len(list(counted.folder.iterdir())) == 1
    assert any("no pass over the data; its result is in" in note for note in ear.notes)
    assert again.student_hash == first.student_hash
    assert small.rows(tmp_path / "again") == small.rows(tmp_path / "first")
    # What the prices do not depend on changes nothing, another seed neither.
    small.run(wkd(small, seed=1, method={"transport_weight": 5.0}), tmp_path / "other")
    assert len(counted.calls) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"method": {"cost_sharpness": 2.0}},
        {"data": {"split_seed": 1}},
        {"data": {"num_labels": 100}},
        {"train": {"eval_batch_size": 100}},
        {"teacher": "another"},
    ],
    ids=str,
)
def test_what_a_pass_depends_on_makes_a_new_one(small, tmp_path, counted, changed):
    small.run(wkd(small), tmp_path / "first")
    if changed == {"teacher": "another"}:
        other = small.config("ce", student="digits_cnn_tiny", epochs=1, seed=7)
        small.run(other, tmp_path / "teacher")
        changed = {"teacher": {"run": str(tmp_path / "teacher")}}
    small.run(wkd(small, **changed), tmp_path / "second")
    assert len(counted.calls) == len(list(counted.folder.iterdir())) == 2


def test_a_kept_result_that_is_damaged_is_named_and_made_anew(small, tmp_path, counted):
    first = small.run(wkd(small), tmp_path / "first")
    (kept,) = counted.folder.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:-3])
    ear = small.Ear()
    again = small.run(wkd(small), tmp_path / "again", observer=ear)
    assert any(str(kept) in note and "made anew" in note for note in ear.notes)
    assert again.student_hash == first.student_hash
    assert kept.read_bytes() == content


def test_where_nothing_can_be_kept_a_run_says_so_and_goes_on(small, tmp_path, counted):
    counted.folder.parent.write_text("a file")
    ear = small.Ear()
    assert small.run(wkd(small), tmp_path / "run", observer=ear).method == "wkd_logit"
    assert any("is not kept" in note for note in ear.notes)


def test_a_rehearsal_and_a_cost_without_a_pass_keep_nothing(small, tmp_path, counted):
    config = wkd(small)
    rehearse(config, small.parts(config))
    small.run(wkd(small, method={"cost": "classifier"}), tmp_path / "run")
    assert not counted.folder.exists()


class Tower(nn.Module):
    """A backbone without a classifier: what it gives is 16 numbers and no scores."""

    def __init__(self):
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.head = nn.Identity()

    def forward(self, image):
        return self.head(self.stage1(image).mean(dim=(2, 3)))


def tower_parts(small, config):
    """The run's parts with a tower, of fixed weights, as its teacher."""
    parts = small.parts(config.changed(teacher=None, method={"name": "ce"}))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        tower = NamedNetwork(Tower(), parts.data.normalization, "Tower")
    return dataclasses.replace(parts, teacher=tower)


def test_an_embedding_is_taught_without_labels_and_judged_by_what_it_holds(small, tmp_path):
    """And the teacher has no class scores. Judged again by hand, before training and after."""
    config = small.config("foundation", epochs=4, teacher={"name": "python:Tower"})
    parts = tower_parts(small, config)
    fresh = copy.deepcopy(parts.student.network)
    summary = small.run(config, tmp_path / "run", parts=parts)
    assert (summary.teacher_val, summary.teacher_test) == (None, None)
    assert summary.scores.keys() == {"last", "best_on_validation"}
    assert any("class scores are not taught" in note for note in summary.notices)
    assert not summary.scores_taught
    assert any("its class scores are not used" in note for note in summary.notices)
    assert summary.embedding.keys() == {"last", "before", "teacher"}
    deployed = small.network(config.changed(teacher=None, method={"name": "ce"}))
    deployed.load_state_dict(load_file(tmp_path / "run" / "student.safetensors"))
    for name, network in (("last", deployed), ("before", fresh)):
        found = embed(
            {"": NamedNetwork(network, parts.student.normalization, "")},
            parts.data.test,
            config=config.train,
            device=torch.device("cpu"),
        ).vectors[""]
        image = (parts.data.test.images / 255 - parts.data.normalization.mean[0]) / (
            parts.data.normalization.std[0]
        )
        with torch.no_grad():
            expected = network.stage2(network.stage1(image)).mean(dim=(2, 3))
        torch.testing.assert_close(found, expected)
        for split in ("val", "test"):
            assert summary.embedding[name][split].keys() == {"linear_top1", "knn_top1"}
    gain = summary.embedding["last"]["test"]["linear_top1"]
    assert gain > summary.embedding["before"]["test"]["linear_top1"]
    assert read_summary(tmp_path / "run") == summary


def test_labels_are_nothing_to_an_embedding(small, tmp_path):
    """With other labels, the same weights to the last bit; the classifier's among them."""
    config = small.config("foundation", epochs=2, teacher={"name": "python:Tower"})
    hashes = []
    for shift in (0, 3):
        parts = tower_parts(small, config)
        train = parts.data.train
        shifted = train.with_labels((train.labels + shift) % 10)
        parts = dataclasses.replace(parts, data=dataclasses.replace(parts.data, train=shifted))
        hashes.append(small.run(config, tmp_path / str(shift), parts=parts).student_hash)
    assert hashes[0] == hashes[1]


def test_an_embedding_that_was_interrupted_is_judged_as_if_it_had_not_been(small, tmp_path):
    config = small.config("foundation", teacher={"name": "python:Tower"})
    whole = small.run(config, tmp_path / "whole", parts=tower_parts(small, config))
    stop = small.Act("train", 14, signal_self(signal.SIGTERM))
    with pytest.raises(InterruptedRun):
        small.run(config, tmp_path / "run", parts=tower_parts(small, config), observer=stop)
    again = small.resume(tmp_path / "run", parts=tower_parts(small, config))
    assert again.student_hash == whole.student_hash
    assert again.embedding == whole.embedding


def test_a_tower_without_scores_is_refused_where_scores_are_learnt(small, tmp_path):
    config = small.config("kd", teacher={"name": "python:Tower"})
    with pytest.raises(ModelError, match="the teacher gives 16"):
        small.run(config, tmp_path / "run", parts=tower_parts(small, config))
    both = small.config("kd+foundation", teacher={"name": "python:Tower"})
    with pytest.raises(ModelError, match="the teacher gives 16"):
        small.run(both, tmp_path / "run", parts=tower_parts(small, both))


def test_a_rehearsal_measures_and_leaves_everything_as_it_was(finished, small, tmp_path):
    _, config, _, summary = finished
    parts = small.parts(config)
    before = weights(parts.student.network)
    found = rehearse(config, parts, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert equal(weights(parts.student.network), before)
    assert (found.stages[0]["epochs"], found.stages[0]["steps"]) == (3, 3 * STEPS)
    assert found.estimated_seconds == pytest.approx(3 * STEPS * found.seconds_per_step)
    assert found.counts["val"].keys() == set("0123456789")
    again = small.run(config, tmp_path / "run", parts=parts)
    assert again.student_hash == summary.student_hash


# -- stages ------------------------------------------------------------------------------------


def test_fitnets_first_stage_leaves_what_lies_behind_it_alone(small, tmp_path):
    config = small.config("fitnet", epochs=4, student="digits_cnn_tiny")
    parts = small.parts(config)
    student = parts.student.network
    start = weights(student)
    between = {}
    observer = small.Act("hint", STEPS, lambda: between.update(weights(student)))
    summary = small.run(config, tmp_path / "run", parts=parts, observer=observer)
    moved = {name for name in start if not torch.equal(start[name], between[name])}
    assert {name.split(".")[0] for name in moved} == {"stage1", "stage2"}
    after = weights(student)
    assert all(not torch.equal(between[name], after[name]) for name in after)
    rows = small.rows(tmp_path / "run")
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("hint", 0),
        ("distil", 0),
        ("distil", 1),
        ("distil", 2),
    ]
    assert rows[0]["val"] is None
    assert set(rows[0]["train"]) == {"loss", "hint"}
    assert summary.last.epoch == 2
    assert any(note.startswith("stage hint: 5 parameters") for note in summary.notices)


def test_tensorboard_counts_steps_over_all_stages_and_repeats_none(small, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small.config("fitnet", epochs=3, train={"checkpoint_steps": 4})
    stop = small.Act("distil", 2, signal_self(signal.SIGTERM))
    with pytest.raises(InterruptedRun):
        small.run(config, tmp_path / "run", observer=stop)
    time.sleep(1.1)  # TensorBoard orders its files by the second they were begun in
    small.resume(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    steps = {tag: [s.step for s in events.Scalars(tag)] for tag in ("hint/lr", "distil/lr")}
    assert steps == {"hint/lr": [STEPS], "distil/lr": [2 * STEPS, 3 * STEPS]}


# -- killed and continued ----------------------------------------------------------------------

CHILD = """
import os, signal, sys
from contextlib import ExitStack
from pathlib import Path
import torch
torch.set_num_threads(1)
from limbeck.engine.recorder import SilentObserver
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import execute, prepare_parts, resume
from limbeck.runs.folder import read_json

settings, folder, begin, stage, step, signum, times, *typed = sys.argv[1:]

class Act(SilentObserver):
    def step(self, name, done, total):
        if (name, done) == (stage, int(step)):
            for _ in range(int(times)):
                os.kill(os.getpid(), int(signum))

config = RunConfig.read(read_json(Path(settings)))
parts = prepare_parts(config, typed=typed)
if begin == "begin":
    execute(config, folder, parts, observer=Act())
else:
    resume(folder, parts, config, observer=Act())
"""


def run_child(small, settings, folder, begin, where, signum, *, times=1):
    """A run in a process of its own that signals itself; its exit code and errors."""
    stage, step = where
    arguments = (settings, folder, begin, stage, step, int(signum), times, *small.typed)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stderr


def random_places(seed, *stages):
    """Two steps to be killed after: one in each stage, or the later well behind the earlier.

    With the seeds below all four lie inside an epoch, and those of FitNets inside the warm-up.
    """
    draw = random.Random(seed)
    if len(stages) == 2:
        return [(stage, draw.randint(1, steps)) for stage, steps in stages]
    ((stage, steps),) = stages
    first = draw.randint(1, steps // 2)
    return [(stage, first), (stage, draw.randint(first + 4, steps - 1))]


KILLED = {
    "fitnet": (
        {
            "method": "fitnet",
            "epochs": 3,
            "schedule": {"sched": "multistep", "decay_epochs": (2,), "warmup_epochs": 1},
            "train": {"model_ema_decay": 0.8, "checkpoint_steps": 2},
            "data": {"augment": {"crop_padding": 1}},
        },
        random_places(7, ("hint", STEPS), ("distil", 2 * STEPS - 1)),
    ),
    "rkd": (
        {
            "method": "rkd",
            "epochs": 2,
            "schedule": {"sched": "onecycle"},
            "train": {"checkpoint_steps": 1, "grad_accum_steps": 3, "amp_dtype": "bfloat16"},
            "optim": {"opt": "adamw", "lr": 0.01, "clip_grad": 5.0},
            "data": {"augment": {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "mix_prob": 0.8}},
        },
        random_places(0, ("train", 2 * STEPS)),
    ),
}


@pytest.fixture(scope="module")
def killed(small, tmp_path_factory):
    """The folders of these runs, each killed at its two places."""

    def kill_twice(name):
        fields, places = KILLED[name]
        folder = tmp_path_factory.mktemp(name) / "run"
        settings = folder.parent / "settings.json"
        settings.write_text(json.dumps(small.config(**fields).plain()))
        for begin, where in zip(("begin", "resume"), places, strict=True):
            code, errors = run_child(small, settings, folder, begin, where, signal.SIGKILL)
            assert code == -signal.SIGKILL, errors
            assert not (folder / "summary.json").exists()
        return folder

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(KILLED, pool.map(kill_twice, KILLED), strict=True))


@pytest.mark.parametrize("name", KILLED)
def test_killed_twice_and_continued_a_run_ends_bit_equal(small, killed, tmp_path, name):
    """The student has dropout, so the random stream counts."""
    whole = small.run(small.config(**KILLED[name][0]), tmp_path)
    folder = killed[name]
    summary = small.resume(folder)
    assert summary.student_hash == whole.student_hash
    assert small.rows(folder) == small.rows(tmp_path)
    for file in ("student.safetensors", "student_best.safetensors"):
        assert sha256(folder / file) == sha256(tmp_path / file)
    assert (summary.last, summary.best_on_validation) == (whole.last, whole.best_on_validation)
    assert summary.test == whole.test


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_continued(small, tmp_path):
    config = small.config(train={"checkpoint_steps": 3})
    whole = small.run(config, tmp_path / "whole")
    folder = tmp_path / "run"
    with pytest.raises(InterruptedRun):
        small.run(config, folder, observer=small.Act("train", 14, signal_self(signal.SIGTERM)))
    newest = CheckpointStore(folder / "checkpoints").paths()[-1]
    assert newest.name == "step-000000014"
    data = bytearray((newest / "tensors.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "tensors.safetensors").write_bytes(data)
    ear = small.Ear()
    assert small.resume(folder, observer=ear).student_hash == whole.student_hash
    assert "damaged" in ear.notes[0]
    assert "continuing from the checkpoint before it" in ear.notes[0]
    assert small.rows(folder) == small.rows(tmp_path / "whole")


def test_without_a_whole_checkpoint_a_run_is_not_continued_from_a_guess(small, tmp_path):
    config = small.config(train={"checkpoint_steps": 3})
    folder = tmp_path / "run"
    with pytest.raises(InterruptedRun):
        small.run(config, folder, observer=small.Act("train", 5, signal_self(signal.SIGTERM)))
    for path in CheckpointStore(folder / "checkpoints").paths():
        (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        small.resume(folder)


def test_interrupted_before_any_checkpoint_a_run_starts_again(small, tmp_path):
    config = small.config(epochs=1)
    whole = small.run(config, tmp_path / "whole")

    def fail():
        raise ZeroDivisionError

    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        small.run(config, folder, observer=small.Act("train", 5, fail))
    ear = small.Ear()
    assert small.resume(folder, observer=ear).student_hash == whole.student_hash
    assert "no checkpoint yet" in ear.notes[0]


def test_a_failure_after_training_costs_no_training(small, tmp_path):
    config = small.config()
    parts = small.parts(config)

    def fail():
        raise ZeroDivisionError

    broken = small.with_test(parts, small.CountingImages(parts.data.test, fail))
    with pytest.raises(ZeroDivisionError):
        small.run(config, tmp_path / "run", parts=broken)
    ear = small.Ear()
    small.resume(tmp_path / "run", observer=ear)
    assert "step" not in ear.said


def test_metrics_that_were_lost_are_not_made_up(small, tmp_path):
    config = small.config()
    stop = small.Act("train", STEPS + 2, signal_self(signal.SIGTERM))
    with pytest.raises(InterruptedRun):
        small.run(config, tmp_path / "run", observer=stop)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(RunFolderError, match=r"has 0 bytes and had \d+"):
        small.resume(tmp_path / "run")


def test_another_number_of_threads_is_said(small, tmp_path):
    config = small.config(epochs=1)
    with pytest.raises(InterruptedRun):
        small.run(
            config,
            tmp_path / "run",
            observer=small.Act("train", 2, signal_self(signal.SIGTERM)),
        )
    ear = small.Ear()
    torch.set_num_threads(2)
    try:
        small.resume(tmp_path / "run", observer=ear)
    finally:
        torch.set_num_threads(1)
    assert any("the run used 1 threads, now there are 2" in note for note in ear.notes)


def test_a_folder_without_a_run_is_not_continued(small, tmp_path):
    config = small.config()
    with pytest.raises(RunFolderError, match="holds no run to continue"):
        resume(tmp_path / "nothing", small.parts(config), config)
    assert not (tmp_path / "nothing").exists()


# -- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "step"), [(signal.SIGINT, 7), (signal.SIGTERM, 27)])
def test_a_signal_saves_the_very_step_and_the_run_ends_the_same(
    finished, small, tmp_path, signum, step
):
    whole, config, _, summary = finished
    folder = tmp_path / "run"
    with pytest.raises(InterruptedRun, match=f"{signum.name}; the state is saved") as stopped:
        small.run(config, folder, observer=small.Act("train", step, signal_self(signum)))
    assert stopped.value.signum == signum
    state, _ = CheckpointStore(folder / "checkpoints").load_newest()
    assert state["loop"]["epoch"] * STEPS + state["loop"]["step"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    found = small.resume(folder)
    assert found.student_hash == summary.student_hash
    # The second time the best epoch lies before the signal.
    assert found.best_on_validation == summary.best_on_validation
    assert sha256(folder / "student_best.safetensors") == sha256(whole / "student_best.safetensors")
    assert small.rows(folder) == small.rows(whole)


def test_a_second_ctrl_c_does_not_wait_for_the_step(small, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        small.run(small.config(), tmp_path / "run", observer=small.Act("train", 3, twice))
    assert not CheckpointStore(tmp_path / "run" / "checkpoints").paths()


def test_the_command_line_saves_and_answers_with_the_signals_code(tmp_path):
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143}
    command = [sys.executable, "-m", "limbeck", "train", "--student", "digits_cnn_tiny"]
    options = ["--device", "cpu", "--quiet", "--set", "schedule.epochs=5000"]
    processes = {
        signum: subprocess.Popen(
            [*command, *options, "--set", "schedule.sched=constant", "-o", tmp_path / signum.name],
            stderr=subprocess.PIPE,
            text=True,
        )
        for signum in codes
    }
    for signum, process in processes.items():
        metrics = tmp_path / signum.name / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == codes[signum]
        assert errors.startswith(f"stopped by {signum.name}; the state is saved")
        CheckpointStore(tmp_path / signum.name / "checkpoints").load_newest()


# -- faults while training ---------------------------------------------------------------------


class Fault(nn.Module):
    """A classifier whose logits are not finite in one training pass."""

    def __init__(self, inner, at, value):
        super().__init__()
        self.inner, self.at, self.value, self.calls = inner, at, value, 0

    def forward(self, image):
        logits = self.inner(image)
        if self.training and torch.is_grad_enabled():
            self.calls += 1
            if self.calls == self.at + 1:  # the first is the dry one
                logits = logits * self.value
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("accum", [1, 4])
def test_a_loss_that_is_not_finite_names_term_step_and_images(small, tmp_path, value, accum):
    """Of the batch where it happened, also where several make one update."""
    config = small.config(train={"checkpoint_steps": 4, "grad_accum_steps": accum})
    parts = small.parts(config)
    network = parts.student.network
    network.fc = nn.Sequential(network.fc)  # its name is not what this is about
    faulty = Fault(network, 6, value)
    parts = dataclasses.replace(parts, student=dataclasses.replace(parts.student, network=faulty))
    order = torch.randperm(303, generator=keyed_generator(0, 0, "order"))
    images = re.escape(str(order[160:192].tolist()))
    with pytest.raises(NonFiniteError, match=rf"ce, kd is not finite at step 5 .*{images}"):
        small.run(config, tmp_path / "run", parts=parts)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    state, _ = CheckpointStore(tmp_path / "run" / "checkpoints").load_newest()
    assert state["loop"]["step"] == 4
    assert all(value.isfinite().all() for value in state["loop"]["stepper"]["learner"].values())
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_second_run_in_the_same_folder_is_refused_by_the_firsts_name(small, tmp_path):
    config = small.config(epochs=1)
    refused = []

    def second():
        for begin in (
            lambda: small.run(config, tmp_path / "run"),
            lambda: small.resume(tmp_path / "run"),
        ):
            with pytest.raises(RunFolderError) as error:
                begin()
            refused.append(str(error.value))

    first = small.run(config, tmp_path / "run", observer=small.Act("train", 3, second))
    who = f"in use by process {os.getpid()} on {socket.gethostname()}"
    assert [who in message for message in refused] == [True, True]
    assert first.student_hash == small.run(config, tmp_path / "alone").student_hash


@pytest.fixture
def little_disk(tmp_path):
    """A file system of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip("only root can mount a small disk")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_said_and_the_old_checkpoint_goes_on(small, tmp_path, little_disk):
    config = small.config("fitnet", train={"checkpoint_steps": 3})
    whole = small.run(config, tmp_path / "whole")
    folder = little_disk / "run"

    def fill():
        with (little_disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 1000)

    with pytest.raises(RunFolderError, match=r"could not be written.*No space left on device"):
        small.run(config, folder, observer=small.Act("hint", 4, fill))
    state, faults = CheckpointStore(folder / "checkpoints").load_newest()
    assert (state["stage"], state["loop"]["step"], faults) == (0, 3, [])
    (little_disk / "fill").unlink()
    assert small.resume(folder).student_hash == whole.student_hash
    assert small.rows(folder) == small.rows(tmp_path / "whole")


def test_a_file_size_limit_is_said_and_the_old_checkpoint_goes_on(small, tmp_path, full_disk):
    config = small.config(train={"checkpoint_steps": 3})
    whole = small.run(config, tmp_path / "whole")
    folder = tmp_path / "run"
    with ExitStack() as stack:

        def fill():
            stack.enter_context(full_disk())

        with pytest.raises(RunFolderError, match=r"could not be written.*File too large"):
            small.run(config, folder, observer=small.Act("train", 4, fill))
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000000003"]
    assert small.resume(folder).student_hash == whole.student_hash


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no files, from root neither")
def test_a_place_that_cannot_be_written_is_refused_before_training(small):
    ear = small.Ear()
    with pytest.raises(RunFolderError, match="cannot be written"):
        small.run(small.config(), "/proc/limbeck-run", observer=ear)
    assert ear.said == []


# -- precision, layout, batches ----------------------------------------------------------------

WAYS = [
    {"channels_last": True},
    {"amp_dtype": "bfloat16"},
    {"amp_dtype": "float16"},
    {"amp_dtype": "float16", "model_ema_decay": 0.9, "channels_last": True},
    {"grad_accum_steps": 4, "eval_every": 2},
]


@pytest.mark.parametrize("method", ["fitnet", "fitnet_one_stage", "rkd"])
@pytest.mark.parametrize("train", WAYS, ids=str)
def test_every_way_to_train_learns_and_finishes(small, tmp_path, method, train):
    summary = small.run(small.config(method, train=train), tmp_path / "run")
    values = load_file(tmp_path / "run" / "student.safetensors").values()
    assert all(value.isfinite().all() for value in values)
    assert math.isfinite(summary.last.val["loss"])
    assert summary.num_parameters == 484


def close(one, other, *, rtol, atol):
    """Whether two run folders hold the same student, within rounding."""
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (one, other))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=rtol, atol=atol)


def test_the_memory_layout_changes_no_weights_shape_or_meaning(small, tmp_path):
    """Without dropout, which draws its mask in the order of memory."""
    config = small.config(student=small.without_norm)
    plain = small.run(config, tmp_path / "plain")
    laid = config.changed(train=config.train.changed(channels_last=True))
    assert small.run(laid, tmp_path / "laid").num_macs == plain.num_macs
    close(tmp_path / "laid", tmp_path / "plain", rtol=1e-5, atol=1e-5)


def test_what_is_judged_and_exported_is_the_average_of_the_weights(small, tmp_path):
    config = small.config(epochs=1, train={"model_ema_decay": 0.75})
    parts = small.parts(config)
    student, averages = parts.student.network, []

    class Average(small.Ear):
        def step(self, stage, done, total):
            weight = student.fc.weight.detach().double()
            old = averages[-1] if averages else weight
            averages.append(0.75 * old + 0.25 * weight)

    summary = small.run(config, tmp_path / "run", parts=parts, observer=Average())
    exported = load_file(tmp_path / "run" / "student.safetensors")
    torch.testing.assert_close(exported["fc.weight"].double(), averages[-1], rtol=1e-5, atol=1e-6)
    assert summary.last.val == summary.best_on_validation.val
    assert summary.test.last == summary.test.best_on_validation  # judged by both ways to the end
    assert equal(weights(student), exported)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fitnet", "fitnet_one_stage"])
def test_compiled_networks_are_read_and_trained_like_others(small, tmp_path, method):
    """Within float32 rounding: a compiled network adds up in another order."""
    config = small.config(method, student=small.without_norm, optim={"lr": 0.01})
    plain = small.run(config, tmp_path / "plain")
    parts = small.parts(config)
    compiled = small.run(
        config.changed(train=config.train.changed(torchcompile=True)),
        tmp_path / "compiled",
        parts=parts,
    )
    close(tmp_path / "compiled", tmp_path / "plain", rtol=1e-5, atol=1e-5)
    assert compiled.num_macs == plain.num_macs
    assert parts.student.network._compiled_call_impl is None
    assert parts.teacher.network._compiled_call_impl is None


def test_accumulated_batches_are_one_large_batch(small, tmp_path):
    """Without batch-norm, which sees each batch by itself; 192 images fill every group."""
    for size, accum in ((32, 2), (64, 1)):
        train = {"batch_size": size, "grad_accum_steps": accum}
        config = small.config(student=small.without_norm, train=train)
        parts = small.parts(config)
        data = dataclasses.replace(parts.data, train=parts.data.train.subset(torch.arange(192)))
        small.run(config, tmp_path / str(size), parts=dataclasses.replace(parts, data=data))
    close(tmp_path / "32", tmp_path / "64", rtol=1e-5, atol=1e-5)


# -- several processes -------------------------------------------------------------------------

RANKS = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from limbeck.engine.loop import StageLoop
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import execute, prepare_parts

out = Path(sys.argv[1])
typed = sys.argv[2:]
asking = StageLoop.asking

def watched(self):
    yield from asking(self)
    found[self.name] = {k: v.clone() for k, v in self.learner.state_dict().items()}

StageLoop.asking = watched
for name, settings in json.loads((out / "settings.json").read_text()).items():
    found = {}
    config = RunConfig.read(settings)
    parts = prepare_parts(config, typed=typed)
    summary = execute(config, out / name, parts)
    torch.save([found, summary.plain()], out / f"{name}-{os.environ['RANK']}.pt")
"""


@pytest.fixture(scope="module")
def two_ranks(small, tmp_path_factory):
    """Two gloo processes that carry out two runs; (weights by stage, summary) of each rank."""
    out = tmp_path_factory.mktemp("ranks")
    configs = {
        # 364 images: the last batch of twelve can be shared equally.
        "fitnet": small.config(
            "fitnet", student=small.without_norm, data={"fraction": 0.3}, train={"batch_size": 16}
        ),
        "fitnet_one_stage": small.config(
            "fitnet_one_stage",
            epochs=1,
            train={"batch_size": 16, "model_ema_decay": 0.5, "grad_accum_steps": 2},
        ),
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
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found = {
        name: [torch.load(out / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name in configs
    }
    return out, configs, found


@pytest.mark.parametrize("name", ["fitnet", "fitnet_one_stage"])
def test_both_ranks_hold_the_same_adapter_and_student(two_ranks, name):
    _, _, found = two_ranks
    (first, summary), (second, other) = found[name]
    stage = "hint" if name == "fitnet" else "train"
    adapter = [key for key in first[stage] if key.startswith("method.")]
    assert adapter
    for key in first[stage]:
        # Each rank moves its own statistics; what is judged and exported has the first's.
        if ".running_" not in key:
            assert torch.equal(first[stage][key], second[stage][key]), key
    assert summary["student_hash"] == other["student_hash"]
    assert summary["last"] == other["last"]
    assert summary["test"] == other["test"]


def test_two_ranks_are_one_process_with_twice_the_batch(two_ranks, small, tmp_path):
    """With a student and an adapter without batch-norm, by which each rank normalises its own."""
    out, configs, found = two_ranks
    config = configs["fitnet"]
    train = config.train.changed(batch_size=32)
    whole = small.run(config.changed(train=train), tmp_path / "whole")
    close(out / "fitnet", tmp_path / "whole", rtol=1e-5, atol=1e-5)
    assert found["fitnet"][0][1]["test"]["last"] == pytest.approx(whole.test.last, rel=1e-5)
    rows = zip(small.rows(out / "fitnet"), small.rows(tmp_path / "whole"), strict=True)
    for two, one in rows:
        assert two["train"] == pytest.approx(one["train"], rel=1e-5)
        assert two["step"] == one["step"]
        assert two["val"] is one["val"] or two["val"] == pytest.approx(one["val"], rel=1e-5)


@pytest.mark.parametrize("method", ["crd", "simkd", "vid"])
def test_what_a_feature_method_remembers_goes_through_an_interruption(method, small, tmp_path):
    """CRD's banks and Z, SimKD's projector that is deployed, VID's variances."""
    config = small.config(method, student="digits_cnn_tiny", optim={"lr": 0.02})
    whole = small.run(config, tmp_path / "whole")
    stop = small.Act("train", 14, signal_self(signal.SIGINT))
    with pytest.raises(InterruptedRun):
        small.run(config, tmp_path / "halves", observer=stop)
    halves = small.resume(tmp_path / "halves")
    assert halves.student_hash == whole.student_hash
    assert small.rows(tmp_path / "halves") == small.rows(tmp_path / "whole")
    assert halves.test == whole.test
    assert any(" -> " in note and "parameters" in note for note in whole.notices)
