"""A teacher and a student side by side: what they cost, and where each method would attach.

B batch, C channels, H W spatial.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.core.errors import LimbeckError, TapError
from limbeck.core.normalization import Normalize
from limbeck.core.types import Batch, Progress, keyed_generator
from limbeck.engine.probe import make_probe
from limbeck.features import FeatureTap
from limbeck.layers import list_meanings
from limbeck.methods import METHODS
from limbeck.methods.base import Needs, Probe, Stage
from limbeck.models import count_macs, summarise
from limbeck.runs.measure import deployed_bytes
from limbeck.runs.networks import NamedNetwork
from limbeck.teacher import Teacher

__all__ = [
    "Attachment",
    "LayerPlace",
    "MeantLayer",
    "NetworkFacts",
    "Pair",
    "inspect_pair",
    "meant_layers",
]

_PRE = "pre_activation:"
_ENDS = ("last", "penultimate")
_DRY_IMAGES = 2  # the fewest that have batch statistics and a pair


@dataclass(frozen=True)
class NetworkFacts:
    """What one of the two networks is and costs.

    Attributes:
        name: for people.
        input_shape: ``(C, H, W)`` that it is fed.
        num_parameters: all of them, shared ones once.
        num_macs: multiply-adds for one such image.
        num_bytes: of its weights and buffers, as a file holds them.
        notes: what was done to make it fit to use.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_parameters: int
    num_macs: int
    num_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LayerPlace:
    """Where a layer is.

    Attributes:
        address: exact, as a tap reads it.
        output_shape: of one image's tensor there; None where it does not run exactly once.
        rule: whether the network's structure suggests it, and not the network itself says so.
    """

    address: str
    output_shape: tuple[int, ...] | None
    rule: bool


@dataclass(frozen=True)
class MeantLayer:
    """A name, and the layer of each network that it stands for; None where there is none."""

    name: str
    teacher: LayerPlace | None
    student: LayerPlace | None


@dataclass(frozen=True)
class Attachment:
    """One stage of one method, with its default settings, on these two networks.

    Attributes:
        method: its name in the table of methods.
        family: where its knowledge lies.
        stage: the stage's name.
        attaches: what it says of the layers it reads and what stands between them; empty where it
            reads outputs alone.
        num_parameters: that it trains beside the student.
        num_macs: multiply-adds of its layers for one image, in training.
        refusal: why it does not take these two, and what to do; None where it does.
    """

    method: str
    family: str
    stage: str
    attaches: tuple[str, ...] = ()
    num_parameters: int = 0
    num_macs: int = 0
    refusal: str | None = None


@dataclass(frozen=True)
class Pair:
    """All that :func:`inspect_pair` finds.

    Attributes:
        image_shape: ``(C, H, W)`` of the data, before either network's own size and channels.
        num_classes: of the data.
        num_images: in the training set.
        teacher: its costs.
        student: its costs.
        layers: by meaning, in the order of the forward pass.
        attachments: a row for each stage of each method, in the order of the table.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    num_images: int
    teacher: NetworkFacts
    student: NetworkFacts
    layers: tuple[MeantLayer, ...]
    attachments: tuple[Attachment, ...]


def inspect_pair(
    teacher: NamedNetwork,
    student: NamedNetwork,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_images: int = 50_000,
) -> Pair:
    """Put two networks side by side, and build every method for them by one dry batch.

    Weights need not be trained: only shapes count, and what a method reads off a layer's structure.

    Args:
        teacher: stays as it is, as does the student: copies are used.
        student: the network that would learn.
        image_shape: ``(C, H, W)`` of the data.
        num_classes: of the data.
        num_images: in the training set, of each of which some methods keep something.

    Raises:
        ModelError: if one of the networks cannot take the images, gives no logits, or has other
            classes. What does not suit a single method stands in its row.
    """
    prober = _Prober(teacher, student, image_shape, num_classes, num_images)
    facts = [_facts(side, image_shape) for side in (teacher, student)]
    prober.probe(Needs())  # what suits no method at all is the caller's to know
    attachments = tuple(
        _attach(name, entry.family, stage, prober)
        for name, entry in METHODS.items()
        for stage in entry.stages(entry.config())
    )
    layers = {
        whose: meant_layers(network.eval(), prober.seen_by(whose), prober.read[whose])
        for whose, network in prober.networks.items()
    }
    names = sorted({*layers["teacher"], *layers["student"]}, key=_depth)
    return Pair(
        image_shape=image_shape,
        num_classes=num_classes,
        num_images=num_images,
        teacher=facts[0],
        student=facts[1],
        layers=tuple(
            MeantLayer(name, layers["teacher"].get(name), layers["student"].get(name))
            for name in names
            # Of these, only what a method reads: others are the same layers once more.
            if not name.startswith(_PRE) or any(name in read for read in prober.read.values())
        ),
        attachments=attachments,
    )


def meant_layers(
    network: nn.Module, image: Tensor, also: Mapping[str, str] | None = None
) -> dict[str, LayerPlace]:
    """Every meaning of a network, and where it is.

    Args:
        network: in eval mode; it stays as it is.
        image: ``(B, C, H, W)`` as the network takes it, two images at least.
        also: further meanings, and their addresses.
    """
    found = list_meanings(network, image)
    addresses = {name: meaning.address for name, meaning in found.items()} | dict(also or {})
    rules = {name for name, meaning in found.items() if meaning.reason}
    shapes = {
        address: _shape(network, address, image[:1])
        for address in dict.fromkeys(addresses.values())
    }
    return {
        name: LayerPlace(address, shapes[address], name.removeprefix(_PRE) in rules)
        for name, address in addresses.items()
    }


@torch.no_grad()
def _shape(network: nn.Module, address: str, image: Tensor) -> tuple[int, ...] | None:
    """One image's shape at a layer; None where it does not run exactly once."""
    try:
        with FeatureTap(network, [address]) as tap:
            return tuple(tap(image).features[address].shape[1:])
    except TapError:
        return None


def _facts(side: NamedNetwork, image_shape: tuple[int, int, int]) -> NetworkFacts:
    shape = side.normalization.input_shape(image_shape)
    found = summarise(side.network, shape)
    return NetworkFacts(
        name=side.name,
        input_shape=shape,
        num_parameters=found.num_parameters,
        num_macs=found.num_macs,
        num_bytes=deployed_bytes(side.network),
        notes=side.notes,
    )


class _Prober:
    """The two networks on one dry batch, each kind of needs once.

    Attributes:
        networks: copies, by whose.
        read: layers that methods read, names to addresses, by whose.
    """

    def __init__(
        self,
        teacher: NamedNetwork,
        student: NamedNetwork,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_images: int,
    ) -> None:
        self._sides = {"teacher": teacher, "student": student}
        self.networks = {whose: copy.deepcopy(side.network) for whose, side in self._sides.items()}
        self.read: dict[str, dict[str, str]] = {whose: {} for whose in self._sides}
        self._labels = torch.arange(num_images) % num_classes
        self._num_classes = num_classes
        generator = keyed_generator("pair")
        self._image = torch.rand(_DRY_IMAGES, *image_shape, generator=generator)
        self._probes: dict[Needs, Probe] = {}

    def seen_by(self, whose: str) -> Tensor:
        """The dry batch as that network is fed it."""
        normalized: Tensor = Normalize(self._sides[whose].normalization)(self._image)
        return normalized

    def batch(self, needs: Needs) -> Batch:
        """The dry batch; each view shows the same."""
        index = torch.arange(len(self._image))
        return Batch(
            index=index,
            image=self._image,
            label=self._labels[index],
            views=dict.fromkeys(needs.views, self._image),
        )

    def probe(self, needs: Needs) -> Probe:
        """What the batch shows."""
        if needs not in self._probes:
            self._probes[needs] = self._make(needs)
        return self._probes[needs]

    def _make(self, needs: Needs) -> Probe:
        teacher = Teacher(
            self.networks["teacher"],
            normalization=self._sides["teacher"].normalization,
            layers=needs.teacher_layers,
            classifier=needs.teacher_classifier,
            classes=self._sides["teacher"].classes,
        )
        try:
            probe = make_probe(
                needs,
                self.networks["student"],
                teacher if needs.teacher else None,
                self.batch(needs),
                normalization=self._sides["student"].normalization,
                num_images=len(self._labels),
                num_classes=self._num_classes,
                seed=0,
                labels=self._labels,
            )
            self.read["teacher"] |= teacher.observed.tap.addresses
            self.read["student"] |= probe.student_addresses
        finally:
            teacher.observed.tap.close()
        return probe


def _attach(name: str, family: str, stage: Stage, prober: _Prober) -> Attachment:
    """Build one stage's method and run it once."""
    needs = stage.method.needs(stage.config)
    batch = prober.batch(needs)
    try:
        probe = prober.probe(needs)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            method = stage.method.from_probe(stage.config, probe)
            macs = count_macs(
                method, lambda: method(batch, probe.student, probe.teacher, Progress())
            )
    except LimbeckError as error:
        return Attachment(name, family, stage.name, refusal=str(error))
    return Attachment(
        name,
        family,
        stage.name,
        attaches=method.describe(),
        num_parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
        num_macs=macs // len(batch),
    )


def _depth(name: str) -> tuple[int, int, str]:
    """Where a meaning stands: stem, stages, ends; before its activation right behind itself."""
    base = name.removeprefix(_PRE)
    stage = re.fullmatch(r"stage(\d+)", base)
    if stage:
        return 1, int(stage[1]), name.replace(_PRE, f"{base} ")
    return 2 + _ENDS.index(base) if base in _ENDS else 0, 0, name
