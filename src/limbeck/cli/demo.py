"""``demo``: the comparison of :mod:`limbeck.recipes.demo`, an honest table, and its report."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from limbeck.cli.compare import CompareAudience, show_comparison
from limbeck.cli.terminal import make_console
from limbeck.engine.loop import InterruptedRun
from limbeck.recipes.demo import TASK, demo_comparison
from limbeck.reports.compared import read_comparison
from limbeck.runs.comparison import ComparisonFolder
from limbeck.runs.orchestrate import compare

__all__ = ["run_demo"]


def run_demo(out: Path, *, quiet: bool) -> None:
    """Make the comparison under ``out``, or what is missing of it; print the table."""
    ComparisonFolder(out).check_free()
    console = make_console(quiet=quiet)
    start = time.monotonic()
    console.print(TASK)
    config = demo_comparison()
    try:
        compare(config, out, audience=CompareAudience(config, quiet=quiet, as_json=False))
    except InterruptedRun as stop:
        stop.args = (f"{stop}; continue with: limbeck demo --out {shlex.quote(str(out))}",)
        raise
    show_comparison(read_comparison(out), quiet=quiet, as_json=False)
    console.print(f"{time.monotonic() - start:.0f} s in all.")
