import math

import pytest
import torch

from limbeck.core.errors import DataError, UnknownNameError
from limbeck.data.augment import EpochTable
from limbeck.data.config import AugmentConfig
from limbeck.data.images import ImageSet
from limbeck.data.loader import VIEWS, TrainLoader, eval_batches
from limbeck.data.mixing import MixTable
from limbeck.data.randaugment import StrongTable

AUGMENT = AugmentConfig(crop_padding=1, flip=True)

# From Python 3.12 on, forking a process with threads warns; torch's workers fork all the same.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def loader_of(source, **changes):
    return TrainLoader(source, **({"batch_size": 4, "seed": 0, "augment": AUGMENT} | changes))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.index, theirs.index)
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.label, theirs.label)
        assert ours.views.keys() == theirs.views.keys()
        assert all(torch.equal(view, theirs.views[name]) for name, view in ours.views.items())


def test_an_epoch_holds_every_image_once_with_its_own_label(make_images):
    images = make_images(22)
    batches = list(loader_of(images).epoch(0))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(22))
    assert torch.equal(torch.cat([batch.label for batch in batches]), images.labels[index])


def test_images_are_bytes_over_255_after_the_epochs_table(make_images):
    images = make_images(10)
    table = EpochTable.draw(AUGMENT, 10, seed=5, epoch=2)
    for batch in loader_of(images, seed=5).epoch(2):
        changed = table.apply(images.images[batch.index], batch.index)
        assert batch.image.dtype == torch.float32
        assert torch.equal(batch.image, changed / 255)


def test_white_is_exactly_one(make_images):
    images = make_images(4)
    images.images.fill_(255)
    (batch,) = loader_of(images, augment=AugmentConfig()).epoch(0)
    assert (batch.image == 1).all()


def test_order_and_changes_depend_on_seed_and_epoch(make_images):
    images = make_images(40)

    def order(seed, epoch):
        batches = loader_of(images, seed=seed).epoch(epoch)
        return torch.cat([batch.index for batch in batches]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(0, 0) != sorted(order(0, 0))


def shown(batches):
    """Pixels by position in the set: of the image and of every further view."""
    return {
        int(index): [batch.image[row], *(view[row] for view in batch.views.values())]
        for batch in batches
        for row, index in enumerate(batch.index)
    }


def assert_same_pixels(found, expected):
    assert found.keys() == expected.keys()
    for index, pixels in found.items():
        assert all(map(torch.equal, pixels, expected[index]))


def test_a_cycle_shows_the_same_changes_again_in_another_order(make_images):
    images = make_images(40)
    cycled = AUGMENT.changed(cycle=2)
    loader = loader_of(images, augment=cycled, views=VIEWS)
    epochs = [list(loader.epoch(epoch)) for epoch in range(4)]
    plain = [list(loader_of(images, views=VIEWS).epoch(epoch)) for epoch in range(2)]
    for epoch, batches in enumerate(epochs):
        assert_same_pixels(shown(batches), shown(plain[epoch % 2]))
    orders = {tuple(torch.cat([b.index for b in batches]).tolist()) for batches in epochs}
    assert len(orders) == 4


def test_the_seed_of_the_changes_leaves_the_order_to_the_runs(make_images):
    images = make_images(40)
    own = list(loader_of(images, seed=3).epoch(0))
    found = list(loader_of(images, seed=3, augment=AUGMENT.changed(seed=5)).epoch(0))
    assert all(map(torch.equal, [b.index for b in found], [b.index for b in own]))
    assert_same_pixels(shown(found), shown(loader_of(images, seed=5).epoch(0)))


def test_in_order_is_the_same_epoch_by_position(make_images):
    loader = loader_of(make_images(22), views=VIEWS)
    batches = list(loader.in_order(3))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(22))
    assert_same_pixels(shown(batches), shown(loader.epoch(3)))
    assert torch.equal(torch.cat([b.label for b in batches]), loader.source.labels)


@pytest.mark.parametrize("start", range(7))
def test_starting_late_gives_exactly_the_batches_that_were_left(make_images, start):
    loader = loader_of(make_images(22), views=VIEWS)
    whole = list(loader.epoch(3))
    assert_same(list(loader_of(make_images(22), views=VIEWS).epoch(3, start)), whole[start:])


@pytest.mark.parametrize("start", [-1, 7])
def test_steps_that_do_not_exist_are_refused_at_once(make_images, start):
    with pytest.raises(DataError, match=f"steps 0 to 5; it cannot start at {start}"):
        loader_of(make_images(22)).epoch(0, start)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("num_images", [24, 25, 28, 29, 31])
def test_slices_of_all_processes_make_up_the_batches_of_one(make_images, num_images, world_size):
    images = make_images(num_images)
    alone = list(loader_of(images, batch_size=4 * world_size).epoch(1))
    ranks = [
        list(loader_of(images, rank=rank, world_size=world_size).epoch(1))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert len({len(part) for part in parts}) == 1
        joined = torch.cat([part.index for part in parts])
        assert torch.equal(joined, alone[step].index[: len(joined)])
        assert torch.equal(
            torch.cat([part.image for part in parts]), alone[step].image[: len(joined)]
        )
        assert len(alone[step]) - len(joined) < world_size


@pytest.mark.parametrize(
    ("num_images", "world_size", "sizes"),
    [
        (12, 1, [4, 4, 4]),
        (13, 1, [4, 4, 4]),  # one image alone is no batch
        (14, 1, [4, 4, 4, 2]),
        (19, 2, [4, 4]),  # three images: one for each process
        (20, 2, [4, 4, 2]),
        (21, 2, [4, 4, 2]),
        (23, 2, [4, 4, 3]),
    ],
)
def test_a_short_last_batch_is_kept_from_two_images_a_process_on(
    make_images, num_images, world_size, sizes
):
    loader = loader_of(make_images(num_images), world_size=world_size)
    assert [len(batch) for batch in loader.epoch(0)] == sizes
    assert loader.num_steps == len(sizes)


def test_the_benchmark_has_782_steps_an_epoch(make_images):
    """50,000 images in batches of 64, as the benchmark's code: the last has 16."""
    images = make_images(50_000, shape=(1, 1, 1))
    loader = loader_of(images, batch_size=64, augment=AugmentConfig())
    assert loader.num_steps == math.ceil(50_000 / 64) == 782
    (last,) = loader.epoch(0, 781)
    assert len(last) == 16


def test_a_batch_larger_than_the_set_is_refused(make_images):
    with pytest.raises(DataError, match=r"takes 8 images .* has 7; lower batch_size"):
        loader_of(make_images(7), world_size=2)
    loader_of(make_images(8), world_size=2)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"rank": 1}, {"rank": -1}])
def test_impossible_ranks_and_sizes_are_refused(make_images, bad):
    with pytest.raises(DataError, match="batch_size must be positive"):
        loader_of(make_images(9), **bad)
    with pytest.raises(DataError, match="batch_size must be positive"):
        eval_batches(make_images(9), **({"batch_size": 4} | bad))


def test_a_view_is_another_draw_of_the_same_images(make_images):
    images = make_images(12)
    table = EpochTable.draw(AUGMENT, 12, seed=0, epoch=0, view="second")
    plain = list(loader_of(images).epoch(0))
    for batch, without in zip(loader_of(images, views=["second"]).epoch(0), plain, strict=True):
        assert torch.equal(batch.image, without.image)
        expected = table.apply(images.images[batch.index], batch.index) / 255
        assert torch.equal(batch.views["second"], expected)
        assert not torch.equal(batch.views["second"], batch.image)


def test_the_strong_view_is_its_own_table_of_the_same_images(make_images):
    images = make_images(12, shape=(3, 6, 6))
    table = StrongTable.draw(AUGMENT, 12, seed=0, epoch=1, view="strong")
    plain = list(loader_of(images).epoch(1))
    for batch, without in zip(loader_of(images, views=["strong"]).epoch(1), plain, strict=True):
        assert torch.equal(batch.image, without.image)
        expected = table.apply(images.images[batch.index], batch.index) / 255
        assert torch.equal(batch.views["strong"], expected)


def test_an_unknown_view_is_refused_with_the_known_ones(make_images):
    with pytest.raises(UnknownNameError, match=r"no view called 'third'.*second, strong"):
        loader_of(make_images(9), views=["third"])


# -- images on disk ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(lazy, workers):
    loader = loader_of(lazy, batch_size=2, views=VIEWS)
    other = loader_of(lazy, batch_size=2, views=VIEWS, workers=workers)
    assert_same(list(other.epoch(1)), list(loader.epoch(1)))
    assert_same(list(other.epoch(1, 2)), list(loader.epoch(1))[2:])
    assert_same(list(eval_batches(lazy, 4, workers=workers)), list(eval_batches(lazy, 4)))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_number_is_drawn_from_the_global_generator(lazy, workers):
    state = torch.get_rng_state()
    list(loader_of(lazy, batch_size=2, workers=workers).epoch(0))
    list(eval_batches(lazy, 4, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_picture_that_is_damaged_later_is_named_by_a_worker(lazy):
    (lazy.files.root / lazy.names[3]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train/dog/0\.png: no picture in any known format"):
        list(eval_batches(lazy, 2, workers=1))


# -- evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_images", [4, 10, 11])
def test_evaluation_sees_every_image_once_in_order(make_images, num_images, world_size):
    images = make_images(num_images)
    batches = [
        batch
        for rank in range(world_size)
        for batch in eval_batches(images, 3, rank=rank, world_size=world_size)
    ]
    assert all(1 <= len(batch) <= 3 for batch in batches)
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(num_images))
    assert torch.equal(torch.cat([batch.image for batch in batches]), images.images / 255)
    assert torch.equal(torch.cat([batch.label for batch in batches]), images.labels)


@pytest.mark.gpu
def test_on_an_accelerator_batches_are_those_of_the_host(make_images):
    images, device = make_images(22), torch.device("cuda")
    expected = list(loader_of(images, views=VIEWS).epoch(0))
    for loader in (
        loader_of(images.to(device), views=VIEWS),
        loader_of(images, views=VIEWS, device=device),
    ):
        batches = list(loader.epoch(0))
        assert {batch.image.device.type for batch in batches} == {"cuda"}
        assert_same([batch.to(torch.device("cpu")) for batch in batches], expected)


# -- mixed images --------------------------------------------------------------------------------

MIXED = AugmentConfig(crop_padding=1, flip=True, mixup_alpha=0.5, cutmix_alpha=1.0, mix_prob=0.9)


def by_image(loaders, epoch=0):
    """All that batches say of each image, by its position in the set."""
    found = {}
    for loader in loaders:
        for batch in loader.epoch(epoch):
            rows = (batch.image, batch.label, batch.other_label, batch.label_share)
            rows += tuple(batch.views.values())
            found |= {i: row for i, *row in zip(batch.index.tolist(), *rows, strict=True)}
    return found


def assert_equal_images(found, expected):
    assert found.keys() <= expected.keys()
    for position, rows in found.items():
        assert all(torch.equal(a, b) for a, b in zip(rows, expected[position], strict=True))


def test_an_image_is_mixed_with_the_one_beside_it_in_the_epochs_order(make_images):
    images = make_images(24)
    plain = {
        int(i): image
        for batch in loader_of(images).epoch(2)
        for i, image in zip(batch.index, batch.image, strict=True)
    }
    mix = MixTable.draw(MIXED, 24, (6, 5), seed=0, epoch=2)
    for batch in loader_of(images, augment=MIXED).epoch(2):
        beside = batch.index.reshape(-1, 2).flip(1).flatten()
        assert torch.equal(batch.label, images.labels[batch.index])
        assert torch.equal(batch.other_label, images.labels[beside])
        assert torch.equal(batch.label_share, mix.shares[batch.index])
        for row, (own, other) in enumerate(zip(batch.index, beside, strict=True)):
            pair = plain[int(own)][None], plain[int(other)][None]
            assert torch.equal(batch.image[row], mix.apply(*pair, own[None])[0])


def test_without_a_mixture_a_batch_has_one_label_an_image(make_images):
    for augment in (AUGMENT, AugmentConfig(mixup_alpha=1.0, mix_prob=0.0)):
        for batch in loader_of(make_images(9), augment=augment).epoch(0):
            assert batch.other_label is None
            assert batch.label_share is None


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_neither_batch_size_nor_processes_change_a_mixed_image(make_images, batch_size, world_size):
    images = make_images(31)
    expected = by_image([loader_of(images, augment=MIXED, batch_size=31, views=VIEWS)])
    ranks = [
        loader_of(
            images,
            augment=MIXED,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            views=VIEWS,
        )
        for rank in range(world_size)
    ]
    assert_equal_images(by_image(ranks), expected)


@pytest.mark.parametrize("start", [1, 4, 7])
def test_mixed_batches_can_start_late(make_images, start):
    loader = loader_of(make_images(23), augment=MIXED, batch_size=3)
    whole = list(loader.epoch(1))
    late = list(loader.epoch(1, start))
    assert_same(late, whole[start:])
    for ours, theirs in zip(late, whole[start:], strict=True):
        assert torch.equal(ours.other_label, theirs.other_label)
        assert torch.equal(ours.label_share, theirs.label_share)


def test_views_are_mixed_like_the_image(make_images):
    """Without random changes of its own, the second view is the image itself."""
    augment = AugmentConfig(mixup_alpha=0.5, cutmix_alpha=1.0)
    for batch in loader_of(make_images(12), augment=augment, views=["second"]).epoch(0):
        assert torch.equal(batch.views["second"], batch.image)
        assert (batch.label_share < 1).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_in_files_are_mixed_the_same(lazy, workers):
    in_memory = ImageSet(
        images=lazy.gather(torch.arange(6)), labels=lazy.labels, class_names=lazy.class_names
    )
    read = loader_of(lazy, augment=MIXED, batch_size=3, workers=workers)
    assert_equal_images(
        by_image([read]), by_image([loader_of(in_memory, augment=MIXED, batch_size=3)])
    )


@pytest.mark.parametrize(("batch_size", "most"), [(4, 4), (3, 5)])
def test_a_partner_in_the_same_batch_is_read_once(make_images, batch_size, most):
    reads = []

    class Counting:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __len__(self):
            return len(self.inner)

        def gather(self, index):
            reads.append(index.tolist())
            return self.inner.gather(index)

    list(loader_of(Counting(make_images(24)), augment=MIXED, batch_size=batch_size).epoch(0))
    assert all(len(read) == len(set(read)) <= most for read in reads)
