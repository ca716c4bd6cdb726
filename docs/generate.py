"""Write docs/methods and docs/models.md from what the code says of itself.

docs/methods has a page for each method and an index; docs/models.md the networks with their counts.

    make docs        # or: python docs/generate.py

A page has the method's card (its module's docstring), every setting with its default, how many
numbers of other codes its tests repeat (tests/golden/methods.json), and its rows of the results.
A file ``results/*.csv`` has any if it has the columns ``method``, ``seed`` and ``value``: the
values of all seeds that agree in every column but those that say how a row came about.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.cli.methods import method_facts
from limbeck.features import FeatureTap
from limbeck.methods import METHODS
from limbeck.models import MODELS, create_model, summarise

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "methods"
GOLDEN = ROOT / "tests" / "golden" / "methods.json"
RESULTS = ROOT / "results"
NETWORKS = ROOT / "docs" / "models.md"

_FAMILIES = {
    "output": "Knowledge in outputs",
    "feature": "Knowledge in features",
    "relation": "Knowledge in relations",
    "none": "Without a teacher",
}
_FIELD = re.compile(r"([A-Z][a-z ]{2,22}): ")  # "Source: ...", "Differs from the source: ..."
_ROLE = re.compile(r":[a-z]+:`~?(?:[\w.]*\.)?([^`]*)`")
_CODE = re.compile(r"(`[^`]*`|https?://\S+)")
_MARKUP = re.compile(r"([\\*<$~|])")
# How a result came about; all other columns say what it is.
_PROVENANCE = re.compile(r"method|seed|value|failure|commit|\w*_hash|limbeck|torch|machine|seconds")


def pages(
    golden: Mapping[str, Any], results: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[str, str]:
    """Every file of docs/methods: name to text.

    Args:
        golden: method to name to a number and where it is from.
        results: file to rows.
    """
    facts = {name: method_facts(name) for name in METHODS}
    found = {f"{name}.md": page(one, golden, results) for name, one in facts.items()}
    return {"README.md": index(facts.values()), **found}


def index(facts: Iterable[Mapping[str, Any]]) -> str:
    """The list of all methods, by where their knowledge lies."""
    by_family: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in facts:
        by_family[one["family"]].append(one)
    lines = [
        "# Methods",
        "",
        "A page for each, made from the code by `make docs`. `limbeck methods NAME` prints a card.",
    ]
    for family, heading in _FAMILIES.items():
        lines += [
            "",
            f"## {heading}",
            "",
            *_table(
                ["method", "what it does"],
                (
                    [f"[`{one['name']}`]({one['name']}.md)", _prose(one["summary"])]
                    for one in by_family[family]
                ),
            ),
        ]
    return "\n".join(lines) + "\n"


def page(
    facts: Mapping[str, Any],
    golden: Mapping[str, Any],
    results: Mapping[str, Sequence[Mapping[str, str]]],
) -> str:
    """One method's page."""
    name = facts["name"]
    lines = [f"# `{name}`", "", card_markdown(facts["card"]), "", "## Settings", ""]
    lines += [f"`{facts['use']}`, and each of these by `--set method.NAME=VALUE`.", ""]
    lines += _table(
        ["setting", "default", "meaning"],
        (
            [f"`{field}`", f"`{json.dumps(value)}`", _prose(facts["meanings"].get(field, ""))]
            for field, value in facts["defaults"].items()
        ),
    )
    lines += ["", f"Stages: {', '.join(f'`{stage}`' for stage in facts['stages'])}."]
    numbers = golden.get(name, {})
    if numbers:
        sources = sorted({entry["from"] for entry in numbers.values()})
        lines += ["", "## Checked against", ""]
        lines += [f"{len(numbers)} numbers that the tests repeat, from:", ""]
        lines += [f"- {_prose(source)}" for source in sources]
    rows = [row for file, found in results.items() for row in _summary(name, file, found)]
    if rows:
        lines += ["", "## Results", ""]
        lines += _table(["file", "what", "mean", "deviation", "seeds", "commit"], rows)
    return "\n".join(lines) + "\n"


def card_markdown(card: str) -> str:
    """A module's docstring as Markdown: formulas as GitHub draws them, fields in bold."""
    blocks: list[list[str]] = [[]]
    for line in card.split("\n"):
        in_formula = bool(blocks[-1]) and blocks[-1][0].startswith(".. math::")
        begins = line.startswith((".. math::", "- ")) or _FIELD.match(line)
        if not line.strip() or begins or (in_formula and not line.startswith(" ")):
            blocks.append([])
        if line.strip():
            blocks[-1].append(line.strip())
    title, *rest = filter(None, blocks)
    text = "\n\n".join([_prose(" ".join(title)), *map(_block, rest)])
    return re.sub(r"(\n- .*)\n(?=\n- )", r"\1", text)  # items of one list


def _block(lines: Sequence[str]) -> str:
    text = " ".join(lines)
    if text.startswith(".. math::"):
        return f"```math\n{text.removeprefix('.. math::').strip()}\n```"
    field = _FIELD.match(text)
    if field is None:
        return _prose(text)
    return f"**{field[1]}:** {_prose(text[field.end() :])}"


def _prose(text: str) -> str:
    """Running text: reST's marks as Markdown's, and nothing else taken for markup."""
    text = _ROLE.sub(r"`\1`", text).replace("``", "`")
    parts = _CODE.split(text)
    parts[::2] = [_MARKUP.sub(r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _summary(name: str, file: str, rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """One line for all seeds of a result."""
    groups: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        if row.get("method") == name and row.get("value"):
            what = [f"{k} {v}" for k, v in row.items() if v and not _PROVENANCE.fullmatch(k)]
            groups[", ".join(what)].append(row)
    found = []
    for what, group in groups.items():
        values = [float(row["value"]) for row in group]
        deviation = f"{statistics.stdev(values):.4g}" if len(values) > 1 else ""
        commits = sorted({row["commit"][:9] for row in group if row.get("commit")})
        found.append(
            [
                f"`{file}`",
                _prose(what),
                f"{statistics.fmean(values):.4g}",
                deviation,
                str(len(values)),
                ", ".join(f"`{commit}`" for commit in commits),
            ]
        )
    return found


def read_results(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of each CSV file there that tells results by method, seed and value."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if {"method", "seed", "value"} <= set(reader.fieldnames or ()):
                found[path.name] = list(reader)
    return found


def models_page() -> str:
    """Every network of the zoo: exact counts and what its stages give."""
    rows = []
    for name in MODELS:
        digits = name.startswith("digits")
        shape, classes = ((1, 8, 8), 10) if digits else ((3, 32, 32), 100)
        if name.endswith("_cifar10"):
            classes = 10
        network = create_model(name, num_classes=classes, in_chans=shape[0], seed=0).eval()
        found = summarise(network, shape)
        with torch.no_grad(), FeatureTap(network, ["stage*", "penultimate"]) as tap:
            features = tap(torch.zeros(1, *shape)).features
        width = features.pop("penultimate").shape[1]
        stages = [" x ".join(map(str, feature.shape[1:])) for feature in features.values()]
        numbers = (classes, found.num_parameters, found.num_macs)
        rows.append([f"`{name}`", *(f"{n:,}" for n in numbers), ", ".join(stages), str(width)])
    heading = ["network", "classes", "parameters", "multiply-adds", "stages", "pooled width"]
    lines = [
        "# Networks",
        "",
        "Made from the code by `make docs`; `tests/contract/test_models.py` compares these counts",
        "with the published ones. For one image of 3 x 32 x 32, of the digits networks 1 x 8 x 8.",
        "Multiply-adds are those of convolutions and linear layers. `limbeck inspect NAME` shows",
        "every layer; `timm/NAME`, `torchvision/NAME` and files of your own work alike.",
        "",
        *_table(heading, rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace what is in docs/methods, and docs/models.md."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    texts = pages(golden, read_results(RESULTS))
    PAGES.mkdir(exist_ok=True)
    for stale in {path.name for path in PAGES.glob("*.md")} - texts.keys():
        (PAGES / stale).unlink()
    for name, text in texts.items():
        (PAGES / name).write_text(text, encoding="utf-8", newline="\n")
    NETWORKS.write_text(models_page(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
