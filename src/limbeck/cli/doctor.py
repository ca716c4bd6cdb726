"""``doctor``: what this machine has, what is wrong, and the remedy."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from limbeck._version import __version__
from limbeck.cli.terminal import make_console, printable

__all__ = ["Finding", "examine", "findings"]

_PACKAGES = (
    "numpy",
    "pillow",
    "safetensors",
    "pydantic",
    "scikit-learn",
    "matplotlib",
    "tensorboard",
)
_LITTLE_DISK = 2 * 2**30  # bytes; a few checkpoints of a large student
_TORCH_REMEDY = "install torch again, with the command of https://pytorch.org/get-started/locally/"


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        what: the thing looked at.
        value: what was found.
        remedy: what to do; None where all is well.
    """

    what: str
    value: str
    remedy: str | None = None


def findings() -> list[Finding]:
    """Look at versions, devices, threads and disk."""
    found = [
        Finding("limbeck", __version__),
        Finding("python", f"{platform.python_version()} ({sys.executable})"),
        Finding("platform", platform.platform()),
    ]
    found += [_package(name) for name in _PACKAGES]
    try:
        import torch
    except Exception as error:  # noqa: BLE001  (a broken build raises ImportError, OSError, ...)
        reason = str(error).strip().split("\n")[0]
        found.append(Finding("torch", f"cannot be imported: {reason}", _TORCH_REMEDY))
    else:
        found += _torch_findings(torch)
    return found + _place(Path.cwd())


def _package(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", f"pip install {name}")


def _torch_findings(torch: Any) -> list[Finding]:  # noqa: ANN401  (the module)
    from limbeck.models.vision import vision_state

    found = [Finding("torch", torch.__version__)]
    for name in ("torchvision", "timm"):
        state = vision_state(name)
        value = state.version or "not installed"
        if state.problem is not None:
            value = f"{value} {state.problem}"
        found.append(Finding(name, value, state.remedy))
    found += _devices(torch)
    threads, processors = torch.get_num_threads(), _num_processors()
    remedy = None
    if threads > processors:
        remedy = f"more threads than processors are slower: set OMP_NUM_THREADS={processors}"
    found.append(Finding("threads", f"{threads} on {processors} processors", remedy))
    distributed = torch.distributed
    backends = [
        name
        for name, there in (
            ("gloo", distributed.is_available() and distributed.is_gloo_available()),
            ("nccl", distributed.is_available() and distributed.is_nccl_available()),
        )
        if there
    ]
    return [*found, Finding("torchrun backends", ", ".join(backends) or "none")]


def _devices(torch: Any) -> list[Finding]:  # noqa: ANN401
    with warnings.catch_warnings(record=True) as caught:  # torch warns of a driver it cannot use
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        found = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            found.append(Finding(f"cuda:{index}", f"{properties.name}, {memory}"))
        return found
    built = torch.version.cuda
    build = f"torch is built for CUDA {built}" if built else "torch is a CPU build"
    reason = str(caught[0].message).strip().split("\n")[0] if caught else ""
    remedy = None
    if reason or Path("/proc/driver/nvidia/version").exists():
        # There is a driver, so somebody put a GPU here to be used.
        build = f"{build}; {reason}" if reason else f"{build}, and there is an NVIDIA driver"
        remedy = f"{_TORCH_REMEDY}, choosing a CUDA version that your driver knows (`nvidia-smi`)"
    return [Finding("GPU", f"none that torch can use ({build})", remedy)]


def _num_processors() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _place(folder: Path) -> list[Finding]:
    free = shutil.disk_usage(folder).free
    little = "little room for checkpoints: free some, or give --output elsewhere"
    writable = os.access(folder, os.W_OK)
    return [
        Finding(
            "free disk here", f"{free / 2**30:.1f} GiB", little if free < _LITTLE_DISK else None
        ),
        Finding(
            "this folder",
            f"{folder} ({'writable' if writable else 'not writable'})",
            None if writable else "give --output a folder of your own",
        ),
    ]


def examine(*, as_json: bool) -> None:
    """Print the findings; exit code 0 also where something is wrong: it is a report."""
    found = findings()
    if as_json:
        print(json.dumps([vars(finding) for finding in found]))  # noqa: T201
        return
    console = make_console()
    for finding in found:
        mark = "!" if finding.remedy else " "
        console.print(f"{mark} {finding.what:<18} {printable(finding.value)}")
        if finding.remedy:
            console.print(f"    to mend it: {printable(finding.remedy)}")
    wrong = sum(finding.remedy is not None for finding in found)
    if wrong:
        console.print(f"\n{wrong} of these {'wants' if wrong == 1 else 'want'} mending (!).")
    else:
        console.print("\nAll is well.")
