import pytest

from limbeck.core.errors import SettingsError
from limbeck.data.config import AugmentConfig, DataConfig


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "image_folder"])
def test_data_on_disk_need_a_folder(dataset):
    with pytest.raises(SettingsError, match=f"'{dataset}' needs data_dir"):
        DataConfig(dataset=dataset)
    assert DataConfig(dataset=dataset, data_dir="x").data_dir == "x"


def test_every_fault_is_told_at_once():
    with pytest.raises(SettingsError) as raised:
        DataConfig(fraction=0, val_fraction=1, num_labels=-1, in_chans=2, dateset="digits")
    message = str(raised.value)
    for name in ("fraction", "val_fraction", "num_labels", "in_chans", "did you mean 'dataset'"):
        assert name in message


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "cifar100", "python"])
def test_a_size_that_nothing_would_heed_is_refused(dataset):
    with pytest.raises(SettingsError, match=f"image_size is for image folders; '{dataset}' keeps"):
        DataConfig(dataset=dataset, data_dir="x", image_size=32)
    assert DataConfig(dataset="image_folder", data_dir="x", image_size=32).image_size == 32


def test_hiding_all_labels_leaves_nothing_to_learn_from_labelled_images_alone():
    assert DataConfig(num_labels=0).num_labels == 0
    with pytest.raises(SettingsError, match="labelled_only with num_labels 0 leaves no image"):
        DataConfig(num_labels=0, labelled_only=True)


def test_padding_is_not_negative():
    with pytest.raises(SettingsError, match="crop_padding"):
        AugmentConfig(crop_padding=-1)


@pytest.mark.parametrize("factor", [1, 0.01, -3])
def test_an_imbalance_factor_is_the_first_class_over_the_last(factor):
    with pytest.raises(SettingsError, match=r"imbalance_factor: must be above 1.* 100 where other"):
        DataConfig(imbalance_factor=factor)


def test_mixing_takes_no_negative_alpha_and_no_share_above_one():
    with pytest.raises(SettingsError) as raised:
        AugmentConfig(mixup_alpha=-0.1, cutmix_alpha=float("inf"), mix_prob=1.5)
    assert all(name in str(raised.value) for name in ("mixup_alpha", "cutmix_alpha", "mix_prob"))


@pytest.mark.parametrize(
    ("fields", "mixes"),
    [
        ({}, False),
        ({"mixup_alpha": 0.2}, True),
        ({"cutmix_alpha": 1.0}, True),
        ({"cutmix_alpha": 1.0, "mix_prob": 0.0}, False),
    ],
)
def test_images_are_mixed_where_an_alpha_and_the_probability_are_above_zero(fields, mixes):
    assert AugmentConfig(**fields).mixes is mixes


def test_settings_come_back_from_plain_values():
    config = DataConfig(num_labels=50, augment=AugmentConfig(crop_padding=4, flip=True))
    assert DataConfig.read(config.plain()) == config
