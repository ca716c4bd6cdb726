"""``inspect``: the networks there are, and one network's layers by name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from torch import nn

from limbeck.cli.terminal import make_console, printable
from limbeck.core.errors import SettingsError, TapError
from limbeck.features import FeatureTap
from limbeck.layers import list_meanings
from limbeck.models import MODELS, ModelSummary, is_vision_name, make_ready, open_model, summarise
from limbeck.runs.folder import RunFolder
from limbeck.runs.networks import load_student

__all__ = ["inspect_model", "list_models"]

_CIFAR_SHAPE, _CIFAR_CLASSES = (3, 32, 32), 100  # the benchmark's
_DIGITS_SHAPE, _DIGITS_CLASSES = (1, 8, 8), 10


@dataclass(frozen=True)
class _Meaning:
    """A name that stands for a layer: its address, and one image's shape there.

    ``rule`` is true where the network does not say so itself: its structure suggests it.
    """

    name: str
    address: str
    output_shape: tuple[int, ...] | None
    rule: bool


class _Opened(NamedTuple):
    """A network and what it takes and gives."""

    network: nn.Module
    image_shape: tuple[int, int, int]
    num_classes: int


def list_models(*, as_json: bool) -> None:
    """Print the name of every network of the zoo, one a line; timm's and torchvision's are more."""
    print(json.dumps(list(MODELS)) if as_json else "\n".join(MODELS))  # noqa: T201


def inspect_model(
    model: str,
    *,
    num_classes: int | None,
    in_chans: int | None,
    img_size: int | None,
    typed: Collection[str],
    as_json: bool,
) -> None:
    """Print the layers, shapes, parameters and multiply-adds of a model or a run's student.

    Args:
        model: a model's name, ``file.py:function`` or a run folder.
        num_classes: of a model; None takes the usual number.
        in_chans: the same of channels.
        img_size: the same of the side in pixels.
        typed: names besides ``model`` that may run code.
        as_json: print one JSON object.
    """
    if RunFolder(model).path.is_dir():
        if (num_classes, in_chans, img_size) != (None, None, None):
            raise SettingsError(
                f"{model} is a run, whose classes and images are known; leave out --num-classes, "
                "--in-chans and --img-size"
            )
        opened = _open_run(Path(model), typed)
    else:
        opened = _open_model(model, num_classes, in_chans, img_size)
    found = summarise(opened.network, opened.image_shape)
    meanings = _meanings(opened)
    calls = _num_calls(opened)
    if as_json:
        values = {
            "model": model,
            "input_shape": opened.image_shape,
            "num_classes": opened.num_classes,
            "num_parameters": found.num_parameters,
            "num_macs": found.num_macs,
            "layers": [{**vars(row), "num_calls": calls[row.name]} for row in found.rows],
            "meanings": [vars(meaning) for meaning in meanings],
        }
        print(json.dumps(values))  # noqa: T201
        return
    console = make_console()
    console.print(_table(found, calls))
    console.print(
        f"\n{printable(model)}: {found.num_parameters:,} parameters, {found.num_macs:,} "
        f"multiply-adds for one {_size(opened.image_shape)} image, {opened.num_classes} classes"
    )
    if meanings:
        console.print("\nBy meaning:")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2), pad_edge=True)
        for meaning in meanings:
            shape = _size(meaning.output_shape)
            found_by = "by structure" if meaning.rule else ""
            table.add_row(printable(meaning.name), printable(meaning.address), shape, found_by)
        console.print(table)
    console.print(
        "\nA method can be pointed at all of these, and at blocks of layers such as layer1, with "
        "--set method.student_layer=NAME. NAME is the output, NAME:input the input, NAME#2 the "
        "second call of a layer that is called several times."
    )


def _size(shape: tuple[int, ...] | None) -> str:
    return "not called" if shape is None else " x ".join(map(str, shape))


def _table(found: ModelSummary, calls: Mapping[str, int]) -> Table:
    table = Table("layer", "kind", box=None, pad_edge=False)
    table.columns[0].no_wrap = True  # a name is of use whole or not at all
    for column in ("output", "parameters", "MACs"):
        table.add_column(column, justify="right")
    for row in found.rows:
        name = printable(row.name) or "(the network)"
        if calls[row.name] > 1:
            name += f" (#1 to #{calls[row.name]})"
        table.add_row(
            name,
            printable(row.kind),
            _size(row.output_shape),
            f"{row.num_parameters:,}" if row.num_parameters else "",
            f"{row.num_macs:,}" if row.num_macs else "",
        )
    return table


def _open_run(folder: Path, typed: Collection[str]) -> _Opened:
    named, card = load_student(folder, typed=typed)
    shape = named.normalization.input_shape((card.in_chans, *card.image_size))
    return _Opened(named.network, shape, card.num_classes)


def _open_model(
    model: str, num_classes: int | None, in_chans: int | None, img_size: int | None
) -> _Opened:
    shape, usual = _CIFAR_SHAPE, _CIFAR_CLASSES
    if model.startswith("digits_"):
        shape, usual = _DIGITS_SHAPE, _DIGITS_CLASSES
    channels, side, classes = in_chans or shape[0], img_size or shape[1], num_classes or usual
    vision = is_vision_name(model)
    opened = open_model(
        model,
        num_classes=num_classes if vision else classes,  # its own, unless told otherwise
        in_chans=channels,
        img_size=(img_size, img_size) if vision and img_size else None,
        own_size=True,
        allow_code=True,
    )
    height, width = opened.image_size or (side, side)
    found = (opened.in_chans, height, width)
    make_ready(opened.network, found)
    return _Opened(opened.network, found, opened.num_classes)


def _meanings(opened: _Opened) -> list[_Meaning]:
    """What this network can be asked by beside its layers' names."""
    network = opened.network.eval()
    image = torch.zeros(1, *opened.image_shape)
    found = list_meanings(network, torch.zeros(2, *opened.image_shape))
    with torch.no_grad():
        return [
            _Meaning(
                name,
                meaning.address,
                _output(network, meaning.address, image),
                bool(meaning.reason),
            )
            for name, meaning in found.items()
        ]


def _num_calls(opened: _Opened) -> dict[str, int]:
    """How often each module runs in one forward pass."""
    counts = dict.fromkeys((name for name, _ in opened.network.named_modules()), 0)

    def count(name: str) -> None:
        counts[name] += 1

    handles = [
        module.register_forward_hook(lambda *_, name=name: count(name))
        for name, module in opened.network.named_modules()
    ]
    opened.network.eval()
    with torch.no_grad():
        opened.network(torch.zeros(1, *opened.image_shape))
    for handle in handles:
        handle.remove()
    return counts


def _output(network: nn.Module, layer: str, image: torch.Tensor) -> tuple[int, ...] | None:
    """One image's shape at a layer; None where it does not run exactly once."""
    try:
        with FeatureTap(network, [layer]) as tap:
            return tuple(tap(image).features[layer].shape[1:])
    except TapError:
        return None
