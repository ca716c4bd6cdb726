"""CIFAR-100 by relation knowledge: the settings behind each published pair of networks.

The recipe that all share is in :mod:`limbeck.recipes.published`.

Sources: RepDistiller's scripts (RKD, SP, PKT, CC), which name one setting for all pairs. VRM's
authors have published neither settings nor a table by pair, and LONDON's table is of other
networks by another recipe: both are run here by the shared recipe with this library's defaults,
and stand beside no published figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from limbeck.recipes.published import Published, everywhere

__all__ = ["RELATION"]

RELATION: Final[Mapping[str, Mapping[str, Published]]] = MappingProxyType(
    {
        "cc": everywhere("cc"),
        "london": everywhere("london"),
        "pkt": everywhere("pkt"),
        "rkd": everywhere("rkd"),
        "sp": everywhere("sp"),
        "vrm": everywhere("vrm"),
    }
)
