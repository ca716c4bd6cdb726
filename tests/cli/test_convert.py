import json

import pytest
import torch
from safetensors.torch import load_file

from limbeck.models import create_model, load_weights


@pytest.fixture
def published(tmp_path):
    """A teacher's file as the benchmark's codes save it, and its network."""
    network = create_model("resnet8", num_classes=10, seed=3)
    path = tmp_path / "ckpt_epoch_240.pth"
    prefixed = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 240, "model": prefixed}, path)
    return path, network


def test_a_published_file_becomes_safetensors_of_the_same_weights(limbeck, published, tmp_path):
    path, network = published
    answer = limbeck("convert", path, "--model", "resnet8", "--output", tmp_path / "t.safetensors")
    assert (answer.code, answer.err) == (0, "")
    found = load_file(tmp_path / "t.safetensors")
    state = network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert "10 classes" in answer.out
    assert f"--teacher resnet8 --teacher-checkpoint {tmp_path / 't.safetensors'}" in answer.out
    load_weights(create_model("resnet8", num_classes=10), tmp_path / "t.safetensors")


def test_the_output_stands_beside_the_file_where_none_is_named(limbeck, published):
    path, network = published
    answer = limbeck("convert", path, "--model", "resnet8", "--json")
    output = path.with_suffix(".safetensors")
    assert output.exists()
    assert json.loads(answer.out) == {
        "model": "resnet8",
        "output": str(output),
        "num_classes": 10,
        "in_chans": 3,
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def test_nothing_is_overwritten(limbeck, published, tmp_path):
    path, _ = published
    (tmp_path / "old").write_text("mine")
    answer = limbeck("convert", path, "--model", "resnet8", "--output", tmp_path / "old")
    assert answer.code == 2
    assert "exists; name another with --output" in answer.err
    assert (tmp_path / "old").read_text() == "mine"
    save = path.with_suffix(".safetensors")
    limbeck("convert", path, "--model", "resnet8")
    answer = limbeck("convert", save, "--model", "resnet8")  # which would be its own output
    assert (answer.code, answer.out) == (2, "")


@pytest.mark.parametrize(
    ("model", "message"),
    [("resnet14", "missing in the file"), ("resnet-8", "did you mean 'resnet8'")],
)
def test_a_file_of_another_network_writes_nothing(model, message, limbeck, published):
    path, _ = published
    answer = limbeck("convert", path, "--model", model)
    assert answer.code == 2
    assert message in answer.err
    assert list(path.parent.iterdir()) == [path]
