import dataclasses
import math

import pytest

from limbeck.metrics.info import METRICS


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_how_to_read_it(name):
    info = METRICS[name]
    assert info.name == name
    assert info.low < info.high
    assert info.unit in ("1", "fraction", "nats")
    assert math.isinf(info.high) is (info.unit == "nats")
    assert info.source
    assert 0 < len(info.meaning) <= 100
    assert "\n" not in info.meaning


@pytest.mark.parametrize(
    ("better", "names"),
    [
        (
            True,
            "agreement agreement_excess class_accuracy few_shot many_shot medium_shot top1 top5 "
            "worst_class",
        ),
        (False, "brier ece ece_scaled kl_from_teacher nll nll_scaled"),
        (
            None,
            "agreement_independent agreement_on_teacher_errors same_wrong_class temperature",
        ),
    ],
)
def test_directions_are_what_the_field_takes_them_for(better, names):
    found = {name for name, info in METRICS.items() if info.higher_is_better is better}
    assert found == set(names.split())


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        METRICS["top1"] = METRICS["top5"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        METRICS["top1"].low = -1.0
