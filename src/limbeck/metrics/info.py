"""What each number that judges a student means: its unit, its range, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

__all__ = ["METRICS", "MetricInfo"]

_GUO = (
    "Guo, Pleiss, Sun, Weinberger, 'On Calibration of Modern Neural Networks', ICML 2017, "
    "https://arxiv.org/abs/1706.04599"
)
_LIU = (
    "Liu, Miao, Zhan, Wang, Gong, Yu, 'Large-Scale Long-Tailed Recognition in an Open World', "
    "CVPR 2019, https://arxiv.org/abs/1904.05160"
)
_STANTON = (
    "Stanton, Izmailov, Kirichenko, Alemi, Wilson, 'Does Knowledge Distillation Really Work?', "
    "NeurIPS 2021, https://arxiv.org/abs/2106.05945"
)


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """How to read one number.

    Attributes:
        name: its key in :data:`METRICS`.
        unit: "fraction" of images, which reports print in percent; "nats"; "1" for plain numbers.
        low: the smallest value it can have.
        high: the largest; infinite where there is none.
        higher_is_better: None where neither direction is a merit.
        source: who defined it.
        meaning: one line, in words.
    """

    name: str
    unit: Literal["1", "fraction", "nats"]
    low: float
    high: float
    higher_is_better: bool | None
    source: str
    meaning: str


_ROWS = (
    MetricInfo(
        name="top1",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        source="customary",
        meaning="images whose highest score is the label's",
    ),
    MetricInfo(
        name="top5",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        source=(
            "Russakovsky et al., 'ImageNet Large Scale Visual Recognition Challenge', IJCV 2015, "
            "https://arxiv.org/abs/1409.0575"
        ),
        meaning="images whose label is among the five highest scores",
    ),
    MetricInfo(
        name="class_accuracy",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        source="customary",
        meaning="top-1 among the images of one class",
    ),
    MetricInfo(
        name="worst_class",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        source=(
            "Sagawa, Koh, Hashimoto, Liang, 'Distributionally Robust Neural Networks for Group "
            "Shifts', ICLR 2020, https://arxiv.org/abs/1911.08731, with classes as groups"
        ),
        meaning="top-1 of the class that fares worst",
    ),
    MetricInfo(
        name="many_shot",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        source=_LIU,
        meaning="mean top-1 of the classes with more than 100 training images",
    ),
    MetricInfo(
        name="medium_shot",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        source=_LIU,
        meaning="mean top-1 of the classes with 20 to 100 training images",
    ),
    MetricInfo(
        name="few_shot",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        source=_LIU,
        meaning="mean top-1 of the classes with fewer than 20 training images",
    ),
    MetricInfo(
        name="nll",
        unit="nats",
        low=0.0,
        high=math.inf,
        higher_is_better=False,
        source=f"{_GUO}, section 2",
        meaning="mean of minus the log of the label's probability",
    ),
    MetricInfo(
        name="brier",
        unit="1",
        low=0.0,
        high=2.0,
        higher_is_better=False,
        source=(
            "Brier, 'Verification of Forecasts Expressed in Terms of Probability', "
            "Monthly Weather Review 78(1), 1950"
        ),
        meaning="mean squared distance of the probabilities from the label's, summed over classes",
    ),
    MetricInfo(
        name="ece",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=False,
        source=f"{_GUO}, eq. 3",
        meaning="mean gap of confidence and accuracy over 15 bins of confidence",
    ),
    MetricInfo(
        name="temperature",
        unit="1",
        low=0.01,
        high=100.0,
        higher_is_better=None,
        source=f"{_GUO}, section 4.2",
        meaning="divisor of the logits that fits validation best; above 1: was over-confident",
    ),
    MetricInfo(
        name="nll_scaled",
        unit="nats",
        low=0.0,
        high=math.inf,
        higher_is_better=False,
        source=f"{_GUO}, section 4.2",
        meaning="nll after temperature scaling fitted on validation",
    ),
    MetricInfo(
        name="ece_scaled",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=False,
        source=f"{_GUO}, section 4.2",
        meaning="ece after temperature scaling fitted on validation",
    ),
    MetricInfo(
        name="agreement",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        source=_STANTON,
        meaning="images for which student and teacher name the same class",
    ),
    MetricInfo(
        name="kl_from_teacher",
        unit="nats",
        low=0.0,
        high=math.inf,
        higher_is_better=False,
        source=_STANTON,
        meaning="mean KL(teacher || student) at temperature 1",
    ),
    MetricInfo(
        name="agreement_on_teacher_errors",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=None,
        source=f"after the agreement of {_STANTON}",
        meaning="agreement where the teacher is wrong: its mistakes that the student took over",
    ),
    MetricInfo(
        name="same_wrong_class",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=None,
        source=f"after the agreement of {_STANTON}",
        meaning="agreement where both are wrong",
    ),
    MetricInfo(
        name="agreement_independent",
        unit="fraction",
        low=0.0,
        high=1.0,
        higher_is_better=None,
        source=f"{_STANTON}, the control",
        meaning="agreement with a teacher of the same kind that did not teach this student",
    ),
    MetricInfo(
        name="agreement_excess",
        unit="fraction",
        low=-1.0,
        high=1.0,
        higher_is_better=True,
        source=f"{_STANTON}, the control",
        meaning="agreement less agreement_independent: 0 where both stem from being right alone",
    ),
)
METRICS: Final[Mapping[str, MetricInfo]] = MappingProxyType({row.name: row for row in _ROWS})
