import os
import pkgutil
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from limbeck import models
from limbeck.core.errors import ModelError, UnknownNameError
from limbeck.models import (
    cifar_resnet,
    digits_cnn,
    imagenet_resnet,
    mobilenetv2,
    plane_cnn,
    shufflenetv1,
    shufflenetv2,
    vgg,
    wrn,
)
from limbeck.models.create import MODELS, create_model

FAMILIES = (
    cifar_resnet,
    digits_cnn,
    imagenet_resnet,
    mobilenetv2,
    plane_cnn,
    shufflenetv1,
    shufflenetv2,
    vgg,
    wrn,
)

MINE = """
import torch
from torch import nn

constant = 3

class Net(nn.Linear):
    def __init__(self, num_classes, width=4):
        super().__init__(width, num_classes)

def make_mine(num_classes, in_chans=3):
    return nn.Conv2d(in_chans, num_classes, 1)

def make_any(**settings):
    return nn.Conv2d(settings["in_chans"], settings["num_classes"], 1)

def make_needy(num_classes, width):
    raise AssertionError

def make_fixed():
    raise AssertionError

def make_nothing(num_classes):
    pass

def make_trouble(num_classes):
    raise RuntimeError("no such width")

def make_exit(num_classes):
    raise SystemExit(3)

def make_late(num_classes):
    import beside
    return beside.net(num_classes)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of the user's own, and Python as it was afterwards."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "beside.py").write_text("from torch.nn import Identity as net")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.startswith(("mine", "beside", "package", "_limbeck_")):
            del sys.modules[name]


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused(name, **options):
    with pytest.raises(ModelError) as caught:
        create_model(name, num_classes=5, **({"allow_code": True} | options))
    return str(caught.value)


# The zoo


def test_the_table_holds_every_network_of_the_zoo_under_its_own_name():
    made = {name for family in FAMILIES for name in family.__all__ if name[0].islower()}
    assert {make.__name__ for make in MODELS.values()} == made - {"channel_shuffle"}
    assert all(make.__name__ == name.lower() for name, make in MODELS.items())


def test_every_file_of_the_package_but_the_tools_is_a_family():
    files = {info.name for info in pkgutil.iter_modules(models.__path__)}
    tools = {"create", "pretrained", "published", "ready", "summary"}
    tools |= {"vision", "vision_zoo", "weights"}
    assert files - tools == {family.__name__.rpartition(".")[2] for family in FAMILIES}


@pytest.mark.parametrize("name", ["digits_cnn_tiny", "resnet8", "resnet8x4"])
def test_classes_and_channels_are_the_callers(name):
    network = create_model(name, num_classes=7, in_chans=2).eval()
    assert network(torch.zeros(2, 2, 8, 8)).shape == (2, 7)


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean 'resnet20'.*file\.py:function"):
        create_model("resnet-20", num_classes=10)


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"num_classes": 3, "in_chans": 0}])
def test_a_network_without_classes_or_channels_is_refused(wrong):
    with pytest.raises(ModelError, match="at least one class and one channel"):
        create_model("resnet8", **wrong)


# Its weights


def test_weights_follow_from_the_seed_alone():
    first = create_model("resnet8", num_classes=3, seed=1)
    torch.rand(5)
    assert equal(create_model("resnet8", num_classes=3, seed=1), first)
    assert not equal(create_model("resnet8", num_classes=3, seed=2), first)


def test_the_weights_of_a_seed_are_those_of_torch_with_that_seed():
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = cifar_resnet.resnet8(num_classes=3)
    assert equal(create_model("resnet8", num_classes=3, seed=11), expected)


def test_the_callers_random_streams_stay_where_they_are(mine):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    create_model("resnet8", num_classes=3)
    create_model("mine.py:make_mine", num_classes=3, allow_code=True)
    refused("mine.py:make_trouble")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


# A function of the user's own


@pytest.mark.parametrize("source", ["mine.py", "./mine.py", "mine", "{folder}/mine.py"])
@pytest.mark.parametrize("function", ["make_mine", "make_any"])
def test_a_function_of_a_file_or_module_is_called(mine, source, function):
    name = f"{source.format(folder=mine)}:{function}"
    network = create_model(name, num_classes=5, in_chans=2, allow_code=True)
    assert (network.in_channels, network.out_channels) == (2, 5)
    again = create_model(name, num_classes=5, in_chans=2, allow_code=True)
    assert equal(network, again)


def test_a_function_that_takes_no_channels_is_not_given_any(mine):
    network = create_model("mine.py:Net", num_classes=5, allow_code=True)
    assert (network.in_features, network.out_features) == (4, 5)


def test_a_module_inside_a_package_and_one_that_is_installed_are_found(mine):
    (mine / "package").mkdir()
    (mine / "package" / "nets.py").write_text(MINE)
    made = create_model("package.nets:make_mine", num_classes=5, allow_code=True)
    assert isinstance(made, nn.Conv2d)
    made = create_model("limbeck.models.cifar_resnet:resnet8", num_classes=5, allow_code=True)
    assert equal(made, create_model("resnet8", num_classes=5))


def test_a_file_written_since_the_last_look_is_found(mine):
    os.utime(mine, (1, 1))
    assert "finds no module" in refused("mine_new:net")
    (mine / "mine_new.py").write_text("from torch.nn import Identity as net")
    os.utime(mine, (1, 1))  # as two writes within a file system's clock tick
    made = create_model("mine_new:net", num_classes=5, allow_code=True)
    assert isinstance(made, nn.Identity)


def test_a_file_may_import_what_lies_beside_it(mine, monkeypatch):
    monkeypatch.chdir("/")
    made = create_model(f"{mine}/mine.py:make_late", num_classes=5, allow_code=True)
    assert isinstance(made, nn.Identity)


def test_a_file_is_read_anew_each_time_and_hides_no_module_of_its_name(mine):
    (mine / "json.py").write_text("from torch.nn import Identity as net")
    made = create_model("json.py:net", num_classes=5, allow_code=True)
    assert isinstance(made, nn.Identity)
    assert hasattr(sys.modules["json"], "loads")
    (mine / "json.py").write_text(
        "from torch.nn import Flatten\ndef net(num_classes): return Flatten()"
    )
    assert isinstance(create_model("json.py:net", num_classes=5, allow_code=True), nn.Flatten)


def test_a_file_may_hold_dataclasses(mine):
    (mine / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from torch import nn\n@dataclass\nclass Sizes:\n    width: int = 3\n"
        "def net(num_classes): return nn.Linear(Sizes().width, num_classes)\n"
    )
    assert create_model("mine.py:net", num_classes=5, allow_code=True).in_features == 3


@pytest.mark.parametrize("name", ["mine.py:make_mine", "mine:make_mine", "os:system", "no.py:no"])
def test_code_that_the_user_did_not_name_is_not_touched(mine, name):
    (mine / "mine.py").write_text("open('marker', 'w')")
    message = refused(name, allow_code=False)
    assert "no settings file, run folder or checkpoint names code" in message
    assert f"`--student {name}`" in message
    assert not (mine / "marker").exists()
    assert "mine" not in sys.modules


def test_code_is_not_allowed_unless_somebody_says_so(mine):
    with pytest.raises(ModelError, match="is code, and is not run"):
        create_model("mine.py:make_mine", num_classes=5)


@pytest.mark.parametrize("allow_code", [True, False])
def test_a_module_that_was_passed_in_python_cannot_be_made_again(allow_code):
    assert "pass the module again" in refused("python:Net", allow_code=allow_code)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.py:make", "there is no file no.py in "),
        ("no:make", "Python finds no module 'no'"),
        ("mine.no:make", "Python finds no module 'mine.no'"),
        ("mine.py:make_min", "'make_min' is nothing there; did you mean 'make_mine'?"),
        ("mine.py:", "'' is nothing there; it has: Net, make_mine"),
        ("mine.py:constant", "'constant' is a int there"),
        ("mine.py:make_needy", "num_classes=5, and its arguments are (num_classes, width)"),
        ("mine.py:make_fixed", "its arguments are ()"),
        ("mine.py:make_nothing", "should return a torch.nn.Module, and returned NoneType"),
        ("mine.py:make_exit", "calling it raised SystemExit: 3"),
        ("mine.py", "'mine.py' is a file; name the function"),
        ("os:system", "its arguments are (command)"),
        ("builtins:dict", "does not tell its arguments"),
    ],
)
def test_a_function_that_does_not_do_is_answered_with_what_would(mine, name, message):
    assert message in refused(name)


def test_an_error_in_the_users_code_is_told_with_its_place(mine):
    line = MINE.splitlines().index('    raise RuntimeError("no such width")') + 1
    message = refused("mine.py:make_trouble")
    assert "calling it raised RuntimeError: no such width, in " in message
    assert f"mine.py line {line}" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch.no_such_part", "raised ModuleNotFoundError: No module named"),
        ("1 +", "raised SyntaxError: "),
        ("x = 3\n1 / 0", "raised ZeroDivisionError: division by zero, in "),
        ("raise SystemExit('usage: mine.py DATA')", "raised SystemExit: usage: mine.py DATA"),
    ],
)
@pytest.mark.parametrize("source", ["mine.py", "mine"])
def test_a_file_that_cannot_be_imported_is_told_apart_from_one_that_is_not_there(
    mine, source, text, message
):
    (mine / "mine.py").write_text(text)
    before = set(sys.modules)
    found = refused(f"{source}:make")
    assert message in found
    assert "finds no module" not in found
    assert not any(name.startswith("_limbeck_") for name in set(sys.modules) - before)
