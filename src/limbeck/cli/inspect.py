"""``inspect``: the networks there are, one network's layers by name, and two side by side."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping

import torch
from rich.console import Console
from rich.table import Table

from limbeck.cli.terminal import make_console, printable
from limbeck.core.errors import ModelError
from limbeck.features import read_logits
from limbeck.models import MODELS, ModelSummary, summarise
from limbeck.runs.opening import OpenedNetwork, open_network, open_pair
from limbeck.runs.pairs import Attachment, Pair, inspect_pair, meant_layers

__all__ = ["inspect_model", "inspect_models", "list_models"]


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
    opened = open_network(
        model, num_classes=num_classes, in_chans=in_chans, img_size=img_size, typed=typed
    )
    found = summarise(opened.network, opened.image_shape)
    places = meant_layers(opened.network, torch.zeros(2, *opened.image_shape))
    calls = _num_calls(opened)
    notes = [*opened.notes, *_faults(opened)]
    if as_json:
        values = {
            "model": model,
            "input_shape": opened.image_shape,
            "num_classes": opened.num_classes,
            "num_parameters": found.num_parameters,
            "num_macs": found.num_macs,
            "layers": [{**vars(row), "num_calls": calls[row.name]} for row in found.rows],
            "meanings": [{"name": name, **vars(place)} for name, place in places.items()],
            "notes": notes,
        }
        print(json.dumps(values))  # noqa: T201
        return
    console = make_console()
    console.print(_table(found, calls))
    console.print(
        f"\n{printable(model)}: {found.num_parameters:,} parameters, {found.num_macs:,} "
        f"multiply-adds for one {_size(opened.image_shape)} image, {opened.num_classes} classes"
    )
    for note in notes:
        console.print(printable(note))
    if places:
        console.print("\nBy meaning:")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2), pad_edge=True)
        for name, place in places.items():
            found_by = "by structure" if place.rule else ""
            shape = _size(place.output_shape)
            table.add_row(printable(name), printable(place.address), shape, found_by)
        console.print(table)
    console.print(
        "\nA method can be pointed at all of these, and at blocks of layers such as layer1, with "
        "--set method.student_layer=NAME. NAME is the output, NAME:input the input, NAME#2 the "
        "second call of a layer that is called several times."
    )


def inspect_models(
    teacher: str,
    student: str,
    *,
    num_classes: int | None,
    in_chans: int | None,
    img_size: int | None,
    as_json: bool,
) -> None:
    """Print two networks side by side, and where each method would attach to them.

    Args:
        teacher: a model's name, ``file.py:function`` or a run folder; its weights do not matter.
        student: the same.
        num_classes: of the images; None takes the usual number.
        in_chans: the same of channels.
        img_size: the same of the side in pixels.
        as_json: print one JSON object.
    """
    opened = open_pair(
        teacher, student, num_classes=num_classes, in_chans=in_chans, img_size=img_size
    )
    pair = inspect_pair(
        opened.teacher,
        opened.student,
        image_shape=opened.image_shape,
        num_classes=opened.num_classes,
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(pair)))  # noqa: T201
        return
    console = make_console()
    console.print(_costs(pair))
    console.print(
        f"\nFor images of {_size(pair.image_shape)} in {pair.num_classes:,} classes; where their "
        f"number counts, it is taken to be {pair.num_images:,}."
    )
    for note in (*pair.teacher.notes, *pair.student.notes):
        console.print(printable(note))
    console.print("\nLayers by meaning:\n")
    console.print(_layers(pair))
    if any(place.rule for row in pair.layers for place in (row.teacher, row.student) if place):
        console.print("\n* by the network's structure, as the network does not say")
    _print_attachments(console, pair)


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


def _num_calls(opened: OpenedNetwork) -> dict[str, int]:
    """How often each module runs in one forward pass."""
    counts = dict.fromkeys((name for name, _ in opened.network.named_modules()), 0)

    def count(name: str) -> None:
        counts[name] += 1

    handles = [
        module.register_forward_hook(lambda *_, name=name: count(name))
        for name, module in opened.network.named_modules()
    ]
    with torch.no_grad():
        opened.network(torch.zeros(1, *opened.image_shape))
    for handle in handles:
        handle.remove()
    return counts


def _faults(opened: OpenedNetwork) -> list[str]:
    """Why it can neither learn nor teach as it is; empty where it can."""
    with torch.no_grad():
        output = opened.network(torch.zeros(2, *opened.image_shape))
    try:
        read_logits(opened.network, output)
    except ModelError as error:
        return [f"can neither learn nor teach as it is: {error}"]
    return []


# -- pairs -------------------------------------------------------------------------------------


def _costs(pair: Pair) -> Table:
    sides = pair.teacher, pair.student
    table = Table("", box=None, pad_edge=False)
    for whose, side in zip(("teacher", "student"), sides, strict=True):
        heading = f"{whose}\n{printable(side.name)}"
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("ratio", justify="right")
    for what, ours in (
        ("parameters", [side.num_parameters for side in sides]),
        ("multiply-adds", [side.num_macs for side in sides]),
        ("bytes on disk", [side.num_bytes for side in sides]),
    ):
        ratio = f"{ours[0] / ours[1]:,.1f}" if ours[1] else ""
        table.add_row(what, *(f"{number:,}" for number in ours), ratio)
    table.add_row("is fed", *(_size(side.input_shape) for side in sides), "")
    return table


def _layers(pair: Pair) -> Table:
    table = Table("meaning", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for whose in ("teacher's layer", "student's layer"):
        table.add_column(whose, overflow="fold")
        table.add_column("output", no_wrap=True)
    for row in pair.layers:
        cells = []
        for place in (row.teacher, row.student):
            mark = "*" if place is not None and place.rule else ""
            address = "-" if place is None else printable(place.address) + mark
            cells += [address, "" if place is None else _size(place.output_shape)]
        table.add_row(printable(row.name), *cells)
    return table


def _print_attachments(console: Console, pair: Pair) -> None:
    """A block for all rows that say the same, and a line for those with nothing to say."""
    stages = Counter(row.method for row in pair.attachments)
    blocks: dict[Attachment, list[str]] = {}
    silent = []
    for row in pair.attachments:
        name = row.method if stages[row.method] == 1 else f"{row.method} ({row.stage})"
        if row.attaches or row.refusal:
            said = dataclasses.replace(row, method="", family="", stage="")
            blocks.setdefault(said, []).append(name)
        else:
            silent.append(name)
    console.print("\nWhere the methods attach with their defaults, and what that adds in training:")
    for said, names in blocks.items():
        if said.refusal is not None:
            cost = "do not take this pair" if len(names) > 1 else "does not take this pair"
        elif said.num_parameters:
            cost = f"{said.num_parameters:,} parameters, {said.num_macs:,} multiply-adds"
        else:
            cost = "no parameters"
        console.print(f"\n{', '.join(names)}: {cost}")
        for line in said.attaches or (said.refusal or "",):
            console.print(
                textwrap.fill(
                    printable(line),
                    console.width,
                    initial_indent=" " * 4,
                    subsequent_indent=" " * 8,
                )
            )
    console.print(f"\nThese read outputs alone: {', '.join(silent)}")
