"""The networks of a run, built from settings; and a finished run's student, loaded again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import Field, JsonValue
from torch import nn

from limbeck.core.errors import CheckpointError, ModelError, UnknownNameError
from limbeck.core.normalization import Normalization
from limbeck.core.settings import Settings
from limbeck.core.types import keyed_generator
from limbeck.data import DataBundle
from limbeck.engine.freezing import match_parts
from limbeck.features import LogitNetwork
from limbeck.layers import classifier_names
from limbeck.methods.base import OwnNetwork
from limbeck.methods.feature.simkd import ReusedClassifier, ReusedClassifierConfig
from limbeck.models import (
    OpenedModel,
    fill_network,
    is_vision_name,
    load_weights,
    make_ready,
    open_model,
    read_weights,
    without_prefix,
)
from limbeck.runs.class_map import read_class_map
from limbeck.runs.config import RunConfig, StudentConfig, TeacherConfig
from limbeck.runs.folder import RunFolder, read_json
from limbeck.teacher import Teacher, TeacherEnsemble, state_hash

__all__ = [
    "DataFacts",
    "NamedNetwork",
    "StudentCard",
    "build_own_networks",
    "build_student",
    "build_teacher",
    "join_teachers",
    "load_student",
    "refuse_same_teachers",
    "take_student",
    "take_teacher",
]


class StudentCard(Settings):
    """What ``student.safetensors`` is of: ``student.json``.

    Attributes:
        model: its name; ``python:CLASS`` for a module that was passed in.
        num_classes: outputs.
        in_chans: channels of the images it was trained on.
        image_size: their height and width.
        class_names: in the order of the outputs.
        normalization: of images in [0, 1]; also the size and channels that it is fed, where they
            are others than the images'.
        model_kwargs: further arguments it was made with.
        reused_classifier: where it is cut and what follows, if a teacher's classifier took the
            place of its own; None otherwise.
    """

    model: str
    num_classes: int
    in_chans: int
    image_size: tuple[int, int]
    class_names: tuple[str, ...]
    normalization: Normalization
    model_kwargs: dict[str, JsonValue] = Field({})
    reused_classifier: ReusedClassifierConfig | None = None


@dataclass(frozen=True)
class NamedNetwork:
    """A network, its normalisation, and what to call it.

    Attributes:
        network: with its weights.
        normalization: its own, with size and channels.
        name: for people.
        classes: which of its classes are the data's, in the data's order; None for all.
        frozen: names of parts that do not train.
        notes: what is worth saying of it.
        members: of several teachers, each; the network is then all of them together.
    """

    network: nn.Module
    normalization: Normalization
    name: str
    classes: tuple[int, ...] | None = None
    frozen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    members: tuple[NamedNetwork, ...] = ()

    @property
    def each(self) -> tuple[NamedNetwork, ...]:
        """The members, or itself where it is one network."""
        return self.members or (self,)

    def answering(self, device: torch.device | None = None) -> LogitNetwork:
        """From images in [0, 1] to logits of the data's classes, on ``device``."""
        network = LogitNetwork(self.network, normalization=self.normalization, classes=self.classes)
        return network.to(device)


@dataclass(frozen=True)
class DataFacts:
    """What networks must know of the data.

    Attributes:
        class_names: in the order of the labels.
        image_shape: ``(C, H, W)``.
        normalization: the data's own.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalization: Normalization

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image_shape[1:]


def _facts(data: DataBundle | DataFacts) -> DataFacts:
    if isinstance(data, DataFacts):
        return data
    return DataFacts(data.train.class_names, data.image_shape, data.normalization)


# -- students ----------------------------------------------------------------------------------


def build_student(
    config: StudentConfig, bundle: DataBundle, *, seed: int, typed: Collection[str] = ()
) -> NamedNetwork:
    """The student, its weights drawn from the seed, published, or read from a file or a run.

    Raises:
        UnknownNameError: with the nearest names, for an unknown model or part to freeze.
        ModelError: if the network cannot be made.
        CheckpointError: if the weights to start from are of another network.
    """
    data = _facts(bundle)
    start = None if config.initial_checkpoint is None else Path(config.initial_checkpoint)
    card = None
    if start is not None and start.is_dir():
        card = _read_card(start)
        start = _weights_of(start)
    opened = open_model(
        config.name,
        num_classes=len(data.class_names),
        in_chans=config.in_chans or data.image_shape[0],
        data_size=data.size,
        img_size=_size(config) or (card.normalization.image_size if card else None),
        pretrained=config.pretrained,
        own_size=start is not None and card is None,
        model_kwargs=config.model_kwargs,
        seed=seed,
        allow_code=config.name in typed,
    )
    own = config.normalization or (card.normalization if card else opened.normalization)
    return _student(config, opened, own, data, start, seed)


def take_student(
    network: nn.Module, config: StudentConfig, bundle: DataBundle, *, seed: int
) -> NamedNetwork:
    """A module that was passed in, made fit to train, with what the settings say of it."""
    _refuse_making(config)
    start = None if config.initial_checkpoint is None else Path(config.initial_checkpoint)
    if start is not None and start.is_dir():
        start = _weights_of(start)
    data = _facts(bundle)
    opened = _passed_in(network, config, data)
    return _student(config, opened, config.normalization, data, start, seed)


def _student(
    config: StudentConfig,
    opened: OpenedModel,
    own: Normalization | None,
    data: DataFacts,
    start: Path | None,
    seed: int,
) -> NamedNetwork:
    normalization = _normalization(own, opened, data)
    notes = list(opened.notes)
    notes += make_ready(opened.network, normalization.input_shape(data.image_shape), seed=seed)
    if start is not None:
        notes += _start_from(opened.network, start, fresh_head=config.new_head)
    elif config.new_head and not opened.notes:  # a head of other classes is new already
        notes += _fresh_head(opened.network, config.name, seed)
    frozen = match_parts(opened.network, config.freeze)
    if frozen:
        notes.append(f"student: {', '.join(config.freeze)} rest: {len(frozen)} parts by name")
    notes += _conversions("student", config.name, normalization, data)
    return NamedNetwork(
        opened.network, normalization, config.name, frozen=frozen, notes=tuple(notes)
    )


def _start_from(network: nn.Module, path: Path, *, fresh_head: bool) -> list[str]:
    """Fill a network from a file, but for a classifier of another number of classes."""
    state = without_prefix(read_weights(path), network)
    own = network.state_dict()
    kept = []
    for head in _heads(network):
        weight = f"{head}.weight"
        given = state.get(weight)
        other = (
            given is not None
            and given.shape[1:] == own[weight].shape[1:]
            and given.shape[0] != own[weight].shape[0]
        )
        if given is not None and (other or fresh_head):
            kept.append(f"{head} ({len(own[weight])} classes, in the file {len(given)})")
            for name in (weight, f"{head}.bias"):
                if name in own:
                    state[name] = own[name]
    fill_network(network, state, source=path)
    return [f"student: weights of {path}; a new head: {', '.join(kept)}"] if kept else []


def _fresh_head(network: nn.Module, name: str, seed: int) -> list[str]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for head in _heads(network):
            network.get_submodule(head).reset_parameters()  # type: ignore[operator]
    return [f"student: {name} with a new head: {', '.join(_heads(network))}"]


def _heads(network: nn.Module) -> tuple[str, ...]:
    """Names of its linear classifiers, one as a rule."""
    try:
        return classifier_names(network)
    except ModelError:  # without one, all of the file must fit
        return ()


# -- teachers ----------------------------------------------------------------------------------


def build_teacher(
    config: TeacherConfig,
    bundle: DataBundle | DataFacts,
    *,
    typed: Collection[str] = (),
    scores: bool = True,
) -> NamedNetwork:
    """The teacher with its weights, or several.

    Args:
        config: what it is.
        bundle: the data.
        typed: names that may run code.
        scores: whether its class scores are wanted; without them, its classes may be any.

    Raises:
        UnknownNameError: with the nearest names, for an unknown model.
        ModelError: if the teacher has other classes than the data, and no class map says which;
            if one of several is there twice; or if a cache of its logits is all there is.
        CheckpointError: if its weights are of another network.
    """
    data = _facts(bundle)
    if config.members:
        return join_teachers([build_teacher(one, data, typed=typed) for one in config.members])
    if config.run is not None:
        return _teacher_of_run(config, data, typed, scores=scores)
    if config.name is None:
        raise ModelError(
            f"the teacher is known by its cached logits alone ({config.cache}), and these are of "
            "the data's own images; for others name the network itself"
        )
    opened = _open_teacher(config, config.name, data, typed, scores=scores)
    normalization = _normalization(config.normalization or opened.normalization, opened, data)
    return _teacher(config, opened, normalization, config.name, data, scores=scores)


def take_teacher(network: nn.Module, config: TeacherConfig, bundle: DataBundle) -> NamedNetwork:
    """A module that was passed in, with what the settings say of it."""
    _refuse_making(config)
    assert config.name is not None
    data = _facts(bundle)
    opened = _passed_in(network, config, data)
    normalization = _normalization(config.normalization, opened, data)
    return _teacher(config, opened, normalization, config.name, data)


def refuse_same_teachers(teachers: Sequence[tuple[str, object]]) -> None:
    """Refuse one that is there twice.

    Args:
        teachers: name, and what makes it what it is.

    Raises:
        ModelError: naming both places.
    """
    seen: dict[object, int] = {}
    for number, (name, key) in enumerate(teachers, start=1):
        if key in seen:
            raise ModelError(
                f"teachers {seen[key]} and {number} are the same: {name}, with equal weights. "
                "Two that always agree teach what one does; leave one of them out"
            )
        seen[key] = number


def join_teachers(teachers: Sequence[NamedNetwork]) -> NamedNetwork:
    """Several teachers as one that answers by their mean probability; they are frozen.

    Raises:
        ModelError: if one of them is there twice.
    """
    refuse_same_teachers(
        [(one.name, (state_hash(one.network), one.normalization, one.classes)) for one in teachers]
    )
    network = TeacherEnsemble(
        [
            Teacher(one.network, normalization=one.normalization, classes=one.classes)
            for one in teachers
        ]
    )
    return NamedNetwork(
        network,
        Normalization(),
        " + ".join(one.name for one in teachers),
        notes=tuple(note for one in teachers for note in one.notes),
        members=tuple(teachers),
    )


def _teacher_of_run(
    config: TeacherConfig, data: DataFacts, typed: Collection[str], *, scores: bool
) -> NamedNetwork:
    assert config.run is not None
    loaded, card = load_student(config.run, typed=typed)
    mine, theirs = data.class_names, card.class_names
    if scores and config.class_map is None and mine != theirs:
        advice = "use a teacher of the same classes"
        if set(mine) <= set(theirs):
            numbers = ", ".join(str(theirs.index(name)) for name in mine)
            advice += f", or say which of its classes these are: teacher.class_map=[{numbers}]"
        raise ModelError(
            f"teacher {config.run} was trained on {len(theirs)} classes ({_some(theirs)}), the "
            f"data has {len(mine)} ({_some(mine)}); {advice}"
        )
    trained = loaded.normalization.input_shape((card.in_chans, *card.image_size))
    size = _size(config) or (None if trained[1:] == data.size else trained[1:])
    opened = OpenedModel(loaded.network, None, size, trained[0], card.num_classes)
    own = config.normalization or loaded.normalization
    normalization = _normalization(own, opened, data)
    return _teacher(config, opened, normalization, loaded.name, data, scores=scores)


def _open_teacher(
    config: TeacherConfig, name: str, data: DataFacts, typed: Collection[str], *, scores: bool
) -> OpenedModel:
    """Made as its weights want it, and filled with them."""

    def make(num_classes: int | None) -> OpenedModel:
        own = config.pretrained  # the channels of its weights are its own
        return open_model(
            name,
            num_classes=num_classes,
            in_chans=config.in_chans or (None if own else data.image_shape[0]),
            data_size=data.size,
            img_size=_size(config),
            pretrained=config.pretrained,
            own_size=True,
            model_kwargs=config.model_kwargs,
            allow_code=name in typed,
        )

    if config.checkpoint is None:
        return make(None if config.pretrained else len(data.class_names))
    # A backbone that was published without a classifier has none in its file.
    opened = make(len(data.class_names) if scores or not is_vision_name(name) else None)
    make_ready(opened.network, _normalization(None, opened, data).input_shape(data.image_shape))
    path = Path(config.checkpoint)
    if config.class_map is None and scores:
        load_weights(opened.network, path)
        return opened
    state = without_prefix(read_weights(path), opened.network)
    heads = [state[f"{h}.weight"] for h in _heads(opened.network) if f"{h}.weight" in state]
    if heads and opened.num_classes and len(heads[0]) != opened.num_classes:
        opened = make(len(heads[0]))
    if not scores:  # then a file without a classifier will do
        own = opened.network.state_dict()
        names = [f"{h}.{part}" for h in _heads(opened.network) for part in ("weight", "bias")]
        state = {name: own[name] for name in names if name in own} | state
    fill_network(opened.network, state, source=path)
    return opened


def _teacher(
    config: TeacherConfig,
    opened: OpenedModel,
    normalization: Normalization,
    name: str,
    data: DataFacts,
    *,
    scores: bool = True,
) -> NamedNetwork:
    notes = list(opened.notes)
    notes += make_ready(opened.network, normalization.input_shape(data.image_shape))
    classes = None
    if config.class_map is not None:
        classes = read_class_map(config.class_map, data.class_names)
        pairs = (f"{k}={v}" for k, v in zip(data.class_names, classes, strict=True))
        notes.append(f"teacher {name}: its classes by class_map: {_some(tuple(pairs))}")
    elif scores and config.pretrained and opened.num_classes != len(data.class_names):
        raise ModelError(
            f"the published weights of {name} are of {opened.num_classes} classes, the data has "
            f"{len(data.class_names)} ({_some(data.class_names)}). Say which of them are the "
            "data's (teacher.class_map), or train it on the data first: limbeck train --student "
            f"{name} --pretrained, and give that run as the teacher"
        )
    notes += _conversions("teacher", name, normalization, data)
    return NamedNetwork(opened.network, normalization, name, classes=classes, notes=tuple(notes))


# -- networks of single stages -----------------------------------------------------------------


def build_own_networks(
    config: RunConfig, bundle: DataBundle, *, typed: Collection[str] = ()
) -> dict[str, NamedNetwork]:
    """Networks that a method brings beside the run's two, by the names of stages and peers.

    Raises:
        UnknownNameError: with the nearest names, for an unknown model.
        ModelError: if one of them cannot be made, or is the student.
        RunFolderError: if a folder holds no trained network.
    """
    found = {}
    for stage in config.stages():
        if OwnNetwork() in stage.peers:
            _check_peers_differ(config.student)
        for name, own in stage.own_networks().items():
            found[name] = _own_network(name, own, config, bundle, typed)
    return found


def _check_peers_differ(student: StudentConfig) -> None:
    """Two networks with the same weights stay the same, and teach each other nothing."""
    if student.pretrained or student.initial_checkpoint is not None:
        raise ModelError(
            f"a peer like the student ({student.name}) would start from the same weights and stay "
            "its copy; name another model (--peers), or draw the student's weights anew"
        )


def _own_network(
    name: str, own: OwnNetwork, config: RunConfig, bundle: DataBundle, typed: Collection[str]
) -> NamedNetwork:
    if own.run is not None:
        named = build_teacher(TeacherConfig(run=own.run), bundle, typed=typed)
        if named.name == config.student.name:
            raise ModelError(
                f"{name} {own.run} is of the student's own model, {named.name!r}; name another "
                "network, larger than the student"
            )
        return replace(named, notes=(f"{named.name} of {own.run}, trained already", *named.notes))
    if own.model is None and config.student.name.startswith("python:"):
        raise ModelError(
            f"{name} is another network like the student, and is made by its name; the student "
            f"({config.student.name}) was passed in as a module. Give the student by name: that of "
            "a model, or file.py:function"
        )
    settings = config.student if own.model is None else StudentConfig(name=own.model)
    seed = keyed_generator(config.seed, "network", name).initial_seed()
    try:
        return build_student(settings, bundle, seed=seed, typed=typed)
    except UnknownNameError as error:
        raise ModelError(
            f"{name}: {error} Nor is there a folder of this name, with a finished run"
        ) from None


# -- finished runs -----------------------------------------------------------------------------


def load_student(
    run: str | Path, *, best: bool = False, typed: Collection[str] = ()
) -> tuple[NamedNetwork, StudentCard]:
    """A finished run's student in eval mode, and its card.

    Args:
        run: the run folder.
        best: the best epoch on validation instead of the last.
        typed: names the user gave here and now; a student named ``file.py:function`` is
            imported only if it is among them.

    Raises:
        RunFolderError: if the folder is no finished run.
        CheckpointError: if its weights cannot be used.
    """
    card = _read_card(run)
    weights = _weights_of(run, best=best)
    if card.model.startswith("python:"):
        inside = ""
        if card.reused_classifier is not None:
            inside = (
                "put it into limbeck.methods.feature.simkd.ReusedClassifier with the settings in "
                f"{RunFolder(run).student_card}, "
            )
        raise ModelError(
            f"{run} was trained from a module passed in Python ({card.model}); build it, {inside}"
            f"and load {weights} into it with limbeck.models.load_weights"
        )
    opened = open_model(
        card.model,
        num_classes=card.num_classes,
        in_chans=card.normalization.in_chans or card.in_chans,
        data_size=card.image_size,
        img_size=card.normalization.image_size,
        model_kwargs=card.model_kwargs,
        allow_code=card.model in typed,
    )
    network = opened.network
    make_ready(network, card.normalization.input_shape((card.in_chans, *card.image_size)))
    if card.reused_classifier is not None:
        network = ReusedClassifier(network, card.reused_classifier)
    load_weights(network, weights)
    return NamedNetwork(network.eval(), card.normalization, card.model), card


def _read_card(run: str | Path) -> StudentCard:
    return StudentCard.read(read_json(RunFolder(run).student_card))


def _weights_of(run: str | Path, *, best: bool = False) -> Path:
    folder = RunFolder(run)
    weights = folder.student_best if best else folder.student
    if not weights.exists():
        raise CheckpointError(
            f"{weights} is missing"
            + ("; the run had no validation split" if best else "; the run is not finished")
        )
    return weights


# -- both --------------------------------------------------------------------------------------


def _size(config: StudentConfig | TeacherConfig) -> tuple[int, int] | None:
    return None if config.img_size is None else (config.img_size, config.img_size)


def _refuse_making(config: StudentConfig | TeacherConfig) -> None:
    if config.pretrained or config.model_kwargs:
        raise ModelError(
            f"{config.name} was passed in as a module: pretrained and model_kwargs are for a "
            "network that is made by its name; leave them out"
        )


def _passed_in(
    network: nn.Module, config: StudentConfig | TeacherConfig, data: DataFacts
) -> OpenedModel:
    channels = config.in_chans or data.image_shape[0]
    return OpenedModel(network, None, _size(config), channels, len(data.class_names))


def _normalization(
    own: Normalization | None, opened: OpenedModel, data: DataFacts
) -> Normalization:
    """The network's normalisation, else the data's; with size and channels where they matter."""
    found = own or data.normalization
    size = found.image_size or opened.image_size
    channels = found.in_chans or opened.in_chans
    changes: dict[str, object] = {}
    if size != found.image_size:
        changes["image_size"] = size
    if channels not in (found.in_chans, data.image_shape[0]):
        changes["in_chans"] = channels
    if own is None:  # the data's constants are of the data's channels
        for name in ("mean", "std"):
            values: Sequence[float] = getattr(found, name)
            if len(values) not in (1, channels):
                changes[name] = (sum(values) / len(values),)
    return found.changed(**changes) if changes else found


def _conversions(whose: str, name: str, normalization: Normalization, data: DataFacts) -> list[str]:
    """What becomes of the images before this network sees them, where it is not what it seems."""
    notes = []
    channels, height, width = normalization.input_shape(data.image_shape)
    if (height, width) != data.size:
        notes.append(
            f"{whose} {name}: images of {data.size[0]} x {data.size[1]} are resized to "
            f"{height} x {width} for it; {whose}.img_size sets another size"
        )
    if channels != data.image_shape[0]:
        how = "grey images are repeated" if channels > 1 else "colour images become grey"
        notes.append(f"{whose} {name}: {how}, as it takes {channels} channels")
    return notes


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
