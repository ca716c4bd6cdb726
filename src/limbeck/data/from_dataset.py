"""Any torch data set of (image, label) as images in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from limbeck.core.errors import DataError
from limbeck.core.types import UNLABELLED
from limbeck.data.decode import pixels_of
from limbeck.data.images import ImageSet

__all__ = ["image_set_from_dataset", "own_classes"]


def image_set_from_dataset(
    dataset: Dataset[Any], class_names: Sequence[str] | None = None
) -> ImageSet:
    """Read every (image, label) of a data set once and keep the images as bytes.

    Whatever the data set draws at random is drawn this once: give it without augmentation.

    Args:
        dataset: gives ``(image, label)``; an image is a Pillow image, or a tensor
            ``(C, H, W)`` or ``(H, W)``, uint8 or floating within [0, 1], before any
            normalisation; a label is a whole number, -1 where unknown.
        class_names: None takes the data set's :func:`own_classes`, or numbers.

    Raises:
        DataError: naming the first image that is not like that, or has another size.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> pairs = TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
        >>> image_set_from_dataset(pairs, class_names=["cat", "dog"]).image_shape
        (3, 8, 8)
    """
    images: list[Tensor] = []
    labels: list[int] = []
    for index, item in enumerate(_items(dataset)):
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise DataError(f"item {index} is a {type(item).__name__}, not (image, label)")
        image = _to_bytes(item[0], index)
        if images and image.shape != images[0].shape:
            raise DataError(
                f"image {index} is {tuple(image.shape)}, the first {tuple(images[0].shape)}; all "
                "must have one size: resize and crop them in the data set's transform"
            )
        images.append(image)
        labels.append(_whole(item[1], index))
    if not images:
        raise DataError("the data set gives no images")
    names = _names(dataset, class_names, labels)
    for index, label in enumerate(labels):
        if not UNLABELLED <= label < len(names):
            raise DataError(
                f"image {index} has label {label}, outside [-1, {len(names)}), -1 where unknown; "
                "labels count from 0"
            )
    return ImageSet(images=torch.stack(images), labels=torch.tensor(labels), class_names=names)


def own_classes(dataset: Dataset[Any]) -> tuple[str, ...] | None:
    """The names in a data set's ``classes``, or in those of what it is a subset of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    is_named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if names and is_named else None


def _items(dataset: Dataset[Any]) -> Iterator[Any]:
    if hasattr(dataset, "__len__"):
        return (dataset[index] for index in range(len(dataset)))
    if isinstance(dataset, Iterable):
        return iter(dataset)
    raise DataError(f"a {type(dataset).__name__} has neither a length nor an iterator")


def _to_bytes(image: object, index: int) -> Tensor:
    """uint8 ``(C, H, W)``."""
    if isinstance(image, Image.Image):
        return torch.from_numpy(pixels_of(image).copy()).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise DataError(
            f"image {index} is a {type(image).__name__}; wanted a Pillow image or a torch tensor"
        )
    if image.ndim == 2:
        image = image.unsqueeze(0)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(
            f"image {index} has shape {tuple(image.shape)}; wanted (C, H, W) with 1 or 3 channels"
        )
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.is_floating_point():
        raise DataError(f"image {index} is {image.dtype}; wanted uint8, or floats in [0, 1]")
    if image.isnan().any():
        raise DataError(f"image {index} has NaN pixels; mend or leave it out")
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        raise DataError(
            f"image {index} has values from {low:g} to {high:g}, and images are in [0, 1]; leave "
            "out the normalisation, which belongs to each network, or divide by the largest value"
        )
    return image.double().mul(255).round().to(torch.uint8).cpu()


def _whole(label: object, index: int) -> int:
    value = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
    try:
        return int(value.__index__())  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise DataError(
            f"image {index} has label {label!r}; wanted one whole number, the class"
        ) from None


def _names(
    dataset: Dataset[Any], given: Sequence[str] | None, labels: Sequence[int]
) -> tuple[str, ...]:
    if given is not None:
        return tuple(given)
    return own_classes(dataset) or tuple(str(label) for label in range(max(labels) + 1))
