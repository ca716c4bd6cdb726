r"""CAT-KD: have the student's class activation maps resemble the teacher's.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{cat} \, \frac{1}{B K r^2} \sum_{bkhw}
    (\phi(A^s)_{bkhw} - \phi(A^t)_{bkhw})^2, \quad A_{khw} = \sum_d W_{kd} f_{dhw}

where f is the last map and W the classifier's weights, and phi averages to r x r places and, if
asked to, brings each class's map to length 1. Both networks stay as they are: their biases are in
their scores and not in the maps, and the gradient reaches the student's backbone and classifier.

With ce_weight = 0 the labels are not read at all: the method trains on class maps alone.

Source: Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023,
    https://arxiv.org/abs/2304.12777; and its authors' code.
Defaults: the code's for resnet32x4 -> resnet8x4: weight 15, r = 2, no normalisation. The code's for
    other pairs, as weight, r, normalised or raw: resnet56 -> resnet20 0.7, 2, raw; resnet110 ->
    resnet32 1.8, 2, raw; VGG13 -> VGG8 4.5, 2, raw; WRN-40-2 -> WRN-16-2 12, 2, raw; WRN-40-2 ->
    WRN-40-1 1.5, 2, raw; VGG13 -> MobileNetV2 15, 2, normalised; ResNet50 -> MobileNetV2 40, 2,
    normalised; resnet32x4 -> ShuffleNetV1 and V2 600, 4, normalised; WRN-40-2 -> ShuffleNetV1 80,
    4, normalised; on ImageNet ResNet34 -> ResNet18 0.5, 4, raw; ResNet50 -> MobileNetV1 10, 2,
    normalised. Class maps alone: normalised, r = 2, weight 50; 300 with a binary teacher or with
    the lowest 75 classes.
Differs from the source: the paper always normalises and has the sum over places, r^2 times the mean
    that the code and this method have; the weights belong to the mean. The code builds both
    networks with a classifier before the pooling and drops the teacher's bias with it, which is in
    its scores; here it stays. Of n classes asked for, n are kept; the code keeps n - 1 of the
    highest and n + 1 of the lowest. A transformer's tokens are the map of their places.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from limbeck.core.errors import ModelError, SettingsError, ShapeError
from limbeck.core.types import Batch, Classifier, LossTerms, Outputs, Progress
from limbeck.functional.maps import unit_maps
from limbeck.functional.precision import widened
from limbeck.functional.relations import without_autocast
from limbeck.methods.adapters import Alignment, LayoutConfig, align
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["CATKD", "CATKDConfig", "binary_maps", "cat_loss", "class_maps", "kept_classes"]


class CATKDConfig(MethodConfig):
    """Settings of :class:`CATKD`.

    Attributes:
        student_layer: the map that the student's classifier takes the mean of, by name or meaning.
        teacher_layer: the same of the teacher.
        student_layout: how the student's layer lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.
        pool_size: r.
        normalize: whether each class's map is brought to length 1; with a pool_size of 1 nothing
            but its sign would be left.
        binarize: whether the teacher's maps are 1 where they exceed the mean of their absolute
            values, and 0 elsewhere.
        num_kept_classes: how many classes of each image count, by the teacher's scores; None for
            all.
        kept_classes: those with the "highest" or the "lowest" scores.
        ce_weight: of the cross-entropy with the labels; 0 leaves class maps alone.
        cat_weight: of the mean squared difference of the maps.
    """

    student_layer: str = "last"
    teacher_layer: str = "last"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    pool_size: PositiveInt = 2
    normalize: bool = False
    binarize: bool = False
    num_kept_classes: PositiveInt | None = None
    kept_classes: Literal["highest", "lowest"] = "highest"
    ce_weight: NonNegativeFloat = 1.0
    cat_weight: NonNegativeFloat = 15.0


def class_maps(feature: Tensor, weight: Tensor) -> Tensor:
    r"""One map for each class: the classifier at every place, without its bias.

    .. math:: A_{bkhw} = \sum_d W_{kd} f_{bdhw}

    Their mean over the places, and the bias, are the scores of a network that pools before its
    classifier.

    Args:
        feature: ``(B, D, H, W)``, the last map.
        weight: ``(K, D)``, the classifier's.

    Returns:
        ``(B, K, H, W)``, float32 or wider.

    Raises:
        ShapeError: if the feature is no map, or its channels are not what the classifier takes.

    Source:
        Zhou et al., CVPR 2016, https://arxiv.org/abs/1512.04150, eq. 2.

    Example:
        >>> class_maps(torch.ones(1, 2, 1, 1), torch.tensor([[1.0, 2.0]])).item()
        3.0
    """
    if feature.ndim != 4 or weight.ndim != 2 or feature.shape[1] != weight.shape[1]:
        raise ShapeError(
            "class maps need a feature map (batch, D, height, width) and the weights (classes, D) "
            f"of the classifier behind it; got feature {tuple(feature.shape)}, weights "
            f"{tuple(weight.shape)}. Choose the map that the classifier takes the mean of"
        )
    with without_autocast(feature):
        return torch.einsum("kd,bdhw->bkhw", widened(weight), widened(feature))


def cat_loss(
    student_cam: Tensor, teacher_cam: Tensor, *, pool_size: int = 2, normalize: bool = False
) -> Tensor:
    r"""Mean squared difference of pooled class maps, over batch, classes and places.

    .. math:: \frac{1}{B K r^2} \sum_{bkhw} (\phi(A^s)_{bkhw} - \phi(A^t)_{bkhw})^2

    Args:
        student_cam: ``(B, K, H, W)``.
        teacher_cam: ``(B, K, H', W')``; receives no gradient.
        pool_size: r, to which both are averaged.
        normalize: whether each pooled map is brought to length 1; a zero map stays zero.

    Returns:
        Scalar, float32 or wider, ``>= 0``; at most ``4 / r^2`` if normalised. The paper's loss is
        ``r^2`` times as much.

    Raises:
        ShapeError: if these are no maps of one batch and of the same classes.

    Source:
        Guo et al. 2023, https://arxiv.org/abs/2304.12777; the mean as in its authors' code.

    Example:
        >>> cam = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> cat_loss(cam, -cam, normalize=True).item()
        1.0
    """
    if any(cam.ndim != 4 for cam in (student_cam, teacher_cam)) or (
        student_cam.shape[:2] != teacher_cam.shape[:2]
    ):
        raise ShapeError(
            "class maps must be (batch, classes, height, width), of one batch and its classes; "
            f"got student {tuple(student_cam.shape)}, teacher {tuple(teacher_cam.shape)}"
        )
    student, teacher = (
        F.adaptive_avg_pool2d(widened(cam), pool_size)
        for cam in (student_cam, teacher_cam.detach())
    )
    if normalize:
        student, teacher = unit_maps(student), unit_maps(teacher)
    return F.mse_loss(student, teacher)


def binary_maps(cam: Tensor) -> Tensor:
    """1 where a class's map exceeds the mean of its absolute values, else 0.

    Args:
        cam: ``(B, K, H, W)``.

    Source:
        Guo et al. 2023, https://arxiv.org/abs/2304.12777; the threshold as in its authors' code.

    Example:
        >>> binary_maps(torch.tensor([[[[3.0, -1.0], [0.0, 0.0]]]])).flatten().tolist()
        [1.0, 0.0, 0.0, 0.0]
    """
    wide = widened(cam)
    return (wide > wide.abs().mean(dim=(2, 3), keepdim=True)).to(wide.dtype)


def kept_classes(
    teacher_logits: Tensor, count: int, *, which: Literal["highest", "lowest"]
) -> Tensor:
    """The classes of each image that the teacher scores highest or lowest: ``(B, count)``.

    Example:
        >>> kept_classes(torch.tensor([[0.0, 3.0, 1.0]]), 2, which="lowest").tolist()
        [[0, 2]]
    """
    return teacher_logits.topk(count, dim=1, largest=which == "highest").indices


class CATKD(Method[CATKDConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        alignment: of the two layers, as maps.
    """

    takes_mixed = True

    def __init__(self, config: CATKDConfig, *, alignment: Alignment) -> None:
        super().__init__(config)
        self.alignment = alignment

    @classmethod
    def needs(cls, config: CATKDConfig) -> Needs:
        """The last map and the classifier of each network."""
        return Needs(
            student_layers=(config.student_layer,),
            teacher_layers=(config.teacher_layer,),
            student_classifier=True,
            teacher_classifier=True,
        )

    @classmethod
    def from_probe(cls, config: CATKDConfig, probe: Probe) -> Self:
        """Check that each classifier takes what its map gives.

        Raises:
            ModelError: if one does not.
            SettingsError: if more classes are to be kept than there are.
        """
        if config.num_kept_classes is not None and config.num_kept_classes > probe.num_classes:
            raise SettingsError(
                f"num_kept_classes is {config.num_kept_classes}, and the data has "
                f"{probe.num_classes} classes; keep as many or fewer"
            )
        alignment = align(
            probe.feature("student", config.student_layer),
            probe.feature("teacher", config.teacher_layer),
            purpose="map",
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        )
        for whose, outputs, layer, layout in (
            ("student", probe.student, config.student_layer, alignment.student_layout),
            ("teacher", probe.teacher, config.teacher_layer, alignment.teacher_layout),
        ):
            width = _classifier(outputs).weight.shape[1]
            if width != layout.channels:
                raise ModelError(
                    f"class maps need the {whose}'s classifier to take its last map's channels: "
                    f"it takes {width}, and layer {layer!r} has {layout.channels}. Name the map "
                    f"just before the pooling (method.{whose}_layer), or a network without further "
                    "layers between the two"
                )
        return cls(config, alignment=alignment)

    def describe(self) -> tuple[str, ...]:
        """The two layers."""
        layers = self.config.student_layer, self.config.teacher_layer
        return (self.alignment.describe(*layers, None),)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and class maps; the latter alone where ce_weight is 0."""
        del progress
        config = self.config
        maps = self.alignment(
            student.features[config.student_layer], teacher.features[config.teacher_layer]
        )
        ours = class_maps(_pooled(maps.student, config), _classifier(student).weight)
        weight = _classifier(teacher).weight
        if config.binarize:
            theirs = binary_maps(class_maps(maps.teacher, weight))
        else:
            theirs = class_maps(_pooled(maps.teacher, config), weight)
        if config.num_kept_classes is not None:
            kept = kept_classes(teacher.logits, config.num_kept_classes, which=config.kept_classes)
            ours, theirs = _of_classes(ours, kept), _of_classes(theirs, kept)
        cat = cat_loss(ours, theirs, pool_size=config.pool_size, normalize=config.normalize)
        total, parts = config.cat_weight * cat, {"cat": cat}
        if config.ce_weight:
            ce = self.label_loss(student.logits, batch)
            total, parts = config.ce_weight * ce + total, {"ce": ce, **parts}
        return LossTerms(total=total, parts=parts)


def _classifier(outputs: Outputs) -> Classifier:
    assert outputs.classifier is not None  # `needs` asks for it
    return outputs.classifier


def _pooled(feature: Tensor, config: CATKDConfig) -> Tensor:
    """Pooling commutes with the classifier, and K maps are many."""
    return F.adaptive_avg_pool2d(widened(feature), config.pool_size)


def _of_classes(cam: Tensor, kept: Tensor) -> Tensor:
    """``(B, K, H, W)`` to the classes ``(B, n)`` of each image."""
    return cam.gather(1, kept[:, :, None, None].expand(-1, -1, *cam.shape[2:]))
