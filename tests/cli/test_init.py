"""Exit codes, and every kind of bad input: a message that helps, and nothing half-written."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from limbeck.core.errors import ModelError
from limbeck.engine.loop import InterruptedRun
from limbeck.models import create_model

NETWORKS = """
from torch import nn

def seven(num_classes, in_chans=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def good(num_classes, in_chans=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def failing(num_classes):
    raise KeyError("no such thing")
"""


class Trap:
    """A pickle of it makes the folder ``ran`` when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "ran"),)


def cifar_with_label(folder, label):
    """The smallest CIFAR-10 of torchvision's form, its last training image so labelled."""
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    pixels = np.zeros((10, 3072), dtype=np.uint8)
    names = [f"data_batch_{part}" for part in range(1, 6)] + ["test_batch"]
    for name in names:
        labels = [*range(9), label if name == "data_batch_5" else 9]
        (place / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}, protocol=2))
    meta = {"label_names": [f"class {k}" for k in range(10)]}
    (place / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


@pytest.fixture(scope="module")
def bad(tmp_path_factory, runs, picture):
    """A folder with one file or folder for each way of being wrong."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "net.py").write_text(NETWORKS)

    weights = folder / "weights"
    weights.mkdir()
    whole = (runs / "teacher" / "student.safetensors").read_bytes()
    (weights / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (weights / "empty.safetensors").touch()
    (weights / "text.pth").write_text("these are no weights\n" * 9)
    (weights / "trap.pkl").write_bytes(pickle.dumps(Trap(folder)))
    torch.save({"weight": torch.zeros(2), "trap": Trap(folder)}, weights / "trap.pth")
    for name, model, classes in (("large", "digits_cnn", 10), ("seven", "digits_cnn_tiny", 7)):
        network = create_model(model, num_classes=classes, in_chans=1)
        save_file(network.state_dict(), weights / f"{name}.safetensors")

    data = folder / "data"
    for place in ("good/cat", "good/dog", "good/eel", "one/cat", "hollow/cat", "hollow/dog"):
        for number in range(4):
            picture(data / place / f"{number}.png", seed=number)
    (data / "nothing").mkdir()
    (data / "hollow" / "eel").mkdir()
    for place in ("train/cat", "train/dog", "test/cat", "test/dgo"):
        picture(data / "unequal" / place / "0.png")
    shutil.copytree(data / "good", data / "torn")
    (data / "torn" / "dog" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    shutil.copytree(data / "good", data / "sizes")
    picture(data / "sizes" / "dog" / "2.png", size=(9, 8))
    cifar_with_label(data / "cifar", 10)

    config = json.loads((runs / "student" / "config.json").read_text())
    files = {
        "code": config | {"student": {"name": f"{folder}/net.py:good"}},
        "code_teacher": config
        | {"teacher": {"name": f"{folder}/net.py:good", "checkpoint": "weights"}},
        "code_assistant": config
        | {"method": {"name": "takd", "assistants": [f"{folder}/net.py:good"]}},
        "list": [config],
        "flat": config | {"method": "kd"},
        "unknown": config | {"colour": "red", "optim": {"lr": 0.1, "momentun": 0.9}},
    }
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    (folder / "torn.json").write_text('{"seed": 0')
    (folder / "deep.json").write_text("[" * 100_000)

    shutil.copytree(runs / "student", folder / "code_run")
    card = json.loads((folder / "code_run" / "student.json").read_text())
    card["model"] = f"{folder}/net.py:good"
    (folder / "code_run" / "student.json").write_text(json.dumps(card))
    (folder / "code_run" / "config.json").write_text(json.dumps(files["code"]))
    (folder / "begun").mkdir()
    (folder / "begun" / "config.json").write_text(json.dumps(files["code"]))
    return folder


# {quick}: the options of a quick run; a case may repeat one of them, and the last one counts.
TRAIN = "train --student digits_cnn_tiny --output {out} {quick}"
DISTILL = "distill --student digits_cnn_tiny --teacher {runs}/teacher --output {out} {quick}"
BY_NAME = "distill --student digits_cnn_tiny --teacher digits_cnn_tiny --output {out} {quick}"
FOLDER = "train --student digits_cnn_tiny --output {out} {quick} --dataset image_folder"
OWN = "--output {out} {quick}"

# Name: (arguments, what the message holds).
CASES = {
    "unknown command": ("distil", "No such command 'distil'", "distill"),
    "unknown option": (f"{TRAIN} --epoch 3", "--epoch", "--epochs"),
    "no output": ("train --student digits_cnn_tiny", "--output"),
    "no student": ("train --output {out}", "student: required"),
    "not a number": (f"{TRAIN} --epochs many", "schedule.epochs:", "integer", "'many'"),
    "not a list": (f"{TRAIN} --decay-epochs 3,x", "--decay-milestones", "150,180,210", "'3,x'"),
    # names
    "unknown method": (f"{DISTILL} --method fitnets", "'fitnets'", "did you mean 'fitnet'"),
    "unknown card": ("methods qqqq", "no method called 'qqqq'; known: at,", "`limbeck methods`"),
    "unknown setting": (f"{TRAIN} --set optim.momentun=0.9", "did you mean 'momentum'?"),
    "unknown part": (f"{TRAIN} --set optin.lr=0.1", "optin: no such setting", "'optim'"),
    "unknown method setting": (f"{DISTILL} --set method.temprature=2", "'temperature'"),
    "another method's setting": (f"{DISTILL} --method rkd --kd-temperature 2", "temperature"),
    "unknown model": ("train --student resnet32x8 --output {out}", "did you mean", "'resnet32x4'"),
    "unknown model to inspect": ("inspect resnet8x5", "did you mean", "'resnet8x4'"),
    "unknown model in a pair": (
        "inspect --teacher resnet8 --student resnt18",
        "'ResNet18'",
        "'torchvision/resnet18'",
        "'timm/resnet18'",
    ),
    "half a pair": ("inspect --teacher resnet8", "by --teacher and --student; got --teacher"),
    "a pair and a model": ("inspect resnet8 --teacher resnet8 --student resnet8", "got MODEL"),
    "a run in a pair at another size": (
        "inspect --teacher {runs}/teacher --student resnet8 --img-size 9",
        "leave out",
    ),
    "unknown layer": (
        f"{DISTILL} --method rkd --set method.student_layer=stage_2",
        "no layer called 'stage_2'; did you mean 'stage2'",
        "limbeck inspect",
    ),
    "unreadable layer": (f"{DISTILL} --method rkd --set method.student_layer=a#b", "name#2"),
    "unknown split": ("eval {runs}/student --split vall", "did you mean 'val'?"),
    # values
    "seed": (f"{TRAIN} --set seed=x", "seed:", "valid integer", "got 'x'"),
    "data, number": (f"{TRAIN} --val-fraction 1", "data.val_fraction: ", "less than 1; got '1'"),
    "data, name": (f"{TRAIN} --dataset mnist", "data.dataset:", "'digits'", "got 'mnist'"),
    "data, choice": (f"{TRAIN} --in-chans 2", "data.in_chans:", "1 or 3; got '2'"),
    "augment": (f"{TRAIN} --crop-padding -1", "data.augment.crop_padding:", "got '-1'"),
    "student": (f"{TRAIN} --set student.name=3", "student.name:", "valid string; got 3"),
    "teacher": (f"{DISTILL} --set teacher=3", "teacher:", "got 3"),
    "method": (f"{DISTILL} --set method=kd", "method:", "valid dictionary; got 'kd'"),
    "method, number": (f"{DISTILL} --kd-temperature 0", "temperature:", "greater than 0; got '0'"),
    "smoothing": (f"{TRAIN} --smoothing 1", "label_smoothing:", "less than 1; got '1'"),
    "optim": (f"{TRAIN} --lr nan", "optim.lr:", "finite number; got 'nan'"),
    "optim, choice": (f"{TRAIN} --opt adam", "optim.opt:", "'sgd' or 'adamw'; got 'adam'"),
    "schedule": (f"{TRAIN} --epochs 0", "schedule.epochs:", "greater than 0; got '0'"),
    "schedule, choice": (f"{TRAIN} --sched linear", "schedule.sched:", "got 'linear'"),
    "schedule, too short": (
        "train --student digits_cnn_tiny --output {out} --epochs 5",
        "never reached: epochs is 5",
        "--sched cosine",
    ),
    "train": (f"{TRAIN} -b 0", "train.batch_size:", "greater than 0; got '0'"),
    "train, choice": (f"{TRAIN} --amp-dtype int8", "train.amp_dtype:", "got 'int8'"),
    "single value": (f"{TRAIN} --set seed.x=1", "seed: Input should be a valid integer"),
    "no equals sign": (f"{TRAIN} --set optim.lr", "'a.b=value'", "'optim.lr'"),
    "all at once": (f"{TRAIN} --lr 0 --opt adam --epochs 0", "optim.lr", "optim.opt", "epochs"),
    # teachers
    "train with a teacher": (f"{TRAIN} --set teacher.run=x", "limbeck distill"),
    "train with a method": (f"{TRAIN} --set method.name=kd", "limbeck distill"),
    "no teacher": ("distill --student digits_cnn_tiny " + OWN, "'kd' needs a teacher (--teacher)"),
    "teacher of no use": (f"{DISTILL} --method ce", "'ce' uses no teacher"),
    "teacher without weights": (
        f"{DISTILL} --set teacher.run=null --set teacher.name=digits_cnn",
        "needs its weights (--teacher-checkpoint FILE)",
    ),
    "weights without teacher": (
        "distill --student digits_cnn_tiny --teacher-checkpoint x " + OWN,
        "teacher: give either run, or name and checkpoint",
    ),
    "teacher is no run": (f"{DISTILL} --teacher {{bad}}", "student.json is missing"),
    "teacher has other classes": (
        f"{DISTILL} --dataset image_folder --data-dir {{bad}}/data/good --fraction 1 "
        "--val-fraction 0 -b 4",
        "trained on 10 classes",
        "the data has 3 (cat, dog, eel)",
        "use a teacher of the same classes",
    ),
    "teacher gives other classes": (
        "distill --student digits_cnn_tiny --teacher {bad}/net.py:seven "
        "--teacher-checkpoint {bad}/seven --output {out} {quick}",
        "{bad}/seven is not there",
    ),
    "student gives other classes": (
        "train --student {bad}/net.py:seven " + OWN,
        "the data has 10 classes, the student gives 7",
    ),
    # further networks
    "no assistants": (f"{DISTILL} --method dgkd", "'dgkd' needs assistants", "--assistants A,B"),
    "assistants of no use": (
        f"{DISTILL} --method kd --assistants resnet8",
        "method 'kd' takes no assistants; those that do: dgkd, takd",
    ),
    "peers of no use": (
        f"{DISTILL} --method takd --assistants resnet8 --peers resnet8",
        "method 'takd' takes no peers; those that do: dml",
    ),
    "no peer": (
        f"distill --student digits_cnn_tiny {OWN} --method dml --peers ,",
        "networks that learn from each other are two at least",
        "--peers",
    ),
    "unknown assistant": (
        f"{DISTILL} --method takd --assistants resnet8,digits_cm",
        "assistant2: no model called 'digits_cm'; did you mean 'digits_cnn'",
        "folder",
    ),
    "assistant is no run": (f"{DISTILL} --method takd --assistants {{bad}}", "student.json"),
    "assistant is the student": (
        f"{DISTILL} --method dgkd --assistants digits_cnn_tiny",
        "assistant1 'digits_cnn_tiny' is the student's own model",
        "larger than the student",
    ),
    "assistant's run is of the student": (
        f"{DISTILL} --method dgkd --assistants {{runs}}/student",
        "is of the student's own model, 'digits_cnn_tiny'",
    ),
    "all teachers dropped": (
        f"{DISTILL} --method dgkd --assistants resnet8 --set method.drop_count=2",
        "drop_count 2 leaves none of 2 teachers",
    ),
    "teacher of mutual learning": (f"{DISTILL} --method dml", "'dml' uses no teacher"),
    "peer is a run": (
        f"distill --student digits_cnn_tiny {OWN} --method dml --peers {{runs}}/student",
        "peers learn from scratch",
    ),
    "code in settings, assistant": (
        f"{DISTILL} --config {{bad}}/code_assistant.json",
        "net.py:good' is code, and is not run",
    ),
    # weights
    "weights missing": (
        f"{BY_NAME} --teacher-checkpoint {{bad}}/none.pth",
        "none.pth is not there",
    ),
    "weights cut": (f"{BY_NAME} --teacher-checkpoint {{bad}}/weights/cut.safetensors", "cut short"),
    "weights empty": (f"{BY_NAME} --teacher-checkpoint {{bad}}/weights/empty.safetensors", "empty"),
    "weights are text": (f"{BY_NAME} --teacher-checkpoint {{bad}}/weights/text.pth", "no file of"),
    "weights are a folder": (f"{BY_NAME} --teacher-checkpoint {{bad}}/weights", "is a folder"),
    "weights of another": (
        f"{BY_NAME} --teacher-checkpoint {{bad}}/weights/large.safetensors",
        "another network",
        "not (4, 1, 3, 3)",
    ),
    "weights for other classes": (
        f"{BY_NAME} --teacher-checkpoint {{bad}}/weights/seven.safetensors",
        "made for 7 classes",
        "has 10",
    ),
    "weights are a trap": (f"{BY_NAME} --teacher-checkpoint {{bad}}/weights/trap.pth", "mkdir"),
    "weights are a plain trap": (
        f"{TRAIN} --initial-checkpoint {{bad}}/weights/trap.pkl",
        "trap.pkl",
        "not read",
    ),
    # code
    "code in settings": (
        "train --config {bad}/code.json --output {out}",
        "net.py:good' is code, and is not run",
        "--student",
    ),
    "code in settings, teacher": (
        "distill --config {bad}/code_teacher.json --output {out}",
        "net.py:good' is code, and is not run",
    ),
    "other code typed": (
        f"{DISTILL} --teacher {{bad}}/code_run --teacher-model {{bad}}/net.py:seven",
        "net.py:good' is code, and is not run",
    ),
    "code in a run, eval": ("eval {bad}/code_run", "is code, and is not run"),
    "code in a run, predict": ("predict {bad}/code_run x.png", "is code, and is not run"),
    "code in a run, inspect": ("inspect {bad}/code_run", "is code, and is not run"),
    "code in a run, resume": ("resume {bad}/begun", "is code, and is not run"),
    "code in a teacher's run": (f"{DISTILL} --teacher {{bad}}/code_run", "is code, and is not run"),
    "code missing": ("inspect {bad}/nets.py:good", "there is no file"),
    "code without it": ("inspect {bad}/net.py:goood", "did you mean 'good'?"),
    "code fails": ("inspect {bad}/net.py:failing", "KeyError", "no such thing"),
    # settings files
    "config missing": ("train --config {bad}/none.json --output {out}", "--config", "No such file"),
    "config is a folder": ("train --config {bad} --output {out}", "--config", "cannot be read"),
    "config torn": ("train --config {bad}/torn.json --output {out}", "is not JSON"),
    "config too deep": ("train --config {bad}/deep.json --output {out}", "is not JSON"),
    "config is a list": ("train --config {bad}/list.json --output {out}", "JSON object", "list"),
    "config with a flat method": ("distill --config {bad}/flat.json --output {out}", "method:"),
    "config with faults": (
        "distill --config {bad}/unknown.json --output {out}",
        "colour: no such setting",
        "did you mean 'momentum'?",
    ),
    # data
    "data not named": (FOLDER, "'image_folder' needs data_dir"),
    "data missing": (f"{FOLDER} --data-dir {{bad}}/data/none", "{bad}/data/none"),
    "data empty": (f"{FOLDER} --data-dir {{bad}}/data/nothing", "holds no pictures"),
    "data of one class": (f"{FOLDER} --data-dir {{bad}}/data/one", "only one class, 'cat'"),
    "data with an empty class": (
        f"{FOLDER} --data-dir {{bad}}/data/hollow",
        "no pictures in class 'eel'",
    ),
    "data with unequal splits": (
        f"{FOLDER} --data-dir {{bad}}/data/unequal",
        "test: other classes than train",
        "dog",
        "dgo",
    ),
    "data with a torn picture": (f"{FOLDER} --data-dir {{bad}}/data/torn", "dog/2.png"),
    "data of two sizes": (f"{FOLDER} --data-dir {{bad}}/data/sizes", "9 x 8", "image_size"),
    "label out of range": (
        f"{TRAIN} --dataset cifar10 --data-dir {{bad}}/data/cifar",
        "data_batch_5",
        "10",
    ),
    "no CIFAR there": (f"{TRAIN} --dataset cifar100 --data-dir {{bad}}", "cifar-100-python"),
    "batch too large": (f"{TRAIN} -b 5000", "one batch takes 5000 images", "lower batch_size"),
    "too few labels": (f"{TRAIN} --num-labels 5000", "5000"),
    # places
    "output in use": (f"{TRAIN} --output {{runs}}/student", "already holds a run", "--output"),
    "output not empty": (f"{TRAIN} --output {{bad}}", "not an empty folder", "--output"),
    "output is a file": (f"{TRAIN} --output {{bad}}/net.py", "not an empty folder"),
    "output below a file": (f"{TRAIN} --output {{bad}}/net.py/run", "--output"),
    "dry run in use": (f"{TRAIN} --output {{runs}}/student --dry-run", "already holds a run"),
    "resume nothing": ("resume {bad}/none", "config.json is missing"),
    "resume no run": ("resume {bad}/data", "is not a run folder"),
    "eval an unfinished run": ("eval {bad}/begun", "not a finished one"),
    "predict a missing file": ("predict {runs}/student {bad}/none.png", "none.png cannot be read"),
    "predict a folder": ("predict {runs}/student {bad}", "is no file"),
    "predict no picture": ("predict {runs}/student {bad}/net.py", "no picture in any known format"),
    "inspect a run at another size": ("inspect {runs}/student --img-size 9", "leave out"),
    "inspect at a wrong size": ("inspect resnet20 --img-size 1 --in-chans 0", "--in-chans"),
    "demo in use": ("demo --out {bad}", "not an empty folder"),
    # devices
    "no such GPU": (f"{TRAIN} --device cuda:99", "'cuda:99'", "--device cpu"),
    "no such device": (f"{TRAIN} --device tpu", "'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
    "no such GPU to judge on": ("eval {runs}/student --device cuda:99", "--device cpu"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_answered_with_help_and_leaves_nothing(
    case, limbeck, runs, bad, quick, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"out": tmp_path / "out", "runs": runs, "bad": bad, "quick": " ".join(quick)}
    arguments, *expected = (text.format(**places) for text in CASES[case])
    before = {path for folder in (bad, runs) for path in folder.rglob("*")}
    code, out, err = limbeck(*arguments.split())
    assert (code, out) == (2, "")
    for fragment in expected:
        assert fragment in " ".join(err.split()), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    after = {path for folder in (bad, runs) for path in folder.rglob("*")}
    assert {path for path in after ^ before if path.name != "__pycache__"} == set()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ModelError("no such network"), 2, "error: no such network\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "has room, and try again"),
        (PermissionError(errno.EACCES, "Permission denied", "run"), 2, "'run'"),
        (MemoryError(), 2, "--batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "--batch-size"),
        (KeyboardInterrupt(), 130, ""),
        (InterruptedRun(signal.SIGINT), 130, "the state is saved"),
        (InterruptedRun(signal.SIGTERM), 143, "the state is saved"),
        (ValueError("a mistake of ours"), 1, "limbeck doctor"),
        (OSError(errno.ENOENT, "No such file or directory"), 1, "limbeck doctor"),
        (AssertionError(), 1, "AssertionError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_end_has_its_exit_code(raised, code, said, limbeck, monkeypatch):
    def fail(*args, **options):
        raise raised

    monkeypatch.setattr("limbeck.cli.doctor.examine", fail)
    answer = limbeck("doctor")
    assert answer.code == code
    assert said in answer.err
    assert ("Traceback" in answer.err) == (code == 1)


def test_an_error_keeps_its_lines_and_spells_out_what_would_steer_the_terminal(
    limbeck, monkeypatch
):
    def fail(*args, **options):
        raise ModelError("first [red]line\nsecond \x1b[2Jline")

    monkeypatch.setattr("limbeck.cli.doctor.examine", fail)
    assert limbeck("doctor").err == "error: first [red]line\nsecond \\x1b[2Jline\n"


def test_a_full_disk_is_an_error_before_training(limbeck, quick, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    out = tmp_path / "out"
    answer = limbeck("train", "--student", "digits_cnn_tiny", "--output", out, *quick)
    assert answer.code == 2
    assert "No space left on device" in answer.err
    assert "--output" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written_is_an_error_before_training(limbeck, quick):
    answer = limbeck("train", "--student", "digits_cnn_tiny", "--output", "/proc/run", *quick)
    assert answer.code == 2
    assert "/proc cannot be written" in answer.err


def test_what_the_terminal_cannot_encode_is_no_error(limbeck, monkeypatch, capsys):
    def fail(*args, **options):
        raise ModelError("a name: \udcff é")

    monkeypatch.setattr("limbeck.cli.doctor.examine", fail)
    sys.stderr.reconfigure(encoding="ascii")
    assert limbeck("doctor").err == "error: a name: \\udcff \\xe9\n"


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, quick):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "limbeck", "train", "--student", "digits_cnn_tiny"]
    command += ["--output", str(out), *quick, "--epochs", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert first.startswith("train  epoch 1/100000")
    assert process.returncode == 130
    assert f"limbeck resume {out}" in rest
    assert "Traceback" not in rest
    assert list((out / "checkpoints").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_a_reader_that_goes_away_ends_the_program_quietly():
    command = [sys.executable, "-m", "limbeck", "--help"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
