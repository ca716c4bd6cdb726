"""Settings of how training runs on the machine; they are no part of a method."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from limbeck.core.settings import Settings

__all__ = ["TrainConfig"]


class TrainConfig(Settings):
    """Batch, precision, device, checkpoints.

    Attributes:
        batch_size: images per process and step; 64 in the CIFAR-100 benchmark.
        eval_batch_size: images per evaluation batch.
        grad_accum_steps: batches per update of the weights.
        amp_dtype: what autocast computes in; losses stay in float32. "float16" adds torch's
            gradient scaler.
        channels_last: memory format of weights and images.
        torchcompile: compile both networks.
        model_ema_decay: keep an exponential moving average of the learner with this decay, and
            evaluate and export it instead; None keeps none.
        device: "auto", "cpu", "cuda" or "cuda:N".
        workers: loader processes, for images that are not in memory.
        eval_every: epochs between evaluations on validation; the last is always one.
        checkpoint_steps: steps between checkpoints; None goes by time alone.
        checkpoint_seconds: seconds between checkpoints.
        checkpoint_hist: how many checkpoints are kept.
    """

    batch_size: PositiveInt = 64
    eval_batch_size: PositiveInt = 256
    grad_accum_steps: PositiveInt = 1
    amp_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    torchcompile: bool = False
    model_ema_decay: float | None = Field(None, gt=0, lt=1)
    device: str = "auto"
    workers: NonNegativeInt = 0
    eval_every: PositiveInt = 1
    checkpoint_steps: PositiveInt | None = None
    checkpoint_seconds: PositiveFloat = 60.0
    checkpoint_hist: PositiveInt = 2

    @property
    def memory_format(self) -> torch.memory_format:
        """Torch's name for it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> torch.autocast:
        """A fresh context; it does nothing in float32."""
        dtype = getattr(torch, self.amp_dtype)
        return torch.autocast(device.type, dtype=dtype, enabled=self.amp_dtype != "float32")
