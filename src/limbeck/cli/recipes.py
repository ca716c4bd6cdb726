"""``recipes``, ``reproduce`` and ``results``: published settings, run again, beside the figures."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

from rich.table import Table

from limbeck.cli.observer import observing
from limbeck.cli.terminal import make_console, printable
from limbeck.core.errors import SettingsError, UnknownNameError
from limbeck.recipes.catalogue import RECIPES, Protocol, Recipe, find_recipe
from limbeck.reports.reproduced import published_figures, read_results, results_page
from limbeck.runs.execute import prepare_parts
from limbeck.runs.folder import RunFolder
from limbeck.runs.results import add_result, result_row
from limbeck.runs.tasks import run_or_resume

__all__ = ["reproduce_recipes", "show_recipes", "write_results"]


def show_recipes(name: str | None, *, as_json: bool) -> None:
    """The list of recipes, those that a pattern names, or the settings of one."""
    if name is not None and name in RECIPES:
        _show(RECIPES[name], as_json=as_json)
        return
    chosen = _chosen([name]) if name is not None else tuple(RECIPES.values())
    if as_json:
        print(json.dumps([recipe.name for recipe in chosen]))  # noqa: T201
        return
    table = Table("recipe", "source", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for recipe in chosen:
        table.add_row(recipe.name, recipe.source)
    console = make_console()
    console.print(table)
    console.print(
        "\n`limbeck recipes NAME` prints one; `limbeck reproduce NAME --data-dir DIR` runs it. "
        "Both take patterns, as 'cifar100/*/resnet32x4-resnet8x4'."
    )


def reproduce_recipes(
    names: list[str],
    *,
    data_dir: str,
    output: Path,
    seeds: list[int],
    teacher: str | None,
    protocol: Protocol,
    results: Path,
    device: str,
    quiet: bool,
) -> None:
    """Run recipes, seed by seed, each into a folder of its own, and add a line for each.

    What is finished is not run again; what was interrupted goes on. A teacher that is not given
    is trained first, by its own recipe, with the first seed.
    """
    chosen = _chosen(names)
    if teacher is not None and len({recipe.teacher for recipe in chosen} - {None}) > 1:
        raise SettingsError("--teacher is one network; these recipes have several: leave it out")
    console = make_console(quiet=quiet)

    def make(recipe: Recipe, seed: int, taught_by: str | Path | None) -> Path:
        place = output / recipe.name / f"{protocol}-seed{seed}"
        config = recipe.run(data_dir=data_dir, teacher=taught_by, seed=seed, protocol=protocol)
        config = config.changed(train=config.train.changed(device=device))
        console.print(f"{recipe.name}, seed {seed}", style="bold")
        place.parent.mkdir(parents=True, exist_ok=True)
        with observing(quiet=quiet, as_json=False) as observer:
            summary = run_or_resume(config, place, prepare_parts(config, typed=()), observer)
        add_result(results, result_row(place, recipe=recipe.name, protocol=protocol))
        assert summary.test is not None
        console.print(
            f"  test, last epoch  {summary.test.last['top1']:.2%}  {printable(str(place))}"
        )
        return place

    for seed in seeds:
        for recipe in chosen:
            taught_by: str | Path | None = teacher if recipe.teacher is not None else None
            if recipe.teacher_recipe is not None and teacher is None:
                first = output / recipe.teacher_recipe / f"{protocol}-seed{seeds[0]}"
                if not RunFolder(first).summary.exists():
                    make(find_recipe(recipe.teacher_recipe), seeds[0], None)
                taught_by = first
            make(recipe, seed, taught_by)


def write_results(results: Path, out: Path) -> None:
    """Make the page of results."""
    text = results_page(read_results(results))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    make_console().print(printable(str(out)))


def _chosen(names: list[str]) -> tuple[Recipe, ...]:
    """The recipes that names and patterns stand for, each once, networks on labels alone first."""
    found = []
    for name in names:
        matching = [recipe for recipe in RECIPES.values() if fnmatchcase(recipe.name, name)]
        if not matching:
            raise UnknownNameError("recipe", name, RECIPES, hint="`limbeck recipes` lists them.")
        found += [recipe for recipe in matching if recipe not in found]
    return tuple(sorted(found, key=lambda recipe: recipe.teacher is not None))


def _show(recipe: Recipe, *, as_json: bool) -> None:
    teacher = None if recipe.teacher is None else "TEACHER.safetensors"
    config = recipe.run(data_dir="DATA", teacher=teacher)
    figures = [
        figure
        for figure in published_figures()
        if recipe.name == f"cifar100/{figure.recipe}/{figure.pair.replace('->', '-')}"
    ]
    if as_json:
        print(json.dumps({"name": recipe.name, "source": recipe.source, "config": config.plain()}))  # noqa: T201
        return
    console = make_console()
    console.print(recipe.name, style="bold")
    console.print(f"  source: {recipe.source}")
    for figure in figures:
        console.print(f"  published: {figure.top1:.2f} % ({figure.protocol}; {figure.source})")
    console.print_json(json.dumps(config.plain()))
