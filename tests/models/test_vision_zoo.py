import importlib
import json
import socket
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from limbeck.core.errors import ModelError, UnknownNameError
from limbeck.models.create import MODELS, open_model
from limbeck.models.vision_zoo import is_vision_name, open_vision, unknown_model

HEADS = {
    "torchvision/squeezenet1_1": "classifier.1",
    "torchvision/mobilenet_v3_small": "classifier.3",
}
TINY = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Empty caches, and no name that can be looked up."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def unknown(*args, **kwargs):
        raise socket.gaierror("nobody knows this name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


def opened(name, **given):
    return open_vision(name, **({"num_classes": 4, "in_chans": 3} | given))


def in_torchs_cache(tmp_path, arch):
    """A whole network of 1000 classes, as if downloaded before."""
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.get_model(arch)
    address = torchvision.models.get_model_weights(arch).DEFAULT.url
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / address.rpartition("/")[2])
    return network.state_dict()


def in_hubs_cache(tmp_path, repository, **files):
    """A repository as ``hf download`` leaves it."""
    home = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("c0")
    snapshot = home / "snapshots" / "c0"
    snapshot.mkdir(parents=True)
    if "state" in files:
        save_file(files["state"], snapshot / "model.safetensors")
    if "config" in files:
        (snapshot / "config.json").write_text(json.dumps(files["config"]))
    return snapshot


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm/x", "torchvision/x", "hf-hub:o/x", "local-dir:x"])
def test_names_of_the_libraries_are_known_by_their_beginning(name):
    assert is_vision_name(name)
    assert not is_vision_name(name.replace("/", "_").replace(":", "_"))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnt18", ["ResNet18", "torchvision/resnet18", "timm/resnet18"]),
        ("timm/resnet20", ["resnet20"]),
        ("torchvision/wrn_40_2", ["wrn_40_2"]),
        ("wrn", ["wrn_16_1", "wrn_16_2"]),
        ("vit_small", ["timm/vit_small_patch8_224", "timm/vit_small_patch16_224"]),
        ("mobilenet_v3_smal", ["torchvision/mobilenet_v3_small", "timm/mobilenetv3_small_100"]),
        ("torchvision/vit_tiny_patch16_224", ["timm/vit_tiny_patch16_224"]),
        ("timm/resnet18d.no_tag", ["timm/resnet18d.ra2_in1k"]),
        ("torchvision/resnet18.IMAGENET1K_V9", ["torchvision/resnet18.IMAGENET1K_V1"]),
        ("torchvision/fasterrcnn_resnet50_fpn", []),  # a detector: no logits
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_of_all_libraries(name, near):
    with pytest.raises(UnknownNameError) as caught:
        open_model(name, num_classes=4)
    for each in near:
        assert repr(each) in str(caught.value)


def test_a_name_like_no_other_is_answered_with_those_of_its_library():
    assert "torchvision/alexnet" in unknown_model("torchvision/", MODELS).known
    assert all(name.startswith("timm/") for name in unknown_model("timm/", MODELS).known)
    assert unknown_model("?", MODELS).known == tuple(MODELS)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_an_absent_package_is_told_with_its_remedy(monkeypatch, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    with pytest.raises(ModelError, match=f"needs {package}, which is not installed. pip install"):
        opened(f"{package}/resnet18")
    near = str(unknown_model("mobilenet_v3_smal", MODELS))  # of what can be used here
    assert f"{package}/" not in near


@pytest.mark.parametrize(
    "name", ["timm/resnet18", "hf-hub:o/n", "local-dir:x", "torchvision/vgg11"]
)
def test_a_broken_package_is_told_with_its_remedy(monkeypatch, name):
    real = importlib.import_module

    def broken(asked, *args):
        if asked in ("timm", "torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(asked, *args)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModelError, match=r"nms does not exist\).*pip uninstall torchvision"):
        opened(name)
    assert str(unknown_model("resnet21", MODELS)).count("torchvision") == 0


# -- what the network wants --------------------------------------------------------------------


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_normalisation_is_the_models_own(library, name):
    """Read from the library itself; they differ between models."""
    if library == "timm":
        timm = pytest.importorskip("timm")
        name = {"resnet18": "vit_tiny_patch16_224", "mobilenet": "test_resnet"}[name]
        config = timm.create_model(name).pretrained_cfg
        mean, std = config["mean"], config["std"]
    else:
        torchvision = pytest.importorskip("torchvision")
        name = {"resnet18": "resnet18", "mobilenet": "mobilenet_v3_small"}[name]
        wanted = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        mean, std = wanted.mean, wanted.std
    found = opened(f"{library}/{name}").normalization
    assert found.mean == tuple(mean)
    assert found.std == tuple(std)


def test_two_models_of_timm_are_normalised_differently():
    vit = opened("timm/vit_tiny_patch16_224", model_kwargs={"depth": 1})
    resnet = opened("timm/resnet10t")
    assert vit.normalization.mean == (0.5, 0.5, 0.5)
    assert resnet.normalization.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "given", "size"),
    [
        ("timm/test_resnet", {}, None),  # takes images as they come
        ("timm/test_resnet", {"own_size": True}, (160, 160)),  # for weights that come later
        ("timm/test_resnet", {"img_size": (48, 48)}, (48, 48)),
        ("timm/vit_tiny_patch16_224", {"model_kwargs": {"depth": 1}}, (224, 224)),
        ("timm/vit_tiny_patch16_224", {"model_kwargs": TINY, "img_size": (32, 32)}, (32, 32)),
        ("torchvision/mobilenet_v3_small", {}, None),
        ("torchvision/mobilenet_v3_small", {"own_size": True}, (224, 224)),
        ("torchvision/squeezenet1_1", {"data_size": (8, 8)}, (17, 17)),  # its least
        ("torchvision/squeezenet1_1", {"data_size": (64, 64)}, None),
    ],
)
def test_input_size_is_the_models_own_where_it_matters(name, given, size):
    found = opened(name, **given)
    assert found.image_size == size
    image = torch.rand(2, 3, *(size or (64, 64)))
    assert found.network.eval()(image).shape == (2, 4)
    assert found.num_classes == 4


def test_channels_are_timms_to_choose_and_three_for_torchvision():
    grey = opened("timm/test_resnet", in_chans=1)
    assert grey.in_chans == 1
    assert grey.normalization.mean == (0.5,)
    assert grey.network.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 4)
    mean = opened("timm/mobilenetv3_small_050", in_chans=1).normalization.mean
    assert mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)
    assert opened("torchvision/mobilenet_v3_small", in_chans=1).in_chans == 3


@pytest.mark.parametrize("key", ["num_classes", "img_size", "pretrained", "checkpoint_path"])
def test_arguments_that_are_settings_are_refused(key):
    with pytest.raises(ModelError, match=f"model_kwargs cannot hold {key}"):
        opened("timm/test_resnet", model_kwargs={key: 1})


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_what_the_library_refuses_is_told_with_the_arguments(library):
    name = {"timm": "test_resnet", "torchvision": "resnet18"}[library]
    with pytest.raises(ModelError, match=r"could not build it with colour='red'.*TypeError"):
        opened(f"{library}/{name}", model_kwargs={"colour": "red"})


# -- published weights -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("timm/resnet18.a1_in1k", "hf download timm/resnet18.a1_in1k"),
        ("timm/vit_tiny_patch16_224", "hf download timm/vit_tiny_patch16_224"),
        ("hf-hub:owner/net", "hf download owner/net"),
        ("hf-hub:owner/net@v2", "hf download owner/net"),
        ("torchvision/resnet18", "download https://download.pytorch.org/models/resnet18-"),
        ("torchvision/resnet50.IMAGENET1K_V2", "download https://download.pytorch.org/models/"),
    ],
)
def test_published_weights_out_of_reach_are_an_error_at_once_and_no_random_network(name, file):
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        opened(name, pretrained=True)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert name in message
    assert "nobody knows this name" in message
    assert file in message
    assert "--teacher-checkpoint" in message


def test_a_network_that_was_never_published_says_so():
    with pytest.raises(ModelError, match="timm has no weights for 'timm/cs3darknet_s': choose"):
        opened("timm/cs3darknet_s", pretrained=True)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("num_classes", [None, 1000, 4])
def test_torchvisions_weights_come_from_the_cache(tmp_path, name, num_classes):
    published = in_torchs_cache(tmp_path, name.partition("/")[2])
    found = opened(name, pretrained=True, num_classes=num_classes)
    assert found.image_size == (224, 224)
    assert found.num_classes == (num_classes or 1000)
    state = found.network.state_dict()
    other = {k for k, v in published.items() if not torch.equal(state[k], v)}
    head = {f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"}
    assert other == (head if num_classes == 4 else set())
    assert len(found.notes) == (num_classes == 4)
    assert found.network.eval()(torch.rand(1, 3, 64, 64)).shape == (1, num_classes or 1000)


def test_a_torn_file_in_torchs_cache_is_an_error(tmp_path):
    in_torchs_cache(tmp_path, "squeezenet1_1")
    (file,) = (tmp_path / "torch" / "hub" / "checkpoints").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not build it"):
        opened("torchvision/squeezenet1_1", pretrained=True)


@pytest.mark.parametrize("num_classes", [None, 4])
def test_timms_weights_come_from_the_cache(tmp_path, num_classes):
    timm = pytest.importorskip("timm")
    published = timm.create_model("test_resnet").state_dict()
    in_hubs_cache(tmp_path, "timm/test_resnet.r160_in1k", state=published)
    found = opened("timm/test_resnet", pretrained=True, num_classes=num_classes, in_chans=None)
    state = found.network.state_dict()
    other = {k for k, v in published.items() if not torch.equal(state[k], v)}
    assert other == ({"fc.weight", "fc.bias"} if num_classes else set())
    assert len(found.notes) == (num_classes == 4)
    assert (found.image_size, found.in_chans) == ((160, 160), 3)
    assert found.num_classes == (num_classes or 1000)


CONFIG = {
    "architecture": "test_resnet",
    "num_classes": 7,
    "pretrained_cfg": {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "input_size": [3, 96, 96],
        "num_classes": 7,
        "first_conv": "conv1.0",
        "classifier": "fc",
    },
}


@pytest.mark.parametrize("source", ["local-dir", "hf-hub"])
def test_a_saved_network_of_timm_comes_back_with_its_own_normalisation(tmp_path, source):
    timm = pytest.importorskip("timm")
    published = timm.create_model("test_resnet", num_classes=7).state_dict()
    folder = in_hubs_cache(tmp_path, "owner/net", state=published, config=CONFIG)
    name = f"local-dir:{folder}" if source == "local-dir" else "hf-hub:owner/net"
    found = opened(name, pretrained=True, num_classes=None)
    state = found.network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in published.items())
    assert found.normalization.mean == (0.1, 0.2, 0.3)
    assert found.normalization.std == (0.4, 0.5, 0.6)
    assert (found.image_size, found.num_classes) == ((96, 96), 7)


def test_a_saved_network_without_its_weights_is_an_error_and_not_a_random_one(tmp_path):
    folder = in_hubs_cache(tmp_path, "owner/net", config=CONFIG)
    with pytest.raises(ModelError, match="No suitable checkpoints found"):
        opened(f"local-dir:{folder}", pretrained=True, num_classes=None)
    with pytest.raises(ModelError, match="hf download owner/net"):
        opened("hf-hub:owner/net", pretrained=True, num_classes=None)
    fresh = opened("hf-hub:owner/net")  # the layout alone needs no weights
    assert isinstance(fresh.network, nn.Module)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("{", "no configuration"), ("[]", "no configuration")],
)
def test_a_folder_that_timm_did_not_save_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        opened(f"local-dir:{tmp_path}")


def test_a_repository_must_be_named():
    with pytest.raises(ModelError, match="hf-hub:OWNER/NAME"):
        opened("hf-hub:")
