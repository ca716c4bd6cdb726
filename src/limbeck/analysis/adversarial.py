r"""Adversarial transfer: do images made to fool the teacher fool its student?

Images are changed on the teacher alone, k steps of

.. math:: x \leftarrow \mathrm{clip}_{[0,1],\, \|x - x_0\|_\infty \le \epsilon}
    (x + \alpha \, \mathrm{sign} \nabla_x CE(f^t(x), y))

(iterated FGSM). Of the images on which the teacher's own answer changed, the share on which a
student's changes too. Two students share blind spots without any teacher: images made on a foreign
network, the first independent student, should fool distilled and independent ones alike, and stand
beside as the control.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Reading, Subject

__all__ = ["ADVERSARIAL", "iterated_fgsm"]

_STEPS = 5
_RADII = (0.01, 0.03, 0.1)  # of the range of a pixel
_HEADLINE = 0.03
_PACE = 2.5  # steps of the path from the middle to the edge: alpha = 2.5 epsilon / k
_IMAGES, _QUICK_IMAGES = 2000, 300


def iterated_fgsm(
    case: Case,
    subject: Subject,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = _STEPS,
    step_size: float | None = None,
) -> Tensor:
    r"""Images changed within :math:`\epsilon` so that ``subject`` does worse; no random start.

    Args:
        case: whose device and batch size are used.
        subject: the network that the gradients are of.
        images: ``(N, C, H, W)``, floating in [0, 1].
        labels: ``(N,)``: the classes to be driven away from.
        epsilon: largest change of a pixel, in [0, 1].
        steps: k.
        step_size: :math:`\alpha`; None takes :math:`2.5 \epsilon / k`.

    Returns:
        ``(N, C, H, W)``, on the CPU.

    Source:
        Kurakin, Goodfellow, Bengio, "Adversarial examples in the physical world", ICLR workshop
        2017, https://arxiv.org/abs/1607.02533.
    """
    network = subject.answering().to(case.device)
    size = _PACE * epsilon / steps if step_size is None else step_size
    found = []
    for start in range(0, len(images), case.batch_size):
        original = images[start : start + case.batch_size].to(case.device)
        label = labels[start : start + case.batch_size].to(case.device)
        moved = original
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            loss = F.cross_entropy(network(moved), label, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() + size * gradient.sign()
            moved = moved.clamp(original - epsilon, original + epsilon).clamp(0, 1)
        found.append(moved.detach().cpu())
    return torch.cat(found)


def _measure(case: Case) -> Measured:
    chosen = torch.from_numpy(case.sample(_QUICK_IMAGES if case.quick else _IMAGES, "adversarial"))
    images, labels = case.images[chosen].float() / 255, case.labels[chosen]
    clean = {id(s): case.answers(s)[chosen.numpy()].argmax(axis=1) for s in case.subjects}
    foreign = next(iter(case.independent.values()))
    readings: list[Reading] = []
    rows: list[tuple[str, ...]] = [
        ("images made on", "epsilon", "it is fooled", "images", "distilled", "independent")
    ]
    robust: list[tuple[str, ...]] = [("epsilon", "teacher", "distilled", "independent")]
    notes = []
    for epsilon in _RADII:
        changed = iterated_fgsm(case, case.teacher, images, labels, epsilon=epsilon)
        reading = _reading(case, case.teacher, changed, clean, f"made on the teacher, {epsilon:g}")
        rows.append(_row("the teacher", epsilon, reading, len(images)))
        if epsilon == _HEADLINE:
            if reading is None:
                raise NotApplicableError(
                    f"no image changed the teacher's answer within epsilon {epsilon:g}: there is "
                    "nothing that could transfer"
                )
            readings.append(reading)
            other = iterated_fgsm(case, foreign, images, labels, epsilon=epsilon)
            control = _reading(
                case, foreign, other, clean, f"made on a foreign network, {epsilon:g}"
            )
            rows.append(_row("a foreign network", epsilon, control, len(images)))
        robust.append(_robust(case, images, labels, epsilon))
    if len(case.independent) == 1:
        notes.append(
            "The foreign network is the only independent student itself, so its own share is that "
            "of every image; with a second seed it is left out of the control."
        )
    return Measured(
        readings=tuple(readings),
        tables={
            "Answers that change with the network's that the images were made on": tuple(rows),
            "Accuracy under attacks made on each network itself": tuple(robust),
        },
        notes=tuple(notes),
        settings={
            "epsilon": list(_RADII),
            "headline epsilon": _HEADLINE,
            "steps": _STEPS,
            "step size": f"{_PACE} epsilon / steps",
            "images": len(images),
        },
    )


def _reading(
    case: Case, source: Subject, changed: Tensor, clean: dict[int, NDArray[np.int64]], name: str
) -> Reading | None:
    """Who is fooled among the images that fool their source; None where there are none."""
    fooled = case.forward(source, changed).argmax(axis=1) != clean[id(source)]
    if not fooled.any():
        return None
    kept = changed[torch.from_numpy(fooled)]

    def changes(student: Subject) -> NDArray[np.bool_]:
        before = clean[id(student)][fooled]
        found: NDArray[np.bool_] = case.forward(student, kept).argmax(axis=1) != before
        return found

    others = {seed: s for seed, s in case.independent.items() if s is not source}
    return Reading(
        name=f"answers changed by images {name}",
        items="images that fool their source",
        independent={s: changes(student) for s, student in (others or case.independent).items()},
        distilled={seed: changes(student) for seed, student in case.distilled.items()},
    )


def _row(source: str, epsilon: float, reading: Reading | None, total: int) -> tuple[str, ...]:
    if reading is None:
        return (source, f"{epsilon:g}", "0.0%", "0", "", "")
    count = len(next(iter(reading.distilled.values())))
    means = (
        np.mean([values.mean() for values in by_seed.values()])
        for by_seed in (reading.distilled, reading.independent)
    )
    return (
        source,
        f"{epsilon:g}",
        f"{count / total:.1%}",
        str(count),
        *(f"{mean:.1%}" for mean in means),
    )


def _robust(case: Case, images: Tensor, labels: Tensor, epsilon: float) -> tuple[str, ...]:
    def accuracy(subject: Subject) -> float:
        changed = iterated_fgsm(case, subject, images, labels, epsilon=epsilon)
        right = case.forward(subject, changed).argmax(axis=1) == labels.numpy()
        return float(right.mean())

    means = (
        np.mean([accuracy(subject) for subject in subjects])
        for subjects in (
            (case.teacher,),
            tuple(case.distilled.values()),
            tuple(case.independent.values()),
        )
    )
    return (f"{epsilon:g}", *(f"{mean:.1%}" for mean in means))


ADVERSARIAL = Experiment(
    key="adversarial",
    title="Adversarial transfer",
    question="Do images made to fool the teacher fool its student, more than a stranger?",
    source="Ojha et al., 'What Knowledge Gets Distilled in Knowledge Distillation?', NeurIPS 2023, "
    "https://arxiv.org/abs/2205.16004, which does not state epsilon and step size",
    measure=_measure,
    quick=True,
)
