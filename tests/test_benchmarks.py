"""What a page says was measured is what stands in results/."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DRAWN = ("general_form", "memory", "stability")


@pytest.mark.parametrize("name", DRAWN)
def test_the_tables_of_the_page_are_those_of_the_results(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    recorded, benchmark = (importlib.import_module(module) for module in ("recorded", name))
    page = recorded.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(recorded, "PAGE", tmp_path / "relations.md")
    monkeypatch.setattr(recorded, "FIGURES", tmp_path)
    begin, end = (f"<!-- {name.replace('_', ' ')}: {mark} -->" for mark in ("generated", "end"))
    before, _, rest = page.partition(begin)
    recorded.PAGE.write_text(before + begin + "\nstale" + rest[rest.index("\n" + end) :])
    benchmark.draw()
    assert recorded.PAGE.read_text(encoding="utf-8") == page


@pytest.fixture(autouse=True)
def _forget_the_modules():
    yield
    for name in ("recorded", *DRAWN):
        sys.modules.pop(name, None)
