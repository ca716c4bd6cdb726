r"""Corruptions: is the student as robust as its teacher to noise, blur, weather and compression?

Fifteen corruptions at five severities. The error of network f under corruption c against that of
a reference, and its mean over all:

.. math:: CE_c = \frac{\sum_s E_{sc}}{\sum_s E^{ref}_{sc}}, \quad
    mCE = \frac{1}{C} \sum_c CE_c, \quad
    \text{relative } CE_c = \frac{\sum_s (E_{sc} - E_{clean})}{\sum_s (E^{ref}_{sc} -
    E^{ref}_{clean})}

The published reference is AlexNet on ImageNet-C. Here it is the independent student, so that 100 %
is what training without the teacher gives; the mean error beside it is what is usual for CIFAR-C.

Images come from the released files of CIFAR-10-C or CIFAR-100-C, where their folder is given: one
array for each corruption, severities one after the other, and ``labels.npy``. Without it, they are
made by the package ``imagecorruptions-imaug``, whose severities are those of ImageNet-C: made for
images of 224 pixels, they are harder on smaller ones, and their figures are not those of CIFAR-C.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Subject
from limbeck.core.errors import DataError

__all__ = ["CORRUPTIONS", "NAMES", "mean_corruption_error"]

NAMES = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
_SEVERITIES = 5
_MADE_IMAGES = 1000  # 0.3 s each, all corruptions together
_SMALLEST = 32  # pixels, for the package
_PACKAGE = "imagecorruptions-imaug"
# From severity (1 to 5) to the corrupted images (n, C, H, W) uint8 of one corruption.
_Maker = Callable[[int], Tensor]


def mean_corruption_error(
    errors: NDArray[np.float64],
    reference: NDArray[np.float64] | None = None,
    *,
    clean: float = 0.0,
    reference_clean: float = 0.0,
) -> float:
    """mCE; with the clean errors, relative mCE; without a reference, the mean error.

    Args:
        errors: ``(C, S)`` in [0, 1], of C corruptions at S severities.
        reference: ``(C, S)`` of the reference network, or ``(C, 1)`` of its means.
        clean: error on the images as they are; 0 for the mCE that is not relative.
        reference_clean: that of the reference.

    Returns:
        A fraction, ``>= 0`` but for a relative one: 1 is the reference's own. NaN where the
        reference's errors under a corruption sum to nothing.

    Source:
        Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, https://arxiv.org/abs/1903.12261, section 4.1.

    Example:
        >>> errors = np.array([[0.2, 0.4], [0.1, 0.1]])
        >>> round(mean_corruption_error(errors, np.array([[0.4, 0.8], [0.1, 0.1]])), 3)
        0.75
    """
    own = errors.mean(axis=1) - clean
    if reference is None:
        return float(own.mean())
    others = reference.mean(axis=1) - reference_clean
    if (others == 0).any():
        return float("nan")
    return float((own / others).mean())


def _measure(case: Case) -> Measured:
    labelled = case.labels.numpy() >= 0
    folder = case.given.corrupted
    if folder is None:
        chosen = case.sample(_MADE_IMAGES, "corruptions")
        chosen = chosen[labelled[chosen]]
        makers = _made(case, chosen)
        notes = [
            "The images were made by imagecorruptions; its severities are those of ImageNet-C, and "
            "these figures are not to be held against published ones of CIFAR-C."
        ]
    else:
        chosen = np.flatnonzero(labelled)
        makers = _released(case, chosen, folder)
        lacking = [name for name in NAMES if name not in makers]
        notes = [f"Means are of {len(makers)} corruptions; {folder} lacks {', '.join(lacking)}."]
        notes *= bool(lacking)
    if not len(chosen):
        raise NotApplicableError("accuracy needs labels, and no test image has one")
    label = case.labels.numpy()[chosen]
    answers = {
        id(subject): np.empty((len(makers), _SEVERITIES, len(chosen)), dtype=np.int64)
        for subject in case.subjects
    }
    for number, (name, make) in enumerate(makers.items()):
        case.tell(f"  {number + 1}/{len(makers)} {name}")
        for severity in range(_SEVERITIES):
            images = make(severity + 1)
            for subject in case.subjects:
                found = case.forward(subject, images).argmax(axis=1)
                answers[id(subject)][number, severity] = found
    theirs = answers[id(case.teacher)]
    case.refuse_constant(case.teacher, theirs, "corrupted images")

    def right(subject: Subject) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = (answers[id(subject)] == label).mean(axis=(0, 1))
        return shares

    def agrees(student: Subject) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = (answers[id(student)] == theirs).mean(axis=(0, 1))
        return shares

    return Measured(
        readings=(
            case.trait("accuracy on corrupted images", "images", right),
            case.reading("agreement on corrupted images", "images", agrees),
        ),
        tables=_tables(case, tuple(makers), answers, label, chosen),
        notes=tuple(notes),
        settings={
            "corruptions": list(makers),
            "severities": _SEVERITIES,
            "images": len(chosen),
            "made by": _PACKAGE if folder is None else "the files given",
        },
    )


def _tables(
    case: Case,
    names: Sequence[str],
    answers: Mapping[int, NDArray[np.int64]],
    label: NDArray[np.int64],
    chosen: NDArray[np.int64],
) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Errors by corruption and by severity, and what they come to."""
    kinds = case.kinds
    errors = {  # (C, S), the mean over seeds
        kind: np.mean([(answers[id(s)] != label).mean(axis=2) for s in subjects], axis=0)
        for kind, subjects in kinds.items()
    }
    clean = {
        kind: float(np.mean([_clean_error(case, s, label, chosen) for s in subjects]))
        for kind, subjects in kinds.items()
    }

    def row(name: str, value: Callable[[str], float]) -> tuple[str, ...]:
        return (name, *(f"{value(kind):.1%}" for kind in kinds))

    reference = errors["independent"]
    rows = [
        row(name, lambda kind, at=number: errors[kind][at].mean())  # type: ignore[misc]
        for number, name in enumerate(names)
    ]
    rows += [
        row(f"severity {at + 1}", lambda kind, at=at: errors[kind][:, at].mean())  # type: ignore[misc]
        for at in range(_SEVERITIES)
    ]
    rows += [
        row("none", lambda kind: clean[kind]),
        row("mean of all", lambda kind: mean_corruption_error(errors[kind])),
        row(
            "mCE, of the independent student's errors",
            lambda kind: mean_corruption_error(errors[kind], reference),
        ),
        row(
            "relative mCE, of the errors above the clean ones",
            lambda kind: mean_corruption_error(
                errors[kind],
                reference,
                clean=clean[kind],
                reference_clean=clean["independent"],
            ),
        ),
    ]
    return {"Errors on corrupted images": (("corruption", *kinds), *rows)}


def _clean_error(
    case: Case, subject: Subject, label: NDArray[np.int64], chosen: NDArray[np.int64]
) -> float:
    return float((case.answers(subject)[chosen].argmax(axis=1) != label).mean())


def _released(case: Case, chosen: NDArray[np.int64], folder: Path) -> dict[str, _Maker]:
    """Of the files of CIFAR-10-C and CIFAR-100-C: what each holds of the chosen test images."""
    place = case.positions.numpy()[chosen]
    labels = _array(folder / "labels.npy")
    if labels.ndim != 1 or len(labels) % _SEVERITIES:
        raise DataError(
            f"{folder / 'labels.npy'} should hold one label for each of {_SEVERITIES} severities "
            f"of every test image; it holds {labels.shape}"
        )
    total = len(labels) // _SEVERITIES
    if place.max(initial=0) >= total or (labels[place] != case.labels.numpy()[chosen]).any():
        raise DataError(
            f"{folder} is of other images, or in another order: its labels.npy does not say of the "
            f"test images what the data say. Its files are of all {total:,} official test images"
        )
    found: dict[str, _Maker] = {}
    channels, height, width = case.images.shape[1:]
    for name in NAMES:
        path = folder / f"{name}.npy"
        if not path.is_file():
            continue
        stored = _array(path)
        wanted = (_SEVERITIES * total, height, width, channels)
        if stored.shape != wanted or stored.dtype != np.uint8:
            raise DataError(
                f"{path} should hold {wanted} bytes, as many and as large as the test images; it "
                f"holds {stored.shape} of {stored.dtype}"
            )
        found[name] = partial(_stored, stored, total, place)
    if not found:
        raise DataError(f"{folder} holds none of {', '.join(NAMES)}, each with .npy")
    return found


def _array(path: Path) -> NDArray[Any]:
    try:
        loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; wanted the files of CIFAR-10-C or CIFAR-100-C"
        ) from error
    return loaded


def _stored(
    stored: NDArray[np.uint8], total: int, place: NDArray[np.int64], severity: int
) -> Tensor:
    rows = stored[(severity - 1) * total + place]
    return torch.from_numpy(np.ascontiguousarray(rows.transpose(0, 3, 1, 2)))


def _made(case: Case, chosen: NDArray[np.int64]) -> dict[str, _Maker]:
    """By the package, image by image: it takes no more at once."""
    height, width = case.images.shape[2:]
    if min(height, width) < _SMALLEST:
        raise NotApplicableError(
            f"corruptions need images of {_SMALLEST} x {_SMALLEST} pixels or more; these have "
            f"{height} x {width}"
        )
    try:
        corrupt = importlib.import_module("imagecorruptions").corrupt
    except ImportError as error:
        raise NotApplicableError(
            "corrupted images are needed: give the folder of CIFAR-10-C's or CIFAR-100-C's files "
            f"with --corrupted, or `pip install 'limbeck[corruptions]'` to have some made ({error})"
        ) from error
    images = case.images[torch.from_numpy(chosen)].permute(0, 2, 3, 1).numpy()
    channels = case.images.shape[1]

    def make(name: str, severity: int) -> Tensor:
        with _seeded(int(case.generator(f"{name} {severity}").integers(2**32))):
            made = np.stack([corrupt(i, corruption_name=name, severity=severity) for i in images])
        return torch.from_numpy(made).permute(0, 3, 1, 2)[:, :channels].contiguous()

    return {name: partial(make, name) for name in NAMES}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Numpy's global stream, which the package draws from, seeded within and put back after."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


CORRUPTIONS = Experiment(
    key="corruptions",
    title="Corruptions",
    question="Is the student as robust to noise, blur, weather and compression as its teacher?",
    source="Hendrycks, Dietterich, 'Benchmarking Neural Network Robustness to Common Corruptions "
    "and Perturbations', ICLR 2019, https://arxiv.org/abs/1903.12261",
    measure=_measure,
    quick=False,
    reads=("corrupted",),
)
