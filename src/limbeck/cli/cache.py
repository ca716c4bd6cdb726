"""``cache``: store a teacher's logits, so that runs need the teacher no more."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.cli.observer import observing
from limbeck.cli.options import OPTIONS, RunOption, collect_settings
from limbeck.cli.terminal import make_console, printable
from limbeck.runs.caching import CacheConfig, CachePlan, make_cache, plan_cache
from limbeck.teacher_cache import Storage

__all__ = ["cache_logits", "collect_cache"]


def collect_cache(
    options: Mapping[RunOption, Any],
    *,
    config: Path | None,
    overrides: Sequence[str],
    dtype: str | None,
    top_k: int | None,
    tail_temperature: float | None,
) -> dict[str, Any]:
    """Plain settings of a cache: those of a run that matter to it, and how numbers are kept.

    Args:
        options: those that were given, with what came.
        config: a run's ``config.json``.
        overrides: each ``a.b=value``.
        dtype: of the logits.
        top_k: how many of the highest are kept.
        tail_temperature: at which the others keep their probability.
    """
    values = collect_settings(options, config=config, overrides=overrides, teacher=True)
    if config is not None:  # a run has more settings than a cache
        values = {name: values[name] for name in CacheConfig.model_fields if name in values}
    storage = {"dtype": dtype, "top_k": top_k, "temperature": tail_temperature}
    given = {name: value for name, value in storage.items() if value is not None}
    return values | {"storage": {**values.get("storage", {}), **given}}


def cache_logits(
    values: Mapping[str, Any],
    output: Path,
    *,
    typed: Collection[str],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say how large the cache will be, then make it, or what is missing of it.

    Args:
        values: settings, not yet checked.
        output: its folder.
        typed: names of models that stand on the command line; these alone may run code.
        dry_run: say it only.
        quiet: print errors alone.
        as_json: print JSON lines.
    """
    plan = plan_cache(CacheConfig.read(values), output, typed=typed)
    _print_plan(plan, quiet=quiet, as_json=as_json)
    if dry_run:
        return
    with observing(quiet=quiet, as_json=as_json) as observer:
        card = make_cache(plan, observer=observer)
    if as_json:
        event = {"event": "cache", "folder": str(output), "hash": card.hash(), **card.plain()}
        print(json.dumps(event))  # noqa: T201
        return
    console = make_console(quiet=quiet)
    done = "It was there already; nothing was done." if plan.finished else "All of it is stored."
    console.print(f"{done} Train from it, without the teacher, by:", soft_wrap=True)
    console.print(f"  {printable(_command(plan))}", soft_wrap=True)


def _print_plan(plan: CachePlan, *, quiet: bool, as_json: bool) -> None:
    card = plan.card
    if as_json:
        event = {
            "event": "plan",
            "num_bytes": plan.num_bytes,
            "num_bytes_free": plan.num_bytes_free,
            "finished": plan.finished,
        }
        print(json.dumps(event), flush=True)  # noqa: T201
        return
    console = make_console(quiet=quiet)
    views = "".join(f", with its view {view!r}" for view in card.views)
    counts = "; ".join(
        f"{split}, {count:,} images" + (f" x {card.draws} draws" * (card.draws > 1) + views) * drawn
        for split, count in card.num_images.items()
        for drawn in (split == "train",)
    )
    console.print(
        printable(f"{card.teacher}'s {card.num_classes} logits of: {counts}"), soft_wrap=True
    )
    instead = ", ".join(f"{size} with {flags}" for flags, size in _alternatives(plan))
    console.print(
        f"{_size(plan.num_bytes)} on the disk ({instead}); {_size(plan.num_bytes_free)} are free",
        soft_wrap=True,
    )
    if plan.num_done:
        console.print(f"{plan.num_done} of {len(card.rows())} files are there already")


def _alternatives(plan: CachePlan) -> Iterator[tuple[str, str]]:
    """Other ways to store the same, and what they take."""
    card = plan.card
    ways = {"--store float32": Storage(), "--store float16": Storage(dtype="float16")}
    if card.num_classes > 10:
        ways["--store float16 --top-k 10"] = Storage(dtype="float16", top_k=10)
    for flags, storage in ways.items():
        if storage != card.storage:
            yield flags, _size(card.changed(storage=storage).num_bytes())


def _size(num_bytes: int) -> str:
    """In the unit a person would choose."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes / 2**10:,.1f} KiB"


def _command(plan: CachePlan) -> str:
    """How to train from it: the flags of all settings that must be those of the cache."""
    words = ["limbeck", "distill", "--teacher-cache", str(plan.folder)]
    if plan.config.method["name"] != "kd":
        words += ["--method", str(plan.config.method["name"])]
    chosen, usual = plan.config.plain(), CacheConfig(teacher=plan.config.teacher).plain()
    for option in OPTIONS:
        first, *rest = option.path.split(".")
        if first != "data" and option.path != "seed":
            continue
        value, default = chosen[first], usual[first]
        for name in rest:
            value, default = value[name], default[name]
        if value != default:
            words += [option.flags[0], *([] if option.kind is bool else [str(value)])]
    return " ".join([*map(shlex.quote, words), "--student", "NAME", "--output", "RUN"])
