import pytest
import torch

from limbeck.data.augment import EpochTable
from limbeck.data.config import AugmentConfig

CIFAR_LIKE = AugmentConfig(crop_padding=2, flip=True)


def one_image(image, top, left, flip, padding):
    """Pad with black, crop, mirror: a pixel at a time."""
    channels, height, width = image.shape
    result = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                column = width - 1 - x if flip else x
                from_y, from_x = top + y - padding, left + column - padding
                if 0 <= from_y < height and 0 <= from_x < width:
                    result[c, y, x] = image[c, from_y, from_x]
    return result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_batch_is_changed_as_its_images_one_by_one(make_images, dtype, flip, padding):
    images = make_images(20).images.to(dtype)
    config = AugmentConfig(crop_padding=padding, flip=flip)
    table = EpochTable.draw(config, 20, seed=0, epoch=3)
    index = torch.tensor([3, 19, 0, 3, 7, 8, 11])
    found = table.apply(images[index], index)
    assert found.dtype == dtype
    for row, position in enumerate(index.tolist()):
        top, left = table.offsets[position].tolist()
        expected = one_image(images[position], top, left, bool(table.flips[position]), padding)
        assert torch.equal(found[row], expected)


def test_without_crop_and_flip_nothing_changes(make_images):
    images = make_images(5).images
    table = EpochTable.draw(AugmentConfig(), 5, seed=0, epoch=0)
    assert torch.equal(table.apply(images, torch.arange(5)), images)


def test_an_image_is_changed_alike_in_any_batch(make_images):
    images = make_images(30).images
    table = EpochTable.draw(CIFAR_LIKE, 30, seed=1, epoch=0)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    together = table.apply(images[order], order)
    alone = [table.apply(images[n : n + 1], torch.tensor([n]))[0] for n in order.tolist()]
    assert torch.equal(together, torch.stack(alone))


def test_the_draw_depends_on_seed_epoch_and_view():
    def draw(**key):
        return EpochTable.draw(CIFAR_LIKE, 100, **({"seed": 0, "epoch": 0} | key))

    assert torch.equal(draw().offsets, draw().offsets)
    assert torch.equal(draw().flips, draw().flips)
    for other in (draw(seed=1), draw(epoch=1), draw(view="second")):
        assert not torch.equal(draw().offsets, other.offsets)
        assert not torch.equal(draw().flips, other.flips)


def test_flipping_or_not_leaves_the_crops_alone():
    cropped = EpochTable.draw(AugmentConfig(crop_padding=2), 50, seed=0, epoch=0)
    both = EpochTable.draw(CIFAR_LIKE, 50, seed=0, epoch=0)
    assert torch.equal(cropped.offsets, both.offsets)
    assert not cropped.flips.any()


def test_every_offset_and_both_sides_come_equally_often():
    """Chi-squared below its 99.9 % point for 24 degrees of freedom; the flips within 4 sigma."""
    count = 20_000
    table = EpochTable.draw(CIFAR_LIKE, count, seed=0, epoch=0)
    assert int(table.offsets.min()) == 0
    assert int(table.offsets.max()) == 4
    cells = torch.bincount(table.offsets[:, 0] * 5 + table.offsets[:, 1], minlength=25)
    expected = count / 25
    assert float(((cells - expected) ** 2 / expected).sum()) < 51.18
    assert abs(int(table.flips.sum()) - count / 2) < 4 * (count / 4) ** 0.5


def test_epochs_are_independent():
    first, second = (EpochTable.draw(CIFAR_LIKE, 5000, seed=0, epoch=n).flips for n in (0, 1))
    assert abs(int((first == second).sum()) - 2500) < 4 * 1250**0.5


def test_black_is_what_comes_in_from_outside():
    """All white, crop at the far corner: the two last rows and columns are black."""
    white = torch.full((1, 3, 6, 6), 255, dtype=torch.uint8)
    table = EpochTable(offsets=torch.tensor([[4, 4]]), flips=torch.tensor([False]), padding=2)
    found = table.apply(white, torch.tensor([0]))[0]
    assert (found[:, :4, :4] == 255).all()
    assert (found[:, 4:] == 0).all()
    assert (found[:, :, 4:] == 0).all()


def test_nothing_is_read_back_to_the_host():
    """On the meta device, where a value cannot be read, the shapes still come out."""
    table = EpochTable.draw(CIFAR_LIKE, 9, seed=0, epoch=0).to(torch.device("meta"))
    images = torch.empty(4, 3, 8, 8, device="meta")
    found = table.apply(images, torch.empty(4, dtype=torch.int64, device="meta"))
    assert found.shape == (4, 3, 8, 8)
