import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.analysis.adversarial import ADVERSARIAL, iterated_fgsm
from limbeck.analysis.base import NotApplicableError


def random_network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def answered(images):
    """Labels that a network of seed 0 gives the images itself."""
    with torch.no_grad():
        return random_network(0)(images.float() / 255).argmax(dim=1)


@pytest.fixture
def case(make_case, images, answered):
    networks = [random_network(seed) for seed in (0, 0, 5)]
    return make_case(*networks, images, answered, class_names=("a", "b", "c"), batch_size=7)


def test_attacks_are_those_of_plain_loops(case, images, answered):
    epsilon, steps, size = 0.05, 3, 0.02
    pixels = images.float() / 255
    found = iterated_fgsm(
        case, case.teacher, pixels, answered, epsilon=epsilon, steps=steps, step_size=size
    )
    for image, label, result in zip(pixels, answered, found, strict=True):
        moved = image.clone()
        for _ in range(steps):
            point = moved.clone().requires_grad_()
            F.cross_entropy(case.teacher.network(point[None]), label[None]).backward()
            for index in np.ndindex(*moved.shape):
                step = float(moved[index]) + size * float(point.grad[index].sign())
                near = min(max(step, float(image[index]) - epsilon), float(image[index]) + epsilon)
                moved[index] = min(max(near, 0.0), 1.0)
        torch.testing.assert_close(result, moved)


def test_attacks_stay_within_their_radius_and_raise_the_loss(case, images, answered):
    pixels = images.float() / 255
    found = iterated_fgsm(case, case.teacher, pixels, answered, epsilon=0.1)
    assert (found - pixels).abs().max() <= 0.1 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    network = case.teacher.network
    assert F.cross_entropy(network(found), answered) > F.cross_entropy(network(pixels), answered)


def test_no_gradient_is_left_in_the_networks(case, images, answered):
    iterated_fgsm(case, case.teacher, images.float() / 255, answered, epsilon=0.1)
    assert all(parameter.grad is None for parameter in case.teacher.network.parameters())


def test_a_copy_of_the_teacher_is_fooled_by_all_that_fools_it(case):
    found = ADVERSARIAL.measure(case)
    (reading,) = found.readings
    assert reading.distilled[0].all()
    assert reading.independent[0].mean() < 1
    table = found.tables["Answers that change with the network's that the images were made on"]
    made_on_teacher = [row for row in table if row[0] == "the teacher"]
    assert [row[1] for row in made_on_teacher] == ["0.01", "0.03", "0.1"]
    shares = [float(row[2].rstrip("%")) for row in made_on_teacher]
    assert shares == sorted(shares)
    robust = found.tables["Accuracy under attacks made on each network itself"]
    assert robust[1][1] == robust[1][2]  # teacher and its copy


def test_the_foreign_network_is_not_its_own_control(make_case, images, answered):
    strangers = [random_network(5), random_network(6)]
    case = make_case(
        random_network(0), [random_network(0), random_network(1)], strangers, images, answered,
        class_names=("a", "b", "c"),
    )  # fmt: skip
    found = ADVERSARIAL.measure(case)
    assert not found.notes
    rows = next(iter(found.tables.values()))
    (foreign,) = [row for row in rows if row[0] == "a foreign network"]
    assert foreign[5] != "100.0%"


def test_a_teacher_that_cannot_be_fooled_says_nothing(make_case, images, labels, linear):
    steady = linear(torch.zeros(3, 16), torch.tensor([5.0, 0.0, 0.0]))
    with pytest.raises(NotApplicableError, match="no image changed the teacher's answer"):
        ADVERSARIAL.measure(make_case(steady, steady, steady, images, labels))
