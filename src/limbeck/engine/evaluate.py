"""Judge a network on a split: accuracy and loss over every image once, all ranks together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from limbeck.core.types import Batch
from limbeck.engine.config import TrainConfig
from limbeck.engine.distributed import World, sum_over_ranks
from limbeck.metrics.accuracy import ClassificationTotals

__all__ = ["evaluate"]


@torch.no_grad()
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
    was_training = network.training
    network.eval()
    totals = ClassificationTotals()
    try:
        for batch in batches:
            moved = batch.to(device, memory_format=config.memory_format)
            with config.autocast(device):
                logits = network(moved.image)
            totals.add(logits, moved.label)
    finally:
        network.train(was_training)
    world = world or World()
    summed = sum_over_ranks(totals.as_tensor().to(device), world)
    return ClassificationTotals.from_tensor(summed, num_ranks=world.size).result()
