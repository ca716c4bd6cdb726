"""Steps in which networks that learn from each other take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.engine.learner import Learner, answers_of_others, joined_terms
from limbeck.engine.step import Stepper

__all__ = ["AlternatingStepper"]


class AlternatingStepper(Stepper):
    """Updates a learner and its peers one after the other.

    Each hears what the others say as they stand: those before it in the step have been updated
    already, and have looked at the batch once more. Clipping is of each network's own gradient.
    """

    def step(
        self, batch: Batch, teacher: Outputs, progress: Progress, *, share: float, update: bool
    ) -> LossTerms:
        """One batch through all networks, and an update of each.

        Raises:
            NonFiniteError: if a loss or gradient is not finite.
        """
        del teacher
        assert update, "the settings refuse accumulated gradients here"
        everyone = self.learner.everyone
        with self.config.autocast(self.device):
            answers: list[Outputs] = [one.observed(batch.image, batch.views) for one in everyone]
        terms: list[LossTerms] = []
        for place, one in enumerate(everyone):
            last = place + 1 == len(everyone)
            with self.config.autocast(self.device):
                heard = answers_of_others(answers, place)
                terms.append(one.method(batch, answers[place], heard, progress))
            # The others have no gradient meanwhile, and so are left alone by the optimiser.
            self.scaler.scale(terms[-1].total * share).backward()  # type: ignore[no-untyped-call]
            if isinstance(self.wrapped, DistributedDataParallel):
                _average_gradients(one)
            self._update(terms[-1], batch, progress, close=last)
            if not last:
                answers[place] = self._again(one, batch)
        return joined_terms(terms)

    @torch.no_grad()
    def _again(self, learner: Learner, batch: Batch) -> Outputs:
        """What an updated network says of the batch, still in training mode."""
        with self.config.autocast(self.device), _buffers_kept(learner.observed):
            outputs: Outputs = learner.observed(batch.image, batch.views)
        return outputs


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put batch-norm statistics back: the batch has been counted already."""
    # Of this network alone: those of the others are part of graphs that still wait.
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _average_gradients(module: nn.Module) -> None:
    """The mean over all processes; DDP itself waits for every network's gradient at once."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
