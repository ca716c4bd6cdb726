from dataclasses import dataclass

import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError, TapError, UnknownNameError
from limbeck.layers import (
    Meaning,
    classifier_name,
    classifier_names,
    find_meaning,
    find_meanings,
    is_meaning,
    known_meaning,
    known_meanings,
    list_meanings,
    own_meanings,
)
from limbeck.models import create_model, open_model

TINY = {"depth": 6, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
RESNET = {f"stage{k}": f"layer{k}" for k in (1, 2, 3, 4)}
# Read off the networks' own listings, layer by layer.
EXPECTED = {
    "timm/resnet10t": {
        "stem": "act1",
        **RESNET,
        "last": "layer4",
        "penultimate": "fc:input",
    },
    "timm/vit_tiny_patch16_224": {
        "stage1": "blocks.1",  # 6 blocks: 1.5, 3, 4.5 and 6 of them, rounded up
        "stage2": "blocks.2",
        "stage3": "blocks.4",
        "stage4": "blocks.5",
        "last": "norm",
        "penultimate": "head:input",
    },
    "torchvision/resnet18": {
        "stem": "relu",
        **RESNET,
        "last": "layer4",
        "penultimate": "fc:input",
    },
    "torchvision/mobilenet_v3_small": {
        "stem": "features.0",
        "stage1": "features.1",
        "stage2": "features.3",
        "stage3": "features.8",
        "stage4": "features.12",
        "last": "features.12",
        "penultimate": "classifier.3:input",
    },
    "torchvision/squeezenet1_1": {
        "stem": "features.1",
        "stage1": "features.4",
        "stage2": "features.7",
        "stage3": "classifier.2",
        "last": "classifier.2",
        "penultimate": "classifier.1:input",
    },
}
BY_STRUCTURE = {name: not name.startswith("timm") for name in EXPECTED}


def named(name):
    kwargs = TINY if "tiny" in name else {}
    size = (32, 32) if "tiny" in name else None
    return open_model(name, num_classes=4, model_kwargs=kwargs, img_size=size).network


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


@pytest.fixture
def image(generator):
    return torch.rand(2, 3, 32, 32, generator=generator)


def values_at(network, address, image):
    """What an address stands for, by hooks of our own; copied before anything can write on it."""
    name, _, nth = address.partition("#")
    name, _, at_input = name.partition(":")
    seen = []
    module = network.get_submodule(name)
    if at_input:
        module.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    else:
        module.register_forward_hook(lambda m, args, output: seen.append(output.clone()))
    with torch.no_grad():
        network.eval()(image)
    return seen[int(nth or 1) - 1]


# -- every network -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED)
def test_meanings_are_the_layers_a_reader_would_name(name, image):
    found = list_meanings(named(name), image)
    assert {meaning: each.address for meaning, each in found.items()} == EXPECTED[name]
    assert all(bool(found[k].reason) is BY_STRUCTURE[name] for k in found if k[:5] == "stage")


@pytest.mark.parametrize("name", EXPECTED)
def test_each_listed_meaning_is_found_alone(name, image):
    network = named(name)
    for meaning, address in EXPECTED[name].items():
        assert find_meaning(network, meaning, image).address == address


def test_a_plain_row_of_layers_has_stages_where_its_maps_shrink(image):
    found = list_meanings(plain(), image)
    assert {name: each.address for name, each in found.items()} == {
        "stage1": "1",
        "stage2": "4",
        "last": "4",
        "penultimate": "7:input",
    }
    assert found["stage1"].reason.startswith("by the network's structure: stage1 1, stage2 4")
    assert found["penultimate"].reason == ""


def test_the_zoos_own_word_goes_first(image):
    network = create_model("resnet8", num_classes=4)
    own = own_meanings(network)
    assert own
    assert known_meanings(network) == dict(own)
    assert all(find_meaning(network, name, image) == Meaning(own[name]) for name in own)


def test_penultimate_is_what_the_classifier_multiplies(image):
    for name in ("timm/resnet10t", "timm/vit_tiny_patch16_224", "torchvision/mobilenet_v3_small"):
        network = named(name)
        address = find_meaning(network, "penultimate", image).address
        classifier = network.get_submodule(classifier_name(network, image))
        vector = values_at(network, address, image)
        assert vector.ndim == 2
        torch.testing.assert_close(classifier(vector), network(image))


def test_penultimate_of_a_backbone_is_what_it_gives(image):
    """A classifier's place is taken by an identity; what follows a classifier is none."""
    timm = pytest.importorskip("timm")
    for name, settings in (("resnet10t", {}), ("vit_tiny_patch16_224", {"img_size": 32})):
        network = timm.create_model(name, num_classes=0, **settings).eval()
        meaning = find_meaning(network, "penultimate", image)
        assert meaning.reason == "the network ends without a classifier"
        assert torch.equal(values_at(network, meaning.address, image), network(image))
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 32**2, 2), nn.Identity()
    )
    assert find_meaning(network, "penultimate", image) == Meaning("2:input")


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/mobilenet_v3_small"])
def test_looking_changes_nothing(name, image):
    network = named(name).train()
    next(iter(network.children())).eval()
    modes = [part.training for part in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    stream = torch.get_rng_state()
    list_meanings(network, image)
    find_meanings(network, "pre_activation:stage*", image)
    assert modes == [part.training for part in network.modules()]
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert not any(part._forward_hooks for part in network.modules())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        *((name, True) for name in ("stage1", "stage12", "stage*", "stem", "last", "penultimate")),
        ("pre_activation:layer1", True),
        *((name, False) for name in ("stage", "stage0", "stages.1", "layer1", "pre_activation:")),
    ],
)
def test_what_is_a_meaning(asked, expected):
    assert is_meaning(asked) is expected


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/resnet18"])
def test_a_stage_too_many_is_answered_with_those_there_are(name, image):
    with pytest.raises(
        UnknownNameError, match=r"'stage5'; did you mean.* ResNet has: .*4 \(layer4\)"
    ):
        find_meaning(named(name), "stage5", image)


def test_what_needs_a_dry_pass_is_not_known_without():
    assert known_meaning(named("torchvision/resnet18"), "stage1") is None
    assert known_meaning(named("timm/resnet10t"), "stage1") == "layer1"
    assert known_meaning(named("timm/resnet10t"), "last") is None


def test_every_stage_comes_in_order_of_depth(image):
    names = [f"stage{k}" for k in range(1, 13)]
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    network.layer_aliases = dict.fromkeys(sorted(names), "0")
    assert list(find_meanings(network, "stage*", image)) == names


# -- classifiers -------------------------------------------------------------------------------


def test_a_classifier_of_convolutions_is_told_from_a_linear_one(image):
    network = named("torchvision/squeezenet1_1")
    with pytest.raises(ModelError, match=r"'classifier.1' \(Conv2d\), and something follows it"):
        classifier_name(network, image)
    with pytest.raises(ModelError, match=r"has no nn.Linear as its classifier"):
        classifier_name(network)
    reason = find_meaning(network, "penultimate", image).reason
    assert "something follows it" in reason


def test_a_convolution_that_gives_the_logits_is_named_by_its_kind(image):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.Flatten())
    with pytest.raises(ModelError, match=r"'1', is a Conv2d and no nn.Linear"):
        classifier_name(network, image)


def test_a_network_without_weights_has_no_classifier(image):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match=r"no layer with weights.*reads outputs alone"):
        find_meaning(network, "penultimate", image)
    assert "penultimate" not in list_meanings(network, image)


def test_a_distilled_transformer_has_two_classifiers_and_says_so(image):
    network = named("timm/deit_tiny_distilled_patch16_224")
    assert classifier_names(network) == ("head", "head_dist")
    for ask in (
        lambda: classifier_name(network, image),
        lambda: find_meaning(network, "penultimate", image),
    ):
        with pytest.raises(ModelError, match="several classifiers \\('head' and 'head_dist'\\)"):
            ask()


def test_an_activation_in_place_does_not_make_its_input_the_logits(image):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4), nn.ReLU(inplace=True))
    with pytest.raises(ModelError, match=r"'1' \(Linear\), and something follows it"):
        classifier_name(network, image)


@dataclass
class Found:
    logits: torch.Tensor
    features: torch.Tensor


FORMS = {
    "tensor": lambda logits, features: logits,
    "tuple": lambda logits, features: (logits, features),
    "map first": lambda logits, features: (features[:, :, None, None], logits),
    "dict": lambda logits, features: {"features": features, "logits": logits},
    "dataclass": Found,
}


class Odd(nn.Module):
    """Its classifier is neither the last layer that is made, nor the last that runs."""

    def __init__(self, form):
        super().__init__()
        self.form = FORMS[form]
        self.classify = nn.Linear(3, 4)
        self.aside = nn.Linear(3, 4)

    def forward(self, image):
        features = image.mean((2, 3))
        logits = self.classify(features)
        self.aside(features)
        return self.form(logits, features)


@pytest.mark.parametrize("form", FORMS)
def test_the_classifier_is_the_layer_whose_output_is_the_logits(form, image):
    assert classifier_name(Odd(form), image) == "classify"
    assert find_meaning(Odd(form), "penultimate", image) == Meaning("classify:input")


# -- before the activation ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/resnet18"])
def test_a_stage_is_the_relu_of_what_lies_before_its_activation(name, image, generator):
    """In torchvision one ReLU, in place, runs twice in each block."""
    network = named(name)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):  # 0 at first where a branch ends
            nn.init.normal_(part.weight, generator=generator)
    before = find_meanings(network, "pre_activation:stage*", image)
    assert list(before) == [f"pre_activation:stage{k}" for k in (1, 2, 3, 4)]
    for k, each in enumerate(before.values(), start=1):
        given = values_at(network, each.address, image)
        assert (given < 0).any()
        assert torch.equal(given.relu(), values_at(network, f"layer{k}", image))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(), nn.PReLU(),
     nn.ELU(), nn.Mish(), nn.Tanh(), nn.Hardtanh(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Softplus()],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_every_activation_of_torch_counts_as_one(activation, image):
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3), activation), nn.Flatten())
    found = find_meaning(network, "pre_activation:0", image)
    assert found == Meaning("0.1:input")


def test_a_block_that_is_called_after_its_activation_is_not_one(image):
    """timm's ConvNormAct holds a convolution: its input is not its activation's."""
    layers = pytest.importorskip("timm.layers")
    network = nn.Sequential(layers.ConvNormAct(3, 2, 3), nn.Flatten())
    found = find_meaning(network, "pre_activation:0", image)
    given = values_at(network, found.address, image)
    assert given.shape[1] == 2
    assert torch.equal(given.relu(), values_at(network, "0", image))


def test_a_layer_that_nothing_bends_is_taken_as_it_is_and_says_so(image):
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    found = find_meaning(network, "pre_activation:0", image)
    assert found.address == "0"
    assert "no activation module ends 0" in found.reason


def test_an_activation_in_the_middle_of_a_layer_does_not_end_it(image):
    block = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    found = find_meaning(nn.Sequential(block, nn.Flatten()), "pre_activation:0", image)
    assert found.address == "0"


def test_what_an_activation_writes_on_afterwards_is_not_the_layers_own(image):
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True), nn.Flatten())
    assert find_meaning(network, "pre_activation:0", image).address == "0"


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, image):
        return self.conv(image).relu()


def test_a_function_cannot_be_tapped_and_is_no_guess(image):
    network = nn.Sequential(Functional(), nn.Flatten())
    with pytest.raises(TapError, match=r"calls a function there.*Name the layer before it"):
        find_meaning(network, "pre_activation:0", image)


def test_a_vector_has_no_activation_before_it(image):
    with pytest.raises(TapError, match=r"needs the output of a module.*'7:input'"):
        find_meaning(plain(), "pre_activation:penultimate", image)


def test_a_layer_that_does_not_run_is_told(image):
    network = Odd("tensor")
    network.idle = nn.ReLU()
    with pytest.raises(TapError, match="'idle' did not run"):
        find_meaning(network, "pre_activation:idle", image)


def test_a_name_beside_all_modules_is_answered_with_the_nearest(image):
    with pytest.raises(UnknownNameError, match="layer1"):
        find_meaning(named("timm/resnet10t"), "pre_activation:layr1", image)
