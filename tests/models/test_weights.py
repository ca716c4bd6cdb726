import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from limbeck.core.errors import CheckpointError, RunFolderError
from limbeck.models.weights import load_weights, save_weights


class Small(nn.Module):
    def __init__(self, *, width=4, num_classes=3, layers=1):
        super().__init__()
        self.body = nn.ModuleList(nn.Conv2d(1, width, 3) for _ in range(layers))
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)


def make(seed=0, **sizes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small(**sizes)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused(path, network=None):
    """The message with which a file is refused; the network is as it was."""
    network = make(seed=1) if network is None else network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, path)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    message = str(caught.value)
    assert str(path) in message
    return message


# Writing


def test_what_was_saved_comes_back_and_torch_alone_can_read_it(tmp_path):
    network, path = make(), tmp_path / "w.safetensors"
    save_weights(network.state_dict(), path, {"limbeck": "{}"})
    plain = make(seed=1)
    plain.load_state_dict(load_file(path))
    assert same(plain, network)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"limbeck": "{}"}
    again = make(seed=1)
    load_weights(again, str(path))
    assert same(again, network)


def test_tied_transposed_and_empty_tensors_are_kept(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    image = torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last)
    state = {"a": weight, "b": weight, "t": weight.t(), "none": weight[:0], "image": image}
    save_weights(state, tmp_path / "w")
    found = load_file(tmp_path / "w")
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_full_disk_keeps_the_old_file(tmp_path, full_disk):
    path = tmp_path / "w.safetensors"
    save_weights({"x": torch.ones(1)}, path)
    with full_disk(), pytest.raises(RunFolderError, match="could not be written"):
        save_weights({"x": torch.zeros(10_000)}, path)
    assert list(tmp_path.iterdir()) == [path]
    assert load_file(path)["x"] == 1


def test_others_may_read_the_file(tmp_path):
    old = os.umask(0o022)
    try:
        save_weights({"x": torch.ones(1)}, tmp_path / "w")
    finally:
        os.umask(old)
    assert (tmp_path / "w").stat().st_mode & 0o777 == 0o644


# Files of torch.save


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_what_training_scripts_save_is_read(tmp_path, wrap, prefix):
    network = make()
    content = {prefix + name: value for name, value in network.state_dict().items()}
    if wrap is not None:
        content = {wrap: content, "epoch": 240, "best_acc": torch.tensor(0.7)}
    torch.save(content, tmp_path / "w.pth")
    again = make(seed=1)
    load_weights(again, tmp_path / "w.pth")
    assert same(again, network)


@pytest.mark.parametrize("modern", [True, False])
def test_the_content_counts_and_not_the_name(tmp_path, modern):
    network = make()
    path = tmp_path / "w.safetensors"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=modern)
    again = make(seed=1)
    load_weights(again, path)
    assert same(again, network)


def test_a_network_whose_own_layers_are_called_module_keeps_their_names(tmp_path):
    network = nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save(network.state_dict(), tmp_path / "w.pt")
    again = nn.ModuleDict({"module": nn.Linear(2, 2)})
    load_weights(again, tmp_path / "w.pt")
    assert same(again, network)


def test_counters_that_old_files_lack_are_not_missed(tmp_path):
    network = make()
    state = network.state_dict()
    del state["norm.num_batches_tracked"]
    save_weights(state, tmp_path / "w")
    again = make(seed=1)
    load_weights(again, tmp_path / "w")
    assert same(again, network)


# Hostile files


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def evil_files(folder):
    """Every way a pickle may be wrapped, and what is in it."""
    marker = folder / "marker"
    state = make().state_dict()
    for name, content in {"bare": Evil(marker), "inside": {**state, "x": Evil(marker)}}.items():
        torch.save(content, folder / f"{name}.pt")
        torch.save(content, folder / f"{name}.old", _use_new_zipfile_serialization=False)
        for protocol in (2, 4, 5):
            (folder / f"{name}.pkl{protocol}").write_bytes(pickle.dumps(content, protocol))
    return sorted(folder.iterdir()), marker


def test_no_code_in_a_file_is_run(tmp_path):
    files, marker = evil_files(tmp_path)
    assert len(files) == 10
    for path in files:
        assert "runs code that is in it" in refused(path)
        assert not marker.exists()
    with (tmp_path / "bare.pkl2").open("rb") as file:
        pickle.load(file)  # the files are what they should be
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (make(), "test_weights.Small"),
        ({"state_dict": make().state_dict(), "accuracy": np.float64(0.7)}, "numpy"),
    ],
    ids=["module", "numpy"],
)
def test_objects_are_named_and_the_message_says_how_to_convert(tmp_path, content, named):
    torch.save(content, tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt")
    assert named in message
    assert "safetensors.torch.save_file(network.state_dict()" in message
    assert "weights_only" not in message  # torch's own advice is to switch the check off


# Damaged files


@pytest.fixture(params=["safetensors", "zip", "pickle"])
def whole(request, tmp_path):
    """A file of weights large enough to be hit between its names, in each format."""
    path = tmp_path / "w"
    state = make(width=64).state_dict()
    if request.param == "safetensors":
        save_weights(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_damaged(whole, share):
    data = whole.read_bytes()
    whole.write_bytes(data[: int(share * len(data))])
    assert "damaged" in refused(whole, make(width=64))


def test_a_flipped_bit_in_a_torch_file_is_found(tmp_path):
    network, path = make(width=64), tmp_path / "w.pt"
    torch.save(network.state_dict(), path)
    data = bytearray(path.read_bytes())
    at = data.find(network.fc.weight.detach().numpy().tobytes())
    data[at + 5] ^= 1
    path.write_bytes(data)
    assert "damaged" in refused(path, make(seed=1, width=64))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"PK", "no file of weights"),
        (b"these are no weights\n" * 9, "no file of weights"),
        (b"<!DOCTYPE html>", "no file of weights"),
        (b"\x80\x02", "damaged"),
        (b"\x10\0\0\0\0\0\0\0{", "damaged"),
    ],
    ids=["empty", "two bytes", "text", "web page", "pickle", "header"],
)
def test_what_is_no_file_of_weights_is_told_apart(tmp_path, data, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    assert message in refused(path)


def test_a_zip_of_something_else_is_no_file_of_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("images/0.png", b"x")
    assert "a zip without a state dict" in refused(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "should hold a state dict, and holds Tensor"),
        ({}, "holds an empty one"),
        ({"epoch": 3, "net": {"fc.weight": torch.ones(1)}}, "these entries are none: epoch, net"),
        ({"state_dict": {"fc.weight": [1.0]}}, "these entries are none: fc.weight"),
    ],
)
def test_a_torch_file_without_a_state_dict_says_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    assert message in refused(tmp_path / "w.pt")


def test_a_missing_file_a_folder_and_a_locked_file_are_told_apart(tmp_path, monkeypatch):
    assert "is not there" in refused(tmp_path / "no.pt")
    assert "is a folder; give the file" in refused(tmp_path)
    path = tmp_path / "w"
    path.touch()

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)  # root may read everything
    assert "cannot be read: Permission denied" in refused(path)


# Weights of another network


def test_another_number_of_classes_is_named_as_such(tmp_path):
    save_weights(make(num_classes=100).state_dict(), tmp_path / "w")
    message = refused(tmp_path / "w", make(num_classes=10))
    assert "was made for 100 classes, this Small has 10" in message
    assert "fc.weight" not in message


def test_another_architecture_lists_what_differs(tmp_path):
    save_weights(make(layers=2).state_dict(), tmp_path / "w")
    assert "unknown to the network (2): body.1.bias, body.1.weight" in refused(tmp_path / "w")
    save_weights(make().state_dict(), tmp_path / "w")
    message = refused(tmp_path / "w", make(layers=2))
    assert "missing in the file (2): body.1.weight, body.1.bias" in message
    assert "unknown" not in message


def test_another_width_lists_the_shapes(tmp_path):
    save_weights(make(width=8).state_dict(), tmp_path / "w")
    message = refused(tmp_path / "w")
    assert "body.0.weight (8, 1, 3, 3) float32, not (4, 1, 3, 3) float32" in message
    assert "classes" not in message


def test_both_together_are_another_network_and_not_other_classes(tmp_path):
    save_weights(make(layers=2, num_classes=100).state_dict(), tmp_path / "w")
    message = refused(tmp_path / "w")
    assert "body.1.weight" in message
    assert "fc.weight (100, 4) float32, not (3, 4) float32" in message


def test_a_long_list_is_cut_and_counted(tmp_path):
    save_weights(make(layers=50).state_dict(), tmp_path / "w")
    message = refused(tmp_path / "w")
    assert "unknown to the network (98)" in message
    assert len(message) < 600


def test_whole_numbers_are_no_weights(tmp_path):
    """A quantised file, loaded as it stands, would fill the network with nonsense."""
    state = make().state_dict()
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    save_weights(state, tmp_path / "w")
    assert "fc.weight (3, 4) int8, not (3, 4) float32" in refused(tmp_path / "w")


def test_half_precision_is_widened(tmp_path):
    network = make()
    save_weights({k: v.half() for k, v in network.state_dict().items()}, tmp_path / "half")
    with pytest.raises(CheckpointError, match="num_batches_tracked"):  # a counter is no weight
        load_weights(make(seed=1), tmp_path / "half")
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_weights(state, tmp_path / "half")
    again = make(seed=1)
    load_weights(again, tmp_path / "half")
    assert again.fc.weight.dtype == torch.float32
    torch.testing.assert_close(again.fc.weight, network.fc.weight, rtol=1e-3, atol=1e-4)


def test_a_classifier_of_another_width_is_another_network(tmp_path):
    save_weights(nn.Linear(8, 100).state_dict(), tmp_path / "w")
    message = refused(tmp_path / "w", nn.Linear(4, 10))
    assert "weight (100, 8) float32, not (10, 4) float32" in message
    assert "was made for 100 classes" in refused(tmp_path / "w", nn.Linear(8, 10))


def test_a_network_without_a_linear_layer_is_compared_too(tmp_path):
    save_weights(nn.Conv2d(1, 2, 1).state_dict(), tmp_path / "w")
    assert "of another form (2)" in refused(tmp_path / "w", nn.Conv2d(1, 3, 1))
