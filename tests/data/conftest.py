"""Small data sets made on the fly."""

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.image_folder import load_image_folder
from limbeck.data.images import ImageSet


@pytest.fixture
def make_images():
    """``make_images(n)``: random images of three classes in turn."""

    def make(num_images, *, shape=(3, 6, 5), num_classes=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return ImageSet(
            images=torch.randint(256, (num_images, *shape), generator=generator, dtype=torch.uint8),
            labels=torch.arange(num_images) % num_classes,
            class_names=tuple(f"class {label}" for label in range(num_classes)),
        )

    return make


@pytest.fixture
def picture():
    """``picture(path, ...)``: write one random picture and return its pixels ``(H, W, C)``."""

    def write(path, *, size=(5, 4), mode="RGB", seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = size
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return pixels.reshape(height, width, -1)

    return write


@pytest.fixture
def folder(tmp_path, picture):
    """``train`` and ``test`` with the classes cat and dog, 3 + 2 pictures each."""
    root = tmp_path / "pictures"
    for number in range(3):
        for label, name in enumerate(("cat", "dog")):
            picture(root / "train" / name / f"{number}.png", seed=10 * label + number)
            if number < 2:
                picture(root / "test" / name / f"{number}.png", seed=100 + 10 * label + number)
    return root


@pytest.fixture
def lazy(folder):
    """The folder's six training images, read from their files when asked for."""
    return load_image_folder(folder, max_bytes=0).train
