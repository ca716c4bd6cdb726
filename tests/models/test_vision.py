import importlib
import subprocess
import sys
from importlib import metadata

import pytest

from limbeck.models.vision import VisionState, vision_state

# What torchvision's Linux wheel does where torch has no CUDA, and timm after it.
NO_NMS = "raise RuntimeError('operator torchvision::nms does not exist\\nmore of it')"
WHOLE = "from collections import abc"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A Python in which torchvision and timm are what a test makes them."""

    def make(torch="2.14.1", **packages):
        kept = {name: module for name, module in sys.modules.items() if _is_ours(name)}
        for name in kept:
            monkeypatch.delitem(sys.modules, name)
        versions = {"torch": torch}
        for name, (version, code) in packages.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(code)
            versions[name] = version
        real = importlib.util.find_spec
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: None if _is_ours(name) and name not in packages else real(name),
        )

        def version(name):
            if versions.get(name) is None:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)

    yield make
    for name in [name for name in sys.modules if _is_ours(name)]:
        del sys.modules[name]


def _is_ours(name):
    return name.partition(".")[0] in ("torchvision", "timm")


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_whole_package_needs_nothing(world, name):
    world(torchvision=("0.29.1", WHOLE), timm=("1.0.31", "import torchvision"))
    version = {"torchvision": "0.29.1", "timm": "1.0.31"}[name]
    assert vision_state(name) == VisionState(version, problem=None, remedy=None)


def test_an_absent_package_has_a_remedy_and_no_problem(world):
    world()
    state = vision_state("torchvision")
    assert (state.version, state.problem) == (None, None)
    # With torch named, pip looks for its torchvision and not for the newest of both.
    assert state.remedy == 'pip install "torch==2.14.1" torchvision'


def test_a_broken_package_is_named_with_the_first_line_of_its_error(world):
    world(torchvision=("0.28.0", NO_NMS))
    state = vision_state("torchvision")
    assert state.version == "0.28.0"
    assert state.problem == (
        "cannot be imported (RuntimeError: operator torchvision::nms does not exist)"
    )
    assert state.remedy == (
        'pip uninstall torchvision, then pip install "torch==2.14.1" torchvision'
    )


@pytest.mark.parametrize("code", ["raise ImportError('_C.so')", "1 / 0", "import no_such_module"])
def test_any_failure_to_import_is_broken_and_not_absent(world, code):
    world(torchvision=("0.28.0", code))
    state = vision_state("torchvision")
    assert state.version == "0.28.0"
    assert state.problem is not None


@pytest.mark.parametrize("build", ["2.13.0+cpu", "2.13.0+cu126", "2.13.0+rocm6.4"])
@pytest.mark.parametrize("installed", [True, False])
def test_another_build_of_torch_needs_torchvision_from_the_same_place(world, build, installed):
    """The default index would give one for the default build: that is how it came to be broken."""
    world(build, **({"torchvision": ("0.28.0", NO_NMS)} if installed else {}))
    remedy = vision_state("torchvision").remedy
    assert f'pip install "torch=={build}" torchvision --index-url' in remedy
    assert ("Either pip uninstall torchvision, then pip install" in remedy) is installed
    assert "pip uninstall torch torchvision, then pip install torch torchvision" in remedy
    assert "http" not in remedy


def test_timm_comes_after_torchvision(world):
    world(torchvision=("0.28.0", NO_NMS), timm=("1.0.31", "import torchvision"))
    first = vision_state("torchvision").remedy
    state = vision_state("timm")
    assert "torchvision::nms" in state.problem
    assert state.remedy == f"timm needs torchvision. First: {first}"


def test_an_absent_timm_is_installed_after_torchvision(world):
    world()
    remedy = vision_state("timm").remedy
    assert remedy.startswith("timm needs torchvision. First: pip install")
    assert remedy.endswith(". Then: pip install timm")


@pytest.mark.parametrize(
    ("timm", "remedy"),
    [
        ({}, "pip install timm"),
        ({"timm": ("1.0.31", "import no_hub")}, "pip uninstall timm, then pip install timm"),
    ],
)
def test_timm_alone_is_mended_where_torchvision_is_whole(world, timm, remedy):
    world(torchvision=("0.29.1", WHOLE), **timm)
    assert vision_state("timm").remedy == remedy


def test_a_package_without_a_recorded_version_is_whole(world):
    world(torchvision=(None, WHOLE))
    assert vision_state("torchvision") == VisionState("of unknown version")


def test_importing_the_models_imports_neither():
    check = "import limbeck.models, limbeck.models.vision, sys; print('torchvision' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"
