"""The golden values themselves: sourced, and so different that none can pass for another."""

import json
from pathlib import Path

from limbeck.methods import METHODS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text("utf-8"))
ENTRIES = [entry for group in GOLDEN.values() for entry in group.values()]


def test_golden_values_are_pairwise_different():
    values = [entry["value"] for entry in ENTRIES]
    assert len(set(values)) == len(values)


def test_every_golden_value_names_source_inputs_and_precision():
    for entry in ENTRIES:
        assert entry.keys() == {"value", "decimals", "inputs", "from"}
        assert entry["from"]
        assert entry["inputs"]


def test_every_method_with_a_teacher_has_golden_values():
    assert GOLDEN.keys() == METHODS.keys() - {"ce", "noise_label"}
