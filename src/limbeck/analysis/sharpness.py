r"""Sharpness: does the distilled student lie in a flatter place, and bend less around images?

All of it is of the cross-entropy with the labels, on the same test images, in eval mode, whatever
a student was trained with:

- the rise :math:`L(w + \alpha d) - L(w)` along random directions d whose filters have the
  lengths of the weights' own; biases and batch-norms stay;
- SAM's sharpness, :math:`L(w + \rho g / \|g\|) - L(w)` with the gradient g of the mean loss;
- trace and top eigenvalue of the Hessian, of all parameters, on a fixed batch;
- the norm of the gradient of the margin, best class less second, with respect to the image: a
  lower bound of its local Lipschitz constant; beside it, how far the layers between stages stretch.

Flatness depends on how weights are scaled, which is why only networks of one architecture are held
against each other; the teacher's numbers stand by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Reading, Subject
from limbeck.analysis.curvature import hessian_product, hutchinson_traces, top_eigenvalue
from limbeck.analysis.scalars import HEADING, by_student, scalar_row
from limbeck.core.errors import ModelError

__all__ = ["SHARPNESS", "filter_normalised", "margin_gradients", "sam_rise"]

_IMAGES = 500
_BATCH = 128  # of the Hessian
_STRENGTHS = (0.05, 0.1, 0.2, 0.4)
_HEADLINE = 0.2
_DIRECTIONS = 10
_RHO = 0.05
_PROBES = 10
_TINY = 1e-10  # a filter of no length stays where it is


def filter_normalised(weights: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A random direction: each filter as long as the weights' own, 0 for biases and batch-norms.

    Args:
        weights: with the filters along the first axis.
        generator: on the CPU.

    Source:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
        NeurIPS 2018, https://arxiv.org/abs/1712.09913, section 4, and the authors' code.
    """
    found = []
    for weight in weights:
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        if weight.ndim <= 1:
            found.append(torch.zeros_like(weight))
            continue
        axes = tuple(range(1, weight.ndim))
        lengths = [x.square().sum(dim=axes, keepdim=True).sqrt() for x in (weight, noise)]
        found.append(noise * lengths[0] / (lengths[1] + _TINY))
    return found


class _Loss:
    """A subject's cross-entropy as a function of its weights."""

    def __init__(self, case: Case, subject: Subject, images: Tensor, labels: Tensor) -> None:
        self.network = subject.answering().to(case.device)
        self.names = [name for name, _ in self.network.named_parameters()]
        self.weights = [weight.detach() for weight in self.network.parameters()]
        self.batches = list(zip(case.batches(images), case.batches(labels), strict=True))
        self.count = len(images)
        self.case = case

    def of_batch(
        self, weights: Sequence[Tensor], images: Tensor, labels: Tensor, reduction: str = "none"
    ) -> Tensor:
        named = dict(zip(self.names, weights, strict=True))
        logits = functional_call(self.network, named, (self.case.unit(images),))
        self.case.tick()
        return F.cross_entropy(logits, labels.to(logits.device), reduction=reduction)

    def each(self, weights: Sequence[Tensor]) -> NDArray[np.float64]:
        """Image by image: ``(N,)``."""
        with torch.no_grad():
            found = [self.of_batch(weights, *batch).double().cpu() for batch in self.batches]
        values: NDArray[np.float64] = torch.cat(found).numpy()
        return values

    def parts(self) -> list[Callable[[Sequence[Tensor]], Tensor]]:
        """Of single batches; their sum is the mean over images."""

        def part(images: Tensor, labels: Tensor) -> Callable[[Sequence[Tensor]], Tensor]:
            return lambda weights: self.of_batch(weights, images, labels, "sum") / self.count

        return [part(*batch) for batch in self.batches]

    def gradient(self) -> list[Tensor]:
        """Of the mean over images."""
        at = [weight.clone().requires_grad_() for weight in self.weights]
        total = [torch.zeros_like(weight) for weight in at]
        for part in self.parts():
            for place, found in enumerate(torch.autograd.grad(part(at), at)):
                total[place] += found
        return total


def sam_rise(loss: _Loss, *, rho: float = _RHO) -> NDArray[np.float64]:
    """Image by image, the loss a step of length ``rho`` up the gradient, less the loss here.

    Source:
        Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization", ICLR 2021,
        https://arxiv.org/abs/2010.01412, eq. 2.
    """
    gradient = loss.gradient()
    length = torch.stack([part.double().square().sum() for part in gradient]).sum().sqrt()
    scale = rho / max(float(length), _TINY)
    moved = [w + scale * g for w, g in zip(loss.weights, gradient, strict=True)]
    return loss.each(moved) - loss.each(loss.weights)


def margin_gradients(case: Case, subject: Subject, images: Tensor) -> NDArray[np.float64]:
    """Image by image, the length of the gradient of best less second logit, per unit of pixels.

    Args:
        case: whose device and batch size are used.
        subject: the network.
        images: ``(N, C, H, W)``, uint8 or floating in [0, 1].

    Returns:
        ``(N,)``, ``>= 0``; for a linear network, the distance of two rows of its weight.

    Source:
        Hein, Andriushchenko, NeurIPS 2017, https://arxiv.org/abs/1705.08475, section 2.
    """
    network = subject.answering().to(case.device)
    found = []
    for part in case.batches(images):
        at = case.unit(part).detach().clone().requires_grad_()
        best, second = network(at).topk(2, dim=1).values.unbind(dim=1)
        (gradient,) = torch.autograd.grad((best - second).sum(), at)
        found.append(gradient.flatten(1).double().norm(dim=1).cpu())
        case.tick()
    lengths: NDArray[np.float64] = torch.cat(found).numpy()
    return lengths


class _Found(NamedTuple):
    """What one network gave."""

    clean: NDArray[np.float64]
    rises: dict[float, NDArray[np.float64]]
    sam: NDArray[np.float64]
    traces: NDArray[np.float64]
    top: float
    margin: NDArray[np.float64]


def _examine(case: Case, subject: Subject, images: Tensor, labels: Tensor) -> _Found:
    loss = _Loss(case, subject, images, labels)
    clean = loss.each(loss.weights)
    rises = {strength: np.zeros(len(images)) for strength in _STRENGTHS}
    generator = case.torch_generator("directions")  # the same noise for every student
    for _ in range(_DIRECTIONS):
        direction = filter_normalised(loss.weights, generator)
        for strength, rise in rises.items():
            moved = [w + strength * d for w, d in zip(loss.weights, direction, strict=True)]
            rise += (loss.each(moved) - clean) / _DIRECTIONS
    fixed = _Loss(case, subject, images[:_BATCH], labels[:_BATCH])
    product = hessian_product(fixed.parts(), fixed.weights)
    generator = case.torch_generator("curvature")
    like = torch.cat([weight.flatten() for weight in fixed.weights])
    start = torch.randn(like.shape, generator=generator).to(like)
    return _Found(
        clean=clean,
        rises=rises,
        sam=sam_rise(loss),
        top=top_eigenvalue(product, start),
        traces=hutchinson_traces(product, like, probes=_PROBES, generator=generator),
        margin=margin_gradients(case, subject, images),
    )


def _measure(case: Case) -> Measured:
    known = np.flatnonzero(case.labels.numpy() >= 0)
    chosen = torch.from_numpy(np.intersect1d(case.sample(_IMAGES, "sharpness"), known))
    if not len(chosen):
        raise NotApplicableError("sharpness is of a loss with labels; no test image has one")
    if len(case.class_names) < 2:
        raise NotApplicableError("a loss of a single class is flat everywhere")
    # Shuffled: the fixed batch is the first of them, and must not be of one class.
    order = torch.randperm(len(chosen), generator=case.torch_generator("order"))
    images, labels = case.images[chosen[order]], case.labels[chosen[order]]
    found = {id(subject): _examine(case, subject, images, labels) for subject in case.subjects}

    def reading(
        name: str,
        items: str,
        value: Callable[[_Found], NDArray[np.float64]],
        words: tuple[str, str] = ("flatter", "sharper"),
    ) -> Reading:
        return case.reading(
            name,
            items,
            lambda student: value(found[id(student)]),
            unit="1",
            nearer="lower",
            teacher=float(value(found[id(case.teacher)]).mean()),
            words=words,
        )

    scalars: list[tuple[str, ...]] = [HEADING]

    def add(name: str, value: Callable[[_Found], float], form: str) -> None:
        distilled, independent = by_student(case, lambda student: value(found[id(student)]))
        teacher = value(found[id(case.teacher)])
        scalars.append(
            scalar_row(
                name, teacher=teacher, distilled=distilled, independent=independent, form=form
            )
        )

    add("top eigenvalue of the Hessian", lambda one: one.top, ".3g")
    add("trace of the Hessian", lambda one: float(one.traces.mean()), ".4g")
    add("loss, nats", lambda one: float(one.clean.mean()), ".3f")
    for strength in _STRENGTHS:
        add(
            f"rise of the loss at {strength:g}, nats",
            lambda one, at=strength: float(one.rises[at].mean()),  # type: ignore[misc]
            ".3f",
        )
    tables = {"Curvature and loss": tuple(scalars), **_stretches(case)}
    return Measured(
        readings=(
            reading(
                f"rise of the loss along random directions of {_HEADLINE:g} of the weights",
                "images",
                lambda one: one.rises[_HEADLINE],
            ),
            reading("rise of the loss up the gradient (SAM)", "images", lambda one: one.sam),
            reading("trace of the Hessian", "probes", lambda one: one.traces),
            reading(
                "slope of the margin over the image",
                "images",
                lambda one: one.margin,
                ("smoother", "steeper"),
            ),
        ),
        tables=tables,
        notes=(
            "Test images, which neither student learnt from. Flatter is not better by itself: a "
            "rescaled network computes the same and is as sharp as one likes (Dinh et al. 2017, "
            "https://arxiv.org/abs/1703.04933).",
            "A slope or a Hessian also grows with the size of the logits, so a student that is "
            "less sure looks flatter; read it beside the calibration.",
        ),
        settings={
            "images": len(images),
            "images of the Hessian": min(_BATCH, len(images)),
            "directions": _DIRECTIONS,
            "rho": _RHO,
            "probes": _PROBES,
        },
    )


def _stretches(case: Case) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The profile of each kind of network, where it can be had."""
    if case.background is None or case.background.stretches is None:
        return {}
    groups: Mapping[str, Sequence[Subject]] = {
        "teacher": (case.teacher,),
        "distilled": tuple(case.distilled.values()),
        "independent": tuple(case.independent.values()),
    }
    rows: list[tuple[str, ...]] = [
        ("between stages", "network", "sigma, mean over images", "log10 of the norms' product")
    ]
    try:
        for kind, subjects in groups.items():
            profiles = [case.background.stretches(subject.name) for subject in subjects]
            for parts in zip(*profiles, strict=True):
                products = [part.log10_product for part in parts]
                told = [value for value in products if value is not None]
                rows.append(
                    (
                        parts[0].name,
                        kind,
                        f"{np.mean([part.sigma for part in parts]):.3g}",
                        f"{np.mean(told):.2f}" if len(told) == len(products) else "",
                    )
                )
    except ModelError as error:
        rows.append(("cannot be told", str(error), "", ""))
    return {"How far the layers between stages stretch": tuple(rows)}


SHARPNESS = Experiment(
    key="sharpness",
    title="Sharpness and smoothness",
    question="Does the student lie in a flatter place than an independent one, and bend less?",
    source="Li et al., 'Visualizing the Loss Landscape of Neural Nets', NeurIPS 2018, "
    "https://arxiv.org/abs/1712.09913; Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412; "
    "Yao et al., 'PyHessian', 2020, https://arxiv.org/abs/1912.07145",
    measure=_measure,
    quick=False,
)
