import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from limbeck.data.config import AugmentConfig
from limbeck.data.mixing import MixTable, partners

MIXUP = AugmentConfig(mixup_alpha=0.4)
CUTMIX = AugmentConfig(cutmix_alpha=1.0)
BOTH = AugmentConfig(mixup_alpha=0.4, cutmix_alpha=1.0)


def draw(config, num_images=2000, *, size=(6, 5), seed=0, epoch=0):
    return MixTable.draw(config, num_images, size, seed=seed, epoch=epoch)


@pytest.fixture
def image(generator):
    return torch.rand(7, 3, 6, 5, generator=generator)


# -- whom ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_partners_are_each_others_and_the_odd_one_is_its_own(count, generator):
    order = torch.randperm(count, generator=generator)
    partner = dict(zip(order.tolist(), partners(order).tolist(), strict=True))
    assert all(partner[other] == one for one, other in partner.items())
    assert sum(one == other for one, other in partner.items()) == count % 2


def test_partners_stand_side_by_side_in_the_order():
    assert partners(torch.tensor([5, 1, 4, 0, 3, 2])).tolist() == [1, 5, 0, 4, 2, 3]


# -- how -----------------------------------------------------------------------------------------


def test_a_blend_is_torchvisions(image):
    """Which mixes each image of a batch with the one before it, all by one share."""
    other, label = image.roll(1, 0), torch.arange(7)
    for share in (0.0, 0.3, 1.0):
        table = MixTable(
            shares=torch.full((7,), share),
            boxes=torch.zeros(7, 4).long(),
            is_cut=torch.zeros(7).bool(),
        )
        expected = v2.MixUp(num_classes=7).transform(
            image, {"labels": label, "batch_size": 7, "lam": share}
        )
        torch.testing.assert_close(table.apply(image, other, label), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("box", [(0, 6, 0, 5), (1, 4, 2, 3), (2, 2, 0, 5)])
def test_a_cut_is_torchvisions(image, box):
    other, label = image.roll(1, 0), torch.arange(7)
    table = MixTable(
        shares=torch.zeros(7), boxes=torch.tensor([box] * 7), is_cut=torch.ones(7).bool()
    )
    top, bottom, left, right = box
    expected = v2.CutMix(num_classes=7).transform(
        image, {"labels": label, "batch_size": 7, "box": (left, top, right, bottom)}
    )
    assert torch.equal(table.apply(image, other, label), expected)


@pytest.mark.parametrize("config", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])
def test_a_share_is_the_part_of_the_pixels_that_is_left(config):
    table = draw(config)
    white = torch.ones(2000, 1, 6, 5)
    mixed = table.apply(white, torch.zeros_like(white), torch.arange(2000))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), table.shares, rtol=0, atol=1e-6)


def test_each_image_is_mixed_by_its_own_row(image):
    table, index = draw(BOTH, 40), torch.tensor([31, 2, 17, 2, 0, 39, 8])
    other = image.flip(0)
    mixed = table.apply(image, other, index)
    for row, position in enumerate(index.tolist()):
        top, bottom, left, right = table.boxes[position].tolist()
        for y in range(6):
            for x in range(5):
                own = table.shares[position].item()
                if table.is_cut[position]:
                    own = 0.0 if top <= y < bottom and left <= x < right else 1.0
                expected = own * image[row, :, y, x] + (1 - own) * other[row, :, y, x]
                torch.testing.assert_close(mixed[row, :, y, x], expected, rtol=0, atol=1e-6)


# -- how much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_of_blends_have_the_beta_distribution(alpha):
    shares = draw(AugmentConfig(mixup_alpha=alpha)).shares.double().numpy()
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_boxes_have_the_distribution_of_torchvisions(alpha):
    """In four numbers each: how much is left, where the middle is, how high it is."""
    size = (12, 9)
    table = draw(AugmentConfig(cutmix_alpha=alpha), 1500, size=size)
    theirs = v2.CutMix(alpha=alpha, num_classes=2)
    found = [theirs.make_params([torch.zeros(1, 1, *size)]) for _ in range(1500)]
    shares = np.array([params["lam_adjusted"] for params in found])
    left, top, right, bottom = np.array([params["box"] for params in found]).T
    ours = table.boxes.numpy().T
    for own, expected in (
        (table.shares.double().numpy().round(4), shares.round(4)),
        (ours[0] + ours[1], top + bottom),
        (ours[2] + ours[3], left + right),
        (ours[1] - ours[0], bottom - top),
    ):
        assert stats.ks_2samp(own, expected).pvalue > 0.01


def test_the_rest_of_the_images_stay_exactly(image):
    table = draw(AugmentConfig(mixup_alpha=1.0, cutmix_alpha=1.0, mix_prob=0.3))
    whole = (table.shares == 1).nonzero().flatten()
    # A box too small for a pixel leaves an image whole, too.
    assert abs(len(whole) / 2000 - 0.7) < 0.06
    index = whole[:7]
    assert torch.equal(table.apply(image, image.flip(0), index), image)


def test_where_both_are_on_half_of_the_images_are_cut():
    assert abs(draw(BOTH).is_cut.float().mean() - 0.5) < 0.05
    assert not draw(MIXUP).is_cut.any()
    assert draw(CUTMIX).is_cut.all()


def test_a_table_depends_on_seed_and_epoch_alone():
    def shares(**key):
        return draw(BOTH, **key).shares

    assert torch.equal(shares(), shares())
    assert not torch.equal(shares(), shares(seed=1))
    assert not torch.equal(shares(), shares(epoch=1))
    assert {part.device.type for part in vars(draw(BOTH).to(torch.device("meta"))).values()} == {
        "meta"
    }
