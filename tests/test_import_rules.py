"""Who may import whom, read from the source; and what importing must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "limbeck"

# A layer may import itself and what stands here; "a.b" allows that module alone.
ALLOWED = {
    "core": (),
    "functional": ("core",),
    "metrics": ("core",),
    "data": ("core",),
    "models": ("core",),
    "layers": ("core",),
    "features": ("core", "layers"),
    "teacher": ("core", "features", "functional", "teacher_cache"),
    "teacher_cache": ("core",),
    "methods": ("core", "features", "functional"),
    "losses": ("functional", "methods"),
    "engine": ("core", "features", "metrics", "teacher", "teacher_cache", "methods.base"),
    "runs": (
        "core",
        "data",
        "engine",
        "features",
        "functional",
        "layers",
        "methods",
        "metrics",
        "models",
        "teacher",
        "teacher_cache",
    ),
    "recipes": ("core", "data", "engine", "methods", "models", "runs"),
    "analysis": (
        "core",
        "data",
        "features",
        "functional",
        "layers",
        "metrics",
        "models",
        # Numbers and pictures that are the same on the page of a comparison.
        "reports.pictures",
        "reports.predictions",
        "reports.statistics",
        "reports.svg",
    ),
    # Metrics of numpy alone: reports judge saved logits with what judged them during the run.
    "reports": (
        "core.errors",
        "core.sources",
        "metrics.arrays",
        "metrics.calibration",
        "metrics.fidelity",
        "metrics.info",
        "metrics.scorecard",
        "metrics.scores",
    ),
}
# The front door and the command line may use everything; nobody uses these two.
FREE = ("", "cli", "__main__")


def layer_of(module: str) -> str:
    return module.partition(".")[0]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name below the package to file; the package itself is ``""``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that ``path`` imports anywhere, inside functions too."""
    names: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = ["limbeck", *package.split(".")] if package else ["limbeck"]
            base = [".".join(parts[: len(parts) - node.level + 1])] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names |= {
                f"{source}.{alias.name}"
                if f"{source}.{alias.name}".removeprefix("limbeck.") in known
                else source
                for alias in node.names
            }
    return {
        name.removeprefix("limbeck").removeprefix(".")
        for name in names
        if name == "limbeck" or name.startswith("limbeck.")
    }


def violations(root: Path) -> list[str]:
    """Every import that the table does not allow, as ``importer -> imported``."""
    known = modules(root)
    wrong = []
    for module, path in known.items():
        layer = layer_of(module)
        for target in sorted(imported(module, path, known)):
            within = target == layer or target.startswith(f"{layer}.")
            allowed = layer in FREE or any(
                target == name or target.startswith(f"{name}.") for name in ALLOWED.get(layer, ())
            )
            if target == "_version" or (layer and within):
                continue
            # Only the command line may know the front door, and nobody the command line.
            to_cli = layer_of(target) == "cli" and layer != "__main__"
            to_door = target == "" and layer not in ("cli", "__main__")
            if not allowed or to_cli or to_door:
                wrong.append(f"{module or 'limbeck'} -> {target or 'limbeck'}")
    return wrong


def test_every_layer_has_a_place_in_the_table():
    layers = {layer_of(module) for module in modules(SOURCE)} - {"_version"}
    assert layers <= {*ALLOWED, *FREE}


def test_nobody_imports_across_the_layers():
    assert violations(SOURCE) == []


def test_the_engine_names_no_method():
    """Nor does a step choose by a method's name: the contract is all it knows."""
    known = modules(SOURCE)
    methods = {module for module in known if module.startswith("methods.")} - {"methods.base"}
    for module, path in known.items():
        if layer_of(module) == "engine":
            assert not imported(module, path, known) & methods


def test_losses_holds_imports_alone():
    body = ast.parse((SOURCE / "losses.py").read_text(encoding="utf-8")).body
    others = [
        node
        for node in body
        if not isinstance(node, ast.ImportFrom)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    ]
    assert [ast.unparse(node) for node in others] == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("core/a.py", "import limbeck.data.b", "core.a -> data.b"),
        ("core/a.py", "from limbeck.data import b", "core.a -> data.b"),
        ("core/a.py", "from limbeck import data", "core.a -> data"),
        ("core/a.py", "from ..data.b import name", "core.a -> data.b"),
        ("core/a.py", "from .. import data", "core.a -> data"),
        ("core/__init__.py", "from ..data import b", "core -> data.b"),
        ("core/a.py", "def f():\n    import limbeck.data", "core.a -> data"),
        ("core/a.py", "from limbeck import Teacher", "core.a -> limbeck"),
        ("recipes/a.py", "import limbeck.cli", "recipes.a -> cli"),
        ("engine/a.py", "from limbeck.methods import METHODS", "engine.a -> methods"),
        ("engine/a.py", "from limbeck.methods.base import Method", None),
        ("core/a.py", "from limbeck.core.b import name", None),
        ("core/a.py", "from .b import name", None),
        ("core/a.py", "import limbecky.data, torch", None),
        ("reports/a.py", "from limbeck.core.types import Batch", "reports.a -> core.types"),
        ("reports/a.py", "import limbeck.metrics.accuracy", "reports.a -> metrics.accuracy"),
        ("reports/a.py", "from limbeck.metrics.scores import correct", None),
        ("new.py", "import limbeck.core", "new -> core"),
        ("__init__.py", "from limbeck.runs import execute", None),
        ("__init__.py", "from limbeck.cli import main", "limbeck -> cli"),
        ("cli/a.py", "import limbeck.runs, limbeck", None),
    ],
)
def test_the_walk_sees_what_it_should(tmp_path, file, text, expected):
    """The check itself, on a made-up package."""
    for name in ("__init__", "core/__init__", "core/b", "core/types", "data/__init__", "data/b"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert violations(tmp_path) == ([] if expected is None else [expected])


# With what they may import: no report waits for torch, whichever metric it comes to use.
REPORTS = [module for module in modules(SOURCE) if layer_of(module) == "reports"]
REPORTS += ALLOWED["reports"]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import limbeck", "torch numpy sklearn matplotlib"),
        ("; ".join(f"import limbeck.{module}" for module in REPORTS), "torch sklearn timm"),
        # What a help page costs is what it imports: these four are the slow ones.
        (
            "import sys, limbeck.cli\n"
            "sys.argv = ['limbeck', '--help']\n"
            "try: limbeck.cli.main()\n"
            "except SystemExit as stop: assert not stop.code",
            "torch sklearn matplotlib timm",
        ),
    ],
    ids=["limbeck", "reports", "help"],
)
def test_importing_loads_nothing_heavy(statement, absent):
    check = f"{statement}\nimport sys\nprint(sorted(set({absent.split()!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
