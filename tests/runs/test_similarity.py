"""Maps of CKA between the layers of two networks."""

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.core.errors import DataError, SettingsError, UnknownNameError
from limbeck.core.normalization import Normalization
from limbeck.data import eval_batches
from limbeck.engine.config import TrainConfig
from limbeck.runs.networks import NamedNetwork, load_student
from limbeck.runs.similarity import cka_map, run_cka_map

CPU = torch.device("cpu")
NORMALIZATION = Normalization(mean=(0.3,), std=(0.25,))


class Net(nn.Module):
    """Two stages and a classifier."""

    def __init__(self, width):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(width)
            self.stage1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
            self.stage2 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(width, 5, 1), nn.ReLU())
            self.fc = nn.Linear(5, 4)
        self.layer_aliases = {"stage1": "stage1", "stage2": "stage2", "penultimate": "fc:input"}

    def forward(self, image):
        return self.fc(self.stage2(self.stage1(image)).mean(dim=(2, 3)))


def hsic(x, y):
    """Unbiased, by the traces of Song et al. 2012, eq. 5."""
    k, m = (rows @ rows.T for rows in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n, one = len(k), np.ones(len(k))
    return (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    ) / (n * (n - 3))


@pytest.fixture
def bundle(small):
    return small.bundle(size=22)


def mapped(student, teacher, bundle, *, size=10, layers=("stage*", "penultimate")):
    return cka_map(
        NamedNetwork(student, NORMALIZATION, "small"),
        NamedNetwork(teacher, NORMALIZATION, "large"),
        eval_batches(bundle.train, size),
        student_layers=layers,
        teacher_layers=layers,
        split="train",
        config=TrainConfig(device="cpu"),
        device=CPU,
    )


def test_every_cell_is_the_ratio_of_sums_over_batches(bundle):
    """By numpy, from the layers' own values; the last batch of two images does not count."""
    student, teacher = Net(3).train(), Net(7)
    found = mapped(student, teacher, bundle)
    assert found.num_images == 20
    assert found.student_layers == {
        "stage1": "stage1",
        "stage2": "stage2",
        "penultimate": "fc:input",
    }

    def layers(network):
        image = (bundle.train.images[:20].double() / 255 - 0.3) / 0.25
        network = network.double()
        first = network.stage1(image)
        second = network.stage2(first)
        values = first, second, second.mean(dim=(2, 3))
        return [value.flatten(1).detach().numpy() for value in values]

    ours, theirs = layers(student), layers(teacher)
    for i, x in enumerate(ours):
        for j, y in enumerate(theirs):
            sums = [
                sum(hsic(a[part], b[part]) for part in (slice(0, 10), slice(10, 20)))
                for a, b in ((x, y), (x, x), (y, y))
            ]
            expected = sums[0] / np.sqrt(sums[1] * sums[2])
            assert found.values[i][j] == pytest.approx(expected, abs=1e-5)


def test_a_network_beside_itself_is_1_on_the_diagonal(bundle):
    network = Net(4)
    values = np.array(mapped(network, network, bundle).values)
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-6)
    np.testing.assert_allclose(values, values.T, atol=1e-6)
    assert values[0, 1] < 1
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_batches_that_are_too_small_are_refused(bundle):
    with pytest.raises(DataError, match="batches of 4 images at least"):
        mapped(Net(3), Net(4), bundle, size=3)


def test_an_unknown_layer_is_named(bundle):
    with pytest.raises(UnknownNameError, match="did you mean 'stage1'"):
        mapped(Net(3), Net(4), bundle, layers=("stge1",))


def test_a_runs_map_is_of_its_student_teacher_and_validation_images(small, tmp_path):
    config = small.config("kd", student="digits_cnn_tiny", epochs=1)
    small.run(config, tmp_path / "run")
    found = run_cka_map(tmp_path / "run", device="cpu")
    assert (found.student, found.teacher, found.split) == (
        "digits_cnn_tiny",
        "digits_cnn_tiny",
        "val",
    )
    data = small.parts(config).data
    assert found.num_images == len(data.val)
    assert list(found.student_layers) == ["stage1", "stage2", "stage3", "penultimate"]
    student, teacher = load_student(tmp_path / "run")[0], load_student(small.teacher)[0]
    by_hand = cka_map(
        student,
        teacher,
        eval_batches(data.val, config.train.eval_batch_size),
        student_layers=["penultimate"],
        teacher_layers=["stage1"],
        split="val",
        config=config.train,
        device=CPU,
    )
    assert found.values[3][0] == pytest.approx(by_hand.values[0][0], abs=1e-9)
    chosen = run_cka_map(tmp_path / "run", split="test", student_layers=["fc"], device="cpu")
    assert (list(chosen.student_layers), chosen.num_images) == (["fc"], len(data.test))
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        run_cka_map(tmp_path / "run", split="tset")
    with pytest.raises(SettingsError, match="has no teacher"):
        run_cka_map(small.teacher)
