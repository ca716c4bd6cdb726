"""Which layers of a student hold images alike as which of its teacher's: a map of CKA.

N images, L M layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch

from limbeck.core.errors import DataError, SettingsError, UnknownNameError
from limbeck.core.settings import Settings
from limbeck.core.types import Batch
from limbeck.data import build_data, eval_batches
from limbeck.engine.config import TrainConfig
from limbeck.engine.distributed import pick_device
from limbeck.features import ObservedNetwork
from limbeck.functional.cka import MinibatchCKA
from limbeck.layers import list_meanings
from limbeck.runs.config import RunConfig
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.networks import NamedNetwork, build_teacher, load_student

__all__ = ["CKAMap", "cka_map", "run_cka_map"]

_FEWEST = 4  # images a batch that an unbiased HSIC needs


class CKAMap(Settings):
    """What one comparison of two networks found; ``cka.json`` of a run folder.

    Attributes:
        student: its name.
        teacher: its name.
        split: whose images.
        num_images: that counted.
        student_layers: names of the rows to their addresses, in the order of the forward pass.
        teacher_layers: the same of the columns.
        values: ``(L, M)``, debiased linear CKA: at most 1, and near 0, of either sign, for layers
            that have nothing in common.
    """

    student: str
    teacher: str
    split: str
    num_images: int
    student_layers: dict[str, str]
    teacher_layers: dict[str, str]
    values: tuple[tuple[float, ...], ...]


def run_cka_map(
    run: str | Path,
    *,
    split: str | None = None,
    best: bool = False,
    student_layers: Collection[str] = (),
    teacher_layers: Collection[str] = (),
    device: str = "auto",
    typed: Collection[str] = (),
) -> CKAMap:
    """The map of a finished run's student and its teacher.

    Args:
        run: its folder.
        split: whose images; None takes validation, or the test split where there is none.
        best: the best epoch on validation instead of the last.
        student_layers: names or meanings; empty takes stem, stages and what the classifier reads.
        teacher_layers: the same.
        device: where to compute.
        typed: names of models that the user gave here and now; these alone may run code.

    Raises:
        SettingsError: if the run has no teacher.
        UnknownNameError: with the nearest names, for an unknown split or layer.
        LimbeckError: if run, networks or data cannot be had.
    """
    config = RunConfig.read(read_json(RunFolder(run).config))
    if config.teacher is None:
        raise SettingsError(
            f"{run} has no teacher, and a map of CKA is of two networks; choose a distilled run"
        )
    where = pick_device(device)
    student, _ = load_student(run, best=best, typed=typed)
    data = build_data(config.data, seed=config.seed)
    split = split or ("val" if data.val is not None else "test")
    if split not in data.splits:
        raise UnknownNameError("split", split, data.splits)
    teacher = build_teacher(config.teacher, data, typed=typed, scores=config.reads_teacher_scores)
    networks = {"student": student, "teacher": teacher}
    layers = {"student": student_layers, "teacher": teacher_layers}
    for whose, named in networks.items():
        named.network.to(where)
        if not layers[whose]:
            image = torch.zeros(2, *named.normalization.input_shape(data.image_shape), device=where)
            layers[whose] = _told_apart(named, image)
    batches = eval_batches(data.splits[split], config.train.eval_batch_size)
    return cka_map(
        student,
        teacher,
        batches,
        student_layers=layers["student"],
        teacher_layers=layers["teacher"],
        split=split,
        config=config.train,
        device=where,
    )


@torch.no_grad()
def cka_map(
    student: NamedNetwork,
    teacher: NamedNetwork,
    batches: Iterable[Batch],
    *,
    student_layers: Collection[str],
    teacher_layers: Collection[str],
    split: str,
    config: TrainConfig,
    device: torch.device,
) -> CKAMap:
    """Debiased linear CKA of every layer of one network with every layer of the other.

    Sums run over batches, so that no layer is held for all images; a batch of fewer than four
    does not count. Larger batches vary less.

    Args:
        student: on ``device``, as the teacher; both are in eval mode afterwards.
        teacher: the other.
        batches: the images.
        student_layers: names or meanings, ``stage*`` among them.
        teacher_layers: the same.
        split: what to call the images.
        config: precision and memory format.
        device: where to compute.

    Raises:
        DataError: if no batch has four images.
        UnknownNameError: with the nearest names, for an unknown layer.

    Source:
        Nguyen, Raghu, Kornblith, ICLR 2021, https://arxiv.org/abs/2010.15327; see
        :class:`~limbeck.functional.cka.MinibatchCKA`.
    """
    sums, num_images = MinibatchCKA(), 0
    names: tuple[list[str], list[str]] = ([], [])
    with ExitStack() as taps:
        observed = []
        for named, layers in ((student, student_layers), (teacher, teacher_layers)):
            network = ObservedNetwork(
                named.network,
                normalization=named.normalization,
                layers=tuple(layers),
                scores=False,
            ).to(device)
            observed.append(network.eval())
            taps.callback(network.tap.close)
        for batch in batches:
            if len(batch) < _FEWEST:
                continue
            moved = batch.to(device, memory_format=config.memory_format)
            with config.autocast(device):
                features = [network(moved.image).features for network in observed]
            names = (list(features[0]), list(features[1]))
            sums.update(*(list(found.values()) for found in features))
            num_images += len(batch)
        addresses = [network.tap.addresses for network in observed]
    if not num_images:
        raise DataError(
            f"CKA needs batches of {_FEWEST} images at least, and the {split} split has none; "
            "choose a larger split, or a larger batch"
        )
    return CKAMap(
        student=student.name,
        teacher=teacher.name,
        split=split,
        num_images=num_images,
        student_layers={name: addresses[0][name] for name in names[0]},
        teacher_layers={name: addresses[1][name] for name in names[1]},
        values=tuple(map(tuple, sums.compute().tolist())),
    )


def _told_apart(named: NamedNetwork, image: torch.Tensor) -> list[str]:
    """Stem, stages and what the classifier reads; one name for each layer."""
    found: dict[str, str] = {}
    for name, meaning in list_meanings(named.network, image).items():
        if not name.startswith("pre_activation:"):
            found.setdefault(meaning.address, name)
    return list(found.values())
