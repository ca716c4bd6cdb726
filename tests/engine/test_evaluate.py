import pytest
import torch
from torch import nn

from limbeck.engine.config import TrainConfig
from limbeck.engine.evaluate import evaluate, evaluate_together

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


def test_every_part_goes_back_to_its_own_mode(small):
    network = small.make_network(3, seed=0).train()
    network[1].eval()
    evaluate(network, [small.make_batch(5)], config=TrainConfig(), device=CPU)
    assert [part.training for part in network][:3] == [True, False, True]


def test_several_networks_share_one_reading_and_keep_their_own_scores(small):
    networks = {str(seed): small.make_network(3, seed=seed) for seed in range(3)}
    reading = iter([small.make_batch(9, seed=1), small.make_batch(4, seed=2)])
    found = evaluate_together(networks, reading, config=TrainConfig(), device=CPU)
    for name, network in networks.items():
        batches = [small.make_batch(9, seed=1), small.make_batch(4, seed=2)]
        assert found[name] == evaluate(network, batches, config=TrainConfig(), device=CPU)
    assert len({scores["loss"] for scores in found.values()}) == 3
