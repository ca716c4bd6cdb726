"""Weights as the field publishes them, read onto the zoo's networks.

RepDistiller, mdistiller and the codes that grew out of them publish files of ``torch.save`` with a
state dict, alone or under ``"model"``. The layers of the zoo have the names that these two codes
give them, so their files fit as they are; :data:`RENAMES` says what else a family is found under.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
    https://arxiv.org/abs/1910.10699 (RepDistiller); Zhao, Cui, Song, Qiu, Liang, "Decoupled
    Knowledge Distillation", CVPR 2022, https://arxiv.org/abs/2203.08679 (mdistiller).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.core.errors import CheckpointError, UnknownNameError
from limbeck.models.cifar_resnet import CifarResNet
from limbeck.models.create import MODELS, create_model
from limbeck.models.digits_cnn import DigitsCNN
from limbeck.models.imagenet_resnet import ImageNetResNet
from limbeck.models.mobilenetv2 import MobileNetV2
from limbeck.models.plane_cnn import PlaneCNN
from limbeck.models.shufflenetv1 import ShuffleNetV1
from limbeck.models.shufflenetv2 import ShuffleNetV2
from limbeck.models.vgg import VGG
from limbeck.models.weights import fill_network, read_weights, without_prefix
from limbeck.models.wrn import WideResNet

__all__ = ["RENAMES", "Rename", "published_network"]


class Rename(NamedTuple):
    """One difference between a file's names and ours.

    Attributes:
        theirs: a regular expression, sought anywhere in a name.
        ours: what takes its place.
    """

    theirs: str
    ours: str


# By family; () where the published names are ours.
RENAMES: Final[Mapping[type[nn.Module], tuple[Rename, ...]]] = MappingProxyType(
    {
        # The long-tail codes, whose ResNet-32 has option A.
        CifarResNet: (Rename(r"^linear\.", "fc."),),
        DigitsCNN: (),
        # Networks of torchvision with a stem for small images.
        ImageNetResNet: (
            Rename(r"^fc\.", "linear."),
            Rename(r"\.downsample\.", ".shortcut."),
        ),
        MobileNetV2: (),
        PlaneCNN: (),
        ShuffleNetV1: (),
        ShuffleNetV2: (),
        VGG: (),
        WideResNet: (),
    }
)


def published_network(path: str | Path, name: str) -> nn.Module:
    """The zoo's network ``name`` with the weights of a published file.

    It is made for the classes and channels that the file's own shapes tell. No code in the file is
    run (see :func:`limbeck.models.load_weights`), and every weight must find its place.

    Args:
        path: a state dict, alone or under ``"model"`` or ``"state_dict"``, with or without
            DataParallel's ``module.`` before each name; or safetensors.
        name: one of :data:`limbeck.models.MODELS`.

    Raises:
        UnknownNameError: with the nearest names, if the zoo has no such network.
        CheckpointError: if the file is missing, damaged, unsafe, or of another network; the
            message names what is missing, unknown or of another shape.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    with torch.device("meta"):  # names and shapes alone
        plan = create_model(name, num_classes=1)
    given = without_prefix(read_weights(path), plan)
    given = _renamed(given, RENAMES[type(plan)], path)
    convolutions = [n for n, part in plan.named_modules() if isinstance(part, nn.Conv2d)]
    linear = [n for n, part in plan.named_modules() if isinstance(part, nn.Linear)]
    network = create_model(
        name,
        num_classes=_size(given, f"{linear[-1]}.weight", 0),
        in_chans=_size(given, f"{convolutions[0]}.weight", 1),
    )
    fill_network(network, given, source=path)
    return network


def _renamed(
    given: Mapping[str, Tensor], renames: tuple[Rename, ...], path: str | Path
) -> dict[str, Tensor]:
    """The same tensors under our names."""
    renamed: dict[str, Tensor] = {}
    for theirs, tensor in given.items():
        ours = theirs
        for rename in renames:
            ours = re.sub(rename.theirs, rename.ours, ours)
        if ours in renamed:
            raise CheckpointError(
                f"{path} holds {ours} twice, once under another name; give a file of one network"
            )
        renamed[ours] = tensor
    return renamed


def _size(given: Mapping[str, Tensor], name: str, axis: int) -> int:
    """A length of a tensor of the file; 1 where it is not there, as its absence is told later."""
    tensor = given.get(name)
    return 1 if tensor is None or tensor.ndim <= axis else max(1, tensor.shape[axis])
