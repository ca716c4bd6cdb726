"""The shape that every experiment shares: networks under study in, contrasts out.

Whether something was distilled is a question about three networks: the teacher, the student that
it taught, and the *independent* student of the same architecture that it did not teach. An
experiment measures how near each student is to the teacher; what counts is the difference.

S seeds, n items (images, planes, pairs), N images, B of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.analysis.background import Background
from limbeck.core.errors import LimbeckError, ShapeError
from limbeck.core.normalization import Normalization
from limbeck.features import LogitNetwork
from limbeck.reports.statistics import Interval, paired_t_interval

__all__ = [
    "Case",
    "Contrast",
    "Experiment",
    "Finding",
    "Given",
    "Measured",
    "NotApplicableError",
    "Picture",
    "Reading",
    "Subject",
    "contrast",
    "examine",
    "ratio_items",
]

Unit = Literal["fraction", "1", "nats"]
_NEARNESS = ("nearer to the teacher", "further from the teacher")
_LEVEL = 0.95
_RESAMPLES = 2000


class NotApplicableError(LimbeckError):
    """An experiment that cannot say anything of this case; the message says why, and what would."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A network under study, frozen.

    Attributes:
        name: for people.
        network: raw: from normalised images to its own outputs; for taps.
        normalization: its own.
        classes: which of its classes are the data's; None for all.
    """

    name: str
    network: nn.Module
    normalization: Normalization
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(requires_grad=False)

    def answering(self) -> LogitNetwork:
        """From images in [0, 1] to logits ``(B, K)``; differentiable in the images."""
        return LogitNetwork(
            self.network, normalization=self.normalization, classes=self.classes
        ).eval()


@dataclass(frozen=True, kw_only=True)
class Given:
    """Files for single experiments; None where nobody gave them.

    Attributes:
        other_images: a folder or zip of pictures of another domain.
        cue_conflict: one of pictures with the shape of one class and the texture of another.
        groups: a CSV of the group that each test image belongs to.
        corrupted: a folder of the test images corrupted, as CIFAR-10-C and CIFAR-100-C have them.
    """

    other_images: Path | None = None
    cue_conflict: Path | None = None
    groups: Path | None = None
    corrupted: Path | None = None


class Case:
    """What an analysis is about: three kinds of network, and the images to try them on.

    Args:
        teacher: the network that taught.
        distilled: the students that it taught, by seed.
        independent: students of the same architecture that it did not teach, by seed.
        images: ``(N, C, H, W)`` uint8, of the test split.
        labels: ``(N,)`` int64.
        class_names: K names.
        method: how the students were taught, for people.
        seed: of every random choice.
        quick: fewer items wherever that is possible.
        batch_size: images a forward pass.
        device: where networks and images meet.
        positions: ``(N,)`` int64: of :attr:`images` in the whole test split; None where they are
            all of it.
        given: files for single experiments.
        controls: students of the same architecture that learnt from soft labels of noise, by
            seed; empty where nobody trained any.
        tell: called with a line of progress now and then by what takes minutes.
        background: what their runs left behind; None where there are no runs.
        tick: called after each batch that went through a network.

    Raises:
        NotApplicableError: if a kind of network is missing.
    """

    def __init__(
        self,
        *,
        teacher: Subject,
        distilled: Mapping[int, Subject],
        independent: Mapping[int, Subject],
        images: Tensor,
        labels: Tensor,
        class_names: tuple[str, ...],
        method: str,
        seed: int = 0,
        quick: bool = False,
        batch_size: int = 256,
        device: torch.device | None = None,
        positions: Tensor | None = None,
        given: Given = Given(),
        controls: Mapping[int, Subject] | None = None,
        tell: Callable[[str], None] = lambda line: None,  # noqa: ARG005
        background: Background | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        if not distilled:
            raise NotApplicableError(
                "there is no distilled student to analyse; give a finished run"
            )
        if not independent:
            raise NotApplicableError(
                "there is no independent student: one of the same architecture, trained without "
                "the teacher. `limbeck compare` trains one beside every method; or train one with "
                "`limbeck train --config RUN/config.json` and give it with --independent"
            )
        self.teacher = teacher
        self.distilled = dict(sorted(distilled.items()))
        self.independent = dict(sorted(independent.items()))
        self.images = images
        self.labels = labels
        self.class_names = class_names
        self.method = method
        self.seed = seed
        self.quick = quick
        self.batch_size = batch_size
        self.device = torch.device("cpu") if device is None else device
        self.positions = torch.arange(len(images)) if positions is None else positions
        self.given = given
        self.tell = tell
        self.controls = dict(sorted((controls or {}).items()))
        self.background = background
        self.tick = tick
        self._answers: dict[tuple[int, str], NDArray[np.float32]] = {}
        for subject in (*self.subjects, *self.controls.values()):
            subject.network.to(self.device)

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Teacher, distilled students, independent students."""
        return (self.teacher, *self.distilled.values(), *self.independent.values())

    @property
    def kinds(self) -> dict[str, tuple[Subject, ...]]:
        """The same, by their kind."""
        return {
            "teacher": (self.teacher,),
            "distilled": tuple(self.distilled.values()),
            "independent": tuple(self.independent.values()),
        }

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers of one purpose, the same every time."""
        return np.random.default_rng([self.seed, *purpose.encode()])

    def torch_generator(self, purpose: str) -> torch.Generator:
        """The same for torch, on the CPU."""
        seed = int(self.generator(purpose).integers(2**63))
        return torch.Generator().manual_seed(seed)

    def answers(
        self, subject: Subject, what: str = "clean", images: Tensor | None = None
    ) -> NDArray[np.float32]:
        """Logits ``(N, K)`` of a subject for a set of images; each pass is made only once.

        Args:
            subject: one of :attr:`subjects`.
            what: names the images: the same name must always stand for the same images.
            images: ``(N, C, H, W)``, uint8 or floating in [0, 1]; None is :attr:`images`.
        """
        key = (id(subject), what)
        if key not in self._answers:
            self._answers[key] = self.forward(subject, self.images if images is None else images)
        return self._answers[key]

    def forward(self, subject: Subject, images: Tensor) -> NDArray[np.float32]:
        """Logits ``(N, K)``, batch by batch, of images as for :meth:`answers`; not kept."""
        network = subject.answering().to(self.device)
        answers = []
        with torch.no_grad():
            for part in self.batches(images):
                answers.append(network(self.unit(part)).float().cpu())
                self.tick()
        logits: NDArray[np.float32] = torch.cat(answers).numpy()
        return logits

    def batches(self, values: Tensor) -> Iterator[Tensor]:
        """Of images or labels, in their order."""
        for start in range(0, len(values), self.batch_size):
            yield values[start : start + self.batch_size]

    def unit(self, images: Tensor) -> Tensor:
        """On the device, floating, in [0, 1]."""
        images = images.to(self.device)
        return images if images.is_floating_point() else images.float() / 255

    def sample(self, count: int, purpose: str) -> NDArray[np.int64]:
        """Positions of ``count`` test images drawn without replacement, or all of fewer, sorted."""
        total = len(self.images)
        drawn = self.generator(purpose).permutation(total)[: min(count, total)]
        return np.sort(drawn)

    def refuse_constant(self, subject: Subject, choices: NDArray[Any], what: str) -> None:
        """Refuse answers that are all the same, with which agreement says nothing.

        Args:
            subject: whose they are.
            choices: class numbers.
            what: the images, as "test images".

        Raises:
            NotApplicableError: naming the one class.
        """
        if len(np.unique(choices)) == 1:
            raise NotApplicableError(
                f"{subject.name} gives all {what} the answer "
                f"{self.class_names[int(choices.flat[0])]!r}, from which nothing can be told; look "
                "at its training, or give another teacher"
            )

    def reading(
        self,
        name: str,
        items: str,
        value: Callable[[Subject], NDArray[Any]],
        *,
        unit: Unit = "fraction",
        nearer: Literal["higher", "lower"] = "higher",
        chance: float | None = None,
        teacher: float | None = None,
        words: tuple[str, str] | None = None,
    ) -> Reading:
        """A reading of every student, by one function of a student to its ``(n,)`` values."""
        return Reading(
            name=name,
            items=items,
            independent={seed: value(subject) for seed, subject in self.independent.items()},
            distilled={seed: value(subject) for seed, subject in self.distilled.items()},
            unit=unit,
            nearer=nearer,
            chance=chance,
            teacher=teacher,
            words=words or _NEARNESS,
        )

    def trait(
        self,
        name: str,
        items: str,
        value: Callable[[Subject], NDArray[Any]],
        *,
        unit: Unit = "fraction",
    ) -> Reading:
        """A reading of what the teacher has as well, with its value.

        Nearer to the teacher is more of it where the teacher has more of it than the independent
        students, and the other way round.
        """
        teacher = float(value(self.teacher).mean())
        independent = np.mean([value(student).mean() for student in self.independent.values()])
        return self.reading(
            name,
            items,
            value,
            unit=unit,
            nearer="higher" if teacher >= independent else "lower",
            teacher=teacher,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """How near to the teacher each student is, item by item.

    Attributes:
        name: what was measured, a few words.
        items: what the n items are, as "images".
        independent: seed to ``(n,)`` values of the students that the teacher did not teach.
        distilled: seed to ``(n,)`` values of those that it taught; of the same items.
        unit: "fraction" is printed in percent.
        nearer: which direction is nearer to the teacher.
        chance: the value that no relation to the teacher would give; None where there is none.
        teacher: the teacher's own value; None where it has none.
        pupil: what the students under ``distilled`` are called.
        words: what a distilled student is found to be that is nearer, and one that is further;
            of numbers for which less or more says something else.
    """

    name: str
    items: str
    independent: Mapping[int, NDArray[Any]]
    distilled: Mapping[int, NDArray[Any]]
    unit: Unit = "fraction"
    nearer: Literal["higher", "lower"] = "higher"
    chance: float | None = None
    teacher: float | None = None
    pupil: str = "distilled student"
    words: tuple[str, str] = _NEARNESS

    def __post_init__(self) -> None:
        shapes = {np.shape(v) for v in (*self.independent.values(), *self.distilled.values())}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1 or 0 in next(iter(shapes)):
            raise ShapeError(
                f"{self.name}: every student must have one value for each of the same items; "
                f"got the shapes {sorted(shapes)}"
            )


class Contrast(NamedTuple):
    """What a reading comes to.

    Attributes:
        independent: mean over items and seeds.
        distilled: the same.
        difference: ``distilled`` less ``independent``.
        seed_interval: 95 %, of the mean difference paired by seed (Student's t); None with fewer
            than two seeds that both have.
        item_interval: 95 %, over resampled items, of these very networks.
        num_seeds: that both have; 1 where they share none and are averaged each for itself.
        num_items: n.
        verdict: whether the distilled student is nearer to the teacher.
        sentence: the same in plain English, with its n.
    """

    independent: float
    distilled: float
    difference: float
    seed_interval: Interval | None
    item_interval: Interval
    num_seeds: int
    num_items: int
    verdict: Literal["nearer", "further", "cannot tell"]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for the report.

    Attributes:
        name: unique within the experiment, fit for a file's name.
        caption: what it shows and of what.
        alt: the same for who cannot see it, with the numbers that matter.
        svg: an ``<svg>`` element; or
        png: the bytes of a PNG. One of the two.
    """

    name: str
    caption: str
    alt: str
    svg: str | None = None
    png: bytes | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What an experiment found, before anything is concluded.

    Attributes:
        readings: the headline first.
        pictures: for the report.
        tables: title to rows of cells, the first of them the heading.
        notes: what must be known to read the numbers, a sentence each.
        settings: what could have been chosen otherwise, as ``{"epsilon": 0.03}``.
    """

    readings: tuple[Reading, ...]
    pictures: tuple[Picture, ...] = ()
    tables: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One question.

    Attributes:
        key: its name on the command line.
        title: a few words.
        question: in plain English, with a question mark.
        source: who asked it first, and how.
        measure: from a case to what was found; raises :class:`NotApplicableError`.
        quick: whether it belongs to the quick selection.
        reads: what it reads of a case besides networks and images: fields of :class:`Given`, or
            "controls".
    """

    key: str
    title: str
    question: str
    source: str
    measure: Callable[[Case], Measured]
    quick: bool
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """An experiment's outcome.

    Attributes:
        experiment: what was asked.
        measured: what was found; None where it does not apply.
        contrasts: one for each reading.
        skipped: why there is nothing; None where there is something.
        seconds: that it took.
    """

    experiment: Experiment
    measured: Measured | None
    contrasts: tuple[Contrast, ...]
    skipped: str | None
    seconds: float


def examine(experiment: Experiment, case: Case, *, clock: Callable[[], float]) -> Finding:
    """Carry out one experiment; what does not apply is skipped with its reason.

    Args:
        experiment: what to ask.
        case: of whom.
        clock: seconds, as :func:`time.monotonic`.
    """
    start = clock()
    try:
        measured = experiment.measure(case)
    except NotApplicableError as reason:
        return Finding(
            experiment=experiment,
            measured=None,
            contrasts=(),
            skipped=str(reason),
            seconds=clock() - start,
        )
    contrasts = tuple(
        contrast(reading, generator=case.generator(f"{experiment.key}.{reading.name}"))
        for reading in measured.readings
    )
    return Finding(
        experiment=experiment,
        measured=measured,
        contrasts=contrasts,
        skipped=None,
        seconds=clock() - start,
    )


def ratio_items(hits: NDArray[Any], counted: NDArray[Any]) -> NDArray[np.float64]:
    r"""A ratio as items: their mean is the ratio, and resampled, they vary as it does.

    .. math:: r + \frac{n}{\sum_j c_j} (h_i - r c_i), \quad r = \sum_j h_j / \sum_j c_j

    Networks differ in which items count, and readings want one value for every item; this is the
    ratio made linear about itself, to first order in how often each item is drawn.

    Args:
        hits: ``(n,)``: h.
        counted: ``(n,)``: c, with a sum above 0.

    Returns:
        ``(n,)``.

    Source:
        The infinitesimal jackknife: Efron, "The Jackknife, the Bootstrap and Other Resampling
        Plans", SIAM 1982, chapter 6.

    Example:
        >>> ratio_items(np.array([1, 0, 0]), np.array([1, 1, 0])).mean()
        np.float64(0.5)
    """
    total = counted.sum(dtype=np.float64)
    ratio = hits.sum(dtype=np.float64) / total
    items: NDArray[np.float64] = ratio + len(hits) / total * (hits - ratio * counted)
    return items


def contrast(reading: Reading, *, generator: np.random.Generator) -> Contrast:
    """The distilled student against the independent one, and what may be said of it.

    With two shared seeds or more the verdict is that of the interval over seeds; with one, that of
    the interval over items, and the sentence says that other seeds are not in it.

    Args:
        reading: the values.
        generator: of the resamples.
    """
    shared = sorted(reading.independent.keys() & reading.distilled.keys())
    rows = {
        kind: np.stack([values[seed] for seed in (shared or sorted(values))]).astype(np.float64)
        for kind, values in (
            ("independent", reading.independent),
            ("distilled", reading.distilled),
        )
    }
    independent, distilled = (float(rows[kind].mean()) for kind in ("independent", "distilled"))
    by_item = rows["distilled"].mean(axis=0) - rows["independent"].mean(axis=0)
    draws = generator.integers(len(by_item), size=(_RESAMPLES, len(by_item)))
    low, high = np.quantile(by_item[draws].mean(axis=1), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    item_interval = Interval(float(low), float(high))
    seed_interval = None
    if len(shared) > 1:
        by_seed = (rows["distilled"] - rows["independent"]).mean(axis=1)
        ends = paired_t_interval(by_seed, level=_LEVEL)
        seed_interval = Interval(float(ends[0]), float(ends[1]))
    verdict = _verdict(seed_interval or item_interval, reading.nearer)
    found = Contrast(
        independent=independent,
        distilled=distilled,
        difference=distilled - independent,
        seed_interval=seed_interval,
        item_interval=item_interval,
        num_seeds=max(1, len(shared)),
        num_items=len(by_item),
        verdict=verdict,
        sentence="",
    )
    return found._replace(sentence=_sentence(reading, found))


def _verdict(
    interval: Interval, nearer: Literal["higher", "lower"]
) -> Literal["nearer", "further", "cannot tell"]:
    if interval.low <= 0 <= interval.high:
        return "cannot tell"
    return "nearer" if (interval.low > 0) == (nearer == "higher") else "further"


def _sentence(reading: Reading, found: Contrast) -> str:
    fraction = reading.unit == "fraction"
    scale, unit = (100.0, " %") if fraction else (1.0, "" if reading.unit == "1" else " nats")
    points = " points" if fraction else unit

    def value(number: float, *, signed: bool = False) -> str:
        return f"{scale * number:{'+' if signed else ''}.{1 if fraction else 3}f}"

    interval = found.seed_interval or found.item_interval
    over = (
        f"{found.num_seeds} seeds, {found.num_items:,} {reading.items}"
        if found.seed_interval is not None
        else f"the {found.num_items:,} {reading.items} alone; other seeds are not in it"
    )
    said = {
        "nearer": f"The {reading.pupil} is {reading.words[0]}",
        "further": f"The {reading.pupil} is {reading.words[1]}",
        "cannot tell": "No difference can be told",
    }[found.verdict]
    chance = "" if reading.chance is None else f"; chance {value(reading.chance)}{unit}"
    if reading.teacher is not None:
        chance += f"; the teacher {value(reading.teacher)}{unit}"
    return (
        f"{said}: {reading.name} {value(found.distilled)}{unit}, of the independent student "
        f"{value(found.independent)}{unit}{chance}; difference "
        f"{value(found.difference, signed=True)}{points}, 95 % interval "
        f"{value(interval.low, signed=True)} to {value(interval.high, signed=True)} over {over}."
    )
