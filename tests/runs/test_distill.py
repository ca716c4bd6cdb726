import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import limbeck
from limbeck.core.errors import RunFolderError, SettingsError, TeacherChangedError
from limbeck.core.normalization import Normalization, Normalize
from limbeck.engine.loop import InterruptedRun
from limbeck.runs.distill import distill
from limbeck.runs.networks import load_student

SETTINGS = {
    "data": {"fraction": 0.25, "split_seed": 0},
    "schedule": {"epochs": 1, "sched": "cosine"},
    "train": {"batch_size": 32, "device": "cpu"},
}


@pytest.fixture
def call(small, tmp_path):
    """A small distillation of names, any argument changed."""

    def run(**changes):
        fields = {
            "student": "digits_cnn_tiny",
            "teacher": small.teacher,
            "data": "digits",
            "output": tmp_path / "run",
            "settings": SETTINGS,
        }
        return distill(**fields | changes)

    return run


def network(num_classes=4, *, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(256, num_classes),
        )


def state(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


TOY = {"schedule": {"epochs": 1, "sched": "cosine"}, "train": {"batch_size": 10, "device": "cpu"}}


@pytest.fixture
def toy(small, tmp_path):
    """The same with modules and a bundle of four classes."""

    def run(**changes):
        fields = {
            "student": network(),
            "teacher": network(seed=1),
            "data": small.bundle(),
            "output": tmp_path / "run",
            "settings": TOY,
        }
        return distill(**fields | changes)

    return run


def test_names_alone_make_a_run(call, small, tmp_path):
    summary = call(method="fitnet_one_stage", seed=5)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (summary.method, summary.seed) == ("fitnet_one_stage", 5)
    assert config["teacher"]["run"] == small.teacher
    assert config["data"]["fraction"] == 0.25
    assert summary.teacher_hash == limbeck.teacher.state_hash(
        load_student(small.teacher)[0].network
    )


def test_method_settings_and_name_are_one_choice(call, tmp_path):
    call(settings={**SETTINGS, "method": {"temperature": 2}}, output=tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["method"]["name"] == "kd"
    assert config["method"]["temperature"] == 2


def test_no_setting_is_dropped_in_silence(call, small, tmp_path):
    own = Normalization(mean=(0.25,), std=(0.5,))
    weights = str(Path(small.teacher) / "student.safetensors")
    student = {"initial_checkpoint": weights}
    teacher = {"normalization": own.plain()}
    call(settings={**SETTINGS, "student": student, "teacher": teacher})
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["student"]["initial_checkpoint"] == weights
    assert config["teacher"]["normalization"] == own.plain()


def test_a_misspelt_setting_is_refused(call, tmp_path):
    with pytest.raises(SettingsError, match="did you mean 'schedule'"):
        call(settings={"shedule": {"epochs": 1}})
    assert not (tmp_path / "run").exists()


def test_a_teacher_by_name_has_its_checkpoint(call, small, tmp_path):
    checkpoint = f"{small.teacher}/student.safetensors"
    call(teacher="digits_cnn_tiny", teacher_checkpoint=checkpoint)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["teacher"]["name"], config["teacher"]["run"]) == ("digits_cnn_tiny", None)


def test_without_a_teacher_cross_entropy_trains(toy):
    summary = toy(teacher=None, method="ce")
    assert (summary.teacher, summary.teacher_hash) == (None, None)


def test_modules_are_trained_and_frozen_in_place(toy, tmp_path):
    student, teacher = network(), network(seed=1)
    before = state(teacher)
    summary = toy(student=student, teacher=teacher)
    assert limbeck.teacher.state_hash(student) == summary.student_hash
    assert equal(state(teacher), before)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert not student.training
    assert not teacher.training
    hooks = sum(len(part._forward_hooks) for part in student.modules())
    assert hooks == 0
    card = json.loads((tmp_path / "run" / "student.json").read_text())
    assert card["model"] == "python:Sequential"


def test_the_module_ends_as_what_is_exported_also_with_an_average(toy, tmp_path):
    student = network()
    settings = {**TOY, "train": {**TOY["train"], "model_ema_decay": 0.5}}
    summary = toy(student=student, settings=settings)
    assert limbeck.teacher.state_hash(student) == summary.student_hash


def test_each_network_has_its_own_normalisation(toy, small, tmp_path):
    ours = Normalization(mean=(0.5,), std=(0.5,))
    theirs = Normalization(mean=(0.1,), std=(0.9,))
    teacher = network(seed=1)
    summary = toy(teacher=teacher, student_normalization=ours, teacher_normalization=theirs)
    test = small.bundle().test
    image = Normalize(theirs)(test.images / 255)
    top1 = (teacher(image).argmax(1) == test.labels).double().mean().item()
    assert summary.teacher_test["top1"] == pytest.approx(top1)
    card = json.loads((tmp_path / "run" / "student.json").read_text())
    assert card["normalization"] == ours.plain()


def test_several_modules_teach_each_with_its_own_normalisation(toy, small, tmp_path):
    """As one module that normalises for itself and gives the log of the mean probability."""
    one, other = network(seed=1), network(seed=2)
    own = Normalization(mean=(0.1,), std=(0.2,))

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.normalize = one, other, Normalize(own)

        def forward(self, image):
            data = Normalize(small.bundle().normalization)
            each = self.one(self.normalize(image)), self.other(data(image))
            return torch.stack([z.softmax(dim=1) for z in each]).mean(dim=0).log()

    several = toy(teacher=[one, other], teacher_normalization=[own, None])
    joined = toy(
        teacher=Both(),
        teacher_normalization=Normalization(),
        output=tmp_path / "joined",
    )
    assert several.teacher == "python:Sequential + python:Sequential"
    assert several.teacher_val["top1"] == joined.teacher_val["top1"]
    ours, theirs = (load_student_weights(tmp_path / name) for name in ("run", "joined"))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


def load_student_weights(folder):
    return load_file(folder / "student.safetensors")


def test_several_teachers_by_name_have_their_checkpoints(call, small, tmp_path):
    checkpoints = [f"{small.teacher}/student.safetensors", small.several[1]["checkpoint"]]
    summary = call(
        teacher=["digits_cnn_tiny", "digits_cnn"],
        teacher_checkpoint=checkpoints,
        method="multi_teacher",
    )
    assert [one.name for one in summary.teachers] == ["digits_cnn_tiny", "digits_cnn"]
    again = call(
        teacher=[small.teacher, "digits_cnn"],
        teacher_checkpoint=[None, checkpoints[1]],
        method="multi_teacher",
        output=tmp_path / "again",
    )
    assert again.student_hash == summary.student_hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_checkpoint": "one"}, "list with an entry, or None, for each of the 2 teachers"),
        ({"teacher_normalization": [None]}, "teacher_normalization must be a list"),
        ({"settings": {"teacher": {"img_size": 8}}}, "is of one teacher, and there are 2"),
    ],
)
def test_what_is_of_one_teacher_is_not_given_to_several(call, small, changes, message):
    with pytest.raises(SettingsError, match=message):
        call(teacher=[small.teacher, "digits_cnn"], **changes)


def test_torch_data_sets_are_data_too(toy):
    generator = torch.Generator().manual_seed(0)
    train, test = (
        TensorDataset(torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 4)
        for n in (40, 12)
    )
    summary = toy(data=(train, test))
    assert summary.last.val is not None
    assert summary.test is not None


def test_a_second_call_continues_an_interrupted_run_in_the_same_process(toy, small, tmp_path):
    """With the very modules of the first call, whose hooks and modes are as they were."""
    whole = toy(output=tmp_path / "whole", method="fitnet", settings=FITNET)
    student, teacher = network(), network(seed=1)

    def stop():
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)

    for stage in ("hint", "distil"):
        with pytest.raises(InterruptedRun):
            toy(
                student=student,
                teacher=teacher,
                method="fitnet",
                settings=FITNET,
                observer=small.Act(stage, 2, stop),
            )
        assert student(torch.rand(2, 1, 8, 8)).shape == (2, 4)  # no stop is left in it
    summary = toy(student=student, teacher=teacher, method="fitnet", settings=FITNET)
    assert summary.student_hash == whole.student_hash


FITNET = {
    **TOY,
    "method": {"student_layer": "1", "teacher_layer": "1"},
    "schedule": {"epochs": 2, "sched": "cosine"},
}


def test_a_call_for_a_finished_run_gives_its_summary_and_its_weights(toy):
    summary = toy()
    again = network(seed=7)
    assert toy(student=again) == summary
    assert limbeck.teacher.state_hash(again) == summary.student_hash


def test_other_settings_do_not_continue_a_run(toy):
    toy()
    with pytest.raises(SettingsError, match=r"other settings \(optim differ\)"):
        toy(settings={**TOY, "optim": {"lr": 0.2}})


def interrupted(toy, small):
    import os
    import signal

    with pytest.raises(InterruptedRun):
        toy(observer=small.Act("train", 2, lambda: os.kill(os.getpid(), signal.SIGTERM)))


def test_another_teacher_does_not_continue_a_run(toy, small):
    interrupted(toy, small)
    with pytest.raises(TeacherChangedError, match="begun with another teacher"):
        toy(teacher=network(seed=2))


def test_other_data_do_not_continue_a_run(toy, small):
    interrupted(toy, small)
    with pytest.raises(RunFolderError, match="other images, labels or splits"):
        toy(data=small.bundle(size=44))
