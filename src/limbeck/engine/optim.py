"""Settings of optimiser and learning rate, and the torch objects they name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from limbeck.core.settings import Settings

__all__ = ["OptimConfig", "ScheduleConfig", "build_optimizer", "build_scheduler"]


class OptimConfig(Settings):
    """The optimiser; the defaults are the CIFAR-100 benchmark's (RepDistiller's scripts).

    Attributes:
        opt: stochastic gradient descent, or Adam with decoupled weight decay.
        lr: base learning rate.
        momentum: of SGD.
        nesterov: of SGD; the benchmark has it off.
        betas: of AdamW.
        weight_decay: on every parameter that ``decay_norm_and_bias`` does not exempt.
        decay_norm_and_bias: decay biases and normalisation weights (everything with fewer than
            two dimensions) as well, as the benchmark does.
        clip_grad: largest gradient norm over all parameters; None clips nothing.
    """

    opt: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.05
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 5e-4
    decay_norm_and_bias: bool = True
    clip_grad: PositiveFloat | None = None


class ScheduleConfig(Settings):
    """Learning rate over time; the defaults are the CIFAR-100 benchmark's.

    Attributes:
        epochs: of the whole run, all stages together.
        sched: "multistep" multiplies by ``decay_rate`` after each of ``decay_epochs``; "cosine"
            falls to 0; "onecycle" rises for three tenths of the time and falls; "constant" stays.
        decay_epochs: epochs after which the rate falls: 150 means that the 151st is the first
            slower one.
        decay_rate: the factor.
        warmup_epochs: linear rise from a hundredth of the base rate, before anything else.
    """

    epochs: PositiveInt = 240
    sched: Literal["multistep", "cosine", "onecycle", "constant"] = "multistep"
    decay_epochs: tuple[PositiveInt, ...] = (150, 180, 210)
    decay_rate: float = Field(0.1, gt=0, le=1)
    warmup_epochs: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _times_are_reached(self) -> Self:
        late = [epoch for epoch in self.decay_epochs if epoch >= self.epochs]
        if self.sched == "multistep" and late:
            raise ValueError(
                f"decay_epochs {late} are never reached: epochs is {self.epochs}; give earlier "
                "ones (--decay-epochs) or another schedule (--sched cosine)"
            )
        if self.sched == "onecycle" and self.warmup_epochs:
            raise ValueError("sched 'onecycle' has its own rise; leave warmup_epochs at 0")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} leaves nothing of {self.epochs} epochs"
            )
        return self

    def squeezed(self, epochs: int, *, sched: Literal["run", "constant"] = "run") -> Self:
        """The same schedule over another number of epochs, its milestones moved in proportion."""
        ratio = epochs / self.epochs
        # Two milestones squeezed into one epoch still count twice.
        moved = tuple(max(1, round(epoch * ratio)) for epoch in self.decay_epochs)
        kept = tuple(epoch for epoch in moved if epoch < epochs)
        return self.changed(
            epochs=epochs,
            sched="constant" if sched == "constant" else self.sched,
            decay_epochs=kept,
            warmup_epochs=self.warmup_epochs * ratio,
        )


def build_optimizer(modules: Iterable[nn.Module], config: OptimConfig) -> torch.optim.Optimizer:
    """A torch optimiser over every parameter of ``modules`` that takes a gradient."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                spared = parameter.ndim < 2 and not config.decay_norm_and_bias
                (exempt if spared else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (exempt, 0.0))
        if parameters
    ]
    # Fused on CUDA: faster, and the only form that can skip an update without asking the host.
    fused = any(p.is_cuda for group in groups for p in group["params"]) or None
    if config.opt == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, *, updates_per_epoch: int
) -> LRScheduler:
    """A torch scheduler that is stepped once per update of the weights."""
    total = config.epochs * updates_per_epoch
    warmup = round(config.warmup_epochs * updates_per_epoch)
    main: LRScheduler
    match config.sched:
        case "multistep":
            milestones = [epoch * updates_per_epoch - warmup for epoch in config.decay_epochs]
            main = MultiStepLR(optimizer, [max(0, m) for m in milestones], config.decay_rate)
        case "cosine":
            main = CosineAnnealingLR(optimizer, T_max=max(1, total - warmup))
        case "onecycle":
            peak = [group["lr"] for group in optimizer.param_groups]
            # One step more than there are: the scheduler also moves after the last update.
            return OneCycleLR(optimizer, peak, total_steps=total + 1, cycle_momentum=False)
        case "constant":
            main = ConstantLR(optimizer, factor=1.0)
    if not warmup:
        return main
    rise = LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
    return SequentialLR(optimizer, [rise, main], milestones=[warmup])
