"""Feature methods in the demo's setting: which of them help a student of 100 labels, and which not.

Every method at its published weights, and again at others where those do not suit networks and
maps as small as these; what was found is in docs/features.md.

    python benchmarks/feature_digits.py plan > digits.json
    limbeck compare --config digits.json --output runs/digits
    python benchmarks/feature_digits.py collect runs/digits    # results/feature_digits.csv
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch

from limbeck.methods import METHODS
from limbeck.recipes.demo import demo_comparison
from limbeck.reports.compared import read_comparison
from limbeck.runs.compare import BASELINE, Contender

RESULTS = Path(__file__).resolve().parents[1] / "results" / "feature_digits.csv"
FAMILY = ("kd", *(name for name, entry in METHODS.items() if entry.family == "feature"))
OTHER_WEIGHTS: dict[str, dict[str, Any]] = {
    "cat_w1": {"name": "cat_kd", "cat_weight": 1.0},
    "cat_norm": {"name": "cat_kd", "normalize": True, "cat_weight": 50.0},
    "at_w100": {"name": "at", "at_weight": 100.0},
    "at_w10": {"name": "at", "at_weight": 10.0},
    "ofd_w01": {"name": "ofd", "ofd_weight": 0.01},
    "vid_w01": {"name": "vid", "vid_weight": 0.1},
    "vid_w10": {"name": "vid", "vid_weight": 10.0},
    "vid_v05": {"name": "vid", "initial_variance": 0.5},
    "ofd_w1": {"name": "ofd", "ofd_weight": 0.1},
    "foundation_ce": {"name": "foundation", "ce_weight": 1.0},
    "cka_w10": {"name": "cka", "cka_weight": 10.0},
}
COLUMNS = ("method", "task", "settings", "metric", "seed", "value", "commit", "torch")


def plan() -> None:
    """Print the comparison's settings."""
    demo = demo_comparison()
    contenders = {
        BASELINE: demo.contenders[BASELINE],
        **{name: Contender(method={"name": name}) for name in FAMILY},
        **{label: Contender(method=method) for label, method in OTHER_WEIGHTS.items()},
        "ceiling": demo.contenders["ceiling"],
    }
    print(json.dumps(demo.changed(contenders=contenders).plain(), indent=2))


def collect(folders: list[str]) -> None:
    """Write a line for each finished run of comparisons of this plan."""
    lines = []
    for folder in folders:
        compared = read_comparison(folder)
        for label, runs in compared.records.items():
            facts = compared.facts[label]
            chosen = ", ".join(f"{key} = {value}" for key, value in facts.chosen.items())
            if facts.role == "reference":
                chosen = "all labels"
            for seed, run in runs.items():
                assert run.test is not None
                metric, value = "test top1", run.test.last.top1
                if not run.scores_taught:
                    metric, value = "linear probe", run.embedding["last"]["test"]["linear_top1"]
                line = (facts.method, "digits, 100 labels", chosen, metric, seed)
                commit = (compared.code or {}).get("commit") or ""
                lines.append((*line, f"{value:.4f}", commit, torch.__version__))
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *dict.fromkeys(lines)])


if __name__ == "__main__":
    if sys.argv[1:] == ["plan"]:
        plan()
    elif sys.argv[1:2] == ["collect"] and sys.argv[2:]:
        collect(sys.argv[2:])
    else:
        sys.exit(__doc__)
