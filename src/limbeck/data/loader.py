"""Batches in a keyed order: what a step sees depends on (seed, epoch, step) and nothing else.

N images of the set, B of one batch, C channels, H W spatial.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limbeck.core.errors import DataError, UnknownNameError
from limbeck.core.types import Batch, keyed_generator
from limbeck.data.augment import EpochTable
from limbeck.data.config import AugmentConfig
from limbeck.data.images import ImageSource
from limbeck.data.mixing import MixTable, partners
from limbeck.data.randaugment import StrongTable

__all__ = ["VIEWS", "TrainLoader", "eval_batches"]

# Further views a batch can hold: a second draw of the same crop and flip, and RandAugment and
# Cutout behind a draw of its own.
VIEWS = ("second", "strong")
_FEWEST = 2  # images a process needs in a short last batch: statistics and relations need two


class TrainLoader:
    """Shuffled, augmented batches of one process; any step of any epoch can be the first.

    Each epoch goes through a permutation keyed by (seed, epoch), cut into global batches of
    ``batch_size * world_size``; a process takes its equal slice of each. A short last batch is
    kept, cut to a multiple of ``world_size``, unless that leaves a process fewer than two
    images. How many workers read ahead changes nothing but the waiting.

    Mixed images are so in all views alike, and their batch says what of them each label is of.
    Whom an image is mixed with depends on the permutation alone.

    Args:
        source: what is learnt from.
        batch_size: images a step and process.
        seed: the run's seed.
        augment: random changes of the images.
        rank: which process this is, in [0, world_size).
        world_size: processes that share the epoch.
        workers: processes that read ahead, for a source that is not in memory.
        views: names from :data:`VIEWS` that each batch shall hold beside its image.
        device: where the batches are made; None is where the source's labels lie. Pixels
            travel there as bytes and are cropped there.

    Attributes:
        num_steps: batches an epoch.

    Raises:
        DataError: if the set is smaller than one global batch.
        UnknownNameError: if a view is not known.

    Example:
        >>> import torch
        >>> from limbeck.data.config import AugmentConfig
        >>> from limbeck.data.images import ImageSet
        >>> pixels = torch.zeros(7, 1, 2, 2, dtype=torch.uint8)
        >>> images = ImageSet(images=pixels, labels=torch.zeros(7).long(), class_names=("a",))
        >>> loader = TrainLoader(images, batch_size=3, seed=0, augment=AugmentConfig())
        >>> loader.num_steps  # the seventh image alone is no batch
        2
        >>> [len(batch) for batch in loader.epoch(0)]
        [3, 3]
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        seed: int,
        augment: AugmentConfig,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        views: Sequence[str] = (),
        device: torch.device | None = None,
    ) -> None:
        _check_ranks(batch_size, rank, world_size)
        global_size = batch_size * world_size
        if global_size > len(source):
            raise DataError(
                f"one batch takes {global_size} images ({batch_size} for each of {world_size} "
                f"processes), and the training set has {len(source)}; lower batch_size"
            )
        for view in views:
            if view not in VIEWS:
                raise UnknownNameError("view", view, VIEWS)
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.views = tuple(views)
        self.device = source.labels.device if device is None else device
        full, left_over = divmod(len(source), global_size)
        # A batch size of one is the caller's choice, and then no batch is short.
        has_short = left_over // world_size >= _FEWEST
        self.num_steps = full + has_short

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from ``start_step`` on, exactly those of a whole epoch.

        Args:
            epoch: 0-based.
            start_step: 0-based within the epoch, at most ``num_steps``, which leaves none.

        Raises:
            DataError: if there is no such step.
        """
        if not 0 <= start_step <= self.num_steps:
            raise DataError(
                f"an epoch has steps 0 to {self.num_steps - 1}; it cannot start at {start_step}"
            )
        order = torch.randperm(
            len(self.source), generator=keyed_generator(self.seed, epoch, "order")
        ).to(self.source.labels.device)
        steps = range(start_step, self.num_steps)
        chunks = [self._slice(order, step) for step in steps]
        if not self.augment.mixes:
            return self._batches(chunks, epoch)
        others = partners(order)
        mix = MixTable.draw(
            self.augment,
            len(self.source),
            self.source.image_shape[1:],
            seed=self.seed,
            epoch=epoch,
        ).to(self.device)
        pairs = [
            _Pairs.of(chunk, self._slice(others, step))
            for step, chunk in zip(steps, chunks, strict=True)
        ]
        return self._mixed_batches(pairs, self._tables(epoch), mix)

    def in_order(self, epoch: int) -> Iterator[Batch]:
        """Every image of the set once, as that epoch shows it, in the set's own order.

        The whole set in every process; the last batch may be smaller. Nothing is mixed: whom an
        image is mixed with depends on the order of an epoch.
        """
        positions = torch.arange(len(self.source), device=self.source.labels.device)
        return self._batches(list(torch.split(positions, self.batch_size)), epoch)

    def _tables(self, epoch: int) -> dict[str, EpochTable | StrongTable]:
        return {view: self._table(view, epoch) for view in ("", *self.views)}

    def _table(self, view: str, epoch: int) -> EpochTable | StrongTable:
        """What one view of every image is in one epoch; "" is the batch's own."""
        kind = StrongTable if view == "strong" else EpochTable
        seed, draw = self.augment.key(self.seed, epoch)
        table = kind.draw(self.augment, len(self.source), seed=seed, epoch=draw, view=view)
        return table.to(self.device)

    def _slice(self, order: Tensor, step: int) -> Tensor:
        """This process's part of one global batch: positions ``(B,)``."""
        start = step * self.batch_size * self.world_size
        size = min(self.batch_size, (len(order) - start) // self.world_size)
        start += self.rank * size
        return order[start : start + size]

    def _batches(self, chunks: list[Tensor], epoch: int) -> Iterator[Batch]:
        tables = self._tables(epoch)
        for raw in _raw_batches(self.source, chunks, self.workers, self.device):
            seen = _seen(raw, tables)
            image = seen.pop("")
            yield Batch(index=raw.index, image=image, label=raw.label, views=seen)

    def _mixed_batches(
        self, pairs: list[_Pairs], tables: Mapping[str, EpochTable | StrongTable], mix: MixTable
    ) -> Iterator[Batch]:
        read = [pair.read for pair in pairs]
        raws = _raw_batches(self.source, read, self.workers, self.device)
        for raw, pair in zip(raws, pairs, strict=True):
            other = pair.other.to(self.device, non_blocking=True)
            index = raw.index[: len(other)]
            seen = {
                view: mix.apply(image[: len(other)], image[other], index)
                for view, image in _seen(raw, tables).items()
            }
            yield Batch(
                index=index,
                image=seen.pop(""),
                label=raw.label[: len(other)],
                views=seen,
                other_label=raw.label[other],
                label_share=mix.shares[index],
            )


def eval_batches(
    source: ImageSource,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Every image once, in order, as it is; each process gets its own consecutive part.

    Processes may get different numbers of batches, some of them none: what they add up must be
    summed over processes after the last one.

    Args:
        source: any images.
        batch_size: images a batch; the last may be smaller.
        rank: which process this is, in [0, world_size).
        world_size: processes that share the images.
        workers: processes that read ahead, for a source that is not in memory.
        device: where the batches are made; None is where the source's labels lie.

    Returns:
        Batches whose images are float32 in [0, 1].
    """
    _check_ranks(batch_size, rank, world_size)
    total = len(source)
    start, stop = total * rank // world_size, total * (rank + 1) // world_size
    part = torch.arange(start, stop, device=source.labels.device)
    chunks = list(torch.split(part, batch_size)) if len(part) else []
    device = source.labels.device if device is None else device
    return (
        Batch(index=raw.index, image=_to_unit(raw.image), label=raw.label)
        for raw in _raw_batches(source, chunks, workers, device)
    )


@dataclass(frozen=True)
class _Raw:
    """One batch before any change of its pixels, on the device where it is made."""

    index: Tensor  # (B,)
    image: Tensor  # (B, C, H, W) uint8
    label: Tensor  # (B,)


@dataclass(frozen=True)
class _Pairs:
    """The images that a mixed batch takes, each read once."""

    read: Tensor  # positions in the set: the batch's own, then partners that are not among them
    other: Tensor  # (B,), each partner's place in `read`

    @classmethod
    def of(cls, index: Tensor, partner: Tensor) -> _Pairs:
        """Of images at ``index (B,)`` and their partners ``(B,)``."""
        missing = partner[~torch.isin(partner, index)]
        read = torch.cat([index, missing])
        by_position, place = read.sort()
        return cls(read, place[torch.searchsorted(by_position, partner)])


class _Gatherer(Dataset[Tensor]):
    """Whole batches as items, so that a worker reads one at a time."""

    def __init__(self, source: ImageSource, chunks: Sequence[Tensor]) -> None:
        self.source = source
        self.chunks = chunks

    def __getitem__(self, position: int) -> Tensor:
        return self.source.gather(self.chunks[position])

    def __len__(self) -> int:
        return len(self.chunks)


def _raw_batches(
    source: ImageSource, chunks: Sequence[Tensor], workers: int, device: torch.device
) -> Iterator[_Raw]:
    """The images at each chunk of positions, in order."""
    images: Iterable[Tensor] = map(source.gather, chunks)
    if workers and chunks and not source.in_memory:
        # Its own generator: without one the loader draws from the global generator, and a run
        # resumed in the middle of an epoch would differ in whatever draws from that next.
        images = DataLoader(
            _Gatherer(source, chunks),
            batch_size=None,
            num_workers=workers,
            generator=torch.Generator(),
        )
    for index, image in zip(chunks, images, strict=True):
        label = source.labels[index]
        yield _Raw(*(part.to(device, non_blocking=True) for part in (index, image, label)))


def _seen(raw: _Raw, tables: Mapping[str, EpochTable | StrongTable]) -> dict[str, Tensor]:
    """Every view of the images, in [0, 1]."""
    return {view: _to_unit(table.apply(raw.image, raw.index)) for view, table in tables.items()}


def _to_unit(image: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; a division, so that 255 becomes exactly 1."""
    return image.to(torch.float32).div_(255)


def _check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1 or not 0 <= rank < world_size:
        raise DataError(
            "batch_size must be positive and rank in [0, world_size); "
            f"got batch_size {batch_size}, rank {rank}, world_size {world_size}"
        )
