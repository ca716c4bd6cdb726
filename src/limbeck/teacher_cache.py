"""A teacher's answers, stored: what a run asks in the network's place.

A cache is a folder. ``cache.json``, written last, says whose answers to which images they are. Each
``.npy`` file is an array of one row for each image of a split, in the split's order: ``val``,
``test``, and ``train-0003`` for the training images as the fourth draw of the augmentation shows
them (``train-strong-0003`` for a further view). ``method.safetensors`` is there where a method
needs more of its teacher than logits before it trains.

Rows hold all logits, or the k highest, their classes, and the one logit at which all other classes
together keep their probability at a temperature. At temperature 1 this is FKD's marginal smoothing.

Source: Shen, Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022,
https://arxiv.org/abs/2112.01528, section 3.2.

N images, B of one batch, K classes, k of them kept.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, JsonValue, PositiveFloat, PositiveInt, model_validator
from safetensors.torch import load_file
from torch import Tensor

from limbeck.core.errors import CacheError, SettingsError
from limbeck.core.files import open_durably
from limbeck.core.normalization import Normalization
from limbeck.core.settings import Settings
from limbeck.core.types import Batch, Classifier, Outputs

__all__ = [
    "CARD_FILE",
    "METHOD_FILE",
    "UNFINISHED_FILE",
    "CacheCard",
    "CachedTeacher",
    "Storage",
    "answers_file",
    "draw_name",
    "read_card",
]

CARD_FILE, UNFINISHED_FILE = "cache.json", ".unfinished.json"
METHOD_FILE = "method.safetensors"
SCHEMA = 1


class Storage(Settings):
    """How one image's logits are kept.

    Attributes:
        dtype: of the logits; "float16" rounds to 11 bits.
        top_k: how many of the highest logits are kept, below the number of classes; the other
            classes share their probability evenly. None keeps all.
        temperature: at which those keep their probability, so that at this temperature the
            highest keep theirs, too; at a higher one the others have too much. None is 1.
    """

    dtype: Literal["float32", "float16"] = "float32"
    top_k: PositiveInt | None = None
    temperature: PositiveFloat | None = None

    @model_validator(mode="after")
    def _temperature_is_of_the_others(self) -> Self:
        if self.temperature is not None and self.top_k is None:
            raise ValueError("temperature is for top_k; all logits are right at every temperature")
        return self

    def row(self, num_classes: int) -> np.dtype[Any]:
        """A row of the file.

        Raises:
            SettingsError: if no class would be left out.

        Example:
            >>> Storage(dtype="float16").row(100).itemsize, Storage(top_k=5).row(100).itemsize
            (200, 32)
        """
        if self.top_k is None:
            return np.dtype([("logits", self.dtype, (num_classes,))])
        if self.top_k >= num_classes:
            raise SettingsError(
                f"top_k must be below the number of classes, {num_classes}; got {self.top_k}. "
                "Leave it out to keep all logits"
            )
        kinds = ("uint8", "int16", "int32")  # of index, that torch can read
        classes = next(kind for kind in kinds if num_classes - 1 <= np.iinfo(kind).max)
        kept = (self.top_k,)
        fields = [("logits", self.dtype, kept), ("classes", classes, kept), ("rest", "float32")]
        return np.dtype(fields, align=True)  # torch reads a field in whole steps of its own size

    def encode(self, logits: Tensor) -> np.ndarray[Any, Any]:
        """Rows ``(B,)`` of logits ``(B, K)``."""
        logits = logits.detach().float().cpu()
        rows = np.zeros(len(logits), dtype=self.row(logits.shape[1]))
        if self.top_k is None:
            rows["logits"] = logits
            return rows
        highest, classes = logits.topk(self.top_k, dim=1)
        temperature = self.temperature or 1.0
        others = logits.double().scatter(1, classes, -torch.inf) / temperature
        mean = others.logsumexp(dim=1) - math.log(logits.shape[1] - self.top_k)
        rows["logits"], rows["classes"], rows["rest"] = highest, classes, temperature * mean
        return rows

    @staticmethod
    def decode(fields: Mapping[str, Tensor], num_classes: int) -> Tensor:
        """Logits ``(B, K)`` in float32, of rows by field."""
        logits = fields["logits"].float()
        if "classes" not in fields:
            return logits
        filled = fields["rest"][:, None].repeat(1, num_classes)
        return filled.scatter_(1, fields["classes"].long(), logits)


class CacheCard(Settings):
    """``cache.json``: whose answers, to which images, stored how.

    Attributes:
        schema_number: of the format.
        version: of limbeck.
        teacher: its name.
        teacher_hash: of its state.
        normalization: what the teacher itself made of images.
        classes: which of its classes are the data's; None for all.
        amp_dtype: what it computed in.
        num_classes: K.
        num_images: by split.
        split_hashes: each split's fingerprint.
        augment: settings of the augmentation, but for the two that follow.
        seed: of its draws; None where nothing is random.
        draws: how many epochs' images the teacher has seen.
        views: further views of every training image.
        storage: of the training images' logits; those of other splits are kept whole.
        method: whose preparation is in ``method.safetensors``; None where there is none.
        settings: that the data were made with, for messages.
        files: name to SHA-256.
    """

    schema_number: int = SCHEMA
    version: str
    teacher: str
    teacher_hash: str
    normalization: Normalization
    classes: tuple[int, ...] | None
    amp_dtype: str
    num_classes: PositiveInt
    num_images: dict[str, int]
    split_hashes: dict[str, str]
    augment: dict[str, JsonValue]
    seed: int | None
    draws: PositiveInt
    views: tuple[str, ...] = ()
    storage: Storage = Storage()
    method: dict[str, JsonValue] | None = None
    settings: dict[str, JsonValue] = Field({})
    files: dict[str, str] = Field({})

    def hash(self) -> str:
        """SHA-256 of everything but the settings that are there for messages."""
        values = self.plain() | {"settings": None}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def rows(self) -> dict[str, tuple[int, Storage]]:
        """Every array by the name of its file: how many rows, stored how."""
        held_out = {s: (n, Storage()) for s, n in self.num_images.items() if s != "train"}
        shown = (self.num_images["train"], self.storage)
        drawn = {
            draw_name(view, draw): shown for draw in range(self.draws) for view in ("", *self.views)
        }
        return held_out | drawn

    def num_bytes(self) -> int:
        """Of all arrays, but for a header of some 100 bytes each."""
        return sum(n * how.row(self.num_classes).itemsize for n, how in self.rows().values())


def draw_name(view: str, draw: int) -> str:
    """The file of one view in one draw, without its ending.

    Example:
        >>> draw_name("", 3), draw_name("strong", 3)
        ('train-0003', 'train-strong-0003')
    """
    return f"train-{view}-{draw:04}" if view else f"train-{draw:04}"


def read_card(folder: Path) -> CacheCard:
    """What a cache is of.

    Raises:
        CacheError: if the folder holds none, or one that was not finished.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        if (folder / UNFINISHED_FILE).is_file():
            raise CacheError(
                f"the cache in {folder} is not finished; the `limbeck cache` command that began it "
                "goes on with it"
            )
        raise CacheError(
            f"{folder} holds no cache of a teacher's logits: there is no {CARD_FILE}; make one "
            f"with `limbeck cache --output {folder}`"
        )
    try:
        card = CacheCard.read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CacheError(
            f"{path} is not what `limbeck cache` writes: {error}. Was it edited, or written by "
            "another version? Cache again in another folder"
        ) from None
    if card.schema_number != SCHEMA:
        raise CacheError(
            f"{path} has format {card.schema_number}, and this version reads {SCHEMA}; cache again"
        )
    return card


@contextmanager
def answers_file(
    path: Path, storage: Storage, *, num_images: int, num_classes: int
) -> Iterator[Callable[[Tensor], None]]:
    """A function that appends logits ``(B, K)`` to an array which is there at the end, or not.

    Args:
        path: the ``.npy`` file.
        storage: of a row.
        num_images: rows that will be appended.
        num_classes: K.

    Raises:
        CacheError: if a logit is not finite in the stored type.
        RunFolderError: if the file cannot be written.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {
            "descr": np.lib.format.dtype_to_descr(storage.row(num_classes)),
            "fortran_order": False,
            "shape": (num_images,),
        },
    )
    done = 0
    with open_durably(path) as file:

        def append(logits: Tensor) -> None:
            nonlocal done
            with np.errstate(over="ignore"):  # it is looked for below
                rows = storage.encode(logits)
            finite = np.isfinite(rows["logits"]).all(axis=1)
            if not finite.all():
                position = done + int(finite.argmin())
                raise CacheError(
                    f"{path.name}: the teacher's logits of image {position} are not finite in "
                    f"{storage.dtype}; "
                    + (
                        "store float32"
                        if bool(logits.isfinite().all())
                        else "are these its weights, and is float16 (--amp) too narrow for it?"
                    )
                )
            file.write(rows.tobytes())
            done += len(rows)

        file.write(header.getvalue())
        yield append
        assert done == num_images, (done, num_images)


class CachedTeacher:
    """A teacher that answers from a cache; the network itself need not exist any more.

    On a CPU the files are memory-mapped: what is read is what is asked for. An accelerator holds
    the draw of the current epoch.

    Args:
        folder: of the cache.

    Attributes:
        card: what it is of.
        cycle: epochs after which a run's draws come again.

    Raises:
        CacheError: if the folder holds no whole cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.card = read_card(self.folder)
        self.cycle: int = self.card.draws
        self._device = torch.device("cpu")
        self._open: dict[str, tuple[int, dict[str, Tensor]]] = {}  # view to its current draw
        self._rows = self.card.rows()
        for name in self._rows:
            self._map(name)  # whatever is missing or short is found now

    @property
    def each(self) -> tuple[CachedTeacher, ...]:
        """Itself; of several teachers, each."""
        return (self,)

    def hashes(self) -> tuple[str, str]:
        """Of the teacher's state, and of its stored answers."""
        return self.card.teacher_hash, self.card.hash()

    @property
    def name(self) -> str:
        """The teacher's."""
        return self.card.teacher

    def describe(self) -> str:
        """In a line: whose answers, to how many draws, stored how."""
        card = self.card
        kept = "" if card.storage.top_k is None else f"the {card.storage.top_k} highest "
        return (
            f"{card.teacher} (SHA-256 {card.teacher_hash[:12]}) by its logits in {self.folder}: "
            f"{card.draws} draw{'s' * (card.draws > 1)} of the augmentation, {kept}"
            f"{card.storage.dtype}"
        )

    def placed(self, device: torch.device, *, cycle: int | None) -> Self:
        """The same for a run on ``device`` that shows ``cycle`` draws; None for all there are."""
        placed = copy.copy(self)
        placed.cycle = cycle or self.card.draws
        placed._device, placed._open = device, {}
        return placed

    def answer(self, batch: Batch, epoch: int) -> Outputs:
        """What the teacher said of a batch's images, and of their further views, in an epoch.

        Args:
            batch: its ``index`` is on the cache's device; pixels are not looked at.
            epoch: of the stage, 0-based.
        """
        draw = epoch % self.cycle
        views = {name: Outputs(self._look_up(name, draw, batch.index)) for name in batch.views}
        return Outputs(self._look_up("", draw, batch.index), views=views)

    def logits_of(self, split: str, fingerprint: str) -> Tensor:
        """``(N, K)`` of "val" or "test", in the order of the images.

        Raises:
            CacheError: if they are of other images than those of ``fingerprint``.
        """
        if split == "train" or self.card.split_hashes.get(split) != fingerprint:
            raise CacheError(
                f"{self.folder} holds no logits of these {split} images, unaugmented; ask the "
                "teacher itself, or cache again for these data in another folder"
            )
        return Storage.decode(self._read(split), self.card.num_classes)

    def before_training(self, batch: Batch, stage: str) -> Outputs:
        """What a method is built from: an answer with the features and the classifier it asks for.

        Args:
            batch: the first training images.
            stage: of the method's.
        """
        stored = self._prepared(f"{stage}.")
        features = {
            name.removeprefix("features."): value[: len(batch)]
            for name, value in stored.items()
            if name.startswith("features.")
        }
        classifier = None
        if "classifier.weight" in stored:
            classifier = Classifier(stored["classifier.weight"], stored.get("classifier.bias"))
        answer = self.answer(batch, 0)
        return Outputs(answer.logits, features=features, classifier=classifier, views=answer.views)

    def buffers(self, stage: str) -> dict[str, Tensor]:
        """What a method's pass over the data had found: its buffers by name."""
        return self._prepared(f"{stage}.buffers.")

    def _prepared(self, prefix: str) -> dict[str, Tensor]:
        if self.card.method is None:
            return {}
        path = self.folder / METHOD_FILE
        self._check_content(path)
        return {
            name.removeprefix(prefix): value.to(self._device)
            for name, value in load_file(path).items()
            if name.startswith(prefix)
        }

    def _look_up(self, view: str, draw: int, index: Tensor) -> Tensor:
        now, fields = self._open.get(view, (-1, {}))
        if now != draw:
            fields = self._read(draw_name(view, draw))
            self._open[view] = (draw, fields)
        rows = {name: value.index_select(0, index) for name, value in fields.items()}
        return Storage.decode(rows, self.card.num_classes)

    def _read(self, name: str) -> dict[str, Tensor]:
        """An array's fields on the run's device; on the host they stay memory-mapped."""
        rows = self._map(name)
        self._check_content(self._path(name))
        return {field: torch.from_numpy(rows[field]).to(self._device) for field in rows.dtype.names}

    def _map(self, name: str) -> np.ndarray[Any, Any]:
        """An array in its file."""
        path = self._path(name)
        num_images, storage = self._rows[name]
        try:
            rows = np.load(path, mmap_mode="c")  # nobody writes; torch takes no read-only array
        except FileNotFoundError:
            raise CacheError(f"{path} is missing; delete the folder and cache again") from None
        except (OSError, ValueError, EOFError):
            raise CacheError(
                f"{path} is cut short or damaged; delete the folder and cache again"
            ) from None
        if rows.shape != (num_images,) or rows.dtype != storage.row(self.card.num_classes):
            raise CacheError(
                f"{path} holds {rows.shape} rows of {rows.dtype}, and not the {num_images} that "
                f"{CARD_FILE} counts; delete the folder and cache again"
            )
        mapped: np.ndarray[Any, Any] = rows
        return mapped

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _check_content(self, path: Path) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.card.files.get(path.name):
            raise CacheError(
                f"{path} is damaged: its SHA-256 is not the recorded one; delete the folder and "
                "cache again"
            )
