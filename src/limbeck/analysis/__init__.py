"""What was distilled? One question per file, asked of finished runs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from limbeck.analysis.adversarial import ADVERSARIAL
from limbeck.analysis.agreement import FIDELITY
from limbeck.analysis.base import Experiment
from limbeck.analysis.bias import BIAS
from limbeck.analysis.boundaries import BOUNDARIES
from limbeck.analysis.calibration import CALIBRATION
from limbeck.analysis.classes import CLASSES
from limbeck.analysis.corruptions import CORRUPTIONS
from limbeck.analysis.domains import DOMAINS
from limbeck.analysis.invariance import COLOUR_CONSTANCY, INVARIANCE
from limbeck.analysis.localisation import LOCALISATION
from limbeck.analysis.representation import REPRESENTATION
from limbeck.analysis.shape import SHAPE
from limbeck.analysis.sharpness import SHARPNESS
from limbeck.analysis.training import TRAINING
from limbeck.analysis.why import WHY

__all__ = ["EXPERIMENTS"]

# In the order of the report.
EXPERIMENTS: Final[Mapping[str, Experiment]] = MappingProxyType(
    {
        experiment.key: experiment
        for experiment in (
            WHY,
            FIDELITY,
            CALIBRATION,
            CLASSES,
            TRAINING,
            REPRESENTATION,
            BOUNDARIES,
            LOCALISATION,
            ADVERSARIAL,
            INVARIANCE,
            COLOUR_CONSTANCY,
            DOMAINS,
            SHAPE,
            BIAS,
            CORRUPTIONS,
            SHARPNESS,
        )
    }
)
