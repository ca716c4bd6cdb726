"""Every kind of network that timm and torchvision have, as teacher and as student, for one step.

The smallest variant of each, random weights, the smallest images it takes; beside it a network of
the zoo. The images are grey and 8 x 8, so that each network also has them converted.
"""

import copy
from dataclasses import dataclass, field

import pytest
import torch

from limbeck.core.errors import LimbeckError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Progress
from limbeck.engine.probe import build_learner
from limbeck.methods import find_method
from limbeck.models import create_model, open_model
from limbeck.teacher import Teacher, state_hash

pytestmark = pytest.mark.slow

CLASSES = 5
METHODS = ("kd", "fitnet_one_stage", "rkd")
ROLES = ("student", "teacher")
SEVERAL = "has several classifiers ('head' and 'head_dist')"


@dataclass(frozen=True)
class Family:
    """A variant to try.

    Attributes:
        name: with its library.
        size: side in pixels.
        kwargs: what makes it smaller.
        stage: the layer for the feature method.
        refused: method to what it says where it cannot work.
    """

    name: str
    size: int = 32
    kwargs: dict = field(default_factory=dict)
    stage: str = "stage2"
    refused: dict = field(default_factory=dict)


TINY = {"depth": 4, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
FAMILIES = {
    "ResNet": Family("timm/resnet10t"),
    "ResNet, torchvision": Family("torchvision/resnet18"),
    "ResNet, pre-activation": Family("timm/resnetv2_18"),
    "ResNeXt": Family("timm/resnext26ts", 64),
    "WideResNet": Family("torchvision/wide_resnet50_2"),
    "DenseNet": Family("torchvision/densenet121"),
    "EfficientNet": Family("timm/test_efficientnet"),
    "EfficientNet, torchvision": Family("torchvision/efficientnet_b0"),
    "MobileNetV1": Family("timm/mobilenetv1_100"),
    "MobileNetV2": Family("timm/mobilenetv2_035"),
    "MobileNetV3": Family("timm/mobilenetv3_small_050"),
    "MobileNetV4": Family("timm/mobilenetv4_conv_small_035"),
    "MnasNet": Family("torchvision/mnasnet0_5"),
    "ShuffleNetV2": Family("torchvision/shufflenet_v2_x0_5", 64),
    "SqueezeNet": Family("torchvision/squeezenet1_1", 64),
    "RegNet": Family("timm/regnetx_002"),
    "RegNet, torchvision": Family("torchvision/regnet_y_400mf"),
    "ConvNeXt": Family("timm/test_convnext"),
    "ConvNeXt, torchvision": Family("torchvision/convnext_tiny"),
    "VGG": Family("timm/vgg11_bn"),
    "AlexNet": Family("torchvision/alexnet", 64),
    "GoogLeNet": Family("torchvision/googlenet"),
    "Inception": Family("torchvision/inception_v3", 75),
    "GoogLeNet, auxiliary": Family("torchvision/googlenet", 64, {"aux_logits": True}),
    "GhostNet": Family("timm/ghostnet_050"),
    "RepVGG": Family("timm/repvgg_a0"),
    "MobileOne": Family("timm/mobileone_s0"),
    "DLA": Family("timm/dla46x_c", stage="stage4"),
    "NFNet": Family("timm/test_nfnet"),
    "ViT": Family("timm/vit_tiny_patch16_224", 32, TINY),
    "ViT, torchvision": Family("torchvision/vit_b_32", 64),
    "DeiT": Family("timm/deit_tiny_patch16_224", 32, TINY),
    "DeiT, distilled": Family(
        "timm/deit_tiny_distilled_patch16_224", 32, TINY, refused={"rkd": SEVERAL}
    ),
    "Swin": Family(
        "timm/swin_tiny_patch4_window7_224",
        64,
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2},
    ),
    "Swin, torchvision": Family("torchvision/swin_t"),
    "MaxViT": Family("timm/test_maxvit", 160),
    "Mixer": Family("timm/mixer_s32_224", 64),
    "FastViT": Family("timm/fastvit_t8", 64),
    "EfficientFormer": Family("timm/efficientformerv2_s0", 224, refused={"rkd": SEVERAL}),
    "EVA": Family("timm/eva02_tiny_patch14_224", 28, {"depth": 4}),
    "DINO": Family("timm/vit_small_patch16_224.dino", 32, TINY),
    "DINOv2, registers": Family("timm/vit_small_patch14_reg4_dinov2", 56, {"depth": 4}),
    "CLIP": Family("timm/vit_base_patch32_clip_224", 32, TINY),
    "CLIP, convolutional": Family("timm/resnet50_clip.openai", 64),
    "MambaOut": Family("timm/test_mambaout", 64),
    "CoAtNet": Family("timm/test_coatnet", 160),
}


def batch(generator):
    return Batch(
        index=torch.arange(4),
        image=torch.rand(4, 1, 8, 8, generator=generator),
        label=torch.tensor([0, 1, 2, 3]),
    )


def opened(family):
    """The network, and what becomes of the images for it."""
    found = open_model(
        family.name,
        num_classes=CLASSES,
        in_chans=3,
        data_size=(8, 8),
        img_size=(family.size, family.size),
        model_kwargs=family.kwargs,
    )
    assert found.normalization is not None
    return found.network, found.normalization.changed(
        image_size=found.image_size, in_chans=found.in_chans
    )


@dataclass(frozen=True)
class Step:
    """What one step did: its loss, how many tensors moved, the share that had a gradient."""

    loss: float
    moved: int
    reached: float


def one_step(method, student, teacher, data, layers):
    """One whole step of a copy of the student."""
    entry = find_method(method)
    (stage,) = entry.stages(entry.config.read(layers))
    needs = stage.method.needs(stage.config)
    network, normalization = student
    taught_by, its = teacher
    observed = Teacher(copy.deepcopy(taught_by), normalization=its, layers=needs.teacher_layers)
    sealed = state_hash(observed.network)
    learner = build_learner(
        stage,
        copy.deepcopy(network),
        observed,
        data,
        normalization=normalization,
        num_images=len(data),
        num_classes=CLASSES,
        seed=0,
    ).train()
    optimiser = torch.optim.SGD(learner.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in learner.student.parameters()]
    terms = learner(data, observed(data.image), Progress()).terms
    terms.total.backward()
    optimiser.step()
    now = list(learner.student.parameters())
    moved = sum(not torch.equal(a, b) for a, b in zip(before, now, strict=True))
    reached = sum(p.grad is not None for p in now) / len(now)
    assert state_hash(observed.network) == sealed
    return Step(float(terms.total.detach()), moved, reached)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_teaches_and_learns(kind, generator):
    family, data = FAMILIES[kind], batch(generator)
    theirs = opened(family)
    beside = {
        "teacher": (create_model("resnet8", num_classes=CLASSES, in_chans=1), Normalization()),
        "student": (
            create_model("digits_cnn_tiny", num_classes=CLASSES, in_chans=1),
            Normalization(),
        ),
    }
    for method in METHODS:
        for role in ROLES:
            pair = beside | {role: theirs}
            layers = {}
            if method == "fitnet_one_stage":
                layers = {f"{each}_layer": "stage2" for each in ROLES}
                layers[f"{role}_layer"] = family.stage
            wanted = family.refused.get(method)
            if wanted is not None:
                with pytest.raises(LimbeckError) as caught:
                    one_step(method, pair["student"], pair["teacher"], data, layers)
                assert wanted in str(caught.value)
                continue
            step = one_step(method, pair["student"], pair["teacher"], data, layers)
            assert step.loss > 0
            # Of some the last weights of each block are 0 at first, and stop the gradient.
            assert step.moved > 0
            assert step.reached > 0.5
