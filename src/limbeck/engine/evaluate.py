"""Judge networks on a split: accuracy and loss over every image once, all ranks together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from limbeck.core.types import Batch
from limbeck.engine.config import TrainConfig
from limbeck.engine.distributed import World, share_buffers, sum_over_ranks
from limbeck.metrics.accuracy import ClassificationTotals

__all__ = ["evaluate", "evaluate_together"]


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    config: TrainConfig,
    device: torch.device,
    world: World | None = None,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in [0, 1] and mean cross-entropy in nats.

    The network is in eval mode meanwhile and goes back to the mode it was in.

    Args:
        network: images ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``.
        batches: this rank's share of the split.
        config: precision and memory format.
        device: where the network is.
        world: the processes whose shares are added up.
    """
    networks = {"": network}
    return evaluate_together(networks, batches, config=config, device=device, world=world)[""]


@torch.no_grad()
def evaluate_together(
    networks: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    *,
    config: TrainConfig,
    device: torch.device,
    world: World | None = None,
) -> dict[str, dict[str, float]]:
    """What :func:`evaluate` gives, of several networks by name, reading every image once."""
    world = world or World()
    modes = [(part, part.training) for network in networks.values() for part in network.modules()]
    totals = {name: ClassificationTotals() for name in networks}
    try:
        for network in networks.values():
            network.eval()
            share_buffers(network, world)
        for batch in batches:
            moved = batch.to(device, memory_format=config.memory_format)
            for name, network in networks.items():
                with config.autocast(device):
                    logits = network(moved.image)
                totals[name].add(logits, moved.label)
    finally:
        for part, training in modes:
            part.training = training
    found = {}
    for name, counted in totals.items():
        summed = sum_over_ranks(counted.as_tensor().to(device), world)
        found[name] = ClassificationTotals.from_tensor(summed, num_ranks=world.size).result()
    return found
