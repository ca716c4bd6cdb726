import colorsys
import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from limbeck.analysis import transforms
from limbeck.analysis.base import NotApplicableError

COLOUR = ("colour_jitter", "tint", "white_balance")
ANY = ("crop", "illumination", "rotate", "shift")
NOTHING = {"crop": 1.0}  # the strength that changes nothing; 0 for all others


@pytest.fixture
def images(generator):
    return torch.rand(6, 3, 9, 9, generator=generator)


def changed(name, images, strength, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return getattr(transforms, name)(images, strength, generator)


@pytest.mark.parametrize("name", [*COLOUR, *ANY])
def test_images_stay_images_and_depend_on_the_seed_alone(name, images):
    strength = 4 if name in ("rotate", "shift") else 0.5
    first = changed(name, images, strength)
    assert first.shape == images.shape
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, changed(name, images, strength))
    assert not torch.equal(first, changed(name, images, strength, seed=1))


@pytest.mark.parametrize("name", [*COLOUR, *ANY])
def test_a_strength_of_nothing_changes_nothing(name, images):
    found = changed(name, images, NOTHING.get(name, 0.0))
    torch.testing.assert_close(found, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", COLOUR)
def test_greyscale_images_have_no_colour_to_change(name):
    with pytest.raises(NotApplicableError, match="these have 1 channel"):
        changed(name, torch.rand(2, 1, 4, 4), 0.3)


def test_a_tint_keeps_the_mean_gain_at_one():
    grey = torch.full((200, 3, 1, 1), 0.4)
    found = changed("tint", grey, 0.5)
    torch.testing.assert_close(found.mean(dim=1), torch.full((200, 1, 1), 0.4))
    gains = found / 0.4
    assert gains.max() > 1.3
    assert gains.min() < 0.7


def test_warm_light_has_more_red_and_less_blue():
    found = changed("white_balance", torch.full((50, 3, 1, 1), 0.5), 0.2)[:, :, 0, 0]
    warm = found[found[:, 0] > 0.5]
    cool = found[found[:, 0] < 0.5]
    torch.testing.assert_close(warm, torch.tensor([0.6, 0.5, 0.4]).expand_as(warm))
    torch.testing.assert_close(cool, torch.tensor([0.4, 0.5, 0.6]).expand_as(cool))
    assert len(warm)
    assert len(cool)


def test_turning_the_hue_keeps_brightness_and_leaves_grey_alone():
    angle = torch.tensor([0.7, -1.3])
    colour = torch.tensor([[0.6, 0.4, 0.5], [0.5, 0.5, 0.5]])[:, :, None, None]
    found = transforms._turn_hue(colour, angle)
    torch.testing.assert_close(transforms._luma(found), transforms._luma(colour))
    torch.testing.assert_close(found[1], colour[1], atol=1e-5, rtol=0)


def test_a_third_of_a_turn_takes_red_to_another_hue_in_the_same_direction():
    red = torch.tensor([0.6, 0.45, 0.45])[None, :, None, None]
    hues = []
    for turns in (0.0, 1 / 6, 1 / 3, 1 / 2):
        angle = torch.tensor([2 * torch.pi * turns])
        rgb = transforms._turn_hue(red, angle)[0, :, 0, 0].tolist()
        hues.append(colorsys.rgb_to_hsv(*rgb)[0])
    steps = [(b - a) % 1 for a, b in itertools.pairwise(hues)]
    # YIQ's angles are not HSV's, but nearly: a sixth of a turn is about a sixth
    assert all(abs(min(step, 1 - step) - 1 / 6) < 0.07 for step in steps)
    assert len({step < 0.5 for step in steps}) == 1


def test_a_shift_moves_whole_pixels():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 1
    places = set()
    for seed in range(40):
        found = changed("shift", image, 2, seed=seed)
        assert found.max() == pytest.approx(1, abs=1e-5)  # no pixel is smeared
        row, column = divmod(int(found.argmax()), 8)
        places.add((row - 4, column - 4))
    assert {abs(part) for place in places for part in place} == {0, 1, 2}


def test_a_quarter_turn_is_a_quarter_turn(images):
    found = changed("rotate", images, 90.0)
    quarters = [torch.rot90(images, turns, dims=(2, 3)) for turns in (1, 3)]
    for image in range(6):
        assert any(torch.allclose(found[image], q[image], atol=1e-4) for q in quarters)


def test_a_crop_shows_a_part_of_the_image_enlarged():
    ramp = torch.linspace(0, 1, 64).expand(20, 1, 64, 64)
    found = changed("crop", ramp, 0.25)
    slope = found[:, 0, 32, 40] - found[:, 0, 32, 20]
    torch.testing.assert_close(slope, torch.full((20,), 0.5 * 20 / 63), rtol=1e-3, atol=1e-4)
    assert found.amin(dim=(1, 2, 3)).max() > 0.2  # not always at one end


def test_light_falls_off_across_the_image_and_exposure_changes():
    flat = torch.full((40, 1, 9, 9), 0.5)
    found = changed("illumination", flat, 1.0)
    assert (found.amax(dim=(2, 3)) - found.amin(dim=(2, 3))).min() > 0.01
    middle = found[:, 0, 4, 4]
    assert middle.max() > 0.6
    assert middle.min() < 0.4


DOMAINS = ("greyscale", "silhouette", "sketch", "texture_swap")


@pytest.mark.parametrize("name", DOMAINS)
def test_other_domains_are_images_too(name, images):
    found = getattr(transforms, name)(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    assert 0 <= found.min() <= found.max() <= 1
    assert not torch.equal(found, images)


def test_greyscale_is_luma_in_every_channel():
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 4, 4)
    found = transforms.greyscale(red, torch.Generator())
    torch.testing.assert_close(found, torch.full((1, 3, 4, 4), 0.299))
    with pytest.raises(NotApplicableError, match="these have 1 channel"):
        transforms.greyscale(torch.zeros(1, 1, 4, 4), torch.Generator())


def test_a_sketch_is_scipys_sobel_on_white(images):
    """Edges dark, each image by its own steepest; away from them white."""
    found = transforms.sketch(images, torch.Generator())
    for image, drawn in zip(images, found, strict=True):
        grey = (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]).numpy()
        slope = np.hypot(
            ndimage.sobel(grey, 0, mode="nearest"), ndimage.sobel(grey, 1, mode="nearest")
        )
        np.testing.assert_allclose(drawn[0], 1 - slope / slope.max(), atol=1e-5)
        assert torch.equal(drawn[0], drawn[2])
    assert (transforms.sketch(torch.full((1, 1, 5, 5), 0.4), torch.Generator()) == 1).all()


@pytest.mark.parametrize(("shape", "ground"), [(0.9, 0.2), (0.1, 0.7)])
def test_a_silhouette_is_black_on_white_whichever_is_the_brighter(shape, ground):
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[0, 0, 2:6, 3:5] = True
    mask[0, 0, 6:, 3] = True  # it may touch the border
    noise = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    image = torch.where(mask, shape, ground) + noise
    found = transforms.silhouette(image, torch.Generator())
    assert torch.equal(found, (~mask).float())


def test_the_threshold_parts_brightnesses_where_their_classes_differ_most(images):
    """Otsu's criterion by hand: the largest variance between the two sides."""
    grey = images[:, :1]
    found = transforms.silhouette(grey, torch.Generator())
    for image, drawn in zip(grey, found, strict=True):
        levels = (image * 255).round().flatten().numpy()
        best, bright = -1.0, None
        for threshold in np.unique(levels)[:-1]:
            above = levels > threshold
            between = above.mean() * (~above).mean()
            between *= (levels[above].mean() - levels[~above].mean()) ** 2
            if between > best:
                best, bright = between, above
        same = drawn.flatten().numpy() == bright
        assert same.all() or not same.any()


def test_an_image_of_one_brightness_has_no_silhouette():
    flat = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 1, 4, 4)
    assert (transforms.silhouette(flat, torch.Generator()) == 1).all()


def test_swapped_textures_keep_phases_and_take_amplitudes_of_another(images):
    soft = 0.5 + 0.05 * (images - 0.5)  # far from black and white, so that nothing is cut off
    found = transforms.texture_swap(soft, torch.Generator().manual_seed(0))
    own, made = np.fft.fft2(soft.double().numpy()), np.fft.fft2(found.double().numpy())
    large = np.abs(made) > 1e-3
    turned = np.angle(made[large] / own[large])
    np.testing.assert_allclose(turned, 0, atol=1e-2)
    for image, spectrum in enumerate(np.abs(made)):
        far = [np.abs(spectrum - np.abs(other)).max() for other in own]
        assert np.argmin(far) != image
        assert min(far) < 1e-4


def test_one_image_alone_has_no_texture_to_swap():
    with pytest.raises(NotApplicableError, match="two images or more"):
        transforms.texture_swap(torch.rand(1, 1, 4, 4), torch.Generator())


@pytest.mark.parametrize(
    ("name", "strength", "side", "message"),
    [
        ("shift", 4, 4, "a shift by up to 4 pixels needs images of 5 x 5 pixels"),
        ("crop", 0.2, 4, "a crop of 0.2 of the area needs images of 5 x 5 pixels"),
    ],
)
def test_images_too_small_for_a_change_are_refused(name, strength, side, message):
    small = torch.rand(2, 1, side, side)
    with pytest.raises(NotApplicableError, match=message):
        changed(name, small, strength)
    changed(name, torch.rand(2, 1, side + 1, side + 1), strength)


@pytest.mark.parametrize("name", ["silhouette", "sketch"])
def test_images_too_small_for_edges_are_refused(name):
    with pytest.raises(NotApplicableError, match="3 x 3 pixels or more; these have 2 x 5"):
        getattr(transforms, name)(torch.rand(2, 1, 2, 5), torch.Generator())
