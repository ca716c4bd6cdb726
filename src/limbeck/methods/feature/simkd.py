r"""SimKD: train the student's features alone, and put the teacher's classifier behind them.

.. math:: \mathcal{L} = w \, \frac{1}{BCHW} \sum_{bchw} (P(f^s)_{bchw} - f^t_{bchw})^2

where f are the last maps, the larger averaged to the other's size, and P, the projector, is three
convolutions (1x1, 3x3, 1x1), each with batch-norm and ReLU, that narrow the teacher's channels by
a factor in between. There is no cross-entropy: no label is read.

What is evaluated and exported is the student up to its last map, the projector, the mean over the
places, and a frozen copy of the teacher's classifier. The student's own classifier is never
trained and is not part of it; the projector is, and counts among the parameters.

Source: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher
    Classifier", CVPR 2022, https://arxiv.org/abs/2203.14001, section 3; and its authors' code.
Defaults: the code's, for all pairs: weight 1, factor 2, the last maps.
Differs from the source: nothing where the teacher's scores are its classifier on the mean of its
    last map, found by trying. Where they are not (a class token, a norm in between), the vector
    before the classifier takes the map's place, and the student's map is averaged to one place.
    The projector ends without a ReLU if the teacher's layer is negative somewhere on a first batch,
    where the code takes the map behind a last ReLU. A transformer's tokens are the map of their
    places.
"""

from __future__ import annotations

import copy
from typing import Self

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from limbeck.core.errors import ModelError, ShapeError
from limbeck.core.settings import Settings
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.features import FeatureTap
from limbeck.functional.hints import hint_loss
from limbeck.functional.norms import BatchNorm2d
from limbeck.methods.adapters import Layout, LayoutConfig, find_layout
from limbeck.methods.base import Method, MethodConfig, Needs, Probe
from limbeck.methods.heads import classifier_misfit

__all__ = ["ReusedClassifier", "ReusedClassifierConfig", "SimKD", "SimKDConfig"]

_LAST, _PENULTIMATE = "last", "penultimate"


class SimKDConfig(MethodConfig):
    """Settings of :class:`SimKD`.

    Attributes:
        student_layer: the student's map, by name or meaning; nothing behind it is deployed.
        teacher_layer: the teacher's layer whose mean its classifier takes; None finds it.
        student_layout: how the student's layer lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.
        factor: by which the projector is narrower than the teacher's layer.
        feature_weight: of the mean squared difference, the only term.
    """

    student_layer: str = _LAST
    teacher_layer: str | None = None
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    factor: PositiveInt = 2
    feature_weight: NonNegativeFloat = 1.0


class ReusedClassifierConfig(Settings):
    """What must be known, beside the student, to build a :class:`ReusedClassifier`.

    Attributes:
        layer: exact address of the student's layer, behind which it is cut.
        classifier: name of the student's own classifier, which is dropped.
        layout: how that layer lies.
        size: (H, W) to which its map is averaged.
        channels: of the student's layer, inside the projector, and of the teacher's layer.
        relu: whether the projector ends in one.
        num_classes: of the teacher's classifier.
        bias: whether that has one.
    """

    layer: str
    classifier: str
    layout: LayoutConfig
    size: tuple[int, int]
    channels: tuple[int, int, int]
    relu: bool
    num_classes: PositiveInt
    bias: bool


class ReusedClassifier(nn.Module):
    """A student without its classifier, a projector, and a teacher's classifier.

    Its state dict is that of its three parts: ``backbone``, ``projector`` and ``classifier``.

    Args:
        network: the student; its classifier is replaced by an identity, in place.
        config: where it is cut and what follows.
    """

    def __init__(self, network: nn.Module, config: ReusedClassifierConfig) -> None:
        super().__init__()
        self.config = config
        aliases = getattr(network, "layer_aliases", {})
        self.layer_aliases = {
            **{
                name: f"backbone.{address}"
                for name, address in aliases.items()
                if name not in (_PENULTIMATE, _LAST, f"pre_activation:{_LAST}")
            },
            _LAST: "projector",
            _PENULTIMATE: "classifier:input",
        }
        network.set_submodule(config.classifier, nn.Identity())
        self.backbone = network
        self.projector = _projector(config)
        self.classifier = nn.Linear(config.channels[2], config.num_classes, bias=config.bias)
        self.classifier.requires_grad_(False)
        # Not stopped behind it: an exception on the way out is nothing that can be exported.
        self._tap = FeatureTap(self.backbone, [config.layer])

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)``, normalised as the student's, to logits ``(B, K)``."""
        feature = self._tap(image).features[self.config.layer]
        layout = find_layout(feature, self.config.layout, whose="student")
        projected = self.projector(_averaged(layout.as_map(feature), self.config.size))
        logits: Tensor = self.classifier(projected.mean(dim=(2, 3)))
        return logits


def _projector(config: ReusedClassifierConfig) -> nn.Sequential:
    student, inside, teacher = config.channels
    layers: list[nn.Module] = [
        nn.Conv2d(student, inside, kernel_size=1, bias=False),
        BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, inside, kernel_size=3, padding=1, bias=False),
        BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, teacher, kernel_size=1, bias=False),
        BatchNorm2d(teacher),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if config.relu else []))


def _averaged(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)


class SimKD(Method[SimKDConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        recipe: of what is deployed.
        classifier: the teacher's; it is copied.
        student_layout: of the student's layer.
        teacher_layer: name of the teacher's layer.
        teacher_layout: of that layer.
    """

    takes_mixed = True

    def __init__(
        self,
        config: SimKDConfig,
        *,
        recipe: ReusedClassifierConfig,
        classifier: nn.Linear,
        student_layout: Layout,
        teacher_layer: str,
        teacher_layout: Layout,
    ) -> None:
        super().__init__(config)
        self.recipe = recipe
        self.projector = _projector(recipe)
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)
        self.student_layout = student_layout
        self.teacher_layer = teacher_layer
        self.teacher_layout = teacher_layout

    @classmethod
    def needs(cls, config: SimKDConfig) -> Needs:
        """The last map of each network, and the classifiers: one to reuse, one to drop."""
        chosen = config.teacher_layer
        return Needs(
            student_layers=(config.student_layer,),
            teacher_layers=(_LAST, _PENULTIMATE) if chosen is None else (chosen,),
            student_classifier=True,
            teacher_classifier=True,
        )

    @classmethod
    def from_probe(cls, config: SimKDConfig, probe: Probe) -> Self:
        """Find the teacher's layer before its classifier, and make the projector.

        Raises:
            ModelError: if the classifier on the mean of the layer that was asked for does not
                give the teacher's scores.
        """
        layer, teacher_layout = _teacher_layer(config, probe)
        found = probe.teacher.classifier
        assert found is not None
        feature = probe.feature("student", config.student_layer)
        student_layout = find_layout(feature, config.student_layout, whose="student")
        grids = student_layout.known_grid(), teacher_layout.known_grid()
        size = min(grids[0][0], grids[1][0]), min(grids[0][1], grids[1][1])
        target = _averaged(teacher_layout.as_map(probe.feature("teacher", layer)), size)
        name = probe.student_classifier_name
        assert name is not None
        is_tokens = student_layout.kind == "tokens"
        recipe = ReusedClassifierConfig(
            layer=probe.student_addresses[config.student_layer],
            classifier=name,
            layout=LayoutConfig(
                kind=student_layout.kind,
                prefix_tokens=student_layout.num_prefix if is_tokens else None,
            ),
            size=size,
            channels=(
                student_layout.channels,
                max(1, teacher_layout.channels // config.factor),
                teacher_layout.channels,
            ),
            relu=not bool((target < 0).any()),
            num_classes=len(found.weight),
            bias=found.bias is not None,
        )
        classifier = nn.Linear(teacher_layout.channels, recipe.num_classes, bias=recipe.bias)
        state = {"weight": found.weight, **({"bias": found.bias} if recipe.bias else {})}
        classifier.load_state_dict(state)
        return cls(
            config,
            recipe=recipe,
            classifier=classifier,
            student_layout=student_layout,
            teacher_layer=layer,
            teacher_layout=teacher_layout,
        )

    def describe(self) -> tuple[str, ...]:
        """The two layers, the projector, and what is deployed."""
        size = "x".join(map(str, self.recipe.size))
        own, inside, wanted = self.recipe.channels
        lines = [
            f"student {self.config.student_layer} {self.student_layout.describe('map')} at {size} "
            f"-> projector {own}, {inside}, {inside}, {wanted} -> teacher {self.teacher_layer} "
            f"{self.teacher_layout.describe('map')} at {size}; "
            f"{sum(p.numel() for p in self.projector.parameters()):,} parameters",
            f"deployed: the student without {self.recipe.classifier}, the projector, and the "
            f"teacher's classifier of {sum(p.numel() for p in self.classifier.parameters()):,} "
            "parameters",
        ]
        if self.config.teacher_layer is None:
            unused = _PENULTIMATE if self.teacher_layer == _LAST else _LAST
            why = "is not needed" if self.teacher_layer == _LAST else "has another mean"
            lines.append(f"teacher {unused} {why}: its scores are from {self.teacher_layer}")
        return tuple(lines)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """The distance of the two maps, and nothing else."""
        del batch, progress
        feature = student.features[self.config.student_layer]
        projected = self.projector(_averaged(self.student_layout.as_map(feature), self.recipe.size))
        target = self.teacher_layout.as_map(teacher.features[self.teacher_layer])
        distance = hint_loss(projected, _averaged(target, self.recipe.size))
        return LossTerms(total=self.config.feature_weight * distance, parts={"feature": distance})

    def deployed(self, student: nn.Module) -> nn.Module:
        """A copy of the student up to its last map, of the projector and of the classifier."""
        network = copy.deepcopy(student)
        network._compiled_call_impl = None
        whole = ReusedClassifier(network, self.recipe)
        whole.projector = copy.deepcopy(self.projector)
        whole.classifier = copy.deepcopy(self.classifier)
        return whole.train(student.training)


def _teacher_layer(config: SimKDConfig, probe: Probe) -> tuple[str, Layout]:
    """The layer on whose mean the teacher's classifier gives its scores."""
    asked = (_LAST, _PENULTIMATE) if config.teacher_layer is None else (config.teacher_layer,)
    reasons = []
    for layer in asked:
        feature = probe.feature("teacher", layer)
        try:
            layout = find_layout(feature, config.teacher_layout, whose="teacher")
            layout.known_grid()
        except ShapeError as error:
            if config.teacher_layer is not None:
                raise
            reasons.append(str(error))
            continue
        apart = classifier_misfit(layout.as_vector(feature), probe.teacher)
        if apart is None:
            return layer, layout
        reasons.append(f"layer {layer!r} {tuple(feature.shape)} {apart}")
    raise ModelError(
        "SimKD puts the teacher's classifier behind the student, and it must take the mean of the "
        f"teacher's layer over its places; {'; '.join(reasons)}. Name the layer just before the "
        "teacher's pooling (method.teacher_layer), or 'penultimate'"
    )
