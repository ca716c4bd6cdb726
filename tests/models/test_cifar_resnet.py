import math

import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.features import resolve_layer
from limbeck.models import cifar_resnet
from limbeck.models.cifar_resnet import CifarResNet, resnet8x4, resnet20
from limbeck.models.summary import summarise

# name: parameters, multiply-adds in millions, convolutions, batch-norms; 100 classes, 3x32x32.
# Measured on megvii-research/mdistiller@a08d46f, mdistiller/models/cifar/resnet.py.
BENCHMARK = {
    "resnet8": (83_892, 12.507, 9, 9),
    "resnet14": (181_108, 26.663, 15, 15),
    "resnet20": (278_324, 40.819, 21, 21),
    "resnet32": (472_756, 69.130, 33, 33),
    "resnet44": (667_188, 97.442, 45, 45),
    "resnet56": (861_620, 125.754, 57, 57),
    "resnet110": (1_736_564, 253.156, 111, 111),
    "resnet8x4": (1_233_540, 177.071, 10, 10),
    "resnet32x4": (7_433_860, 1083.041, 34, 34),
}
EXACT_MACS = {"resnet20": 40_818_944, "resnet32x4": 1_083_040_768}


def macs_by_hand(depth, stem, widths):
    """The multiplications of stem, blocks, projections and classifier, summed up layer by layer."""
    macs, width, side = 32 * 32 * 9 * 3 * stem, stem, 32
    for stage, wide in enumerate(widths):
        for block in range((depth - 2) // 6):
            side = side // 2 if stage > 0 and block == 0 else side
            macs += side * side * 9 * (width * wide + wide * wide)
            if width != wide or (stage > 0 and block == 0):
                macs += side * side * width * wide
            width = wide
    return macs + widths[-1] * 100


@pytest.mark.parametrize("name", BENCHMARK)
def test_counts_are_the_benchmarks(name):
    parameters, millions, num_convolutions, num_norms = BENCHMARK[name]
    network = getattr(cifar_resnet, name)()
    found = summarise(network, (3, 32, 32))
    assert found.num_parameters == parameters
    assert f"{found.num_macs / 1e6:.3f}" == f"{millions:.3f}"
    depth, *wide = map(int, name.removeprefix("resnet").split("x"))
    stem, *widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    assert found.num_macs == macs_by_hand(depth, stem, widths)
    assert found.num_macs == EXACT_MACS.get(name, found.num_macs)
    kinds = [row.kind for row in found.rows]
    assert kinds.count("Conv2d") == num_convolutions
    assert kinds.count("BatchNorm2d") == num_norms
    assert kinds.count("Linear") == 1
    assert f"{parameters:,} parameters" in getattr(cifar_resnet, name).__doc__


def test_every_network_of_the_file_is_in_the_table():
    made = {name for name in cifar_resnet.__all__ if name.startswith("resnet")}
    assert made == set(BENCHMARK)


def shapes_of(network, image):
    """The output shapes of what ``layer_aliases`` name, read by plain hooks."""
    found = {}
    for alias in ("stem", "stage1", "stage2", "stage3", "last"):
        module = network.get_submodule(resolve_layer(network, alias))
        module.register_forward_hook(
            lambda _module, _input, output, alias=alias: found.update({alias: output.shape[1:]})
        )
    classifier = network.get_submodule(resolve_layer(network, "penultimate").split(":")[0])
    classifier.register_forward_pre_hook(lambda _, given: found.update(pooled=given[0].shape[1:]))
    network.eval()(image)
    return {name: tuple(shape) for name, shape in found.items()}


@pytest.mark.parametrize(
    ("make", "widths"), [(resnet20, (16, 16, 32, 64)), (resnet8x4, (32, 64, 128, 256))]
)
def test_stages_have_the_benchmarks_shapes(make, widths):
    sides = (32, 32, 16, 8)
    shapes = [(width, side, side) for width, side in zip(widths, sides, strict=True)]
    assert shapes_of(make(), torch.zeros(1, 3, 32, 32)) == {
        "stem": shapes[0],
        "stage1": shapes[1],
        "stage2": shapes[2],
        "stage3": shapes[3],
        "last": shapes[3],
        "pooled": (widths[-1],),
    }


@pytest.mark.parametrize(
    ("make", "projected"),
    [(resnet20, ["layer2", "layer3"]), (resnet8x4, ["layer1", "layer2", "layer3"])],
)
def test_a_shortcut_projects_where_stride_or_width_change_and_nowhere_else(make, projected):
    network = make()
    for stage in ("layer1", "layer2", "layer3"):
        for position, block in enumerate(network.get_submodule(stage)):
            wanted = position == 0 and stage in projected
            assert isinstance(block.downsample, nn.Sequential if wanted else nn.Identity)


def test_a_block_is_the_formula_of_the_paper(generator):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))), with batch-norms that do nothing."""
    block = resnet20().layer1[0].eval()
    x = torch.randn(2, 16, 5, 5, generator=generator)
    keep = x.clone()
    inner = nn.functional.conv2d(x, block.conv1.weight, padding=1) / math.sqrt(1 + 1e-5)
    outer = nn.functional.conv2d(inner.relu(), block.conv2.weight, padding=1) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(block(x), (x + outer).relu())
    assert torch.equal(x, keep)


def test_convolutions_start_as_kaimings_fan_out_and_norms_as_the_identity():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = resnet8x4()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            # 5 standard errors of a standard deviation that is estimated from so many weights
            loose = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=loose)
            assert module.bias is None
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_names_of_weights_are_those_of_the_benchmarks_checkpoints():
    names = resnet8x4().state_dict()
    assert list(names)[:2] == ["conv1.weight", "bn1.weight"]
    expected = {
        "layer1.0.conv1.weight",
        "layer1.0.bn2.running_var",
        "layer3.0.downsample.0.weight",
        "layer3.0.downsample.1.bias",
        "fc.weight",
        "fc.bias",
    }
    assert expected <= set(names)
    tops = {name.split(".")[0] for name in names}
    assert tops == {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}


def test_other_channels_sizes_and_classes_fit():
    network = CifarResNet(8, (4, 4, 8, 16), num_classes=7, in_chans=1).eval()
    assert network(torch.zeros(2, 1, 28, 36)).shape == (2, 7)


@pytest.mark.parametrize("depth", [10, 18, 0, 2])
def test_another_depth_is_refused(depth):
    with pytest.raises(ModelError, match=f"6n \\+ 2, from 8 on; got {depth}"):
        CifarResNet(depth, (4, 4, 8, 16), num_classes=7)
