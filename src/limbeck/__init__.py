"""Limbeck distils image classifiers.

Importing it does nothing; the names below load what they need when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from limbeck._version import __version__

if TYPE_CHECKING:
    from limbeck.engine.learner import Learner
    from limbeck.features import FeatureTap
    from limbeck.models import create_model
    from limbeck.runs.config import RunConfig
    from limbeck.runs.distill import distill
    from limbeck.runs.summary import RunSummary
    from limbeck.teacher import Teacher, TeacherEnsemble

__all__ = [
    "FeatureTap",
    "Learner",
    "RunConfig",
    "RunSummary",
    "Teacher",
    "TeacherEnsemble",
    "__version__",
    "create_model",
    "distill",
]

_HOMES = {
    "FeatureTap": "limbeck.features",
    "Learner": "limbeck.engine.learner",
    "RunConfig": "limbeck.runs.config",
    "RunSummary": "limbeck.runs.summary",
    "Teacher": "limbeck.teacher",
    "TeacherEnsemble": "limbeck.teacher",
    "create_model": "limbeck.models",
    "distill": "limbeck.runs.distill",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  (any of the names above)
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
