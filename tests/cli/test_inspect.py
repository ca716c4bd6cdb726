import json

import pytest
import torch

from limbeck.features import FeatureTap
from limbeck.models import MODELS, create_model

NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.ModuleDict({"[red]": nn.Conv2d(3, 4, 3), "a b": nn.ReLU()})
        self.idle = nn.Linear(5, 6)
        self.head = nn.Linear(4, num_classes)

    def forward(self, image):
        x = self.body["a b"](self.body["[red]"](image))
        return self.head(x.mean((2, 3)))

def make(num_classes):
    return Net(num_classes)

class Twice(Net):
    def forward(self, image):
        return super().forward(image), super().forward(image)

def twice(num_classes):
    return Twice(num_classes)

def half(num_classes):
    return Net(num_classes).half()
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    return f"{path}:make"


def inspected(limbeck, *arguments):
    answer = limbeck("inspect", *arguments, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_without_a_name_every_network_is_listed(limbeck):
    assert limbeck("inspect").out.splitlines() == list(MODELS)
    assert json.loads(limbeck("inspect", "--json").out) == list(MODELS)


def test_parameters_and_layers_are_those_of_the_network(limbeck):
    found = inspected(limbeck, "resnet20")
    network = create_model("resnet20", num_classes=100)
    assert found["input_shape"] == [3, 32, 32]
    assert found["num_parameters"] == sum(p.numel() for p in network.parameters()) == 278_324
    assert {row["name"] for row in found["layers"]} <= dict(network.named_modules()).keys()


def test_every_name_that_is_printed_can_be_tapped_and_has_that_shape(limbeck):
    found = inspected(limbeck, "digits_cnn_tiny")
    shapes = {row["name"]: row["output_shape"] for row in found["layers"] + found["meanings"]}
    assert shapes.pop("halve") == [8, 2, 2]  # it runs twice, so each call has its own name
    shapes |= {"halve#1": [4, 4, 4], "halve#2": [8, 2, 2]}
    network = create_model("digits_cnn_tiny", num_classes=10, in_chans=1).eval()
    for name, shape in shapes.items():
        with FeatureTap(network, [name]) as tap:
            assert list(tap(torch.zeros(2, 1, 8, 8)).features[name].shape) == [2, *shape]
    assert {"stage1", "stage2", "penultimate"} <= shapes.keys()


def test_a_layer_that_runs_twice_is_shown_with_its_calls(limbeck):
    calls = {row["name"]: row["num_calls"] for row in inspected(limbeck, "digits_cnn")["layers"]}
    assert calls.pop("halve") == 2
    assert set(calls.values()) == {1}
    assert "halve (#1 to #2)" in limbeck("inspect", "digits_cnn").out


def test_classes_channels_and_size_can_be_chosen(limbeck):
    found = inspected(
        limbeck, "resnet8", "--num-classes", "7", "--in-chans", "1", "--img-size", "16"
    )
    assert found["input_shape"] == [1, 16, 16]
    assert found["layers"][0]["output_shape"] == [16, 16, 16]
    assert found["layers"][-1]["output_shape"] == [7]
    assert inspected(limbeck, "digits_cnn", "--num-classes", "7")["num_classes"] == 7


def test_a_runs_student_has_the_runs_classes_and_images(limbeck, runs):
    found = inspected(limbeck, runs / "student")
    assert (found["num_classes"], found["input_shape"]) == (10, [1, 8, 8])


def test_a_network_of_ones_own_is_shown_with_names_as_they_stand(limbeck, own):
    answer = limbeck("inspect", own)
    assert answer.code == 0
    rows = [line.split("  ")[0] for line in answer.out.splitlines()]
    assert {"body.[red]", "body.a b", "head"} <= set(rows)
    assert "not called" in next(line for line in answer.out.splitlines() if "idle" in line)
    found = inspected(limbeck, own)
    meanings = {row["name"]: row for row in found["meanings"]}
    assert meanings["penultimate"]["address"] == "head:input"
    assert meanings["penultimate"]["output_shape"] == [4]
    assert [name for name, row in meanings.items() if row["rule"]] == ["stage1", "last"]


@pytest.mark.parametrize("width", [80, 120])
def test_names_and_numbers_are_whole_on_a_narrow_terminal(width, limbeck, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = limbeck("inspect", "resnet32x4").out.splitlines()
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if line.startswith("layer1.0.downsample.0"))
    assert row.split()[-2:] == ["2,048", "2,097,152"]


@pytest.mark.parametrize(
    ("function", "note"),
    [
        ("make", None),
        ("half", "Net: its float16 weights are float32 now"),
        ("twice", "can neither learn nor teach as it is: Twice gives 2 outputs"),
    ],
)
def test_what_is_the_matter_with_a_network_is_said(function, note, limbeck, own):
    model = own.replace(":make", f":{function}")
    notes = inspected(limbeck, model)["notes"]
    assert len(notes) == (note is not None)
    if note is not None:
        assert note in notes[0]
        assert note in limbeck("inspect", model).out


# -- pairs -------------------------------------------------------------------------------------

PAIR = ("--teacher", "digits_cnn", "--student", "digits_cnn_tiny")


def test_a_pair_is_told_in_json_as_it_is_printed(limbeck):
    found = inspected(limbeck, *PAIR)
    assert (found["image_shape"], found["num_classes"]) == ([1, 8, 8], 10)
    for whose, name in (("teacher", "digits_cnn"), ("student", "digits_cnn_tiny")):
        network = create_model(name, num_classes=10, in_chans=1)
        assert found[whose]["name"] == name
        assert found[whose]["num_parameters"] == sum(p.numel() for p in network.parameters())
    printed = " ".join(limbeck("inspect", *PAIR).out.split())
    for whose in ("teacher", "student"):
        for number in ("num_parameters", "num_macs", "num_bytes"):
            assert f"{found[whose][number]:,}" in printed
    for layer in found["layers"]:
        assert f" {layer['name']} " in printed
        for place in (layer["teacher"], layer["student"]):
            assert place is None or place["address"] in printed
    for row in found["attachments"]:
        assert row["method"] in printed
        for line in (*row["attaches"], row["refusal"] or ""):
            assert " ".join(line.split()) in printed


def test_methods_that_attach_alike_share_a_block(limbeck):
    lines = limbeck("inspect", *PAIR).out.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("cc_kernel, irg, pkt,"))
    assert lines[start].endswith("rkd: no parameters")
    assert lines[start + 1].startswith("    student penultimate ")
    assert lines[start + 2] == ""
    alone = next(line for line in lines if line.startswith("These read outputs alone: "))
    assert {"kd,", "dkd,"} <= set(alone.split())


def test_a_refusal_stands_in_its_methods_place(limbeck, own):
    """The network of the file has neither a batch-norm nor a second stage."""
    answer = limbeck("inspect", "--teacher", own, "--student", own)
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    start = lines.index("fitnet (hint), fitnet_one_stage: do not take this pair")
    assert lines[start + 1].startswith("    no layer called 'stage2'; did you mean 'stage1'?")
    assert "body.a b*" in answer.out
    assert "rkd: no parameters" in answer.out


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_a_run_can_be_either_side(whose, limbeck, runs):
    other = "student" if whose == "teacher" else "teacher"
    found = inspected(limbeck, f"--{whose}", runs / "student", f"--{other}", "digits_cnn")
    assert (found["image_shape"], found["num_classes"]) == ([1, 8, 8], 10)
    assert found[whose]["name"] == str(runs / "student")


def test_a_pairs_classes_channels_and_size_can_be_chosen(limbeck):
    options = ("--num-classes", "7", "--in-chans", "1", "--img-size", "16")
    found = inspected(limbeck, "--teacher", "resnet14", "--student", "resnet8", *options)
    assert (found["image_shape"], found["num_classes"]) == ([1, 16, 16], 7)
    assert found["student"]["input_shape"] == [1, 16, 16]


@pytest.mark.parametrize("width", [80, 100])
def test_a_pair_fits_a_narrow_terminal(width, limbeck, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = limbeck("inspect", *PAIR).out.splitlines()
    assert max(map(len, lines)) <= width
    names = {line.split(" ")[0] for line in lines}
    assert {"stage1", "pre_activation:stage1", "penultimate"} <= names
