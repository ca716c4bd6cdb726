"""Store a teacher's answers to the images of a run, and see whether a run may learn from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, JsonValue, field_validator, model_validator
from torch import Tensor

from limbeck._version import __version__
from limbeck.core.errors import CacheError, RunFolderError, SettingsError
from limbeck.core.settings import Settings
from limbeck.core.types import Batch, Outputs
from limbeck.data import (
    AugmentConfig,
    DataBundle,
    DataConfig,
    TrainLoader,
    build_data,
    eval_batches,
)
from limbeck.engine.config import TrainConfig
from limbeck.engine.distributed import pick_device
from limbeck.engine.probe import check_fit, dry_forward
from limbeck.engine.recorder import Observer, SilentObserver
from limbeck.methods import find_method
from limbeck.methods.base import Method, Probe, Stage
from limbeck.models import save_weights
from limbeck.runs.config import RunConfig, TeacherConfig, check_logits_suffice, resolved_method
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.networks import (
    DataFacts,
    NamedNetwork,
    build_teacher,
    refuse_same_teachers,
)
from limbeck.teacher import CachedEnsemble, Teacher, state_hash
from limbeck.teacher_cache import (
    CARD_FILE,
    METHOD_FILE,
    UNFINISHED_FILE,
    CacheCard,
    CachedTeacher,
    Storage,
    answers_file,
    draw_name,
    read_card,
)

__all__ = [
    "CacheConfig",
    "CachePlan",
    "check_cache",
    "make_cache",
    "open_teacher",
    "plan_cache",
]

_DRY_IMAGES = 8  # as many as a run builds its method from
_DRAWN_VIEWS = ("strong",)  # random whatever the augmentation is


class CacheConfig(Settings):
    """What a cache depends on.

    Attributes:
        seed: of the augmentation's draws and the splits, where they have none of their own.
        data: whose images.
        teacher: whose logits.
        method: that shall learn from them: its further views are stored, and what it asks of the
            teacher before training.
        train: precision, device, images at a time (``eval_batch_size``).
        storage: of each image's logits; the temperature of those left out is the method's own,
            where it has one and none is set.
    """

    seed: int = 0
    data: DataConfig = DataConfig()
    teacher: TeacherConfig
    method: dict[str, JsonValue] = Field({"name": "kd"})
    train: TrainConfig = TrainConfig()
    storage: Storage = Storage()

    @field_validator("method", mode="after")
    @classmethod
    def _method_is_known(cls, method: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return resolved_method(method)

    @model_validator(mode="after")
    def _answers_can_be_stored(self) -> CacheConfig:
        if self.teacher.is_cached:
            raise ValueError("a cache is made from the teacher itself; leave teacher.cache out")
        check_logits_suffice(str(self.method["name"]), self.stages())
        if _is_drawn(self.data.augment, self.views()) and self.data.augment.cycle is None:
            raise ValueError(
                "images are changed at random, anew in every epoch: say how many epochs' changes "
                "are stored, and come again in training (--augment-cycle 10), or leave the "
                "augmentation out"
            )
        return self

    def stages(self) -> tuple[Stage, ...]:
        """Of the method."""
        entry = find_method(str(self.method["name"]))
        settings = {key: value for key, value in self.method.items() if key != "name"}
        return entry.stages(entry.config.read(settings))

    def views(self) -> tuple[str, ...]:
        """Further views of each training image."""
        return _views_of(self.stages())


def _views_of(stages: Sequence[Stage]) -> tuple[str, ...]:
    views = (view for stage in stages for view in stage.method.needs(stage.config).views)
    return tuple(dict.fromkeys(views))


def _is_drawn(augment: AugmentConfig, views: Sequence[str]) -> bool:
    """Whether an epoch shows other pixels than the next."""
    plain = augment.changed(cycle=None, seed=None) == AugmentConfig()
    return not plain or any(view in _DRAWN_VIEWS for view in views)


def _kept(augment: AugmentConfig) -> dict[str, JsonValue]:
    """Settings of the augmentation without those that choose among its draws."""
    return {k: v for k, v in augment.plain().items() if k not in ("cycle", "seed")}


# -- making one --------------------------------------------------------------------------------


@dataclass(frozen=True)
class CachePlan:
    """A cache that can be made.

    Attributes:
        config: its settings.
        card: what it will say of itself, but for the hashes of its files.
        data: whose images.
        teacher: with its weights.
        folder: where.
        finished: whether it is there already.
        num_done: arrays of an interrupted attempt that are whole.
        num_bytes: that it takes on the disk in the end.
        num_bytes_free: on that disk.
    """

    config: CacheConfig
    card: CacheCard
    data: DataBundle
    teacher: NamedNetwork
    folder: Path
    finished: bool
    num_done: int
    num_bytes: int
    num_bytes_free: int


def plan_cache(
    config: CacheConfig,
    output: str | Path,
    *,
    typed: Collection[str] = (),
    data: DataBundle | None = None,
) -> CachePlan:
    """Check everything, and say how large the cache will be; nothing is written.

    Args:
        config: what is stored.
        output: its folder: empty, or with a part of this very cache.
        typed: names of models that the user gave here and now; these alone may run code.
        data: what the settings name, if the caller has it already.

    Raises:
        LimbeckError: for anything the caller can mend.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("a cache is made by one process; run `limbeck cache` without torchrun")
    folder = Path(output)
    if data is None:
        data = build_data(config.data, seed=config.seed)
    named = build_teacher(config.teacher, data, typed=typed)
    card = _card(config, data, named)
    num_bytes = card.num_bytes()
    finished = (folder / CARD_FILE).is_file()
    num_done = 0
    if finished:
        _check_same(folder, read_card(folder), card)
    elif (folder / UNFINISHED_FILE).is_file():
        _check_same(folder, CacheCard.read(read_json(folder / UNFINISHED_FILE)), card)
        num_done = sum((folder / f"{name}.npy").is_file() for name in card.rows())
    else:
        RunFolder(folder).check_free()
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return CachePlan(
        config=config,
        card=card,
        data=data,
        teacher=named,
        folder=folder,
        finished=finished,
        num_done=num_done,
        num_bytes=num_bytes,
        num_bytes_free=shutil.disk_usage(place).free,
    )


def make_cache(plan: CachePlan, *, observer: Observer | None = None) -> CacheCard:
    """Ask the teacher for every image, and write what is not there yet.

    Interrupted, it goes on behind the last draw that was whole; until the last one is, nobody
    takes the folder for a cache.

    Raises:
        RunFolderError: if another process is making it, or the disk is full.
        CacheError: if the teacher gives logits that are not finite.
    """
    if plan.finished:
        return read_card(plan.folder)
    _check_room(plan)
    folder, run = plan.folder, RunFolder(plan.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with run.locked():
        for left_over in folder.glob(".*.npy.*"):  # of a process that was killed
            left_over.unlink()
        run.write_json(folder / UNFINISHED_FILE, plan.card.plain())
        device = pick_device(plan.config.train.device)
        _answer_all(plan, device, observer or SilentObserver())
        names = [f"{name}.npy" for name in plan.card.rows()]
        if plan.card.method is not None:
            save_weights(_preparation(plan, device), folder / METHOD_FILE)
            names.append(METHOD_FILE)
        card = plan.card.changed(files={name: _sha256(folder / name) for name in names})
        run.write_json(folder / CARD_FILE, card.plain())
        (folder / UNFINISHED_FILE).unlink()
    return card


def _card(config: CacheConfig, data: DataBundle, named: NamedNetwork) -> CacheCard:
    """What the cache will say of itself, but for the hashes of its files."""
    views, augment = config.views(), config.data.augment
    drawn = _is_drawn(augment, views)
    assert augment.cycle is not None or not drawn
    config.storage.row(data.num_classes)  # raises where k is too large
    return CacheCard(
        version=__version__,
        teacher=named.name,
        teacher_hash=state_hash(named.network),
        normalization=named.normalization,
        classes=named.classes,
        amp_dtype=config.train.amp_dtype,
        num_classes=data.num_classes,
        num_images={split: len(source) for split, source in data.splits.items()},
        split_hashes=data.split_fingerprints(),
        augment=_kept(augment),
        seed=augment.key(config.seed, 0)[0] if drawn else None,
        draws=augment.cycle if drawn and augment.cycle is not None else 1,
        views=views,
        storage=_storage(config),
        method=_prepared_by(config.method, config.stages()),
        settings=_data_settings(config.data, config.seed),
    )


def _storage(config: CacheConfig) -> Storage:
    storage, temperature = config.storage, config.method.get("temperature")
    if storage.top_k is None or storage.temperature is not None:
        return storage
    return storage.changed(temperature=temperature if isinstance(temperature, float) else 1.0)


def _check_same(folder: Path, then: CacheCard, now: CacheCard) -> None:
    """Refuse to go on with a cache of something else.

    Raises:
        CacheError: naming what differs.
    """
    old, new = then.plain(), now.plain()
    differing = [
        f"{name} ({json.dumps(old[name])} there, {json.dumps(new[name])} now)"
        for name in new
        if name not in ("files", "settings") and old[name] != new[name]
    ]
    if differing:
        raise CacheError(
            f"{folder} holds another cache, or a part of one; what differs: "
            f"{'; '.join(differing)}. Choose another folder (--output)"
        )


def _check_room(plan: CachePlan) -> None:
    """Refuse a disk that is too small before the teacher is asked anything."""
    there = sum(path.stat().st_size for path in plan.folder.glob("*.npy"))
    wanted = plan.num_bytes - there
    if wanted > plan.num_bytes_free:
        raise RunFolderError(
            f"the cache takes {wanted / 2**20:,.0f} MiB, and {plan.num_bytes_free / 2**20:,.0f} "
            f"MiB are free in {plan.folder}; choose a folder on another disk (--output), or store "
            "less: --store float16, --top-k 10, or fewer epochs (--augment-cycle)"
        )


def _answer_all(plan: CachePlan, device: torch.device, observer: Observer) -> None:
    """Write every array that is not there."""
    config, data, card = plan.config, plan.data, plan.card
    named, layout = plan.teacher, config.train.memory_format
    teacher = Teacher(
        named.network.to(device).to(memory_format=layout),
        normalization=named.normalization,
        classes=named.classes,
    ).to(device)
    check_fit(
        Outputs(),
        dry_forward("teacher", teacher, _dry_batch(plan, device)),
        num_classes=data.num_classes,
    )
    size = min(config.train.eval_batch_size, len(data.train))
    loader = TrainLoader(
        data.train,
        batch_size=size,
        seed=config.seed,
        augment=config.data.augment,
        workers=config.train.workers,
        views=card.views,
        device=device,
    )

    def held_out(split: str) -> Callable[[], Iterator[Batch]]:
        workers = config.train.workers
        return lambda: eval_batches(data.splits[split], size, workers=workers, device=device)

    def drawn(draw: int) -> Callable[[], Iterator[Batch]]:
        return lambda: loader.in_order(draw)

    # Each piece: the files that one pass over the images fills, by view.
    pieces = [({"": split}, held_out(split)) for split in card.num_images if split != "train"]
    pieces += [
        ({view: draw_name(view, draw) for view in ("", *card.views)}, drawn(draw))
        for draw in range(card.draws)
    ]
    rows = card.rows()
    total = sum(rows[names[""]][0] for names, _ in pieces)
    done = 0
    for names, batches in pieces:
        paths = {view: plan.folder / f"{name}.npy" for view, name in names.items()}
        num_images, storage = rows[names[""]]
        if all(path.is_file() for path in paths.values()):
            done += num_images
            continue
        with ExitStack() as stack:
            files = {
                view: stack.enter_context(
                    answers_file(path, storage, num_images=num_images, num_classes=card.num_classes)
                )
                for view, path in paths.items()
            }
            for batch in batches():
                moved = batch.to(device, memory_format=layout)
                with config.train.autocast(device):
                    outputs = teacher.answer(moved, 0)
                for view, append in files.items():
                    append((outputs.views[view] if view else outputs).logits)
                done += len(batch)
                observer.step("cache", done, total)


# -- what a method asks of its teacher before training -----------------------------------------


def _is_prepared(stage: Stage) -> bool:
    """Whether a method wants more of its teacher than logits, before the first step."""
    needs = stage.method.needs(stage.config)
    has_pass = stage.method.prepare is not Method.prepare
    return needs.teacher and (has_pass or bool(needs.before_training))


def _prepared_by(
    method: Mapping[str, JsonValue], stages: Sequence[Stage]
) -> dict[str, JsonValue] | None:
    """The settings that decide what a method finds before training; None if it looks at nothing."""
    prepared = [stage for stage in stages if _is_prepared(stage)]
    if not prepared:
        return None
    named = [stage.method.needs(stage.config).before_training for stage in prepared]
    if not all(named):
        return dict(method)
    return {name: method[name] for name in ("name", *{n for names in named for n in names})}


def _preparation(plan: CachePlan, device: torch.device) -> dict[str, Tensor]:
    """By stage: what its method is built from, and what its pass over the data finds."""
    data, found = plan.data, {}
    for stage in filter(_is_prepared, plan.config.stages()):
        needs = stage.method.needs(stage.config)
        teacher = Teacher(
            plan.teacher.network,
            normalization=plan.teacher.normalization,
            layers=needs.teacher_layers,
            classifier=needs.teacher_classifier,
            classes=plan.teacher.classes,
        ).to(device)
        outputs = teacher.answer(_dry_batch(plan, device, needs.views), 0)
        for name, feature in outputs.features.items():
            found[f"{stage.name}.features.{name}"] = feature
        if outputs.classifier is not None:
            found[f"{stage.name}.classifier.weight"] = outputs.classifier.weight
            if outputs.classifier.bias is not None:
                found[f"{stage.name}.classifier.bias"] = outputs.classifier.bias
        # No student is there yet: the teacher stands in for one, as its steps read logits alone.
        probe = Probe(
            student=outputs,
            teacher=outputs,
            num_classes=data.num_classes,
            num_images=len(data.train),
            labels=data.train.labels,
        )
        method = stage.method.from_probe(stage.config, probe).to(device)
        config = plan.config.train
        whole = eval_batches(
            data.train, config.eval_batch_size, workers=config.workers, device=device
        )
        method.prepare(teacher, (b.to(device, memory_format=config.memory_format) for b in whole))
        for name, buffer in method.named_buffers():
            found[f"{stage.name}.buffers.{name}"] = buffer
        teacher.observed.tap.close()
    return found


def _dry_batch(plan: CachePlan, device: torch.device, views: Sequence[str] = ()) -> Batch:
    """The first training images as they are; each view shows the same."""
    source = plan.data.train
    index = torch.arange(min(_DRY_IMAGES, len(source)))
    first = next(iter(eval_batches(source.subset(index), len(index))))
    first = dataclasses.replace(first, views=dict.fromkeys(views, first.image))
    return first.to(device, memory_format=plan.config.train.memory_format)


# -- using one ---------------------------------------------------------------------------------


def open_teacher(
    config: TeacherConfig,
    data: DataBundle | DataFacts,
    *,
    typed: Collection[str] = (),
    network: NamedNetwork | None = None,
    scores: bool = True,
) -> NamedNetwork | CachedTeacher:
    """The teacher that the settings name, or the cache of its logits.

    Args:
        config: where a teacher is named beside its cache, the cache must be of this one.
        data: whose classes it must have.
        typed: names of models that the user gave here and now; these alone may run code.
        network: the teacher, where it was passed in.
        scores: whether its class scores are wanted; without them, its classes may be any.

    Raises:
        CacheError: if the cache is not whole, or of another teacher.
    """
    if config.members and config.is_cached:
        each = [open_teacher(one, data, typed=typed, scores=scores) for one in config.members]
        stored = [one for one in each if isinstance(one, CachedTeacher)]
        refuse_same_teachers(
            [
                (one.name, (card.teacher_hash, card.normalization, card.classes))
                for one in stored
                for card in (one.card,)
            ]
        )
        return CachedEnsemble(stored)
    named = network
    if named is None and (config.run is not None or config.name is not None or config.members):
        named = build_teacher(config, data, typed=typed, scores=scores)
    if config.cache is None:
        assert named is not None
        return named
    cached = CachedTeacher(config.cache)
    if named is not None:
        _check_of(cached, named)
    return cached


def _check_of(cached: CachedTeacher, named: NamedNetwork) -> None:
    card = cached.card
    now = {
        "weights": state_hash(named.network)[:12],
        "normalization": named.normalization,
        "class_map": named.classes,
    }
    then = {
        "weights": card.teacher_hash[:12],
        "normalization": card.normalization,
        "class_map": card.classes,
    }
    differing = [f"{n} ({then[n]} cached, {now[n]} now)" for n in now if then[n] != now[n]]
    if differing:
        raise CacheError(
            f"{cached.folder} holds the logits of another teacher than {named.name}; what differs: "
            f"{'; '.join(differing)}. Leave the teacher out to learn from the cache as it is, or "
            "cache this teacher's in another folder"
        )


def check_cache(cached: CachedTeacher, config: RunConfig, split_hashes: Mapping[str, str]) -> None:
    """Refuse a run that shows other images than those the teacher has answered.

    Args:
        cached: its teacher.
        config: the run.
        split_hashes: fingerprints of the run's splits.

    Raises:
        CacheError: naming all that differs, and what to do.
    """
    for one in cached.each:
        faults = [
            *_data_faults(one.card, config, split_hashes),
            *_augment_faults(one.card, config),
            *_method_faults(one.card, config),
        ]
        if not faults:
            continue
        raise CacheError(
            f"{one.folder} does not answer what this run asks:"
            + "".join(f"\n  {fault}" for fault in faults)
            + "\nTrain with what was cached (--set NAME=VALUE), or cache this in another folder"
        )


def _data_faults(
    card: CacheCard, config: RunConfig, split_hashes: Mapping[str, str]
) -> Iterator[str]:
    wrong = [s for s, found in split_hashes.items() if card.split_hashes.get(s) != found]
    if not wrong:
        return
    old, new = card.settings, _data_settings(config.data, config.seed)
    differing = [
        f"{name} ({json.dumps(old.get(name))} cached, {json.dumps(new[name])} now)"
        for name in new
        if old.get(name) != new[name]
    ]
    yield f"other {' and '.join(wrong)} images, labels or classes: " + (
        "; ".join(differing) or "the settings are the same, so the files have changed"
    )


def _augment_faults(card: CacheCard, config: RunConfig) -> Iterator[str]:
    augment, views = config.data.augment, _views_of(config.stages())
    now = _kept(augment)
    for name in sorted(now.keys() | card.augment.keys()):
        if card.augment.get(name) != now.get(name):
            then = json.dumps(card.augment.get(name))
            yield f"data.augment.{name} ({then} cached, {json.dumps(now.get(name))} now)"
    missing = [view for view in views if view not in card.views]
    if missing:
        yield (
            f"method {config.method_name!r} shows its teacher the view {missing[0]!r} of every "
            f"image, which was not cached: limbeck cache --method {config.method_name}"
        )
    if not _is_drawn(augment, views) or card.seed is None:
        return
    seed = augment.key(config.seed, 0)[0]
    if seed != card.seed:
        yield (
            f"the seed of the augmentation ({card.seed} cached, {seed} now): "
            f"--augment-seed {card.seed}"
        )
    draws = augment.cycle or max(config.stage_epochs())
    if draws > card.draws:
        yield (
            f"{draws} epochs are augmented in different ways, and {card.draws} were cached: "
            f"--augment-cycle {card.draws}"
        )


def _method_faults(card: CacheCard, config: RunConfig) -> Iterator[str]:
    wanted = _prepared_by(config.method, config.stages())
    if wanted is None or card.method == wanted:
        return
    name = config.method_name
    if card.method is None or card.method["name"] != name:
        yield (
            f"method {name!r} asks more of its teacher than logits before it trains, and that was "
            f"not cached: limbeck cache --method {name}"
        )
        return
    differing = [
        f"method.{key} ({json.dumps(card.method.get(key))} cached, {json.dumps(value)} now)"
        for key, value in wanted.items()
        if card.method.get(key) != value
    ]
    yield f"what {name!r} asked of its teacher before training: {'; '.join(differing)}"


def _data_settings(data: DataConfig, seed: int) -> dict[str, JsonValue]:
    """What decides which images are in which split, by dotted name."""
    values = data.plain() | {"split_seed": seed if data.split_seed is None else data.split_seed}
    return {f"data.{k}": v for k, v in values.items() if k not in ("data_dir", "augment")}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
