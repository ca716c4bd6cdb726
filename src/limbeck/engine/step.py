"""One training step: loss, finite check, backward, clip, update, schedule, average."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from limbeck.core.errors import NonFiniteError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.engine.config import TrainConfig
from limbeck.engine.learner import Learner

__all__ = ["FiniteGuard", "Stepper"]

_MOST_SKIPS = 24  # updates in a row; the float16 scaler's 2**16 has then shrunk to 2**-8


class FiniteGuard:
    """Stops a run whose loss or gradient is NaN or infinite, before the weights change.

    On a CPU it raises at once. On a GPU asking would make the host wait, so the flag stays on
    the device, the fused optimiser skips every update from then on, and :meth:`read`, which the
    loop calls now and then, raises.
    """

    def __init__(self, device: torch.device) -> None:
        self.found = torch.zeros((), device=device)
        self._eager = device.type == "cpu"
        self._first: dict[str, Tensor] = {}
        self._names: tuple[str, ...] = ()

    def see(
        self, terms: LossTerms, gradient_norm: Tensor, batch: Batch, progress: Progress
    ) -> None:
        """Look at one step's loss and, after its backward, the norm of all gradients."""
        finite = torch.isfinite(terms.total) & torch.isfinite(gradient_norm)
        if self._eager and bool(finite):
            return
        self._names = ("total", *terms.parts, "gradient")
        seen = {
            "values": torch.stack(
                [v.detach().float() for v in (terms.total, *terms.parts.values(), gradient_norm)]
            ),
            "step": torch.tensor(progress.step, device=self.found.device),
            "index": batch.index,
        }
        newly = ~finite & (self.found == 0)
        for name, value in seen.items():
            old = self._first.get(name)
            fits = old is not None and old.shape == value.shape
            self._first[name] = (
                torch.where(newly, value, old) if fits and old is not None else value
            )
        self.found = torch.maximum(self.found, (~finite).to(self.found))
        if self._eager:
            self.read()

    def read(self) -> None:
        """Wait for the device and raise if anything was not finite.

        Raises:
            NonFiniteError: naming the terms, the step and the batch's indices.
        """
        if not bool(self.found):
            return
        values = dict(zip(self._names, self._first["values"].tolist(), strict=True))
        bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
        terms = [name for name in bad if name not in ("total", "gradient")] or bad
        indices = self._first["index"].tolist()
        raise NonFiniteError(
            f"{', '.join(terms)} is not finite at step {int(self._first['step'])} "
            f"(all terms: {values}); the weights were not changed by it. Training images of this "
            f"batch: {indices[:64]}{' ...' if len(indices) > 64 else ''}. Lower the learning rate "
            "(--lr), clip gradients (--clip-grad 5), warm up (--warmup-epochs), or train in "
            "float32 (--amp-dtype float32)"
        )


class Stepper:
    """Updates one learner, batch by batch.

    Args:
        learner: the module that is trained.
        wrapped: the same learner, or DDP around it.
        optimizer: over the learner's parameters that take a gradient.
        scheduler: stepped once per update.
        config: precision, accumulation, averaging.
        clip_grad: largest gradient norm, or None.
    """

    def __init__(
        self,
        learner: Learner,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        config: TrainConfig,
        *,
        device: torch.device,
        clip_grad: float | None = None,
    ) -> None:
        self.learner = learner
        self.wrapped = wrapped
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.config = config
        self.device = device
        self.clip_grad = clip_grad
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp_dtype == "float16")
        self.guard = FiniteGuard(device)
        if self.scaler.is_enabled():
            # It may skip the first update; the schedule counts that one too, as it should, and
            # torch would warn of an order of calls that is right.
            optimizer._opt_called = True  # type: ignore[attr-defined]
        self._skips = torch.zeros((), dtype=torch.int64, device=device)
        self.average = None
        if config.model_ema_decay is not None:
            averaging = get_ema_multi_avg_fn(config.model_ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(learner, multi_avg_fn=averaging, use_buffers=True)

    @property
    def evaluated(self) -> Learner:
        """The learner whose student is judged and exported: the average where there is one."""
        if self.average is None:
            return self.learner
        averaged = self.average.module
        assert isinstance(averaged, Learner)
        return averaged

    def step(
        self, batch: Batch, teacher: Outputs, progress: Progress, *, share: float, update: bool
    ) -> LossTerms:
        """One batch forward and backward, and the update if it closes its group.

        Args:
            batch: on the stepper's device.
            teacher: what the teacher said of the batch.
            progress: where the stage stands.
            share: of this batch in its update's gradient: one over the group's size.
            update: whether this batch closes its group.

        Raises:
            NonFiniteError: if a loss or gradient is not finite.
        """
        wait = (
            self.wrapped.no_sync()
            if isinstance(self.wrapped, DistributedDataParallel) and not update
            else nullcontext()
        )
        with wait:
            with self.config.autocast(self.device):
                terms: LossTerms = self.wrapped(batch, teacher, progress).terms
            self.scaler.scale(terms.total * share).backward()  # type: ignore[no-untyped-call]
        if update:
            self._update(terms, batch, progress)
        else:  # now, while batch and terms are still those of the fault
            self.guard.see(terms, torch.zeros_like(terms.total), batch, progress)
        return terms

    def _update(
        self, terms: LossTerms, batch: Batch, progress: Progress, *, close: bool = True
    ) -> None:
        """Check, clip and apply the gradients; ``close`` also moves schedule and average on."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        checked = norm
        if self.scaler.is_enabled():
            # An infinite gradient is the scaler's ordinary business: it skips the update and
            # lowers its scale. Where that does not help, the gradient itself is at fault.
            self._skips = torch.where(torch.isfinite(norm), 0, self._skips + 1)
            checked = torch.where(self._skips > _MOST_SKIPS, norm, torch.zeros_like(norm))
        self.guard.see(terms, checked, batch, progress)
        if self.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
        if self.device.type == "cuda" and not self.scaler.is_enabled():
            # Read by the fused kernels, which skip the update where it is not zero.
            self.optimizer.found_inf = self.guard.found  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if close:
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if close and self.average is not None:
            self.average.update_parameters(self.learner)

    def state(self) -> dict[str, Any]:
        """What an exact continuation needs, as tensors and plain values."""
        return {
            "learner": dict(self.learner.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": _plain(self.scheduler.state_dict()),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else dict(self.average.state_dict()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for scheduler in (self.scheduler, *getattr(self.scheduler, "_schedulers", ())):
            if isinstance(scheduler, MultiStepLR):  # at the end of a warm-up it counts on a Counter
                scheduler.milestones = Counter(scheduler.milestones)
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Counters, which some schedulers keep, become plain dicts."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
