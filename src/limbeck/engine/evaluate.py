"""Judge networks on a split: accuracy and loss over every image once, all ranks together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from limbeck.core.types import Batch
from limbeck.engine.config import TrainConfig
from limbeck.engine.distributed import World, join_ranks, share_buffers, sum_over_ranks
from limbeck.metrics.accuracy import ClassificationTotals

__all__ = ["KeptLogits", "evaluate", "evaluate_together", "judge_logits"]


class KeptLogits:
    """What networks answered for the images of one split, and the labels, on the host.

    :func:`evaluate_together` fills it while it reads the images, so that keeping the answers
    takes no second reading.

    Attributes:
        logits: network to float32 ``(N, K)``, in the order of the images.
        label: int64 ``(N,)``, -1 where unknown.
    """

    def __init__(self) -> None:
        self.logits: dict[str, Tensor] = {}
        self.label = torch.empty(0, dtype=torch.int64)
        self._parts: dict[str, list[Tensor]] = {}
        self._labels: list[Tensor] = []

    def add(self, name: str, logits: Tensor) -> None:
        """One network's raw logits ``(B, K)`` for the next batch."""
        self._parts.setdefault(name, []).append(logits.detach().float().cpu())

    def add_label(self, label: Tensor) -> None:
        """The next batch's labels ``(B,)``."""
        self._labels.append(label.cpu())

    def close(self, names: Iterable[str], world: World) -> None:
        """Join the batches, and the shares of all ranks in the order of the images.

        Args:
            names: of the networks, also where this process had no batch for them.
            world: the processes that each added their share.
        """
        self.label = join_ranks(torch.cat([self.label, *self._labels]), world)
        for name in names:
            own = self._parts.get(name) or [torch.empty(0, 0)]
            self.logits[name] = join_ranks(torch.cat(own), world)
        self._parts, self._labels = {}, []


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
    kept: KeptLogits | None = None,
) -> dict[str, dict[str, float]]:
    """What :func:`evaluate` gives, of several networks by name, reading every image once.

    With ``kept``, their answers are left in it.
    """
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
                if kept is not None:
                    kept.add(name, logits)
            if kept is not None:
                kept.add_label(moved.label)
    finally:
        for part, training in modes:
            part.training = training
    if kept is not None:
        kept.close(networks, world)
    found = {}
    for name, counted in totals.items():
        summed = sum_over_ranks(counted.as_tensor().to(device), world)
        found[name] = ClassificationTotals.from_tensor(summed, num_ranks=world.size).result()
    return found


def judge_logits(logits: Tensor, label: Tensor) -> dict[str, float]:
    """What :func:`evaluate` gives, of logits ``(N, K)`` that are there already.

    Args:
        logits: of every image of the split.
        label: ``(N,)``, -1 where unknown.
    """
    totals = ClassificationTotals()
    totals.add(logits, label)
    return totals.result()
