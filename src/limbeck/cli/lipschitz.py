"""``inspect --lipschitz``: how teacher, student and untaught student stretch the same images."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from limbeck.cli.terminal import make_console, printable, printable_lines
from limbeck.core.errors import DataError, LimbeckError, SettingsError, UnknownNameError
from limbeck.data import DataBundle, DataConfig, ImageSource, build_data
from limbeck.engine.distributed import pick_device
from limbeck.runs.config import RunConfig, StudentConfig
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.lipschitz import LipschitzPart, LipschitzProfile, lipschitz_profile
from limbeck.runs.networks import NamedNetwork, build_student, build_teacher, load_student

__all__ = ["show_lipschitz"]

_MOST_IMAGES = 1000
_AT_ONCE = 64  # images of one forward pass


def show_lipschitz(
    model: str | None,
    *,
    independent: Path | None,
    dataset: str | None,
    data_dir: str | None,
    num_classes: int | None,
    in_chans: int | None,
    img_size: int | None,
    split: str,
    device: str,
    typed: Collection[str],
    as_json: bool,
) -> None:
    """Print the Lipschitz profiles of a run's networks, or of a model with fresh weights.

    A run's are written into its folder too, where the report of a comparison finds them.

    Args:
        model: a run folder; or a model's name or ``file.py:function``.
        independent: a run of the same student that no teacher taught.
        dataset: whose images a model is shown; None takes digits for a ``digits_`` model.
        data_dir: where its files lie.
        num_classes: None, since the images say it.
        in_chans: None, for the same reason.
        img_size: the side of a model's images, where they are a folder.
        split: of the images; of more than a thousand, so many are taken, evenly spaced.
        device: where to compute.
        typed: names that may run code, beside ``model`` itself where it is no run.
        as_json: print one JSON object.
    """
    where = pick_device(device)
    if model is None:
        raise SettingsError("--lipschitz needs a run's folder, or a model's name and --dataset")
    if (num_classes, in_chans) != (None, None):
        raise SettingsError(
            "a Lipschitz profile takes classes and channels from its images; leave out "
            "--num-classes and --in-chans"
        )
    run = RunFolder(model) if RunFolder(model).path.is_dir() else None
    if run is not None:
        if (dataset, data_dir, img_size) != (None, None, None):
            raise SettingsError(
                f"{model} is a run, whose images are known; leave out --dataset, --data-dir and "
                "--img-size"
            )
        data, networks, notices = _of_run(run, typed)
    else:
        data = _data_for(model, dataset, data_dir, img_size)
        student = build_student(StudentConfig(name=model), data, seed=0, typed=[*typed, model])
        networks, notices = {"model": student}, [f"{model} has fresh weights, drawn from seed 0"]
    if independent is not None:
        networks["independent"] = _independent(independent, data, typed)
    if split not in data.splits:
        raise UnknownNameError("split", split, data.splits)
    source = data.splits[split]
    count = min(len(source), _MOST_IMAGES)
    index = torch.linspace(0, len(source) - 1, count).round().long()  # evenly spaced
    profiles = {
        role: lipschitz_profile(named, _batches(source, index), device=where)
        for role, named in networks.items()
    }
    found = {role: asdict(profile) for role, profile in profiles.items()}
    values = {"split": split, "num_images": len(index), "notices": notices, "networks": found}
    if run is not None:
        run.write_json(run.lipschitz, values)
    if as_json:
        print(json.dumps(values))  # noqa: T201
        return
    console = make_console()
    console.print(
        f"The largest singular value of consecutive stages' maps, mean ± sd over {len(index):,} "
        f"of {len(source):,} images ({split}):\n"
    )
    console.print(_table(profiles, _sigma))
    console.print("\nThe product of the layers' spectral norms, and the number of layers:\n")
    table = _table(profiles, _product)
    table.add_row("image to logits", *map(_product, profiles.values()))
    console.print(table)
    console.print(
        "\nNeither is a bound on the network's Lipschitz constant: see docs/relations.md."
    )
    for notice in notices:
        console.print(printable_lines(notice))
    if run is not None:
        console.print(
            f"{run.lipschitz.name} is in {printable(model)}, for the report of its comparison.",
            soft_wrap=True,
        )


def _of_run(
    run: RunFolder, typed: Collection[str]
) -> tuple[DataBundle, dict[str, NamedNetwork], list[str]]:
    """Its data, its teacher and its student, and why one of them is not there."""
    config = RunConfig.read(read_json(run.config))
    student, _ = load_student(run.path, typed=typed)
    data = build_data(config.data, seed=config.seed)
    networks = {}
    notices = []
    if config.teacher is not None:
        try:
            networks["teacher"] = build_teacher(config.teacher, data, typed=typed)
        except LimbeckError as error:  # the student can be shown without it
            notices.append(f"the teacher is not shown: {error}")
    networks["student"] = student
    return data, networks, notices


def _data_for(
    model: str, dataset: str | None, data_dir: str | None, img_size: int | None
) -> DataBundle:
    if dataset is None and not model.startswith("digits_"):
        raise SettingsError(
            f"a Lipschitz profile is of images, and the model {model} has none by itself; give a "
            "finished run, or name them with --dataset (and --data-dir)"
        )
    values = {"dataset": dataset, "data_dir": data_dir, "image_size": img_size}
    given = {name: value for name, value in values.items() if value is not None}
    return build_data(DataConfig.read(given), seed=0)


def _independent(run: Path, data: DataBundle, typed: Collection[str]) -> NamedNetwork:
    """A run's student, if nobody taught it and it takes these images."""
    config = RunConfig.read(read_json(RunFolder(run).config))
    if config.teacher is not None:
        raise SettingsError(
            f"{run} was taught by {config.teacher.run or config.teacher.name}, and --independent "
            "is the student that nobody taught: give a run of `limbeck train`, or the baseline of "
            "a comparison"
        )
    named, card = load_student(run, typed=typed)
    theirs, ours = (card.in_chans, *card.image_size), data.image_shape
    if (card.class_names, theirs) != (data.train.class_names, ours):
        raise DataError(
            f"{run} was trained on other data: {card.num_classes} classes and images (C, H, W) = "
            f"{theirs}, and these are {data.num_classes} classes and {ours}. Give a run on the "
            "same data"
        )
    return named


def _batches(source: ImageSource, index: Tensor) -> Iterator[Tensor]:
    for positions in torch.split(index, _AT_ONCE):
        yield source.gather(positions).float() / 255


def _table(
    profiles: Mapping[str, LipschitzProfile],
    cell: Callable[[LipschitzPart], str],
) -> Table:
    """A row for each part, the networks' last parts side by side; a column for each network."""
    table = Table("", box=None, pad_edge=False)
    for role, profile in profiles.items():
        table.add_column(f"{role} ({printable(profile.name)})", justify="right")
    backwards = zip_longest(*(reversed(profile.parts) for profile in profiles.values()))
    for parts in reversed(list(backwards)):
        names = dict.fromkeys(_name(part) for part in parts if part is not None)
        table.add_row(" / ".join(names), *("" if part is None else cell(part) for part in parts))
    return table


def _name(part: LipschitzPart) -> str:
    first, second = (name.removeprefix("pre_activation:") for name in (part.first, part.second))
    return f"{first} to {second}"


def _sigma(part: LipschitzPart) -> str:
    sd = "" if part.sigma_sd is None else f" ± {part.sigma_sd:.3g}"
    return f"{part.sigma_mean:.3g}{sd}"


def _product(part: LipschitzPart | LipschitzProfile) -> str:
    size = "0" if part.log10_layer_product is None else f"10^{part.log10_layer_product:.1f}"
    return f"{size} ({part.num_layers})"
