r"""Images mixed two by two, drawn once an epoch for all images: mixup and CutMix.

.. math:: \tilde{x} = m \odot x + (1 - m) \odot x'

Mixup: m is one share for the whole image, drawn from Beta(alpha, alpha). CutMix: m is 0 within a
box and 1 outside; the box's area is one minus such a share of the image's, its centre uniform, and
what reaches beyond the image is cut off. In both, the share of x is the mean of m.

Source: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
https://arxiv.org/abs/1710.09412; Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy
to Train Strong Classifiers with Localizable Features", ICCV 2019,
https://arxiv.org/abs/1905.04899. That teacher and student see the same mixed pixels is the
"consistent teaching" of Beyer et al., "Knowledge distillation: A good teacher is patient and
consistent", CVPR 2022, https://arxiv.org/abs/2106.05237, section 3.
Differs from the source: a share for each image, where the authors' codes draw one for a batch.

N images of the set, B of one batch, C channels, H W spatial.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.core.types import keyed_generator
from limbeck.data.config import AugmentConfig

__all__ = ["MixTable", "partners"]


def partners(order: Tensor) -> Tensor:
    """Whom each image is mixed with in an epoch: the one beside it in the epoch's order.

    The images at places 0 and 1 of the order are each other's, those at 2 and 3, and so on; the
    last of an odd number is its own. So partners come in the same batch where its size is even.

    Args:
        order: ``(N,)`` int64, a permutation of the positions in the set.

    Returns:
        ``(N,)`` int64: the partner's position, by place in the order.

    Example:
        >>> partners(torch.tensor([3, 0, 4, 1, 2])).tolist()
        [0, 3, 1, 4, 2]
    """
    place = torch.arange(len(order), device=order.device) ^ 1
    return order[place.clamp(max=len(order) - 1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class MixTable:
    """How much of each image of the set is left in one epoch, read by its position.

    Attributes:
        shares: ``(N,)`` float32 in [0, 1]: the part that is the image's own; 1 where it is not
            mixed.
        boxes: ``(N, 4)`` int64: top, bottom, left and right of the box that is the partner's,
            bottom and right not within; empty for mixup and for images that are not mixed.
        is_cut: ``(N,)`` bool: whether there is such a box, in place of a blend.
    """

    shares: Tensor
    boxes: Tensor
    is_cut: Tensor

    @classmethod
    def draw(
        cls, config: AugmentConfig, num_images: int, size: tuple[int, int], *, seed: int, epoch: int
    ) -> MixTable:
        """The table that (seed, epoch) stand for, of images of ``size`` = (height, width)."""
        # numpy's generator: torch's draws no beta distribution from one of the caller's.
        random = np.random.default_rng(keyed_generator(seed, epoch, "mix").initial_seed())
        is_mixed = random.random(num_images) < config.mix_prob
        cut_share = 0.5 if config.mixup_alpha and config.cutmix_alpha else config.cutmix_alpha > 0
        is_cut = is_mixed & (random.random(num_images) < cut_share)
        places = random.random((num_images, 2))
        blended, around = (
            random.beta(alpha, alpha, num_images) if alpha else np.ones(num_images)
            for alpha in (config.mixup_alpha, config.cutmix_alpha)
        )
        boxes = np.where(is_cut[:, None], _boxes(around, places, size), 0)
        area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
        shares = np.where(is_cut, 1 - area / (size[0] * size[1]), np.where(is_mixed, blended, 1))
        return cls(
            shares=torch.from_numpy(shares.astype(np.float32)),
            boxes=torch.from_numpy(boxes),
            is_cut=torch.from_numpy(is_cut),
        )

    def to(self, device: torch.device) -> MixTable:
        """The same table on ``device``."""
        return MixTable(
            shares=self.shares.to(device),
            boxes=self.boxes.to(device),
            is_cut=self.is_cut.to(device),
        )

    def apply(self, image: Tensor, other: Tensor, index: Tensor) -> Tensor:
        """Mixed images; an image that is not mixed, and pixels outside a box, stay exactly.

        Args:
            image: ``(B, C, H, W)`` float, finite, on the table's device.
            other: the partners, as many and as large.
            index: ``(B,)`` int64, each image's position in the set.

        Returns:
            ``(B, C, H, W)``, a new tensor.
        """
        top, bottom, left, right = self.boxes[index].T[:, :, None, None, None]
        row = torch.arange(image.shape[2], device=image.device)[:, None]
        column = torch.arange(image.shape[3], device=image.device)
        outside = (row < top) | (row >= bottom) | (column < left) | (column >= right)
        share = self.shares[index].to(image.dtype)[:, None, None, None]
        own = torch.where(self.is_cut[index][:, None, None, None], outside.to(image.dtype), share)
        return torch.lerp(other, image, own)


def _boxes(shares: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(N, 4)``: boxes around ``places`` in [0, 1), each of one minus a share of the area."""
    edges = []
    for place, length in zip(places.T, size, strict=True):
        centre = (place * length).astype(np.int64)
        half = (0.5 * np.sqrt(1 - shares) * length).astype(np.int64)
        edges += [np.clip(centre - half, 0, length), np.clip(centre + half, 0, length)]
    return np.stack(edges, axis=1)
