"""How far apart a teacher holds two classes: the costs of transport between class probabilities.

K classes, N rows of each, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.functional.precision import widened

__all__ = ["cka_cost", "cosine_cost", "sharpened"]

_MOST_ENTRIES = 2**24  # of a product of several classes at a time: 64 MB in float32


def cka_cost(features: Tensor) -> Tensor:
    r"""One minus linear CKA between every two classes' features.

    .. math:: 1 - \frac{\|Y^\top X\|_F^2}{\|X^\top X\|_F \, \|Y^\top Y\|_F}

    of features less their means over rows. Row n of one class is paired with row n of the other,
    although they have nothing to do with each other: the value depends on the order of the rows,
    and for independent rows it says how many directions the features have beside how many rows
    there are, not how much the classes resemble each other.

    Args:
        features: ``(K, N, D)``, N at least 2.

    Returns:
        ``(K, K)`` in [0, 1], symmetric, float32 or wider, 0 on the diagonal. A class of equal rows
        is at 1 from all others.

    Raises:
        ShapeError: if the features are not 3-D.

    Source:
        Kornblith et al. 2019, https://arxiv.org/abs/1905.00414, section 3; as a cost: Lv et al.
        2024, https://arxiv.org/abs/2412.08139, section 3.1.

    Example:
        >>> cka_cost(torch.tensor([[[0.0], [1.0]], [[3.0], [7.0]]]))
        tensor([[0., 0.],
                [0., 0.]])
    """
    if features.ndim != 3:
        raise ShapeError(
            f"features must be (classes, rows, features); got {tuple(features.shape)}. Stack "
            "equally many rows of each class"
        )
    x = widened(features)
    x = x - x.mean(dim=1, keepdim=True)
    num_classes, num_rows, num_features = x.shape
    similarity = torch.empty(num_classes, num_classes, dtype=x.dtype, device=x.device)
    # The norm of Y'X is the product of the Gram matrices XX' and YY': the smaller is computed.
    if num_rows < num_features:
        grams = (x @ x.mT).flatten(start_dim=1)
        similarity = grams @ grams.T
    else:
        at_once = max(1, _MOST_ENTRIES // num_features**2)
        for row in range(num_classes):
            for first in range(row, num_classes, at_once):
                products = x[row].T @ x[first : first + at_once]
                found = products.square().sum(dim=(1, 2))
                similarity[row, first : first + at_once] = found
                similarity[first : first + at_once, row] = found
    norm = similarity.diagonal().sqrt()
    product = norm[:, None] * norm
    cka = torch.where(product > 0, similarity / product.clamp(min=torch.finfo(x.dtype).tiny), 0.0)
    return (1 - cka).clamp(min=0).fill_diagonal_(0)


def cosine_cost(weight: Tensor) -> Tensor:
    """One minus the cosine between every two classes' weights in the classifier.

    Args:
        weight: ``(K, D)``.

    Returns:
        ``(K, K)`` in [0, 2], symmetric, float32 or wider, 0 on the diagonal.

    Example:
        >>> cosine_cost(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
        tensor([[0., 1., 2.],
                [1., 0., 1.],
                [2., 1., 0.]])
    """
    direction = F.normalize(widened(weight), dim=1)
    return (1 - direction @ direction.T).clamp(min=0).fill_diagonal_(0)


def sharpened(cost: Tensor, sharpness: float) -> Tensor:
    r"""``1 - exp(-sharpness * cost)``, in [0, 1); at sharpness 0 the cost as it is.

    Source:
        Lv et al. 2024, https://arxiv.org/abs/2412.08139, section 3.1.
    """
    return -torch.expm1(-sharpness * cost) if sharpness else cost
