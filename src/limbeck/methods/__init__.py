"""The table of methods: every name that ``--method`` takes, and what stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from limbeck.core.errors import UnknownNameError
from limbeck.methods.base import Method, MethodEntry, Stage
from limbeck.methods.ce import CE, CEConfig
from limbeck.methods.feature.fitnet import FitNetConfig, fitnet_stages
from limbeck.methods.feature.fitnet_one_stage import FitNetOneStage, FitNetOneStageConfig
from limbeck.methods.output.kd import KD, KDConfig
from limbeck.methods.relation.rkd import RKD, RKDConfig

__all__ = ["METHODS", "find_method"]


def _one_stage(method: type[Method[Any]]) -> Callable[[Any], tuple[Stage, ...]]:
    """The stages of a method that trains in one."""
    return lambda config: (Stage(name="train", method=method, config=config),)


METHODS: Final[Mapping[str, MethodEntry]] = MappingProxyType(
    {
        "ce": MethodEntry(
            family="none", config=CEConfig, stages=_one_stage(CE), card="limbeck.methods.ce"
        ),
        "fitnet": MethodEntry(
            family="feature",
            config=FitNetConfig,
            stages=fitnet_stages,
            card="limbeck.methods.feature.fitnet",
        ),
        "fitnet_one_stage": MethodEntry(
            family="feature",
            config=FitNetOneStageConfig,
            stages=_one_stage(FitNetOneStage),
            card="limbeck.methods.feature.fitnet_one_stage",
        ),
        "kd": MethodEntry(
            family="output",
            config=KDConfig,
            stages=_one_stage(KD),
            card="limbeck.methods.output.kd",
        ),
        "rkd": MethodEntry(
            family="relation",
            config=RKDConfig,
            stages=_one_stage(RKD),
            card="limbeck.methods.relation.rkd",
        ),
    }
)


def find_method(name: str) -> MethodEntry:
    """The row of the table called ``name``.

    Raises:
        UnknownNameError: with the nearest names, if there is none.

    Example:
        >>> find_method("kd").family
        'output'
    """
    if name not in METHODS:
        raise UnknownNameError(
            "method", name, METHODS, hint="`limbeck methods` lists what they do."
        )
    return METHODS[name]
