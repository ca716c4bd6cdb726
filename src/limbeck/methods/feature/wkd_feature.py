r"""WKD-F: match the distribution of each channel over an image's places, as a Gaussian.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w(e) \, (\gamma D_{mean} + D_{cov}), \quad
    D_{mean} = \frac{1}{B g^2} \sum_{b,k} \|\mu^s_{bk} - \mu^t_{bk}\|^2, \;
    D_{cov} = \frac{1}{B g^2} \sum_{b,k} \|\sigma^s_{bk} - \sigma^t_{bk}\|^2

with mean and standard deviation of every channel over the places of a cell k, of g x g cells: the
squared 2-Wasserstein distance of Gaussians with diagonal covariances. The sum over channels ties
the weight to the layer's width. It is constant for the first epochs, then falls as half a cosine
to 0. The student's map goes through a projector, trained with it: FitNet's convolution with
batch-norm and ReLU ("conv"), or three convolutions through 256 channels with batch-norm and ReLU
at the end alone ("bottleneck").

Source: Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation", NeurIPS 2024, https://arxiv.org/abs/2412.08139, section 3.2; and its authors'
    code.
Defaults: the code's for resnet32x4 -> resnet8x4: weight 0.08 for 150 epochs, gamma = 4, one cell,
    the last map. For WRN-40-2 -> ShuffleNetV1 weight 0.3, gamma 3, g = 4. On ImageNet gamma 2,
    g = 4, bottleneck, and weight 0.02, falling from the first epoch on (ResNet34 -> ResNet18), or
    0.005 for 30 epochs (ResNet50 -> MobileNetV1). Together with WKD-L: gamma 8 for resnet32x4 ->
    resnet8x4; 0.5 for WRN-40-2 -> ShuffleNetV1; 0.005 from the first epoch on for ResNet50 ->
    MobileNetV1. For ResNet34 -> ResNet18 the code then has 1.0, fifty times as much with the same
    reduction, which looks like a slip.
Differs from the source: from the code, where a cell is a single place, whose variance it finds by
    dividing by 0: here it is 0. Its bottleneck fails where the student's map is half the teacher's:
    here the map is resized first. The paper's variance divides by the number of places m, the
    code's by m - 1, as here. covariance="full" is the paper's general form, over m and without an
    epsilon, by the singular values of an m x m matrix for each image, for which a GPU makes the
    host wait. A transformer's tokens are the map of their places, and the projector's ReLU stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from limbeck.core.errors import SettingsError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.maps import check_feature_maps
from limbeck.functional.norms import BatchNorm2d
from limbeck.functional.precision import widened
from limbeck.functional.relations import without_autocast
from limbeck.methods.adapters import Alignment, LayoutConfig, align
from limbeck.methods.base import Method, MethodConfig, Needs, Probe
from limbeck.methods.feature.fitnet_one_stage import fitted_regressor
from limbeck.methods.output.wkd_logit import falling

__all__ = ["WKDDistance", "WKDFeature", "WKDFeatureConfig", "wkd_feature_loss"]

_VARIANCE_EPSILON = 1e-5  # below the root of a variance, as the authors' code has it
_BOTTLENECK = 256  # channels

Covariance = Literal["diagonal", "full"]


class WKDFeatureConfig(MethodConfig):
    """Settings of :class:`WKDFeature`.

    Attributes:
        student_layer: a map of the student, by name or meaning.
        teacher_layer: a map of the teacher.
        student_layout: how the student's layer lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.
        projector: "conv" or "bottleneck", see the module.
        grid: g; the cells are those of adaptive pooling.
        covariance: "diagonal" compares standard deviations, "full" whole covariance matrices.
        mean_weight: gamma, of the means beside the covariances.
        ce_weight: of the cross-entropy with the labels.
        wkd_weight: of both together.
        constant_epochs: before that weight falls; 0 lets it fall from the first epoch on.
    """

    student_layer: str = "last"
    teacher_layer: str = "last"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    projector: Literal["conv", "bottleneck"] = "conv"
    grid: PositiveInt = 1
    covariance: Covariance = "diagonal"
    mean_weight: NonNegativeFloat = 4.0
    ce_weight: NonNegativeFloat = 1.0
    wkd_weight: NonNegativeFloat = 0.08
    constant_epochs: NonNegativeInt = 150


class WKDDistance(NamedTuple):
    """The two parts of the squared distance, scalars, mean over batch and cells."""

    mean: Tensor
    covariance: Tensor


def wkd_feature_loss(
    student_feature: Tensor,
    teacher_feature: Tensor,
    *,
    grid: int = 1,
    covariance: Covariance = "diagonal",
) -> WKDDistance:
    r"""Squared 2-Wasserstein distance of two maps as Gaussians over their places.

    .. math:: \|\mu_s - \mu_t\|^2, \quad \|\sigma_s - \sigma_t\|^2 \;\text{ or }\;
        \mathrm{tr}(\Sigma_s + \Sigma_t - 2 (\Sigma_t^{1/2} \Sigma_s \Sigma_t^{1/2})^{1/2})

    Args:
        student_feature: ``(B, C, H, W)``.
        teacher_feature: ``(B, C, H', W')``; receives no gradient.
        grid: g; each of g x g cells, those of adaptive pooling, is a Gaussian of its own.
        covariance: "diagonal" has unbiased variances, and 1e-5 is added to each; "full" the mean
            over places, and nothing is added. In float32 the full form is right to ``1e-5`` of
            the two traces; singular matrices have a finite gradient.

    Returns:
        Scalars, float32 or wider, ``>= 0``, the sums over channels and means over batch and
        cells. A cell of one place has variance 0.

    Raises:
        ShapeError: if a feature is no map, or batch or channels differ.
        SettingsError: if a map has fewer places along an axis than cells.

    Source:
        Lv et al. 2024, https://arxiv.org/abs/2412.08139, section 3.2.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
        >>> distance = wkd_feature_loss(student, teacher)
        >>> distance.mean.item(), distance.covariance.item()
        (2.0, 0.0)
    """
    check_feature_maps(student_feature, teacher_feature, channels=True)
    student, teacher = widened(student_feature), widened(teacher_feature.detach())
    smallest = min(*student.shape[2:], *teacher.shape[2:])
    if not 1 <= grid <= smallest:
        raise SettingsError(
            f"grid must be from 1 to the smallest side of the maps, {smallest}; got {grid}"
        )
    num_cells = len(student) * grid**2
    if covariance == "full":
        pairs = zip(_cells(student, grid), _cells(teacher, grid), strict=True)
        found = [_full_distance(*pair) for pair in pairs]
        mean, spread = (torch.stack(parts).sum() for parts in zip(*found, strict=True))
        return WKDDistance(mean / num_cells, spread / num_cells)
    ours, theirs = _moments(student, grid), _moments(teacher, grid)
    deviations = [(variance + _VARIANCE_EPSILON).sqrt() for variance in (ours[1], theirs[1])]
    return WKDDistance(
        (ours[0] - theirs[0]).square().sum() / num_cells,
        (deviations[0] - deviations[1]).square().sum() / num_cells,
    )


def _cells(feature: Tensor, grid: int) -> Iterator[Tensor]:
    """The cells of adaptive pooling, row by row, each ``(B, C, m)``."""
    height, width = feature.shape[2:]
    for row in range(grid):
        rows = slice(row * height // grid, -(-(row + 1) * height // grid))
        for column in range(grid):
            columns = slice(column * width // grid, -(-(column + 1) * width // grid))
            yield feature[:, :, rows, columns].flatten(start_dim=2)


def _moments(feature: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel and cell: ``(B, C, g * g)``."""
    batch, channels, height, width = feature.shape
    if height % grid == width % grid == 0:
        split = feature.reshape(batch, channels, grid, height // grid, grid, width // grid)
        places = height * width // grid**2
        # torch's unbiased variance of one place is 0 / 0.
        variance, mean = torch.var_mean(split, dim=(3, 5), correction=int(places > 1))
        return mean.flatten(start_dim=2), variance.flatten(start_dim=2)
    found = [
        torch.var_mean(cell, dim=2, correction=int(cell.shape[2] > 1))
        for cell in _cells(feature, grid)
    ]
    variances, means = zip(*found, strict=True)
    return torch.stack(means, dim=2), torch.stack(variances, dim=2)


def _full_distance(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both parts for one cell, ``(B, C, m)`` and ``(B, C, m')``: sums over the batch.

    With the places less their mean as columns of X and Y, the trace of the root is the sum of
    the singular values of X'Y, an m x m' matrix, over the root of m m'. It takes no root of a
    singular matrix, and its gradient, a product of singular vectors, is bounded; the directions
    whose singular value is zero up to rounding get none.
    """
    means = student.mean(dim=2), teacher.mean(dim=2)
    x, y = (
        (places - mean[:, :, None]) / math.sqrt(places.shape[2])
        for places, mean in zip((student, teacher), means, strict=True)
    )
    with without_autocast(x):
        singular = torch.linalg.svdvals(x.mT @ y)
    rounding = 8 * max(x.shape[1:]) * torch.finfo(x.dtype).eps
    counted = singular.detach() > rounding * singular.detach()[:, :1]
    fidelity = torch.where(counted, singular, 0.0).sum(dim=1)
    spread = x.square().sum(dim=(1, 2)) + y.square().sum(dim=(1, 2)) - 2 * fidelity
    return (means[0] - means[1]).square().sum(), spread.clamp(min=0).sum()


def _bottleneck(student_channels: int, teacher_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(student_channels, _BOTTLENECK, kernel_size=1),
        nn.Conv2d(_BOTTLENECK, _BOTTLENECK, kernel_size=3, padding=1),
        nn.Conv2d(_BOTTLENECK, teacher_channels, kernel_size=1),
        BatchNorm2d(teacher_channels),
        nn.ReLU(),
    )


class WKDFeature(Method[WKDFeatureConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        alignment: of the two layers, as maps.
        projector: from the student's map to the teacher's shape.
    """

    takes_mixed = True

    def __init__(
        self, config: WKDFeatureConfig, *, alignment: Alignment, projector: nn.Module
    ) -> None:
        super().__init__(config)
        self.alignment = alignment
        self.projector = projector

    @classmethod
    def needs(cls, config: WKDFeatureConfig) -> Needs:
        """One map of each network."""
        return Needs(student_layers=(config.student_layer,), teacher_layers=(config.teacher_layer,))

    @classmethod
    def from_probe(cls, config: WKDFeatureConfig, probe: Probe) -> Self:
        """Make the projector for the two layers' shapes.

        Raises:
            SettingsError: if the teacher's map has fewer places along an axis than cells.
        """
        features = (
            probe.feature("student", config.student_layer),
            probe.feature("teacher", config.teacher_layer),
        )
        layouts = {
            "student_layout": config.student_layout,
            "teacher_layout": config.teacher_layout,
        }
        if config.projector == "conv":
            alignment, projector = fitted_regressor(features[0], features[1], **layouts)
        else:
            alignment = align(features[0], features[1], purpose="map", **layouts)
            alignment = alignment.resized("teacher")
            channels = alignment.student_layout.channels, alignment.teacher_layout.channels
            projector = _bottleneck(*channels)
        height, width = alignment.teacher_layout.known_grid()
        if config.grid > min(height, width):
            raise SettingsError(
                f"method.grid is {config.grid}, and the teacher's map has {height} x {width} "
                "places; use a smaller grid, or an earlier teacher layer"
            )
        return cls(config, alignment=alignment, projector=projector)

    def describe(self) -> tuple[str, ...]:
        """The two layers and the projector between them."""
        layers = self.config.student_layer, self.config.teacher_layer
        return (self.alignment.describe(*layers, self.projector),)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, means and covariances at their weight of this epoch."""
        config = self.config
        ce = self.label_loss(student.logits, batch)
        maps = self.alignment(
            student.features[config.student_layer], teacher.features[config.teacher_layer]
        )
        distance = wkd_feature_loss(
            self.projector(maps.student),
            maps.teacher,
            grid=config.grid,
            covariance=config.covariance,
        )
        weight = config.wkd_weight * falling(
            progress.epoch + 1, config.constant_epochs, progress.num_epochs
        )
        return LossTerms(
            total=config.ce_weight * ce
            + weight * (config.mean_weight * distance.mean + distance.covariance),
            parts={"ce": ce, **distance._asdict()},
        )
