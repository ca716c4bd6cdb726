r"""CKA: how alike two networks hold the same examples to be, whatever the axes of their features.

N examples, D features.

With the Gram matrices K and L of the examples in the two networks, CKA is the cosine between them
after centring,

.. math:: \frac{\mathrm{HSIC}(K, L)}{\sqrt{\mathrm{HSIC}(K, K) \, \mathrm{HSIC}(L, L)}}

It does not change with rotations, one common scale or shifts of the features. The biased form is
inflated where there are more features than examples: two independent Gaussian sets of 500 examples
and 256 features give 0.34. The debiased form, :func:`debiased_cka`, does not know this fault, and
may be negative. All of it can be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.functional.precision import widened
from limbeck.functional.relations import rounding_of, without_autocast

__all__ = ["MinibatchCKA", "debiased_cka", "linear_cka", "rbf_cka"]

_FEWEST = 4  # examples that an unbiased HSIC needs


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""CKA with linear kernels.

    .. math:: \frac{\|Y^\top X\|_F^2}{\|X^\top X\|_F \, \|Y^\top Y\|_F}
        \quad \text{of columns less their means}

    Args:
        x: ``(N, D)`` or more axes, which are flattened; row n is example n.
        y: ``(N, D')``, the same examples.

    Returns:
        Scalar, float32 or wider, in [0, 1]; 0, without gradient, where all rows of one are equal.

    Raises:
        ShapeError: if the numbers of examples differ.

    Source:
        Kornblith et al. 2019, https://arxiv.org/abs/1905.00414, section 3.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
        >>> round(linear_cka(x, 3 * x.flip(1) + 7).item(), 4)
        1.0
    """
    x, y = _prepared(x, y)
    with without_autocast(x):
        if len(x) < min(x.shape[1], y.shape[1]):
            return _cosine(x @ x.T, y @ y.T)
        # The product of two Gram matrices is the square of a smaller one.
        similarity = (y.T @ x).square().sum()
        return _over_norms(similarity, (x.T @ x).square().sum(), (y.T @ y).square().sum())


def rbf_cka(x: Tensor, y: Tensor, *, threshold: float = 0.5) -> Tensor:
    r"""CKA with Gaussian kernels, whose width follows the median distance.

    .. math:: K_{ij} = \exp\Big(-\frac{\|x_i - x_j\|^2}{2 t^2 \, \mathrm{median}\|x_i - x_j\|^2}
        \Big)

    The median is over all N^2 pairs, those of an example with itself among them, and the mean of
    the middle two of an even number.

    Args:
        x: ``(N, D)`` or more axes, which are flattened; row n is example n.
        y: ``(N, D')``, the same examples.
        threshold: t, ``> 0``.

    Returns:
        Scalar, float32 or wider, in [0, 1]; 0, without gradient, where all rows of one are equal.

    Raises:
        ShapeError: if the numbers of examples differ.

    Source:
        Kornblith et al. 2019, https://arxiv.org/abs/1905.00414, section 3; the median as in its
        authors' notebook.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
        >>> round(rbf_cka(x, 3 * x).item(), 4)
        1.0
    """
    x, y = _prepared(x, y)
    with without_autocast(x):
        kernels = [_gaussian(rows, threshold) for rows in (x, y)]
        return _cosine(*(_double_centred(kernel) for kernel in kernels))


def debiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA from unbiased estimates of HSIC.

    Args:
        x: ``(N, D)`` or more axes, which are flattened; row n is example n; N at least 4.
        y: ``(N, D')``, the same examples.

    Returns:
        Scalar, float32 or wider, at most 1; near 0 and of either sign for independent features;
        0, without gradient, where all rows of one are equal.

    Raises:
        ShapeError: if the numbers of examples differ, or are below 4.

    Source:
        Song et al., JMLR 2012, https://arxiv.org/abs/0704.2668, theorem 5; as in the notebook of
        Kornblith et al. 2019, https://arxiv.org/abs/1905.00414.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0], [3.0, 3.0]])
        >>> round(debiased_cka(x, -x).item(), 4)
        1.0
    """
    x, y = _prepared(x, y)
    with without_autocast(x):
        return _cosine(_unbiased(x), _unbiased(y))


class MinibatchCKA:
    """Debiased linear CKA over a data set, batch by batch: for layers whose features do not fit.

    The three HSICs are summed over batches before they are divided: a ratio of averages. Given
    one tensor a side, the result is a scalar; given lists of layers, a table.

    Example:
        >>> x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
        >>> cka = MinibatchCKA()
        >>> for rows in x.split(6):
        ...     cka.update(rows, [rows, -2 * rows])
        >>> cka.compute().round(decimals=4).tolist()
        [[1.0, 1.0]]

    Source:
        Nguyen, Raghu, Kornblith, ICLR 2021, https://arxiv.org/abs/2010.15327.
    """

    def __init__(self) -> None:
        self._between: Tensor | None = None  # (L, M)
        self._own: tuple[Tensor, Tensor] | None = None  # (L,), (M,)
        self._single = False

    @torch.no_grad()
    def update(self, x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]) -> None:
        """Add one batch, in float64.

        Args:
            x: ``(N, ...)``, or L of them, of the same examples; N at least 4.
            y: the same of the other network, or M of them.

        Raises:
            ShapeError: if the numbers of examples differ or are below 4, or there are other
                layers than before.
        """
        self._single = isinstance(x, Tensor) and isinstance(y, Tensor)
        layers = [[part] if isinstance(part, Tensor) else list(part) for part in (x, y)]
        if not all(layers):
            raise ShapeError("CKA needs one layer of each network at least; got an empty list")
        first = layers[0][0]
        with without_autocast(first):
            grams = [
                torch.stack([_unbiased(_centred(_rows(rows.double(), first)[0])) for rows in part])
                for part in layers
            ]
        flat = [gram.flatten(start_dim=1) / _num_pairs(len(first)) ** 0.5 for gram in grams]
        between = flat[0] @ flat[1].T
        own = flat[0].square().sum(dim=1), flat[1].square().sum(dim=1)
        if self._between is None or self._own is None:
            self._between, self._own = between, own
            return
        if self._between.shape != between.shape:
            raise ShapeError(
                f"CKA began with {tuple(self._between.shape)} layers of the two networks and got "
                f"{tuple(between.shape)}; pass the same layers in every batch"
            )
        self._between = self._between + between
        self._own = self._own[0] + own[0], self._own[1] + own[1]

    def compute(self) -> Tensor:
        """CKA of all batches so far, float64: a scalar, or ``(L, M)``.

        Raises:
            ShapeError: before the first batch.
        """
        if self._between is None or self._own is None:
            raise ShapeError("CKA has seen no batch yet; call update first")
        found = _over_norms(self._between, self._own[0][:, None], self._own[1])
        return found[0, 0] if self._single else found


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``(N, D)`` each, float32 or wider."""
    if x.ndim < 2 or y.ndim < 2 or len(x) != len(y):
        raise ShapeError(
            "CKA compares two sets of features (examples, ...) of the same examples; got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    return widened(x).flatten(start_dim=1), widened(y).flatten(start_dim=1)


def _centred(rows: Tensor) -> Tensor:
    """Columns less their means; zero, without gradient, where nothing but rounding is left."""
    centred = rows - rows.mean(dim=0)
    there = centred.detach().abs().amax() > rounding_of(rows)
    return torch.where(there, centred, 0.0)


def _prepared(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Centred, and over the largest entry, which cancels: fourth powers stay in range."""
    first, second = map(_scaled, _rows(x, y))
    return first, second


def _scaled(rows: Tensor) -> Tensor:
    """As :func:`_centred`, and at most 1; in few passes, since rows are as long as maps."""
    centred = rows - rows.mean(dim=0)
    largest = centred.detach().abs().amax()
    return centred / torch.where(largest > rounding_of(rows), largest, math.inf)


def _gaussian(rows: Tensor, threshold: float) -> Tensor:
    product = rows @ rows.T
    own = product.diagonal()
    squared = (own[:, None] + own - 2 * product).clamp(min=0)
    ordered = squared.flatten().sort().values
    middle = len(ordered) // 2
    median = (ordered[(len(ordered) - 1) // 2] + ordered[middle]) / 2
    return (-squared / (2 * threshold**2 * torch.where(median > 0, median, 1.0))).exp()


def _double_centred(kernel: Tensor) -> Tensor:
    """HKH, H being one less its mean."""
    return kernel - kernel.mean(dim=0) - kernel.mean(dim=1, keepdim=True) + kernel.mean()


def _unbiased(rows: Tensor) -> Tensor:
    """The Gram matrix, U-centred: the mean product of two of them is unbiased HSIC."""
    count = len(rows)
    if count < _FEWEST:
        raise ShapeError(
            f"debiased CKA needs {_FEWEST} examples at least, got {count}; use larger batches, or "
            "linear_cka"
        )
    gram = rows @ rows.T
    gram = gram - torch.diag(gram.diagonal())
    means = gram.sum(dim=0) / (count - 2)
    means = means - means.sum() / (2 * (count - 1))
    gram = gram - means - means[:, None]
    return gram - torch.diag(gram.diagonal())


def _num_pairs(count: int) -> int:
    """By which a product of two U-centred matrices is divided."""
    return count * (count - 3)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return _over_norms((first * second).sum(), first.square().sum(), second.square().sum())


def _over_norms(product: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A product over the root of both squares; 0, without gradient, where one of them is 0."""
    there = (first > 0) & (second > 0)
    lengths = torch.where(there, first, 1.0).sqrt() * torch.where(there, second, 1.0).sqrt()
    return torch.where(there, product / lengths, 0.0)
