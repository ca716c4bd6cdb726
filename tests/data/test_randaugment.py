"""The oracle of every operation is Pillow's own."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from limbeck.data.augment import EpochTable
from limbeck.data.config import AugmentConfig
from limbeck.data.randaugment import OPERATIONS, StrongTable, _changed, _cut, _smooth

NAMES = list(OPERATIONS)
CROP = AugmentConfig(crop_padding=2, flip=True)
# Blends end in a cut to whole numbers, where a compiler may have fused Pillow's product and sum.
BLENDS = {"brightness", "color", "contrast", "sharpness"}


def affine(image, *coefficients):
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


def by_pillow(image, name, v):
    """One operation, as the code of MLKD's authors calls Pillow."""
    width, height = image.size
    match name:
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(v)
        case "color":
            return ImageEnhance.Color(image).enhance(v)
        case "contrast":
            return ImageEnhance.Contrast(image).enhance(v)
        case "equalize":
            return ImageOps.equalize(image)
        case "identity":
            return image
        case "posterize":
            return ImageOps.posterize(image, int(v))
        case "rotate":
            return image.rotate(v)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(v)
        case "shear_x":
            return affine(image, 1, v, 0, 0, 1, 0)
        case "shear_y":
            return affine(image, 1, 0, 0, v, 1, 0)
        case "solarize":
            return ImageOps.solarize(image, v)
        case "translate_x":
            return affine(image, 1, 0, v * width, 0, 1, 0)
        case "translate_y":
            return affine(image, 1, 0, 0, 0, 1, v * height)
    raise AssertionError(name)


def cut_by_pillow(image, side, middle_x, middle_y):
    """The authors' Cutout: ``side`` in widths, the middle in image sizes."""
    width, height = image.size
    size = side * width
    left = int(max(0, middle_x * width - size / 2))
    top = int(max(0, middle_y * height - size / 2))
    box = left, top, min(width, left + size), min(height, top + size)
    image = image.copy()
    colour = (125, 123, 114) if image.mode == "RGB" else 123
    ImageDraw.Draw(image).rectangle(box, colour)
    return image


def to_pillow(image):
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])


def from_pillow(image):
    array = np.asarray(image)
    return torch.from_numpy(np.array(array.reshape(*array.shape[:2], -1))).permute(2, 0, 1)


def pictures(count, *, channels=3, size=(32, 32), seed=0):
    """Random, smooth, dark, and of one colour, in turn: uint8 ``(count, channels, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (count, channels, *size), generator=generator)
    ramp = torch.linspace(10, 240, size[1]).long().expand(channels, *size)
    image[1::4] = (ramp + image[1::4] // 16) % 256
    image[2::4] = 40 + image[2::4] // 5
    image[3::4] = image[3::4, :, :1, :1]
    return image.to(torch.uint8)


def strengths(name, count):
    low, high = OPERATIONS[name]
    generator = torch.Generator().manual_seed(NAMES.index(name))
    return low + (high - low) * torch.rand(count, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("size", [(32, 32), (9, 14), (28, 28), (3, 3), (2, 5)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name, channels, size):
    image = pictures(40, channels=channels, size=size)
    strength = strengths(name, 40)
    found = _changed(image, torch.full((40,), NAMES.index(name)), strength)
    expected = torch.stack(
        [
            from_pillow(by_pillow(to_pillow(one), name, v))
            for one, v in zip(image, strength.tolist(), strict=True)
        ]
    )
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= (1 if name in BLENDS else 0)
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("name", ["translate_x", "translate_y", "shear_x", "shear_y", "rotate"])
@pytest.mark.parametrize("strength", [0.0, 0.25, -0.25, 1 / 64, 0.3, (2.5 - 1e-6) / 32])
def test_moves_at_round_strengths_are_pillows(name, strength):
    """And just below one, where a step rounded to 1/65536 of a pixel would be another pixel."""
    image = pictures(4)
    scaled = 100 * strength if name == "rotate" else strength
    found = _changed(image, torch.full((4,), NAMES.index(name)), torch.full((4,), scaled).double())
    for ours, one in zip(found, image, strict=True):
        assert torch.equal(ours, from_pillow(by_pillow(to_pillow(one), name, scaled)))


@pytest.mark.parametrize("size", [(3, 3), (8, 5), (2, 9)])
def test_smoothing_is_pillows_filter(size):
    image = pictures(8, size=size)
    for ours, one in zip(_smooth(image), image, strict=True):
        assert torch.equal(ours, from_pillow(to_pillow(one).filter(ImageFilter.SMOOTH)))


@pytest.mark.parametrize("size", [(32, 32), (7, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_cut_is_pillows_rectangle(channels, size, generator):
    image = pictures(60, channels=channels, size=size)
    cuts = torch.rand(60, 3, dtype=torch.float64, generator=generator)
    for ours, one, (side, x, y) in zip(_cut(image, cuts), image, cuts.tolist(), strict=True):
        assert torch.equal(ours, from_pillow(cut_by_pillow(to_pillow(one), side / 2, x, y)))


def test_all_of_it_is_pillows_one_image_at_a_time():
    """Crop and flip first, then both operations in their order, then the cut."""
    image = pictures(60)
    table = StrongTable.draw(CROP, 60, seed=0, epoch=2, view="strong")
    index = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    found = table.apply(image[index], index)
    cropped = table.crop.apply(image, torch.arange(60))
    for ours, n in zip(found, index.tolist(), strict=True):
        one = to_pillow(cropped[n])
        for number, v in zip(
            table.operations[n].tolist(), table.strengths[n].tolist(), strict=True
        ):
            one = by_pillow(one, NAMES[number], v)
        side, x, y = table.cuts[n].tolist()
        expected = from_pillow(cut_by_pillow(one, side / 2, x, y))
        difference = (ours.int() - expected.int()).abs()
        # One level where a blend was rounded otherwise, or what an equalisation makes of that.
        assert difference.max() <= 8
        assert (difference > 0).float().mean() < 0.01


def test_an_image_is_changed_alike_in_any_batch():
    image = pictures(30)
    table = StrongTable.draw(CROP, 30, seed=1, epoch=0, view="strong")
    together = table.apply(image, torch.arange(30))
    alone = [table.apply(image[n : n + 1], torch.tensor([n]))[0] for n in range(30)]
    assert torch.equal(together, torch.stack(alone))


def test_the_draw_depends_on_seed_epoch_and_view():
    def draw(**key):
        key = {"seed": 0, "epoch": 0, "view": "strong"} | key
        return StrongTable.draw(CROP, 100, **key)

    for name in ("operations", "strengths", "cuts"):
        assert torch.equal(getattr(draw(), name), getattr(draw(), name))
        for other in (draw(seed=1), draw(epoch=1), draw(view="other")):
            assert not torch.equal(getattr(draw(), name), getattr(other, name))


def test_its_crop_is_a_draw_of_its_own():
    table = StrongTable.draw(CROP, 100, seed=0, epoch=0, view="strong")
    weak = EpochTable.draw(CROP, 100, seed=0, epoch=0)
    assert not torch.equal(table.crop.offsets, weak.offsets)


def test_every_operation_comes_equally_often_and_strengths_are_uniform():
    """Chi-squared below its 99.9 % point for 13 degrees of freedom; means within 4 sigma."""
    table = StrongTable.draw(CROP, 10_000, seed=0, epoch=0, view="strong")
    cells = torch.bincount(table.operations.flatten(), minlength=14)
    expected = 20_000 / 14
    assert float(((cells - expected) ** 2 / expected).sum()) < 34.53
    for number, (low, high) in enumerate(OPERATIONS.values()):
        strength = table.strengths[table.operations == number]
        assert low <= strength.min()
        assert strength.max() < high
        sigma = (high - low) / (12 * len(strength)) ** 0.5
        assert abs(float(strength.mean()) - (low + high) / 2) < 4 * sigma
    assert abs(float(table.cuts.mean()) - 0.5) < 4 / (12 * 30_000) ** 0.5


def test_the_two_operations_are_independent():
    table = StrongTable.draw(CROP, 10_000, seed=0, epoch=0, view="strong")
    same = int((table.operations[:, 0] == table.operations[:, 1]).sum())
    assert abs(same - 10_000 / 14) < 4 * (10_000 / 14) ** 0.5


def test_nothing_is_read_back_to_the_host():
    """On the meta device, where a value cannot be read, the shapes still come out."""
    table = StrongTable.draw(CROP, 9, seed=0, epoch=0, view="strong").to(torch.device("meta"))
    images = torch.empty(4, 3, 8, 8, device="meta", dtype=torch.uint8)
    found = table.apply(images, torch.empty(4, dtype=torch.int64, device="meta"))
    assert found.shape == (4, 3, 8, 8)
    assert found.dtype == torch.uint8


@pytest.mark.gpu
def test_on_an_accelerator_pixels_are_those_of_the_host():
    image, index = pictures(40), torch.arange(40)
    table = StrongTable.draw(CROP, 40, seed=0, epoch=0, view="strong")
    device = torch.device("cuda")
    found = table.to(device).apply(image.to(device), index.to(device)).cpu()
    difference = (found.int() - table.apply(image, index).int()).abs()
    assert (difference > 0).float().mean() < 0.01
