"""Settings of what is learnt from: source, splits, labels, augmentation, order."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from limbeck.core.settings import Settings

__all__ = ["AugmentConfig", "DataConfig"]


class AugmentConfig(Settings):
    """Random changes of training images, the same pixels for both networks.

    Attributes:
        crop_padding: zero pixels added on each side before a random crop of the old size;
            0 crops nothing. 4 in the CIFAR benchmark.
        flip: mirror left-right with probability one half.
        mixup_alpha: blend each image with another one, its share from Beta(alpha, alpha); 0
            blends none. 1 draws it uniformly.
        cutmix_alpha: put a box of another image into each, of one minus such a share of its
            area; 0 cuts none. Where both are above 0, an image is blended or cut, at even odds.
        mix_prob: share of the images that are mixed at all.
        cycle: after so many epochs the same changes come again; None draws new ones every epoch.
        seed: of the draws; None takes the run's.
    """

    crop_padding: NonNegativeInt = 0
    flip: bool = False
    mixup_alpha: NonNegativeFloat = 0.0
    cutmix_alpha: NonNegativeFloat = 0.0
    mix_prob: float = Field(1.0, ge=0, le=1)
    cycle: PositiveInt | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _partners_do_not_come_again(self) -> Self:
        if self.mixes and self.cycle is not None:
            raise ValueError(
                "whom an image is mixed with depends on the order of the epoch, so changes cannot "
                "come again: leave out cycle, or mixup_alpha and cutmix_alpha"
            )
        return self

    @property
    def mixes(self) -> bool:
        """Whether any image is mixed with another."""
        return self.mix_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def key(self, seed: int, epoch: int) -> tuple[int, int]:
        """The seed and number of the draw that one epoch of a run shows.

        Example:
            >>> AugmentConfig(cycle=3).key(7, 5)
            (7, 2)
        """
        own = seed if self.seed is None else self.seed
        return own, epoch if self.cycle is None else epoch % self.cycle


class DataConfig(Settings):
    """Where images come from and how they are split.

    Attributes:
        dataset: "digits" (scikit-learn's embedded 8x8 digits), "cifar10", "cifar100" (as
            torchvision stores them) or "image_folder" (a directory or zip); "python" stands
            for data passed in Python.
        data_dir: where the files lie; digits need none.
        image_size: side in pixels for image folders; None keeps the size, which must then be
            one for all images.
        in_chans: 1 for greyscale, 3 for colour; None takes what the images have.
        val_fraction: share of the training images held out, stratified, chosen by seed; not
            used where the data brings its own "val" folder.
        split_seed: None splits by the run's seed.
        num_classes: only the first so many classes, in the data's order, in every split; None
            takes all.
        fraction: share of the training images used at all, stratified; 1 uses all.
        imbalance_factor: makes the classes a long tail, the first one this many times as frequent
            as the last (see :func:`~limbeck.data.splits.long_tailed_subset`); None leaves them.
        num_labels: training images whose label is kept, stratified; the others become
            unlabelled (-1). None keeps all, 0 none.
        labelled_only: train on the labelled images alone.
        augment: random changes of training images.
    """

    dataset: Literal["digits", "cifar10", "cifar100", "image_folder", "python"] = "digits"
    data_dir: str | None = None
    image_size: PositiveInt | None = None
    in_chans: Literal[1, 3] | None = None
    val_fraction: float = Field(0.1, ge=0, lt=1)
    split_seed: int | None = None
    num_classes: int | None = Field(None, ge=2)
    fraction: float = Field(1.0, gt=0, le=1)
    imbalance_factor: float | None = None
    num_labels: NonNegativeInt | None = None
    labelled_only: bool = False
    augment: AugmentConfig = AugmentConfig()

    @field_validator("imbalance_factor", mode="after")
    @classmethod
    def _first_classes_are_frequent(cls, factor: float | None) -> float | None:
        if factor is not None and factor <= 1:
            raise ValueError(
                "must be above 1: the first class's images over the last one's, 100 where other "
                "codes write 0.01"
            )
        return factor

    @model_validator(mode="after")
    def _files_are_named(self) -> Self:
        if self.dataset not in ("digits", "python") and self.data_dir is None:
            raise ValueError(f"dataset {self.dataset!r} needs data_dir, the folder of its files")
        if self.dataset != "image_folder" and self.image_size is not None:
            raise ValueError(f"image_size is for image folders; {self.dataset!r} keeps its size")
        if self.labelled_only and self.num_labels == 0:
            raise ValueError("labelled_only with num_labels 0 leaves no image to learn from")
        return self
