"""Representation: do the student's layers hold the same images alike as the teacher's?

Debiased linear CKA (centred kernel alignment) of every layer of the teacher with every layer of a
student: stem, stages, and what the classifier reads. Its sums run over batches before they are
divided. The layers of one name in both networks are the reading; the whole map is the picture, of
the distilled student, of the independent one, and their difference.

L M layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Picture, Subject
from limbeck.analysis.drawing import panels_png
from limbeck.core.errors import LimbeckError
from limbeck.features import ObservedNetwork
from limbeck.functional.cka import MinibatchCKA
from limbeck.layers import list_meanings

__all__ = ["REPRESENTATION", "Similarity", "layer_similarities"]

_IMAGES, _QUICK_IMAGES = 2000, 500
_FEWEST = 4  # images a batch that the debiased form needs


class Similarity:
    """CKA of a teacher and one student.

    Attributes:
        values: ``(L, M)``, at most 1, near 0 for layers that have nothing in common.
        teacher_layers: L names, in the order of the forward pass.
        student_layers: M names.
    """

    def __init__(
        self, values: NDArray[np.float64], teacher_layers: list[str], student_layers: list[str]
    ) -> None:
        self.values = values
        self.teacher_layers = teacher_layers
        self.student_layers = student_layers

    @property
    def shared(self) -> dict[str, float]:
        """Name to CKA of the layers that both networks have by one name."""
        return {
            name: float(self.values[self.teacher_layers.index(name), place])
            for place, name in enumerate(self.student_layers)
            if name in self.teacher_layers
        }


def layer_similarities(case: Case) -> dict[int, Similarity]:
    """By ``id`` of a student, how alike its layers and the teacher's hold a sample of the images.

    The teacher's layers are computed once for all students.

    Raises:
        NotApplicableError: if there are fewer than four images, or a network has no named layer.

    Source:
        Nguyen, Raghu, Kornblith, ICLR 2021, https://arxiv.org/abs/2010.15327; see
        :class:`~limbeck.functional.cka.MinibatchCKA`.
    """
    count = _QUICK_IMAGES if case.quick else _IMAGES
    images = case.images[torch.from_numpy(case.sample(count, "representation"))]
    parts = [part for part in case.batches(images) if len(part) >= _FEWEST]
    if not parts:
        raise NotApplicableError(
            f"debiased CKA needs batches of {_FEWEST} images or more; there are {len(images)} "
            f"images, in batches of {case.batch_size}"
        )
    teacher, *students = case.subjects
    sums = {id(student): MinibatchCKA() for student in students}
    names: dict[int, list[str]] = {}
    with ExitStack() as taps, torch.no_grad():
        observed = {}
        for subject in case.subjects:
            network = ObservedNetwork(
                subject.network,
                normalization=subject.normalization,
                layers=_told_apart(case, subject),
                scores=False,
            ).to(case.device)
            taps.callback(network.tap.close)
            observed[id(subject)] = network.eval()
        for part in parts:
            found = {}
            for subject, features in _features(case, observed, part):
                found[id(subject)] = features
                names[id(subject)] = list(features)
            ours = list(found.pop(id(teacher)).values())
            for key, theirs in found.items():
                sums[key].update(ours, list(theirs.values()))
    return {
        key: Similarity(total.compute().cpu().numpy(), names[id(teacher)], names[key])
        for key, total in sums.items()
    }


def _features(
    case: Case, observed: Mapping[int, ObservedNetwork], part: torch.Tensor
) -> Iterator[tuple[Subject, dict[str, torch.Tensor]]]:
    images = case.unit(part)
    for subject in case.subjects:
        yield subject, observed[id(subject)](images).features
        case.tick()


def _told_apart(case: Case, subject: Subject) -> tuple[str, ...]:
    """Stem, stages and what the classifier reads; one name for each layer."""
    image = subject.answering().to(case.device).normalize(case.unit(case.images[:2]))
    try:
        meanings = list_meanings(subject.network, image)
    except LimbeckError as error:
        raise NotApplicableError(f"{subject.name}: its layers cannot be told: {error}") from error
    found: dict[str, str] = {}
    for name, meaning in meanings.items():
        if not name.startswith("pre_activation:"):
            found.setdefault(meaning.address, name)
    if not found:
        raise NotApplicableError(
            f"{subject.name} has no stage and no single classifier; say in its layer_aliases which "
            "layers count"
        )
    return tuple(found.values())


def _measure(case: Case) -> Measured:
    maps = layer_similarities(case)
    first = maps[id(next(iter(case.distilled.values())))]
    layers = list(first.shared)
    if not layers:
        raise NotApplicableError(
            f"teacher and student have no layer of one name: {', '.join(first.teacher_layers)} "
            f"against {', '.join(first.student_layers)}"
        )

    def shared(student: Subject) -> NDArray[np.float64]:
        return np.array([maps[id(student)].shared[name] for name in layers])

    reading = case.reading("similarity (CKA) of the layers", "layers", shared, unit="1", chance=0)
    rows = [("layer", "distilled", "independent", "difference")]
    for place, name in enumerate(layers):
        ours, theirs = (
            float(np.mean([values[place] for values in by_seed.values()]))
            for by_seed in (reading.distilled, reading.independent)
        )
        rows.append((name, f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}"))
    return Measured(
        readings=(reading,),
        pictures=(_picture(case, maps),),
        tables={"Similarity (CKA) of each layer with the teacher's of that name": tuple(rows)},
        settings={
            "images": min(len(case.images), _QUICK_IMAGES if case.quick else _IMAGES),
            "kernel": "linear, debiased",
        },
    )


def _picture(case: Case, maps: Mapping[int, Similarity]) -> Picture:
    """The first layer below, as the layers lie."""
    ours, theirs = (
        np.mean([maps[id(student)].values for student in students.values()], axis=0).T[::-1]
        for students in (case.distilled, case.independent)
    )
    one = maps[id(next(iter(case.distilled.values())))]
    difference = ours - theirs
    most = float(np.abs(difference).max()) or 1.0
    place = np.unravel_index(np.abs(difference).argmax(), difference.shape)
    student, teacher = one.student_layers[::-1][place[0]], one.teacher_layers[place[1]]
    return Picture(
        name="maps",
        caption="Similarity of every layer of the student (from below: "
        f"{', '.join(one.student_layers)}) with every layer of the teacher (from the left: "
        f"{', '.join(one.teacher_layers)}): black 0, white 1; mean over seeds. Right: distilled "
        f"less independent, black {-most:.2f}, grey 0, white {most:+.2f}.",
        alt="Maps of CKA of the distilled student, the independent one, and their difference, "
        f"which is largest, {difference[place]:+.2f}, between the student's {student} and the "
        f"teacher's {teacher}.",
        png=panels_png(
            [[ours.clip(0, 1), theirs.clip(0, 1), (difference / most + 1) / 2]],
            row_names=("student's layers",),
            column_names=("distilled", "independent", "difference"),
        ),
    )


REPRESENTATION = Experiment(
    key="representation",
    title="Layers alike",
    question="Do the student's layers hold the same images alike as its teacher's layers do?",
    source="Kornblith et al., 'Similarity of Neural Network Representations Revisited', ICML 2019, "
    "https://arxiv.org/abs/1905.00414; of distillation: Ojha et al., NeurIPS 2023, "
    "https://arxiv.org/abs/2205.16004, which does not state the kernel",
    measure=_measure,
    quick=True,
)
