import pytest
import torch
from torch import nn

from limbeck.engine.config import TrainConfig
from limbeck.engine.distributed import World
from limbeck.engine.evaluate import KeptLogits, evaluate, evaluate_together, judge_logits

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


def test_answers_are_kept_in_the_order_of_the_images_without_a_second_reading(small):
    networks = {str(seed): small.make_network(3, seed=seed) for seed in range(2)}
    batches = [small.make_batch(9, seed=1), small.make_batch(4, seed=2)]
    kept = KeptLogits()
    scores = evaluate_together(networks, iter(batches), config=TrainConfig(), device=CPU, kept=kept)
    assert torch.equal(kept.label, torch.cat([batch.label for batch in batches]))
    image = torch.cat([batch.image for batch in batches])
    for name, network in networks.items():
        torch.testing.assert_close(kept.logits[name], network.eval()(image))
        top1 = (kept.logits[name].argmax(1) == kept.label).double().mean().item()
        assert scores[name]["top1"] == pytest.approx(top1)


def test_logits_that_are_there_already_are_judged_like_their_network(small):
    network = small.make_network(3, seed=0)
    batches = [small.make_batch(9, seed=1), small.make_batch(4, seed=2)]
    expected = evaluate(network, batches, config=TrainConfig(), device=CPU)
    with torch.no_grad():
        logits = torch.cat([network.eval()(batch.image) for batch in batches])
    found = judge_logits(logits, torch.cat([batch.label for batch in batches]))
    assert found == pytest.approx(expected)
    assert found.keys() == expected.keys()


def test_answers_are_float32_whatever_they_were_computed_in():
    kept = KeptLogits()
    kept.add("a", torch.ones(2, 3, dtype=torch.bfloat16))
    kept.add_label(torch.tensor([0, -1]))
    kept.close(["a"], World())
    assert kept.logits["a"].dtype == torch.float32
    assert kept.label.tolist() == [0, -1]
