"""``eval`` and ``predict``: a finished run's student, its teacher beside it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from rich.table import Table

from limbeck.cli.terminal import make_console, printable, printable_lines
from limbeck.core.errors import DataError, LimbeckError, UnknownNameError
from limbeck.data import build_data, eval_batches
from limbeck.data.decode import decode_image
from limbeck.engine.distributed import pick_device
from limbeck.engine.evaluate import evaluate, judge_logits
from limbeck.models import is_vision_name
from limbeck.runs.caching import open_teacher
from limbeck.runs.config import RunConfig, TeacherConfig
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.networks import DataFacts, NamedNetwork, StudentCard, build_teacher, load_student
from limbeck.teacher_cache import CachedTeacher

__all__ = ["evaluate_run", "predict_images"]

_AT_ONCE = 64  # images of one forward pass


def evaluate_run(
    run: Path,
    *,
    split: str,
    best: bool,
    device: str,
    typed: Collection[str],
    as_json: bool,
) -> None:
    """Print accuracy and loss of a run's student and teacher on one split.

    Args:
        run: a finished run's folder.
        split: one of its data's.
        best: the best epoch on validation instead of the last.
        device: where to compute.
        typed: names of models that stand on the command line; these alone may run code.
        as_json: print one JSON object.
    """
    config = RunConfig.read(read_json(RunFolder(run).config))
    where = pick_device(device)
    student, _ = load_student(run, best=best, typed=typed)
    data = build_data(config.data, seed=config.seed)
    if split not in data.splits:
        raise UnknownNameError("split", split, data.splits)
    source = data.splits[split]

    def judged(named: NamedNetwork | CachedTeacher) -> dict[str, float]:
        if isinstance(named, CachedTeacher):
            return judge_logits(named.logits_of(split, source.fingerprint()), source.labels)
        batches = eval_batches(source, config.train.eval_batch_size)
        return evaluate(named.answering(where), batches, config=config.train, device=where)

    names, found = {"student": student.name}, {"student": judged(student)}
    notice = None
    if config.teacher is not None and config.reads_teacher_scores:
        try:
            teacher = open_teacher(config.teacher, data, typed=typed)
            found["teacher"] = judged(teacher)
            names["teacher"] = teacher.name
        except LimbeckError as error:  # the student can be judged without it
            notice = f"the teacher is not shown: {error}"
    if as_json:
        print(json.dumps({"split": split, "notice": notice, **found}))  # noqa: T201
        return
    console = make_console()
    console.print(f"{split}: {len(source):,} images")
    for role, scores in found.items():
        each = "   ".join(
            f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.2%}"
            for name, value in scores.items()
        )
        console.print(f"  {role:<8} {printable(names[role]):<24} {each}")
    if notice is not None:
        console.print(printable_lines(notice))


def predict_images(
    run: Path,
    images: list[Path],
    *,
    top: int,
    best: bool,
    device: str,
    typed: Collection[str],
    as_json: bool,
) -> None:
    """Print the likeliest classes of each image, by student and teacher.

    Args:
        run: a finished run's folder.
        images: picture files.
        top: classes shown for each.
        best: the best epoch on validation instead of the last.
        device: where to compute.
        typed: names of models that stand on the command line; these alone may run code.
        as_json: print one JSON object a line, one for each image.
    """
    config = RunConfig.read(read_json(RunFolder(run).config))
    where = pick_device(device)
    student, card = load_student(run, best=best, typed=typed)
    networks = {"student": student}
    notice = None
    if config.teacher is not None and config.reads_teacher_scores:
        try:
            networks["teacher"] = _teacher(config.teacher, config, card, typed)
        except LimbeckError as error:  # the student can be shown without it
            notice = f"the teacher is not shown: {error}"
    pixels = torch.stack([_read(path, card, config.data.image_size) for path in images])
    found = {role: _probabilities(named, pixels, where) for role, named in networks.items()}
    rows = [
        {role: _likeliest(each[position], card, top) for role, each in found.items()}
        for position in range(len(images))
    ]
    if as_json:
        for path, row in zip(images, rows, strict=True):
            listed = {role: dict(classes) for role, classes in row.items()}
            print(json.dumps({"image": str(path), "notice": notice, **listed}))  # noqa: T201
        return
    table = Table("image", *networks, box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for path, row in zip(images, rows, strict=True):
        cells = [
            "\n".join(f"{p:6.1%}  {printable(name)}" for name, p in classes)
            for classes in row.values()
        ]
        table.add_row(printable(str(path)), *cells)
    console = make_console()
    console.print(table)
    if notice is not None:
        console.print(printable_lines(notice))


def _teacher(
    teacher: TeacherConfig, config: RunConfig, card: StudentCard, typed: Collection[str]
) -> NamedNetwork:
    """A run's teacher, for images like the student's; the data set is not read if it can be."""
    own = config.student.normalization is None and not is_vision_name(card.model)
    told = teacher.run is not None or teacher.normalization is not None
    if not told and not own and not is_vision_name(str(teacher.name)):
        # The teacher has the data's own normalisation, and the student, whose card tells the
        # data's classes and shape, has another.
        return build_teacher(teacher, build_data(config.data, seed=config.seed), typed=typed)
    facts = DataFacts(
        card.class_names,
        (card.in_chans, *card.image_size),
        card.normalization.changed(image_size=None, in_chans=None),
    )
    return build_teacher(teacher, facts, typed=typed)


@torch.no_grad()
def _probabilities(named: NamedNetwork, pixels: torch.Tensor, where: torch.device) -> torch.Tensor:
    """``(N, C, H, W)`` in [0, 1] to ``(N, K)``, on the host."""
    network = named.answering(where).eval()
    starts = range(0, len(pixels), _AT_ONCE)
    logits = [network(pixels[at : at + _AT_ONCE].to(where)).cpu() for at in starts]
    return torch.cat(logits).float().softmax(dim=1)


def _likeliest(probability: torch.Tensor, card: StudentCard, top: int) -> list[tuple[str, float]]:
    values, classes = probability.topk(min(top, card.num_classes))
    return [
        (card.class_names[k], p) for k, p in zip(classes.tolist(), values.tolist(), strict=True)
    ]


def _read(path: Path, card: StudentCard, trained_size: int | None) -> torch.Tensor:
    """One image file as the student was trained to see it: ``(C, H, W)`` in [0, 1]."""
    pixels = None
    # Where training resized nothing, a picture of that very size is taken as it is; another one
    # can only be resized and cropped to a square, as training does where it is told to.
    sizes = (None, *_square(card)) if trained_size is None else (trained_size,)
    for size in sizes:
        pixels = _decode(path, size, card.in_chans)
        if pixels.shape[1:] == card.image_size:
            return pixels.float() / 255
    assert pixels is not None
    height, width = card.image_size
    raise DataError(
        f"{path}: the student takes {width} x {height} pixels, and this picture has "
        f"{pixels.shape[2]} x {pixels.shape[1]}; resize it first"
    )


def _square(card: StudentCard) -> Iterator[int]:
    height, width = card.image_size
    if height == width:
        yield height


def _decode(path: Path, size: int | None, in_chans: int) -> torch.Tensor:
    """Bytes ``(C, H, W)``."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file; give image files")
    try:
        with path.open("rb") as file:
            picture = decode_image(file, image_size=size, in_chans=in_chans)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give an image file") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)
