import argparse
import os
from argparse import Namespace

import pytest
import torch
from torch import nn

from limbeck.core.errors import CheckpointError, UnknownNameError
from limbeck.models import MODELS, create_model
from limbeck.models.published import RENAMES, published_network
from limbeck.models.vision import vision_state
from limbeck.models.weights import save_weights

# The layouts of HobbitLong/RepDistiller@b84f547 and megvii-research/mdistiller@a08d46f, which
# agree, written out: names and shapes of a state dict.


def norm(name, width):
    vectors = ("weight", "bias", "running_mean", "running_var")
    shapes = {f"{name}.{vector}": (width,) for vector in vectors}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def linear(name, given, made):
    return {f"{name}.weight": (made, given), f"{name}.bias": (made,)}


def resnet8x4(classes):
    shapes = {"conv1.weight": (32, 3, 3, 3), **norm("bn1", 32)}
    for stage, (given, width) in enumerate(((32, 64), (64, 128), (128, 256)), start=1):
        block = f"layer{stage}.0"
        shapes[f"{block}.conv1.weight"] = (width, given, 3, 3)
        shapes |= norm(f"{block}.bn1", width)
        shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
        shapes |= norm(f"{block}.bn2", width)
        shapes[f"{block}.downsample.0.weight"] = (width, given, 1, 1)
        shapes |= norm(f"{block}.downsample.1", width)
    return shapes | linear("fc", 256, classes)


def wrn_16_2(classes):
    shapes = {"conv1.weight": (16, 3, 3, 3)}
    for stage, (first, width) in enumerate(((16, 32), (32, 64), (64, 128)), start=1):
        for position, given in enumerate((first, width)):
            block = f"block{stage}.layer.{position}"
            shapes |= norm(f"{block}.bn1", given)
            shapes[f"{block}.conv1.weight"] = (width, given, 3, 3)
            shapes |= norm(f"{block}.bn2", width)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            if position == 0:
                shapes[f"{block}.convShortcut.weight"] = (width, given, 1, 1)
    return shapes | norm("bn1", 128) | linear("fc", 128, classes)


def vgg8(classes):
    shapes = {}
    for block, (given, width) in enumerate(
        ((3, 64), (64, 128), (128, 256), (256, 512), (512, 512))
    ):
        shapes[f"block{block}.0.weight"] = (width, given, 3, 3)
        shapes[f"block{block}.0.bias"] = (width,)
        shapes |= norm(f"block{block}.1", width)
    return shapes | linear("classifier", 512, classes)


def mobile_half(classes):
    shapes = {"conv1.0.weight": (16, 3, 3, 3), **norm("conv1.1", 16)}
    given = 16
    for group, (width, blocks) in enumerate(
        ((8, 1), (12, 2), (16, 3), (32, 4), (48, 3), (80, 3), (160, 1))
    ):
        for position in range(blocks):
            block, wide = f"blocks.{group}.{position}.conv", given * (6 if group else 1)
            shapes[f"{block}.0.weight"] = (wide, given, 1, 1)
            shapes |= norm(f"{block}.1", wide)
            shapes[f"{block}.3.weight"] = (wide, 1, 3, 3)
            shapes |= norm(f"{block}.4", wide)
            shapes[f"{block}.6.weight"] = (width, wide, 1, 1)
            shapes |= norm(f"{block}.7", width)
            given = width
    shapes["conv2.0.weight"] = (1280, 160, 1, 1)
    return shapes | norm("conv2.1", 1280) | linear("classifier.0", 1280, classes)


def shuffle_v1(classes):
    shapes = {"conv1.weight": (24, 3, 1, 1), **norm("bn1", 24)}
    given = 24
    for stage, (width, units) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for position in range(units):
            unit = f"layer{stage}.{position}"
            made = width - given if position == 0 else width
            inner = made // 4
            shapes[f"{unit}.conv1.weight"] = (inner, given // (1 if given == 24 else 3), 1, 1)
            shapes |= norm(f"{unit}.bn1", inner)
            shapes[f"{unit}.conv2.weight"] = (inner, 1, 3, 3)
            shapes |= norm(f"{unit}.bn2", inner)
            shapes[f"{unit}.conv3.weight"] = (made, inner // 3, 1, 1)
            shapes |= norm(f"{unit}.bn3", made)
            given = width
    return shapes | linear("linear", 960, classes)


def resnet18(classes):
    shapes = {"conv1.weight": (64, 3, 3, 3), **norm("bn1", 64)}
    given = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for position in (0, 1):
            block = f"layer{stage}.{position}"
            shapes[f"{block}.conv1.weight"] = (width, given, 3, 3)
            shapes |= norm(f"{block}.bn1", width)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            shapes |= norm(f"{block}.bn2", width)
            if given != width:
                shapes[f"{block}.shortcut.0.weight"] = (width, given, 1, 1)
                shapes |= norm(f"{block}.shortcut.1", width)
            given = width
    return shapes | linear("linear", 512, classes)


LAYOUTS = {
    "resnet8x4": resnet8x4,
    "wrn_16_2": wrn_16_2,
    "vgg8": vgg8,
    "MobileNetV2": mobile_half,
    "ShuffleV1": shuffle_v1,
    "ResNet18": resnet18,
}


def drawn(shapes, generator):
    """A state dict of these shapes, every number another."""
    return {
        name: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for name, shape in shapes.items()
    }


def refused(path, name):
    with pytest.raises(CheckpointError) as caught:
        published_network(path, name)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_fit_name_by_name(name, tmp_path, generator):
    state = drawn(LAYOUTS[name](100), generator)
    torch.save({"model": state, "epoch": 240, "accuracy": torch.tensor(75.61)}, tmp_path / "w.pth")
    found = published_network(tmp_path / "w.pth", name).state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("counters", [True, False])
def test_every_way_of_saving_gives_the_same_network(wrap, prefix, counters, tmp_path, generator):
    state = drawn(LAYOUTS["wrn_16_2"](10), generator)
    saved = {
        prefix + key: value for key, value in state.items() if counters or "num_batches" not in key
    }
    torch.save(saved if wrap is None else {wrap: saved}, tmp_path / "w.pth")
    found = published_network(tmp_path / "w.pth", "wrn_16_2").state_dict()
    for key, value in state.items():
        expected = 0 if "num_batches" in key and not counters else value
        assert (found[key] == expected).all(), key


def test_the_settings_that_training_saved_beside_the_weights_are_passed_over(tmp_path, generator):
    state = drawn(LAYOUTS["resnet8x4"](100), generator)
    options = Namespace(model="resnet8x4", lr_decay_epochs=[150, 180, 210], learning_rate=0.05)
    torch.save({"opt": options, "model": state}, tmp_path / "resnet8x4_last.pth")
    found = published_network(tmp_path / "resnet8x4_last.pth", "resnet8x4").state_dict()
    assert torch.equal(found["fc.weight"], state["fc.weight"])
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_classes_and_channels_are_the_files(tmp_path, generator):
    shapes = LAYOUTS["vgg8"](7) | {"block0.0.weight": (64, 1, 3, 3)}
    save_weights(drawn(shapes, generator), tmp_path / "w.safetensors")
    network = published_network(tmp_path / "w.safetensors", "vgg8").eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    "name", ["digits_cnn_tiny", "resnet32_option_a", "plane2", "ShuffleV2", "wrn_16_1"]
)
def test_the_zoos_own_weights_are_read_too(name, tmp_path):
    network = create_model(name, num_classes=5, in_chans=2, seed=1)
    save_weights(network.state_dict(), tmp_path / "w")
    found = published_network(tmp_path / "w", name).state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


# Other names


def test_the_long_tail_codes_resnet32_is_read(tmp_path, generator):
    """EricZsy/BalancedKnowledgeDistillation@168dd0a: its classifier is called linear."""
    shapes = {"conv1.weight": (16, 3, 3, 3), **norm("bn1", 16)}
    given = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for position in range(5):
            block = f"layer{stage}.{position}"
            shapes[f"{block}.conv1.weight"] = (width, given, 3, 3)
            shapes |= norm(f"{block}.bn1", width)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            shapes |= norm(f"{block}.bn2", width)
            given = width
    state = drawn(shapes | linear("linear", 64, 10), generator)
    prefixed = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 200, "state_dict": prefixed}, tmp_path / "ckpt.pth.tar")
    found = published_network(tmp_path / "ckpt.pth.tar", "resnet32_option_a").state_dict()
    assert torch.equal(found["fc.weight"], state["linear.weight"])
    assert all(torch.equal(found[key], state[key]) for key in shapes)
    assert "missing in the file" in refused(tmp_path / "ckpt.pth.tar", "resnet32")


def test_torchvisions_names_of_a_residual_network_are_read(tmp_path, generator):
    state = vision_state("torchvision")
    if state.problem is not None or state.version is None:
        pytest.skip("torchvision is not there")
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=5)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    image = torch.rand(2, 3, 16, 16, generator=generator)
    found = published_network(tmp_path / "w.pth", "ResNet18").eval()
    torch.testing.assert_close(found(image), theirs.eval()(image))


def test_a_weight_under_both_of_its_names_is_refused(tmp_path):
    state = create_model("resnet8", num_classes=5).state_dict()
    state["linear.weight"] = state["fc.weight"]
    save_weights(state, tmp_path / "w")
    assert "holds fc.weight twice" in refused(tmp_path / "w", "resnet8")


def test_every_family_says_what_it_is_renamed_from():
    with torch.device("meta"):
        families = {type(create_model(name, num_classes=5)) for name in MODELS}
    assert families == RENAMES.keys()


# Files that do not fit


def test_what_is_missing_and_what_is_unknown_is_named(tmp_path, generator):
    state = drawn(LAYOUTS["wrn_16_2"](100), generator)
    del state["block1.layer.0.convShortcut.weight"]
    state["block1.layer.0.shortcut.weight"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "w.pth")
    message = refused(tmp_path / "w.pth", "wrn_16_2")
    assert "missing in the file (1): block1.layer.0.convShortcut.weight" in message
    assert "unknown to the network (1): block1.layer.0.shortcut.weight" in message


@pytest.mark.parametrize("other", ["vgg8", "resnet20", "ResNet50", "wrn_40_2", "plane8"])
def test_a_file_of_another_network_is_refused(other, tmp_path, generator):
    torch.save(drawn(LAYOUTS["resnet8x4"](100), generator), tmp_path / "w.pth")
    assert "was made for another network" in refused(tmp_path / "w.pth", other)


def test_another_width_names_the_shapes(tmp_path, generator):
    torch.save(drawn(LAYOUTS["resnet8x4"](100), generator), tmp_path / "w.pth")
    assert "conv1.weight (32, 3, 3, 3) float32, not (16, 3, 3, 3)" in refused(
        tmp_path / "w.pth", "resnet8"
    )


def test_a_classifier_that_is_missing_or_a_number_is_named(tmp_path, generator):
    state = drawn(LAYOUTS["vgg8"](100), generator)
    state["classifier.weight"] = torch.tensor(1.0)
    torch.save(state, tmp_path / "w.pth")
    assert "classifier.weight () float32" in refused(tmp_path / "w.pth", "vgg8")
    del state["classifier.weight"]
    torch.save(state, tmp_path / "w.pth")
    assert "missing in the file (1): classifier.weight" in refused(tmp_path / "w.pth", "vgg8")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_no_code_is_run_be_it_inside_the_settings(tmp_path, generator):
    state = drawn(LAYOUTS["vgg8"](5), generator)
    marker = tmp_path / "ran"
    for number, opt in enumerate((Evil(str(marker)), Namespace(x=Evil(str(marker))))):
        path = tmp_path / f"{number}.pth"
        torch.save({"opt": opt, "model": state}, path)
        assert "runs code that is in it" in refused(path, "vgg8")
    assert not marker.exists()


def test_a_network_that_the_zoo_lacks_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'wrn_40_2'"):
        published_network(tmp_path / "w.pth", "wrn40_2")


def test_the_callers_random_streams_stay_where_they_are(tmp_path, generator):
    torch.save(drawn(LAYOUTS["resnet8x4"](5), generator), tmp_path / "w.pth")
    before = torch.get_rng_state()
    published_network(tmp_path / "w.pth", "resnet8x4")
    assert torch.equal(torch.get_rng_state(), before)
