import pytest
import torch
from torch import nn

from limbeck.engine.config import TrainConfig
from limbeck.engine.evaluate import evaluate

CPU = torch.device("cpu")


def test_it_counts_every_image_once_in_eval_mode_and_puts_the_mode_back(small):
    network = small.make_network(3, seed=0, dropout=0.9).train()
    statistics = network[1].running_mean.clone()
    batches = [small.make_batch(5, seed=1), small.make_batch(2, seed=2)]
    found = evaluate(network, batches, config=TrainConfig(), device=CPU)
    assert network.training
    assert torch.equal(network[1].running_mean, statistics)
    network.eval()
    logits = torch.cat([network(batch.image) for batch in batches])
    label = torch.cat([batch.label for batch in batches])
    assert found["top1"] == pytest.approx((logits.argmax(1) == label).double().mean().item())
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits, label).item())
