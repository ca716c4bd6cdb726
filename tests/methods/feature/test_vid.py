"""Variational information distillation; B batch, C channels, H W spatial."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import vid_loss
from limbeck.methods.base import Probe
from limbeck.methods.feature.vid import VID, Prediction, VIDConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["vid"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


STUDENT, TEACHER = sines((2, 2, 4, 4), 0.9, 0.1), sines((2, 3, 4, 4), 0.5, 0.3)


def prediction(alpha=None):
    """The golden values' network: weights of known sines."""
    made = Prediction(2, 3).double()
    with torch.no_grad():
        for k in range(3):
            weight = made.mean[2 * k].weight
            weight.copy_(0.3 * sines(weight.shape, 0.7, k))
        if alpha is not None:
            made.alpha.copy_(torch.tensor(alpha))
    return made


COMPUTED = {
    "alpha": lambda: Prediction(2, 3).alpha[0],
    "initial": lambda: prediction()(STUDENT, TEACHER),
    "alpha (0, .1, .2)": lambda: prediction((0.0, 0.1, 0.2))(STUDENT, TEACHER),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    # alpha is made, and read into the others, in float32.
    tolerance = max(0.51 * 10 ** -golden["decimals"], 1e-8)
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_at_the_beginning_it_is_a_tenth_of_the_mean_square_and_a_constant():
    made = prediction()
    expected = F.mse_loss(made.mean(STUDENT), TEACHER) / 10 + 0.5 * math.log(5)
    torch.testing.assert_close(made(STUDENT, TEACHER), expected, rtol=0, atol=1e-7)


def test_it_is_the_negative_log_likelihood_of_a_gaussian_less_a_constant():
    mean, variance = sines(TEACHER.shape, 0.7, 0.2), torch.tensor([0.5, 2.0, 3.0]).double()
    gaussian = torch.distributions.Normal(mean, variance.sqrt()[:, None, None])
    expected = -gaussian.log_prob(TEACHER).mean() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(vid_loss(mean, TEACHER, variance), expected, rtol=0, atol=1e-12)


def test_the_best_variance_of_a_channel_is_its_mean_squared_error():
    mean = sines(TEACHER.shape, 0.7, 0.2)
    best = (mean - TEACHER).square().mean(dim=(0, 2, 3)).requires_grad_()
    vid_loss(mean, TEACHER, best).backward()
    assert best.grad.abs().max() < 1e-12


def test_good_predictions_make_it_negative_and_it_stays_finite():
    assert vid_loss(TEACHER, TEACHER, torch.full((3,), 1e-5)).item() < -5


def test_the_variances_learn():
    made = prediction()
    made(STUDENT, TEACHER).backward()
    assert (made.alpha.grad != 0).all()


@pytest.mark.parametrize("alpha", [-200.0, 200.0])
def test_extreme_alphas_are_finite(alpha):
    made = prediction((alpha,) * 3).float()
    made.alpha.grad = None
    loss = made(STUDENT.float(), TEACHER.float())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(made.alpha.grad).all()


@pytest.mark.parametrize(
    ("mean", "variance"), [((2, 4, 4, 4), (4,)), ((2, 3, 4, 4), (2,)), ((2, 3, 2, 2), (3,))]
)
def test_shapes_that_do_not_fit_are_refused(mean, variance):
    with pytest.raises(ShapeError, match="one variance a channel"):
        vid_loss(torch.zeros(mean), TEACHER, torch.ones(variance))


def test_the_larger_map_is_averaged_and_the_stages_summed():
    features = {
        "student": {"stage1": sines((2, 2, 8, 8), 0.9, 0.1), "stage2": STUDENT},
        "teacher": {"stage1": TEACHER, "stage2": sines((2, 3, 8, 8), 0.5, 0.3)},
    }
    outputs = {
        whose: Outputs(torch.zeros(2, 4, dtype=torch.float64), features=features[whose])
        for whose in features
    }
    method = VID.from_probe(VIDConfig(), Probe(**outputs, num_classes=4, num_images=20)).double()
    batch = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 4, 4), label=torch.tensor([3, 0]))
    terms = method(batch, outputs["student"], outputs["teacher"], Progress())
    first, second = method.predictions
    expected = first(F.avg_pool2d(features["student"]["stage1"], 2), TEACHER)
    expected = expected + second(STUDENT, F.avg_pool2d(features["teacher"]["stage2"], 2))
    torch.testing.assert_close(terms.total, math.log(4) + expected, rtol=0, atol=1e-9)
    assert len(method.describe()) == 2
