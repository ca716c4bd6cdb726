import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.analysis import corruptions
from limbeck.analysis.base import Given, NotApplicableError
from limbeck.analysis.corruptions import CORRUPTIONS, NAMES, mean_corruption_error
from limbeck.core.errors import DataError

# Hendrycks and Dietterich's code (hendrycks/robustness): AlexNet's mean error under each.
ALEXNET = (
    0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816,
    0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500,
)  # fmt: skip
# CE of ResNet-50 in percent: ICLR 2019, https://arxiv.org/abs/1903.12261, table 1; its mCE is 76.7.
RESNET50 = (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77)
# Accuracy and CE of a ResNet-50 in percent, both published to two decimals, for some of them.
PUBLISHED = {
    "gaussian_noise": (29.29, 79.77),
    "impulse_noise": (23.81, 82.58),
    "defocus_blur": (38.75, 74.71),
    "glass_blur": (26.79, 88.61),
    "frost": (38.14, 74.84),
    "fog": (45.83, 66.11),
    "brightness": (68.02, 56.64),
    "contrast": (39.06, 71.43),
    "elastic_transform": (45.25, 84.75),
}


@pytest.mark.parametrize(("name", "accuracy", "error"), [(n, *v) for n, v in PUBLISHED.items()])
def test_a_corruption_error_is_the_published_one(name, accuracy, error):
    reference = np.array([[ALEXNET[NAMES.index(name)]]])
    found = mean_corruption_error(np.array([[1 - accuracy / 100]]), reference)
    assert 100 * found == pytest.approx(error, abs=0.01)


def test_the_mean_over_corruptions_is_resnet_50s_published_mce():
    """76.7 in the paper; from its table of whole percents, 76.9."""
    reference = np.array(ALEXNET)[:, None]
    errors = np.array(RESNET50)[:, None] / 100 * reference
    assert 100 * mean_corruption_error(errors, reference) == pytest.approx(76.7, abs=0.5)


def test_severities_are_summed_before_they_are_divided(generator):
    errors, reference = torch.rand(2, 4, 5, generator=generator).double().numpy()
    by_hand = np.mean([sum(e) / sum(r) for e, r in zip(errors, reference, strict=True)])
    assert mean_corruption_error(errors, reference) == pytest.approx(by_hand)
    above = [
        sum(x - 0.1 for x in e) / sum(x - 0.3 for x in r)
        for e, r in zip(errors, reference, strict=True)
    ]
    found = mean_corruption_error(errors, reference, clean=0.1, reference_clean=0.3)
    assert found == pytest.approx(np.mean(above))


def test_without_a_reference_it_is_the_mean_error_and_of_no_errors_there_is_no_ratio():
    errors = np.array([[0.1, 0.3], [0.5, 0.7]])
    assert mean_corruption_error(errors) == pytest.approx(0.4)
    assert np.isnan(mean_corruption_error(errors, np.zeros((2, 2))))


class Threshold(nn.Module):
    """Class 1 where the first pixel is above a level."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, image):
        above = image[:, 0, 0, 0] * 255 - self.level
        return torch.stack([-above, above], dim=1)


LABELS = torch.arange(12) % 2
IMAGES = (LABELS * 200 + 20).byte()[:, None, None, None].expand(12, 3, 4, 4)


@pytest.fixture
def files(tmp_path):
    """CIFAR-C's layout, of the twelve images: severity s adds 20 s under every corruption."""
    np.save(tmp_path / "labels.npy", np.tile(LABELS.numpy(), 5))
    pixels = IMAGES.permute(0, 2, 3, 1).numpy().astype(int)
    for name in NAMES:
        made = [np.clip(pixels + 20 * severity, 0, 255) for severity in range(1, 6)]
        np.save(tmp_path / f"{name}.npy", np.concatenate(made).astype(np.uint8))
    return tmp_path


def case_of(make_case, folder, **changes):
    values = {"given": Given(corrupted=folder)} | changes
    return make_case(Threshold(110.5), Threshold(90.5), Threshold(30.5), IMAGES, LABELS, **values)


def test_accuracy_is_over_all_corruptions_and_severities(make_case, files):
    """Dark images are 40, 60, 80, 100, 120 bright: above 90 twice, above 30 always."""
    found = CORRUPTIONS.measure(case_of(make_case, files))
    accuracy, agreement = found.readings
    np.testing.assert_allclose(accuracy.distilled[0], np.where(LABELS == 1, 1, 3 / 5))
    np.testing.assert_allclose(accuracy.independent[0], np.where(LABELS == 1, 1, 0))
    assert accuracy.teacher == pytest.approx((1 + 4 / 5) / 2)
    np.testing.assert_allclose(agreement.distilled[0], np.where(LABELS == 1, 1, 4 / 5))
    assert accuracy.nearer == "higher"
    assert found.notes == ()


def test_the_table_ends_in_the_mean_error_and_both_mces(make_case, files):
    (rows,) = CORRUPTIONS.measure(case_of(make_case, files)).tables.values()
    by_name = {row[0]: row[1:] for row in rows[1:]}
    assert len(by_name) == 15 + 5 + 4
    assert by_name["snow"] == ("10.0%", "20.0%", "50.0%")
    assert by_name["severity 4"] == ("0.0%", "50.0%", "50.0%")
    assert by_name["none"] == ("0.0%", "0.0%", "0.0%")
    assert by_name["mean of all"] == ("10.0%", "20.0%", "50.0%")
    assert by_name["mCE, of the independent student's errors"] == ("20.0%", "40.0%", "100.0%")


def test_files_are_read_at_the_places_of_the_test_images(make_case, files):
    """The case has seven of the twelve; the files' rows of the others would be wrong."""
    places = torch.tensor([0, 1, 3, 4, 6, 9, 11])
    stored = np.load(files / "fog.npy")
    others = np.setdiff1d(np.arange(12), places.numpy())
    for severity in range(5):
        stored[12 * severity + others] = 255 - stored[12 * severity + others]
    np.save(files / "fog.npy", stored)
    case = make_case(
        Threshold(300), Threshold(0), Threshold(110.5), IMAGES[places], LABELS[places],
        positions=places, given=Given(corrupted=files),
    )  # fmt: skip
    case.teacher.network.level = 110.5
    accuracy = CORRUPTIONS.measure(case).readings[0]
    assert accuracy.teacher == pytest.approx((4 + 3 * 4 / 5) / 7)


def test_some_of_the_files_are_enough_and_it_is_said(make_case, files):
    for name in NAMES[:12]:
        (files / f"{name}.npy").unlink()
    found = CORRUPTIONS.measure(case_of(make_case, files))
    assert found.settings["corruptions"] == list(NAMES[12:])
    assert "Means are of 3 corruptions" in found.notes[0]
    assert "gaussian_noise" in found.notes[0]


def test_progress_is_told(make_case, files):
    lines = []
    CORRUPTIONS.measure(case_of(make_case, files, tell=lines.append))
    assert lines[0] == "  1/15 gaussian_noise"
    assert len(lines) == 15


def broken(folder, what):
    match what:
        case "no labels":
            (folder / "labels.npy").unlink()
        case "pickles":
            np.save(folder / "labels.npy", np.array([{}], dtype=object), allow_pickle=True)
        case "odd labels":
            np.save(folder / "labels.npy", np.arange(7))
        case "other images":
            np.save(folder / "labels.npy", np.tile(1 - LABELS.numpy(), 5))
        case "too few":
            np.save(folder / "labels.npy", np.tile(LABELS.numpy()[:10], 5))
        case "other size":
            np.save(folder / "fog.npy", np.zeros((60, 8, 8, 3), dtype=np.uint8))
        case "no bytes":
            np.save(folder / "fog.npy", np.zeros((60, 4, 4, 3)))
        case "none":
            for name in NAMES:
                (folder / f"{name}.npy").unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no labels", r"labels\.npy cannot be read"),
        ("pickles", r"labels\.npy cannot be read"),
        ("odd labels", "one label for each of 5 severities"),
        ("other images", "is of other images, or in another order"),
        ("too few", "is of other images, or in another order"),
        ("other size", r"fog\.npy should hold \(60, 4, 4, 3\) bytes"),
        ("no bytes", r"fog\.npy should hold .* of float64"),
        ("none", "holds none of gaussian_noise"),
    ],
)
def test_files_that_do_not_fit_are_named(make_case, files, what, message):
    broken(files, what)
    with pytest.raises(DataError, match=message):
        CORRUPTIONS.measure(case_of(make_case, files))


def test_images_without_a_label_are_left_out(make_case, files):
    case = case_of(make_case, files)
    case.labels = torch.where(torch.arange(12) < 4, LABELS, -1)
    assert CORRUPTIONS.measure(case).settings["images"] == 4
    case.labels = torch.full((12,), -1)
    with pytest.raises(NotApplicableError, match="no test image has one"):
        CORRUPTIONS.measure(case)


LARGE = IMAGES.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


@pytest.fixture
def package(monkeypatch):
    """What is used of imagecorruptions: brighter by 20 a severity, give or take numpy's draw."""
    drawn = []

    def corrupt(image, *, corruption_name, severity):
        assert image.dtype == np.uint8
        assert image.shape[0] >= 32
        assert corruption_name in NAMES
        drawn.append(np.random.randint(1000))  # noqa: NPY002
        grey_or_colour = np.broadcast_to(image, (*image.shape[:2], 3)).astype(int)
        return np.clip(grey_or_colour + 20 * severity, 0, 255).astype(np.uint8)

    monkeypatch.setitem(sys.modules, "imagecorruptions", SimpleNamespace(corrupt=corrupt))
    return drawn


@pytest.mark.parametrize("channels", [1, 3])
def test_without_files_the_package_makes_them(make_case, package, channels):
    networks = (Threshold(110.5), Threshold(90.5), Threshold(30.5))
    case = make_case(*networks, LARGE[:, :channels], LABELS)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    found = CORRUPTIONS.measure(case)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    np.testing.assert_allclose(found.readings[0].distilled[0], np.where(LABELS == 1, 1, 3 / 5))
    assert "not to be held against published ones of CIFAR-C" in found.notes[0]
    first = package.copy()
    package.clear()
    CORRUPTIONS.measure(case)
    assert package == first
    assert len(set(first[:: len(LABELS)])) > 60  # each corruption and severity has its own draws


def test_of_many_images_the_package_makes_some(make_case, package, monkeypatch):
    monkeypatch.setattr(corruptions, "_MADE_IMAGES", 9)
    networks = (Threshold(110.5), Threshold(90.5), Threshold(30.5))
    assert CORRUPTIONS.measure(make_case(*networks, LARGE, LABELS)).settings["images"] == 9


def test_the_remedy_is_named_where_the_package_is_not_there(make_case, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    networks = (Threshold(110.5), Threshold(90.5), Threshold(30.5))
    with pytest.raises(NotApplicableError, match=r"pip install 'limbeck\[corruptions\]'"):
        CORRUPTIONS.measure(make_case(*networks, LARGE, LABELS))


def test_small_images_are_refused(make_case, package):
    networks = (Threshold(110.5), Threshold(90.5), Threshold(30.5))
    with pytest.raises(NotApplicableError, match="32 x 32 pixels or more; these have 4 x 4"):
        CORRUPTIONS.measure(make_case(*networks, IMAGES, LABELS))


def test_a_teacher_that_tells_nothing_apart_is_refused(make_case, files):
    case = make_case(
        Threshold(-9), Threshold(90.5), Threshold(30.5), IMAGES, LABELS,
        given=Given(corrupted=files),
    )  # fmt: skip
    with pytest.raises(NotApplicableError, match="gives all corrupted images the answer 'b'"):
        CORRUPTIONS.measure(case)
