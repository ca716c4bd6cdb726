"""``methods``: the table of methods, and one method's card."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from limbeck.cli.terminal import make_console, printable, printable_lines
from limbeck.core.settings import Settings
from limbeck.methods import METHODS, find_method
from limbeck.methods.base import MethodConfig, MethodEntry

__all__ = ["formula_text", "method_facts", "show_methods"]

_WIDEST = 100  # columns of running text
_MARKS = re.compile(r":[a-z]+:`~?([^`]*)`|``([^`]*)``")  # reST's roles and literals
_FIELD = re.compile(r"[A-Z][a-z ]+: ")  # "Source: ...", "Differs from the source: ..."

_SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "lambda": "λ",  # noqa: RUF001
    "mu": "μ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ",  # noqa: RUF001
    "theta": "θ", "sum": "Σ", "prod": "Π", "angle": "∠", "cdot": "·", "times": "×", "ge": "≥",  # noqa: RUF001
    "le": "≤", "ne": "≠", "in": "∈", "infty": "∞", "partial": "∂", "nabla": "∇", "to": "→",
    "|": "||", "log": "log", "exp": "exp", "cos": "cos", "max": "max", "min": "min", "ldots": "...",
    "omega": "ω", "propto": "∝", "langle": "<", "rangle": ">",
    "quad": "  ", ",": " ", ";": " ", "!": "", "left": "", "right": "",
    "big": "", "Big": "", "bigg": "", "Bigg": "",
}  # fmt: skip
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION = re.compile(rf"\\frac{_GROUP}{_GROUP}")
_WORDS = re.compile(r"\\(?:mathcal|mathrm|mathbf|mathbb|text|operatorname)\{([^{}]*)\}")
_COMMAND = re.compile(r"\\([A-Za-z]+|[,;!|])( ?)")
_ATOM = re.compile(r"\w(?:[_^]\{?\w+\}?)*")


def show_methods(name: str | None, *, as_json: bool) -> None:
    """Print the list of methods, or the card of one."""
    if name is None:
        _list(as_json=as_json)
    else:
        _card(name, find_method(name), as_json=as_json)


def method_facts(name: str) -> dict[str, Any]:
    """All that is known of one method, as plain values.

    Returns:
        ``name``, ``family``, ``stages`` by name, ``defaults`` and ``meanings`` by setting,
        ``summary`` in one line, ``card`` as it stands, ``use``: a command that trains by it.

    Raises:
        UnknownNameError: with the nearest names, if there is none.
    """
    entry = find_method(name)
    return {
        **_facts(name, entry),
        "meanings": _meanings(entry.config),
        "card": _text(entry),
        "use": f"limbeck {_command(name, entry)}",
    }


def _list(*, as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: _facts(name, entry) for name, entry in METHODS.items()}))  # noqa: T201
        return
    table = Table("method", "knowledge in", "stages", "what it does", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, entry in METHODS.items():
        stages = ", ".join(stage.name for stage in entry.stages(entry.config()))
        table.add_row(name, entry.family, stages, printable(_headline(entry)))
    console = make_console()
    console.print(table)
    console.print("\n`limbeck methods NAME` shows a method's formula, defaults and source.")
    console.print("Names joined by + are one run of several: kd+at, crd+kd.")


def _card(name: str, entry: MethodEntry, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(method_facts(name)))  # noqa: T201
        return
    console = make_console()
    console.print(printable_lines(_readable(_text(entry), min(console.width, _WIDEST))))
    console.print("\nSettings, each with --set method.NAME=VALUE:")
    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for field, value, meaning in _settings(entry.config()):
        table.add_row(field, json.dumps(value), printable(meaning))
    console.print(table)
    console.print()
    for stage in entry.stages(entry.config()):
        needs = stage.method.needs(stage.config)
        reads = [f"student {layer}" for layer in needs.student_layers]
        reads += [f"teacher {layer}" for layer in needs.teacher_layers]
        what = f"reads {', '.join(reads)}" if reads else "reads outputs alone"
        epochs = f"{stage.share:.1%} of the epochs"
        if stage.student is not None:
            epochs = (
                "as many epochs as the run" if stage.epochs is None else f"{stage.epochs} epochs"
            )
        console.print(f"Stage {stage.name}: {epochs}; {what}")
    console.print(f"\nUse it: limbeck {_command(name, entry)}")


def _command(name: str, entry: MethodEntry) -> str:
    if entry.family == "none":
        return "train --student MODEL --output RUN"
    parts = [f"distill --method {name}"]
    stages = entry.stages(entry.config())
    if any(stage.uses_run_teacher for stage in stages):
        parts.append("--teacher RUN")
    if any(stage.method.needs(stage.config).members for stage in stages):
        parts.append("--teacher RUN")
    parts += [f"--{own} A,B" for own in ("assistants", "peers") if own in entry.config.model_fields]
    return " ".join([*parts, "--student MODEL --output RUN"])


def _facts(name: str, entry: MethodEntry) -> dict[str, object]:
    return {
        "name": name,
        "family": entry.family,
        "stages": [stage.name for stage in entry.stages(entry.config())],
        "defaults": entry.config().plain(),
        "summary": _headline(entry),
    }


def _text(entry: MethodEntry) -> str:
    """The card as it stands: the docstring of the method's module."""
    return inspect.getdoc(importlib.import_module(entry.card)) or ""


def _headline(entry: MethodEntry) -> str:
    first = " ".join(_text(entry).split("\n\n")[0].split())
    return first.partition(": ")[2] or first


def _readable(card: str, width: int) -> str:
    """A card for the terminal: paragraphs filled, formulas in plain characters."""
    blocks: list[list[str]] = [[]]
    for line in card.split("\n"):
        starts = not line.strip() or line.startswith((".. math::", "- ")) or _FIELD.match(line)
        after_formula = bool(blocks[-1]) and blocks[-1][0].startswith(".. math::")
        if starts or (after_formula and line[:1] not in ("", " ")):
            blocks.append([])
        blocks[-1].append(line)
    return "\n".join(_block(lines, width) for lines in blocks if lines)


def _block(lines: list[str], width: int) -> str:
    text = " ".join(line.strip() for line in lines).strip()
    if text.startswith(".. math::"):
        text, indent, hanging = formula_text(text.removeprefix(".. math::").strip()), 4, 8
    else:
        text = _MARKS.sub(lambda found: found[1] or found[2], text)
        indent, hanging = 0, 4 if _FIELD.match(text) else 2 if text.startswith("- ") else 0
    filled = textwrap.fill(
        text,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled if lines[0].strip() or not text else f"\n{filled}"


def formula_text(latex: str) -> str:
    r"""A formula in plain characters; what has none stays as LaTeX writes it.

    Example:
        >>> formula_text(r"\mathcal{L} = w_{kd} \, \frac{1}{B^2} \sum_b KL(p \,\|\, q)")
        'L = w_kd 1/B^2 Σ_b KL(p || q)'
    """
    text = _WORDS.sub(r"\1", latex)
    text = _COMMAND.sub(lambda f: _SYMBOLS.get(f[1], f"\\{f[1]}") + f[2], text)
    while (changed := _FRACTION.sub(lambda f: f"{_part(f[1])}/{_part(f[2])}", text)) != text:
        text = changed
    text = re.sub(r"([_^])\{(\w+)\}", r"\1\2", text)
    return re.sub(r" {2,}", " ", text).strip()


def _part(text: str) -> str:
    """One side of a fraction, in brackets unless it is a single thing."""
    plain = text.strip()
    return plain if plain.isdigit() or _ATOM.fullmatch(plain) else f"({plain})"


def _settings(config: MethodConfig, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every setting: its name, its value, what it means; those of combined methods one by one."""
    meanings = _meanings(type(config))
    for field, value in config.plain().items():
        if prefix and field in MethodConfig.model_fields:  # one for all methods
            continue
        inner = getattr(config, field)
        if isinstance(inner, MethodConfig):
            yield from _settings(inner, f"{prefix}{field}.")
        else:
            yield prefix + field, value, meanings.get(field, "")


def _meanings(config: type[MethodConfig]) -> dict[str, str]:
    """The Attributes part of a settings class's docstring and of its bases', field by field."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        doc = inspect.cleandoc(owner.__doc__ or "") if issubclass(owner, Settings) else ""
        field = None
        for line in doc.partition("Attributes:\n")[2].splitlines():
            stripped = line.strip()
            indent = len(line) - len(line.lstrip())
            if indent == 4 and ":" in stripped:
                field, _, rest = stripped.partition(":")
                found[field] = rest.strip()
            elif field is not None and indent > 4:
                found[field] += " " + stripped
            else:
                field = None
    return found
