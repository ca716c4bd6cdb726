"""Feature methods on CIFAR-100 images, a few hundred steps each, beside KD at the same step.

    limbeck compare --methods kd,at,cat_kd,cka,crd,fitnet,fitnet_one_stage,foundation,ofd,reviewkd,\
simkd,vid,wkd_feature --teacher RESNET32X4_RUN --student resnet8x4 --cohort 14 ... --output RUNS
    python benchmarks/feature_cifar.py RUNS    # results/feature_cifar100.csv

The whole command and what was found are in docs/features.md. Loss in training and
accuracy on validation of each epoch of each run, finished or not; the loss's parts are printed.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parents[1] / "results" / "feature_cifar100.csv"
COLUMNS = ("method", "pair", "stage", "step", "metric", "seed", "value", "torch")


def main(folder: Path) -> None:
    """Write the file anew and print how far every run is."""
    lines = []
    for run in sorted((folder / "runs").iterdir()):
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        method, seed, batch = (
            config["method"]["name"],
            config["seed"],
            config["train"]["batch_size"],
        )
        pair = f"resnet32x4 -> {config['student']['name']}, batch {batch}"
        metrics = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        for found in map(json.loads, metrics):
            told = {f"train {name}": value for name, value in found["train"].items()}
            told |= {f"val {name}": value for name, value in (found["val"] or {}).items()}
            place = (method, pair, found["stage"], found["step"])
            lines += [
                (*place, metric, seed, f"{told[metric]:.4f}", torch.__version__)
                for metric in ("train loss", "val top1")
                if metric in told  # a stage that trains no classifier has no accuracy
            ]
            print(f"{run.name:<26}{found['stage']:<8}{found['step']:>5}  ", end="")
            print("  ".join(f"{name} {value:.3f}" for name, value in told.items()))
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
