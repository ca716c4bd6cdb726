"""The README's Python runs as it stands; so does that of CONTRIBUTING and of the guide.

Each ``python`` block is a program of its own, run in an empty folder. A comment on the line
before it may say ``<!-- test: continues -->`` (runs after the block before it, as one program)
or ``<!-- test: slow -->`` (minutes, so only with the slow tests); both together, comma-separated.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
]
LONGEST_PROGRAM = 40  # lines

BLOCK = re.compile(
    r"^(?:<!-- test: (?P<marks>[a-z, ]+) -->\n+)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Program:
    page: str
    line: int
    blocks: tuple[str, ...]
    slow: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def programs(page: str, text: str) -> list[Program]:
    """The page's programs; a block that continues is part of the one before."""
    found: list[Program] = []
    for match in BLOCK.finditer(text):
        marks = {mark.strip() for mark in (match["marks"] or "").split(",")} - {""}
        if unknown := marks - {"continues", "slow"}:
            raise ValueError(f"{page}: no such mark of a code block: {sorted(unknown)}")
        slow = "slow" in marks
        if "continues" in marks:
            last = found.pop()
            blocks = (*last.blocks, match["code"])
            found.append(Program(page, last.line, blocks, slow or last.slow))
        else:
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Program(page, line, (match["code"],), slow))
    return found


PROGRAMS = [
    program
    for page in PAGES
    if page.exists()
    for program in programs(page.name, page.read_text(encoding="utf-8"))
]


def run(program: Program, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "program.py"
    script.write_text("\n".join(program.blocks), encoding="utf-8")
    return subprocess.run(
        [sys.executable, script.name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_readme_shows_programs():
    assert [program for program in PROGRAMS if program.page == "README.md"]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=str(program), marks=[pytest.mark.slow] if program.slow else [])
        for program in PROGRAMS
    ],
)
def test_program_runs_without_a_warning(program, tmp_path):
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_program_is_short(program):
    assert all(block.count("\n") <= LONGEST_PROGRAM for block in program.blocks)


PAGE = """# Page
```python
value = 1
```

```bash
make demo
```

<!-- test: continues, slow -->
```python
assert value == 1
```
<!-- test: slow -->

```python
raise SystemExit(3)
```
"""


def test_blocks_are_found_joined_and_marked():
    first, second = programs("page", PAGE)
    assert first.blocks == ("value = 1\n", "assert value == 1\n")
    assert (first.line, first.slow) == (3, True)
    assert second.blocks == ("raise SystemExit(3)\n",)


def test_an_unknown_mark_is_an_error():
    with pytest.raises(ValueError, match="skip"):
        programs("page", PAGE.replace("test: slow", "test: skip"))


def test_a_program_that_fails_is_seen(tmp_path):
    first, second = programs("page", PAGE)
    assert run(first, tmp_path).returncode == 0
    assert run(second, tmp_path).returncode == 3
