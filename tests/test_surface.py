"""What users may import: named in every module, and checked in for the two front doors."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "limbeck"
GOLDEN = ROOT / "tests" / "golden" / "surface.json"


def exports(text: str) -> list[str] | None:
    """The literal ``__all__`` of a module; None where there is none."""
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            return ast.literal_eval(node.value)
    return None


def in_order(names: list[str]) -> list[str]:
    """CONSTANTS, then Classes, then functions; numbers inside a name count as numbers."""

    def key(name: str) -> tuple:
        group = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
        pieces = re.split(r"(\d+)", name)
        return group, [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in pieces if p]

    return sorted(names, key=key)


PUBLIC = [
    path.relative_to(SOURCE)
    for path in sorted(SOURCE.rglob("*.py"))
    if not any(part.startswith("_") and part != "__init__.py" for part in path.parts[-3:])
    and not (path.name == "__init__.py" and len(ast.parse(path.read_text("utf-8")).body) <= 1)
]


@pytest.mark.parametrize("source", PUBLIC, ids=str)
def test_a_public_module_names_its_exports_in_order(source):
    names = exports((SOURCE / source).read_text(encoding="utf-8"))
    assert names, f"src/limbeck/{source} has no literal __all__"
    assert len(set(names)) == len(names)
    assert names == in_order(names)


def test_the_order_is_the_linters():
    names = ["KD_LIMIT", "T_MAX", "Batch", "Teacher", "kd_loss", "resnet8", "resnet20"]
    assert in_order(names[::-1]) == names


@pytest.mark.parametrize("door", ["limbeck", "limbeck.losses"])
def test_the_front_doors_export_what_is_checked_in(door):
    """A change here is a change of the public surface: edit the file on purpose, and say so."""
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[door]
    module = importlib.import_module(door)
    assert sorted(module.__all__) == sorted(expected)
    missing = [name for name in expected if getattr(module, name, None) is None]
    assert missing == []
    assert set(expected) <= set(dir(module))
