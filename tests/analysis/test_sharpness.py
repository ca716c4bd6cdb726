import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.analysis import sharpness
from limbeck.analysis.background import Background, Stretch
from limbeck.analysis.base import NotApplicableError
from limbeck.analysis.sharpness import SHARPNESS, filter_normalised, margin_gradients, sam_rise
from limbeck.core.errors import ModelError


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
            self.fc = nn.Linear(12, 3)

    def forward(self, image):
        return self.fc(self.body(image).flatten(1))


@pytest.fixture
def case(make_case, images, labels):
    return make_case(Net(0), [Net(1), Net(2)], [Net(3), Net(4)], images, labels, batch_size=7)


def test_each_filter_of_a_direction_is_as_long_as_the_weights_own(generator):
    weights = [torch.randn(shape, generator=generator) for shape in ((4, 2, 3, 3), (5, 4), (5,))]
    found = filter_normalised(weights, generator)
    for weight, direction in zip(weights[:2], found[:2], strict=True):
        torch.testing.assert_close(direction.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
        assert abs(F.cosine_similarity(weight.flatten(), direction.flatten(), dim=0)) < 0.9
    assert not found[2].any()


def test_a_filter_of_no_length_does_not_move(generator):
    (found,) = filter_normalised([torch.zeros(2, 3)], generator)
    assert not found.any()


def test_a_sam_step_is_the_gradients_of_the_mean_loss(case, images, labels):
    """By torch's own backward pass on a copy of the network."""
    import copy

    subject = case.distilled[0]
    found = sam_rise(sharpness._Loss(case, subject, images, labels), rho=0.3)
    network = copy.deepcopy(subject.network).requires_grad_()
    x = images.float() / 255
    before = F.cross_entropy(network(x), labels, reduction="none")
    before.mean().backward()
    parameters = list(network.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    with torch.no_grad():
        for p in parameters:
            p += 0.3 * p.grad / norm
        after = F.cross_entropy(network(x), labels, reduction="none")
    np.testing.assert_allclose(found, (after - before).detach(), atol=1e-5)
    assert found.mean() > 0


def test_the_slope_of_a_linear_networks_margin_is_the_distance_of_two_rows(
    make_case, linear, images, labels, generator
):
    weight = torch.randn(3, 16, generator=generator)
    network = linear(weight, torch.zeros(3))
    case = make_case(network, network, network, images, labels, batch_size=7)
    found = margin_gradients(case, case.teacher, images)
    order = (images.float().flatten(1) / 255 @ weight.T).argsort(dim=1, descending=True)
    expected = (weight[order[:, 0]] - weight[order[:, 1]]).norm(dim=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_rise_and_the_curvature_are_those_of_plain_loops(case, images, labels, monkeypatch):
    monkeypatch.setattr(sharpness, "_DIRECTIONS", 2)
    found = SHARPNESS.measure(case)
    rise, _, trace, _ = found.readings
    subject = case.distilled[1]
    x, weights = images.float() / 255, list(subject.network.parameters())
    original = [w.clone() for w in weights]
    generator, total = case.torch_generator("directions"), np.zeros(30)

    def loss():
        return F.cross_entropy(subject.network(x), labels, reduction="none").numpy()

    clean = loss()
    for _ in range(2):
        for w, start in zip(weights, original, strict=True):
            noise = torch.randn(w.shape, generator=generator)
            if w.ndim > 1:
                for place, rows in enumerate(noise):
                    w[place] = start[place] + 0.2 * rows * start[place].norm() / rows.norm()
        total += (loss() - clean) / 2
        for w, start in zip(weights, original, strict=True):
            w.copy_(start)
    assert rise.distilled[1].mean() == pytest.approx(total.mean(), abs=1e-5)
    assert len(trace.distilled[0]) == 10
    names = [row[0] for row in found.tables["Curvature and loss"]]
    assert names[1:3] == ["top eigenvalue of the Hessian", "trace of the Hessian"]


def test_the_top_eigenvalue_is_that_of_the_dense_hessian_of_the_mean_loss(
    make_case, linear, images, labels, generator
):
    weight = torch.randn(3, 16, generator=generator)
    network = linear(weight, torch.zeros(3))
    case = make_case(network, network, network, images, labels, batch_size=7)
    x = images.float().flatten(1) / 255

    def loss(flat):
        return F.cross_entropy(x @ flat[:48].view(3, 16).T + flat[48:], labels)

    at = torch.cat([weight.flatten(), torch.zeros(3)]).double()
    x = x.double()
    dense = torch.autograd.functional.hessian(loss, at)
    table = SHARPNESS.measure(case).tables["Curvature and loss"]
    assert float(table[1][1]) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-2)
    assert float(table[2][1]) == pytest.approx(float(dense.trace()), rel=0.5)


def test_the_same_network_twice_is_neither_flatter_nor_sharper(make_case, images, labels):
    case = make_case(Net(0), [Net(1), Net(2)], [Net(1), Net(2)], images, labels)
    for reading in SHARPNESS.measure(case).readings:
        for seed in (0, 1):
            np.testing.assert_allclose(reading.distilled[seed], reading.independent[seed])
        assert reading.words[0] in ("flatter", "smoother")


def test_networks_are_as_they_were(case):
    before = [w.clone() for s in case.subjects for w in s.network.state_dict().values()]
    SHARPNESS.measure(case)
    after = [w for s in case.subjects for w in s.network.state_dict().values()]
    assert all(itertools.starmap(torch.equal, zip(before, after, strict=True)))
    assert not any(p.requires_grad for s in case.subjects for p in s.network.parameters())


def background(stretches):
    return Background(
        train_images=torch.zeros(1, 1, 4, 4, dtype=torch.uint8),
        train_labels=torch.zeros(1, dtype=torch.int64),
        num_train=1,
        num_labelled=1,
        stretches=stretches,
    )


def test_the_stage_profile_stands_beside_or_says_why_not(make_case, images, labels):
    case = make_case(
        Net(0), Net(1), Net(2), images, labels,
        background=background(lambda name: [Stretch("stage1 to stage2", 2.0, len(name) / 10)]),
    )  # fmt: skip
    table = SHARPNESS.measure(case).tables["How far the layers between stages stretch"]
    assert [row[:3] for row in table[1:]] == [
        ("stage1 to stage2", kind, "2") for kind in ("teacher", "distilled", "independent")
    ]

    def refuse(name):
        raise ModelError("no stage")

    case.background = background(refuse)
    table = SHARPNESS.measure(case).tables["How far the layers between stages stretch"]
    assert table[1][:2] == ("cannot be told", "no stage")


def test_images_without_labels_have_no_loss(make_case, images):
    labels = torch.where(torch.arange(30) < 12, torch.arange(30) % 3, -1)
    case = make_case(Net(0), Net(1), Net(2), images, labels)
    assert SHARPNESS.measure(case).settings["images"] == 12
    case.labels = torch.full((30,), -1)
    with pytest.raises(NotApplicableError, match="no test image has one"):
        SHARPNESS.measure(case)
