"""What every network of the zoo keeps: published counts, shapes and values, names for layers."""

import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from limbeck.core.errors import ShapeError
from limbeck.features import FeatureTap
from limbeck.models import MODELS, create_model, summarise


class Card(NamedTuple):
    """A network's published numbers.

    ``maps`` lists channels x side of the stem, where there is one, and of the stages.
    """

    parameters: int
    macs: int
    convolutions: int
    norms: int
    linears: int
    maps: str
    pooled: int


RESNET = "16x32 16x32 32x16 64x8"
RESNET_X4 = "32x32 64x32 128x16 256x8"
WRN_2 = "16x32 32x32 64x16 128x8"
VGG = "64x32 128x16 256x8 512x4 512x4"
RESNET18 = "64x32 64x32 128x16 256x8 512x4"
PLANE = "32x32 64x16"

# With 100 classes (the last five: 10) and 3x32x32 images. Measured on the authors' classes, in eval
# mode, with torch.utils.flop_counter: megvii-research/mdistiller@a08d46f, mdistiller/models/cifar,
# whose parameter counts are those of HobbitLong/RepDistiller@b84f547, models;
# EricZsy/BalancedKnowledgeDistillation@168dd0a, models/resnet_cifar.py (option A);
# imirzadeh/Teacher-Assistant-Knowledge-Distillation@0f8168f, plain_cnn_cifar.py (even planes);
# wonchulSon/DGKD@2599350, plain_cnn_cifar.py (odd planes).
ZOO = {
    "MobileNetV2": Card(812_836, 6_523_648, 53, 53, 1, "16x16 12x16 16x8 48x4 160x2", 1280),
    "resnet8": Card(83_892, 12_507_392, 9, 9, 1, RESNET, 64),
    "resnet8x4": Card(1_233_540, 177_071_104, 10, 10, 1, RESNET_X4, 256),
    "resnet14": Card(181_108, 26_663_168, 15, 15, 1, RESNET, 64),
    "resnet20": Card(278_324, 40_818_944, 21, 21, 1, RESNET, 64),
    "resnet32": Card(472_756, 69_130_496, 33, 33, 1, RESNET, 64),
    "resnet32_option_a": Card(470_004, 68_868_352, 31, 31, 1, RESNET, 64),
    "resnet32x4": Card(7_433_860, 1_083_040_768, 34, 34, 1, RESNET_X4, 256),
    "resnet44": Card(667_188, 97_442_048, 45, 45, 1, RESNET, 64),
    "resnet56": Card(861_620, 125_753_600, 57, 57, 1, RESNET, 64),
    "resnet110": Card(1_736_564, 253_155_584, 111, 111, 1, RESNET, 64),
    "ResNet18": Card(11_220_132, 555_468_800, 20, 20, 1, RESNET18, 512),
    "ResNet34": Card(21_328_292, 1_159_448_576, 36, 36, 1, RESNET18, 512),
    "ResNet50": Card(
        23_705_252, 1_298_014_208, 53, 53, 1, "64x32 256x32 512x16 1024x8 2048x4", 2048
    ),
    "ShuffleV1": Card(949_258, 38_691_456, 49, 49, 1, "24x32 240x16 480x8 960x4", 960),
    "ShuffleV2": Card(1_355_528, 44_504_448, 56, 56, 1, "24x32 116x16 232x8 464x4", 1024),
    "vgg8": Card(3_965_028, 96_192_512, 5, 5, 1, VGG, 512),
    "vgg11": Card(9_277_284, 209_438_720, 8, 8, 1, VGG, 512),
    "vgg13": Card(9_462_180, 284_936_192, 10, 10, 1, VGG, 512),
    "vgg16": Card(14_774_436, 398_182_400, 13, 13, 1, VGG, 512),
    "vgg19": Card(20_086_692, 511_428_608, 16, 16, 1, VGG, 512),
    "wrn_16_1": Card(180_916, 26_663_168, 15, 13, 1, RESNET, 64),
    "wrn_16_2": Card(703_284, 101_118_464, 16, 13, 1, WRN_2, 128),
    "wrn_40_1": Card(569_780, 83_286_272, 39, 37, 1, RESNET, 64),
    "wrn_40_2": Card(2_255_156, 327_610_880, 40, 37, 1, WRN_2, 128),
    "plane2": Card(215_172, 3_448_832, 2, 2, 1, "32x32 32x16", 2048),
    "plane3": Card(438_596, 15_450_112, 3, 3, 1, PLANE, 4096),
    "plane4": Card(475_652, 24_887_296, 4, 4, 1, PLANE, 4096),
    "plane5": Card(959_364, 30_015_488, 5, 5, 1, f"{PLANE} 128x8", 8192),
    "plane6": Card(1_107_204, 39_452_672, 6, 6, 1, f"{PLANE} 128x8", 8192),
    "plane7": Card(655_684, 43_424_000, 7, 7, 2, f"{PLANE} 128x8 256x4", 64),
    "plane8": Card(1_246_276, 52_861_184, 8, 8, 2, f"{PLANE} 128x8 256x4", 64),
    "plane9": Card(2_340_868, 62_801_920, 9, 9, 2, f"{PLANE} 128x8 256x4", 512),
    "plane10": Card(2_931_460, 72_239_104, 10, 10, 2, f"{PLANE} 128x8 256x4", 512),
    "plane2_cifar10": Card(13_082, 1_042_432, 2, 2, 1, "16x32 16x16", 1024),
    "plane4_cifar10": Card(37_338, 6_361_088, 4, 4, 1, "16x32 32x16", 2048),
    "plane6_cifar10": Card(82_778, 9_889_792, 6, 6, 1, "16x32 32x16 64x8", 1024),
    "plane8_cifar10": Card(327_962, 13_451_904, 8, 8, 2, "16x32 32x16 64x8 128x4", 64),
    "plane10_cifar10": Card(2_487_850, 71_795_968, 10, 10, 2, f"{PLANE} 128x8 256x4", 128),
}

# One of each kind of block, small ones first.
FAMILIES = (
    "resnet8",
    "resnet8x4",
    "resnet32_option_a",
    "wrn_16_1",
    "wrn_16_2",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "plane2",
    "plane8",
    "vgg8",
    "ResNet18",
    "ResNet50",
)
# Maps that do not come out of a ReLU.
SIGNED = {
    "wrn_16_1": {"stem", "stage1", "stage2", "stage3"},
    "wrn_16_2": {"stem", "stage1", "stage2", "stage3"},
    "MobileNetV2": {"stage1", "stage2", "stage3", "stage4"},
}


def num_classes(name):
    return 10 if name.endswith("cifar10") else 100


def read(network, image, names):
    with FeatureTap(network, list(names)) as tap:
        return tap(image)


def maps_of(network):
    return [name for name in network.layer_aliases if name.startswith("st")]


def shaken(name, generator, **options):
    """A network whose batch-norms do something, so that no two layers are alike by chance."""
    network = create_model(name, num_classes=options.pop("num_classes", 5), **options)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(std=0.2, generator=generator)
    return network


def test_the_table_holds_every_network_but_those_for_digits():
    assert set(ZOO) == {name for name in MODELS if not name.startswith("digits_")}


@pytest.mark.parametrize("name", ZOO)
def test_counts_and_shapes_are_the_published_ones(name):
    card = ZOO[name]
    with torch.device("meta"):
        network = create_model(name, num_classes=num_classes(name)).eval()
        reading = read(network, torch.zeros(2, 3, 32, 32), network.layer_aliases)
    found = summarise(network, (3, 32, 32))
    assert (found.num_parameters, found.num_macs) == (card.parameters, card.macs)
    kinds = [row.kind for row in found.rows]
    assert kinds.count("Conv2d") == card.convolutions
    assert kinds.count("BatchNorm2d") == card.norms
    assert kinds.count("Linear") == card.linears
    assert f"{card.parameters:,} parameters" in MODELS[name].__doc__
    shapes = {layer: tuple(value.shape[1:]) for layer, value in reading.features.items()}
    maps = [tuple(map(int, text.split("x"))) for text in card.maps.split()]
    first = 0 if "stem" in shapes else 1
    for number, (channels, side) in enumerate(maps, start=first):
        layer = "stem" if number == 0 else f"stage{number}"
        assert shapes.pop(layer) == (channels, side, side)
        assert shapes.pop(f"pre_activation:{layer}") == (channels, side, side)
    assert shapes.pop("penultimate") == (card.pooled,)
    assert shapes.pop("last") == shapes.pop("pre_activation:last")
    assert shapes == {}
    assert reading.output.shape == (2, num_classes(name))


@pytest.mark.parametrize("name", [*FAMILIES, "digits_cnn"])
def test_a_map_is_its_pre_activation_after_relu_or_is_signed(name, generator):
    network = shaken(name, generator)
    reading = read(network, torch.rand(4, 3, 32, 32, generator=generator), network.layer_aliases)
    for layer in [*maps_of(network), "last"]:
        value, before = reading.features[layer], reading.features[f"pre_activation:{layer}"]
        signed = layer in SIGNED.get(name, ())
        assert bool((value < 0).any()) is signed
        assert (before < 0).any()
        if not signed:
            assert torch.equal(value, before.relu())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "ResNet50"])
def test_what_is_read_does_not_depend_on_relus_that_write_in_place(name, generator):
    network = shaken(name, generator)
    plain = copy.deepcopy(network)
    inplace = [part for part in plain.modules() if isinstance(part, nn.ReLU)]
    assert all(part.inplace for part in inplace)
    for part in inplace:
        part.inplace = False
    image = torch.rand(4, 3, 32, 32, generator=generator)
    layers = list(network.layer_aliases)
    with FeatureTap(network, layers) as tap:
        tap(image)  # from here on only what must be is cloned
        found = tap(image)
    expected = read(plain, image, layers)
    assert torch.equal(found.output, expected.output)
    for layer in layers:
        assert torch.equal(found.features[layer], expected.features[layer])


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("plane")])
def test_the_classifier_sees_the_average_of_the_last_map(name, generator):
    network = shaken(name, generator).eval()
    image = torch.rand(2, 3, 32, 32, generator=generator)
    reading = read(network, image, ["last", "penultimate"])
    pooled = reading.features["last"].mean(dim=(2, 3))
    torch.testing.assert_close(reading.features["penultimate"], pooled)


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("ResNet")])
def test_every_weight_takes_part_and_images_do_not_meet_in_eval_mode(name, generator):
    network = shaken(name, generator)
    images = torch.rand(4, 3, 32, 32, generator=generator)
    network(images).square().sum().backward()
    for weight, parameter in network.named_parameters():
        assert parameter.grad is not None, weight
        assert parameter.grad.abs().sum() > 0, weight
    network.eval()
    one_by_one = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), one_by_one)


@pytest.mark.parametrize("name", FAMILIES)
def test_classes_channels_and_sizes_are_the_callers(name):
    with torch.device("meta"):
        network = create_model(name, num_classes=7, in_chans=1).eval()
        assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
        other = torch.zeros(2, 1, 64, 48)
        if name.startswith("plane"):
            with pytest.raises(ShapeError, match=r"32x32 pixels, .* Resize them"):
                network(other)
        else:
            assert network(other).shape == (2, 7)


# Initial weights

FAN_OUT = {"resnet8x4", "wrn_16_2", "MobileNetV2", "vgg8", "ResNet18"}
NARROW_CLASSIFIER = {"MobileNetV2", "vgg8"}
NO_CLASSIFIER_BIAS = {"wrn_16_2", *NARROW_CLASSIFIER}


@pytest.mark.parametrize(
    "name", [*sorted(FAN_OUT), "resnet32_option_a", "ShuffleV1", "ShuffleV2", "plane8"]
)
def test_initial_weights_are_drawn_as_in_the_authors_code(name):
    """Divided by what they should deviate by, all weights together: spread 1, and the shape.

    The fourth moment is 3 for the normal distribution and 1.8 for the uniform one.
    """
    network = create_model(name, num_classes=100, seed=3)
    normal, uniform = [], []
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all()
            assert (part.bias == 0).all()
        if not isinstance(part, nn.Conv2d | nn.Linear):
            continue
        fan_in = part.weight[0].numel()
        by_default = part.weight.flatten() / math.sqrt(1 / (3 * fan_in))
        if name == "resnet32_option_a":
            normal.append(part.weight.flatten() / math.sqrt(2 / fan_in))
        elif isinstance(part, nn.Conv2d) and name in FAN_OUT:
            fan_out = part.out_channels * part.kernel_size[0] ** 2
            normal.append(part.weight.flatten() / math.sqrt(2 / fan_out))
            assert part.bias is None or (part.bias == 0).all()
        elif isinstance(part, nn.Linear) and name in NARROW_CLASSIFIER:
            normal.append(part.weight.flatten() / 0.01)
        else:
            uniform.append(by_default)
        if isinstance(part, nn.Linear):
            assert bool((part.bias == 0).all()) is (name in NO_CLASSIFIER_BIAS)
    for values, fourth in ((normal, 3.0), (uniform, 1.8)):
        if values:
            z = torch.cat(values).detach().double()
            sigmas = 5 / math.sqrt(len(z))  # five standard errors, of about 1 and of about 10
            assert z.square().mean().item() == pytest.approx(1, abs=sigmas * math.sqrt(2))
            assert z.pow(4).mean().item() == pytest.approx(fourth, abs=sigmas * math.sqrt(96))
    assert bool(normal) is (name in FAN_OUT or name == "resnet32_option_a")


# Values

# The first, the middle and the last logit, in float64 and eval mode, of the same classes as above
# filled by `fill`, for the image sin(0.9 i + 0.1).
LOGITS = {
    "resnet8x4": (-1.47928819699, 1.35091541757, -1.60672459411),
    "resnet32_option_a": (31418489.9626, 41479178.3119, 12273455.4175),
    "wrn_16_2": (0.143915776385, -0.285032505193, 1.66162462795),
    "vgg8": (6.37150859894, 5.36085661663, -3.1430709608),
    "MobileNetV2": (23.5253813791, 24.2041139535, -2.05359088714),
    "ShuffleV1": (-55.4874051517, 45.9374023615, -44.0671577212),
    "ShuffleV2": (-0.322216655085, -0.185701492324, 0.254448758604),
    "ResNet18": (14.062238977, -11.147177197, 15.2903562808),
    "ResNet50": (-655797.84417, 10251.2463526, 426643.793724),
    "plane6": (-0.269974630528, 0.140303323468, -0.0960793175648),
    "plane8": (-0.70779371489, 0.286831802943, 0.961707814315),
}


@torch.no_grad()
def fill(state):
    """Weights by a formula of their place in the sorted names, with no two tensors alike."""
    for k, name in enumerate(sorted(state)):
        tensor = state[name]
        if not tensor.is_floating_point():
            continue
        i = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        wave = torch.sin(0.7 * i * (1 + 1 / (k + 2)) + k)
        if tensor.ndim > 1:
            tensor.copy_(wave * math.sqrt(4 / tensor[0].numel()))
        elif name.endswith("running_var"):
            tensor.copy_(1 + wave / 2)
        elif name.endswith("weight"):
            tensor.copy_(1 + wave / 4)
        else:
            tensor.copy_(wave / 4)


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_those_of_the_authors_code(name):
    network = create_model(name, num_classes=100).double().eval()
    fill(network.state_dict())
    image = torch.sin(0.9 * torch.arange(3 * 32 * 32, dtype=torch.float64) + 0.1)
    with torch.no_grad():
        logits = network(image.reshape(1, 3, 32, 32))[0]
    expected = torch.tensor(LOGITS[name], dtype=torch.float64)
    torch.testing.assert_close(logits[[0, 50, 99]], expected, rtol=1e-9, atol=0)


def test_golden_logits_are_pairwise_different():
    values = [value for row in LOGITS.values() for value in row]
    assert len(set(values)) == len(values)
