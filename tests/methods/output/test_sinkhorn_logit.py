"""The converged form against the authors' goldens, POT and its own plan; float64."""

import json
from pathlib import Path

import ot
import pytest
import torch
import torch.nn.functional as F

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.functional.sinkhorn import converged_sinkhorn_cost
from limbeck.methods.output.sinkhorn_logit import SinkhornLogitConfig
from limbeck.methods.output.wkd_logit import WKDLogit

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["sinkhorn_logit"]


def wave(shape, a, b):
    """``G(shape; a, b)`` of the golden values: sin(a * i + b) in row-major order."""
    count = torch.Size(shape).numel()
    return torch.sin(a * torch.arange(count, dtype=torch.float64) + b).reshape(shape)


BATCH = 2 * wave((2, 5), 1.3, 0.2), 2 * wave((2, 5), 0.7, 0.5)
PLACES = torch.arange(5).double()
BATCH_COST = 1 - torch.exp(-(PLACES[:, None] - PLACES).abs() / 5)


def whole_rows(regularization, iterations):
    rows = [F.log_softmax(z / 4, dim=1) for z in BATCH]
    return converged_sinkhorn_cost(
        *rows, BATCH_COST, regularization=regularization, iterations=iterations
    ).mean()


COMPUTED = {
    "batch, whole rows": lambda: whole_rows(0.05, 1000),
    "batch, exact transport": lambda: whole_rows(0.002, 20_000),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_the_method_transports_as_pot_does(generator):
    logits = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator)
    cost = torch.rand(6, 6, dtype=torch.float64, generator=generator).fill_diagonal_(0)
    label = torch.tensor([5, 0, 2])
    config = SinkhornLogitConfig(temperature=2, iterations=1000)
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 1, 1), label=label)
    found = WKDLogit(config, cost=cost)(batch, *map(Outputs, logits), Progress())
    expected = 0.0
    for b, y in enumerate(label.tolist()):
        keep = [k for k in range(6) if k != y]
        p, q = (F.softmax(z[b, keep] / 2, dim=0).numpy() for z in logits)
        price = cost[keep][:, keep].numpy()
        plan = ot.sinkhorn(p, q, price, reg=0.05, method="sinkhorn_log", stopThr=1e-13)
        expected += (plan * price).sum() / 3
    assert found.parts["transport"].item() == pytest.approx(expected, abs=1e-7)


def test_it_is_wkd_logit_with_the_other_solver():
    config = SinkhornLogitConfig()
    assert config.solver == "converged"
    assert config.iterations == 100
