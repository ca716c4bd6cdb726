"""Every source file with code in it has a test file of the same name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "limbeck"


def has_code(text: str) -> bool:
    """Whether a module holds more than a docstring, imports and ``__all__``."""
    for node in ast.parse(text).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if not (isinstance(node, ast.Import | ast.ImportFrom) or docstring or names):
            return True
    return False


def mirror_of(source: Path) -> Path:
    """``a/b.py`` answers to ``tests/a/test_b.py``, a package itself to its ``test_init.py``."""
    name = "init" if source.stem == "__init__" else source.stem
    return ROOT / "tests" / source.parent / f"test_{name}.py"


SOURCES = [
    path.relative_to(SOURCE)
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name not in ("_version.py", "__main__.py")
    and has_code(path.read_text(encoding="utf-8"))
]


def test_there_are_sources():
    assert len(SOURCES) > 10


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_source_has_a_test_of_the_same_name(source):
    expected = mirror_of(source)
    assert expected.exists(), f"src/limbeck/{source} needs {expected.relative_to(ROOT)}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"""Doc."""\nfrom a import b\n__all__ = ["b"]', False),
        ("", False),
        ('"""Doc."""\nTABLE = {}', True),
        ("def f(): ...", True),
    ],
)
def test_what_counts_as_code(text, expected):
    assert has_code(text) is expected
