"""Whether torchvision and timm can be used here, and what to do where they cannot.

Three states: absent, broken, whole. Broken is common and is no ImportError: where torch is built
for processors alone and torchvision for CUDA, importing torchvision raises ``RuntimeError:
operator torchvision::nms does not exist``, and takes timm with it.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

__all__ = ["VisionState", "vision_state"]


@dataclass(frozen=True)
class VisionState:
    """What importing a package showed.

    Attributes:
        version: as installed; None where it is absent.
        problem: why it cannot be imported; None where it is absent or whole.
        remedy: what to do; None where it is whole.
    """

    version: str | None
    problem: str | None = None
    remedy: str | None = None


def vision_state(name: Literal["torchvision", "timm"]) -> VisionState:
    """Import a package and say how that went.

    Args:
        name: ``"torchvision"`` or ``"timm"``.
    """
    if importlib.util.find_spec(name) is None:
        return VisionState(None, remedy=_remedy(name, installed=False))
    version = _version(name) or "of unknown version"
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  (a mismatched build raises RuntimeError, or anything)
        reason = str(error).strip().split("\n")[0]
        problem = f"cannot be imported ({type(error).__name__}: {reason})"
        return VisionState(version, problem, _remedy(name, installed=True))
    return VisionState(version)


def _remedy(name: Literal["torchvision", "timm"], *, installed: bool) -> str:
    """What to do about a package that is absent or (``installed``) broken."""
    again = f"pip uninstall {name}, then " if installed else ""
    if name == "timm":
        needed = vision_state("torchvision").remedy
        if needed is None:
            return f"{again}pip install timm"
        return f"timm needs torchvision. First: {needed}" + (
            "" if installed else ". Then: pip install timm"
        )
    torch = metadata.version("torch")
    if "+" not in torch:
        # Naming torch keeps it: pip then takes the torchvision that belongs to it.
        return f'{again}pip install "torch=={torch}" torchvision'
    return (
        f"torch {torch} is not the default build, and pip's default index has torchvision for "
        f'that alone. Either {again}pip install "torch=={torch}" torchvision --index-url with the '
        "address that torch was installed from; or take both from the default index: pip "
        "uninstall torch torchvision, then pip install torch torchvision"
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
