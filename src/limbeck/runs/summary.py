"""What a finished run says of itself: ``summary.json``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from limbeck.core.settings import Settings
from limbeck.runs.folder import RunFolder, read_json

__all__ = [
    "EpochResult",
    "FurtherNetwork",
    "RunSummary",
    "TeacherResult",
    "TestResult",
    "read_summary",
]


class EpochResult(Settings):
    """One epoch on validation; ``epoch`` is 0-based within the last stage."""

    epoch: int
    val: dict[str, float] | None = None


class TestResult(Settings):
    """The test split, read once after the last epoch, by both sets of weights."""

    __test__ = False  # not a test class of pytest's

    last: dict[str, float]
    best_on_validation: dict[str, float] | None = None


class TeacherResult(Settings):
    """One of several teachers.

    Attributes:
        name: of the network.
        state_hash: of its state, the same before and after.
        val: on validation; None without validation.
        test: on the test split; None where there is none.
    """

    name: str
    state_hash: str
    val: dict[str, float] | None
    test: dict[str, float] | None


class FurtherNetwork(Settings):
    """A network beside student and teacher: an assistant, a generation, a peer.

    Attributes:
        model: its name.
        run: the folder that it came from, trained; None where it was trained here.
        state_hash: of its weights after training.
        val: on validation; None without validation.
        test: on the test split; None where there is none.
    """

    model: str
    run: str | None
    state_hash: str
    val: dict[str, float] | None
    test: dict[str, float] | None


class RunSummary(Settings):
    """Accuracies in [0, 1], losses in nats, times in seconds.

    Attributes:
        version: of limbeck.
        method: name of the method.
        seed: of the run.
        student: name of the student.
        teacher: name of the teacher, of several all names; or None.
        config_hash: of the settings.
        data_hash: of images, labels and splits.
        student_hash: of the deployed weights after the last epoch.
        teacher_hash: of the teacher's state, of several together, the same before and after.
        teacher_cache: of its stored answers, where the run learnt from these; else None.
        num_parameters: of what is deployed.
        num_macs: multiply-adds of one image.
        last: after the last epoch.
        best_on_validation: the epoch chosen by validation accuracy; None without validation.
        test: on the test split; None where there is none.
        teacher_val: the teacher on validation; several by their mean probability.
        teacher_test: the same on the test split.
        seconds: of training, without evaluation, over all sittings.
        images_per_second: training images over those seconds.
        notices: what the run found worth saying.
        split_hashes: of each split that ``data_hash`` is made of.
        scores: every metric of :data:`~limbeck.metrics.info.METRICS` on the test split, for
            "last", "best_on_validation", the "teacher", of several also "teacher1" and so on,
            further networks and their "ensemble"; None where one is over no images.
        teacher_seconds: the part of ``seconds`` that the teacher's forward passes took.
        peak_memory_bytes: the most that training and judging had in use; see
            :class:`~limbeck.runs.measure.PeakMemory`.
        deployed_bytes: of the deployed weights and buffers.
        inference_images_per_second: through what is deployed, on the run's device; see
            :func:`~limbeck.runs.measure.images_per_second`.
        further: networks of single stages, by the names of stages and peers.
        scores_taught: whether any stage taught the student's class scores; else their accuracy says
            nothing.
        embedding: of a student that was taught one, "last", beside the same "before" training and
            the "teacher": split to "linear_top1" and "knn_top1"; see
            :mod:`limbeck.metrics.embedding`.
        floor_images_per_second: what ``images_per_second`` would be without all that the method
            and this library add, measured after training in the same process; see
            :func:`~limbeck.runs.measure.floor_images_per_second`. None without room for it.
        split_sizes: images of each split.
        teachers: of several teachers, each by itself; empty where one taught.
    """

    version: str
    method: str
    seed: int
    student: str
    teacher: str | None
    config_hash: str
    data_hash: str
    student_hash: str
    teacher_hash: str | None
    num_parameters: int
    num_macs: int
    last: EpochResult
    best_on_validation: EpochResult | None
    test: TestResult | None
    teacher_val: dict[str, float] | None
    teacher_test: dict[str, float] | None
    seconds: float
    images_per_second: float
    notices: tuple[str, ...]
    split_hashes: dict[str, str] = Field({})
    scores: dict[str, dict[str, float | None]] = Field({})
    teacher_seconds: float | None = None
    peak_memory_bytes: int | None = None
    deployed_bytes: int | None = None
    teacher_cache: str | None = None
    inference_images_per_second: float | None = None
    further: dict[str, FurtherNetwork] = Field({})
    scores_taught: bool = True
    embedding: dict[str, dict[str, dict[str, float]]] = Field({})
    floor_images_per_second: float | None = None
    split_sizes: dict[str, int] = Field({})
    teachers: tuple[TeacherResult, ...] = ()


def read_summary(folder: str | Path) -> RunSummary:
    """The summary of a finished run.

    Raises:
        RunFolderError: if there is none.
    """
    return RunSummary.read(read_json(RunFolder(folder).summary))
