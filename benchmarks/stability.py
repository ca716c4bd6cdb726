"""Are relation methods unstable? Spread of their accuracy over seeds, at three batch sizes.

The demo's task: digits, a student with 100 labels, a teacher with all of them; 20 epochs, not the
demo's 30, since this is 135 runs. The learning rate is the demo's 0.1 at its batch size of 64, and
in proportion to it at others.
Each method has its published weights, or this library's where none are published; nothing is tuned.

    python benchmarks/stability.py run --work FOLDER    # rows into results/stability.csv
    python benchmarks/stability.py draw                 # figure and table of docs/relations.md

The first makes a comparison for each batch size, as ``limbeck compare`` does: it goes on where it
stopped, and mixes neither code nor data. The second reads the CSV alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from recorded import (
    COLOURS,
    MARKERS,
    ROOT,
    machine,
    read_rows,
    save_figure,
    write_rows,
    write_table,
)

RESULTS = ROOT / "results" / "stability.csv"
METHODS = ("ce", "kd", "dist", "rkd", "sp", "pkt", "cc", "vrm", "london")
OTHERS = ("ce", "kd", "dist")  # knowledge of outputs, or none
BATCH_SIZES = (16, 64, 256)
NUM_SEEDS = 5
EPOCHS = 20


# -- running -------------------------------------------------------------------------------


def run(work: Path, *, batch_sizes: Sequence[int]) -> None:
    """Make what is missing of the comparisons, and write what each has found."""
    # Drawing needs none of these, and need not wait for torch.
    from limbeck.recipes.demo import demo_comparison
    from limbeck.runs.compare import BASELINE, Contender
    from limbeck.runs.orchestrate import compare

    demo = demo_comparison()
    rows = {name: Contender(method={"name": name}) for name in METHODS if name != BASELINE}
    usual = demo.shared.train.batch_size
    for batch_size in batch_sizes:
        shared = demo.shared.changed(
            train=demo.shared.train.changed(batch_size=batch_size),
            optim=demo.shared.optim.changed(lr=demo.shared.optim.lr * batch_size / usual),
            schedule=demo.shared.schedule.changed(epochs=EPOCHS),
        )
        # The teacher has settings of its own, so it is the same for all batch sizes.
        config = demo.changed(
            shared=shared,
            contenders={BASELINE: demo.contenders[BASELINE], **rows},
            seeds=tuple(range(NUM_SEEDS)),
        )
        folder = work / f"batch{batch_size}"
        # One process, and one pass of the teacher for all rows of a seed: this changes no number.
        compare(config, folder, cohort=len(METHODS))
        found = rows_of(folder, batch_size)
        write_rows(RESULTS, found, identity=("method", "batch_size", "seed", "machine"))
        print(f"batch size {batch_size}: {len(found)} runs", flush=True)


def rows_of(folder: Path, batch_size: int) -> list[dict[str, str]]:
    """What a comparison has found, a row for each run; a failed run has a reason and no value."""
    from limbeck.reports.compared import read_comparison

    compared = read_comparison(folder)
    common = {
        "task": f"digits, 100 labels, {EPOCHS} epochs",
        "batch_size": str(batch_size),
        "metric": "test top-1 of the last epoch",
        "commit": compared.code["commit"] or "",
        "limbeck": compared.code["limbeck"],
        "torch": compared.code["packages"]["torch"],
        "machine": f"{machine()}, 1 thread",
    }
    found = []
    for label in compared.facts:
        for seed, record in compared.records[label].items():
            assert record.test is not None
            own = {
                "value": repr(record.test.last.top1),
                "settings_hash": record.config_hash,
                "data_hash": record.data_hash,
                "teacher_hash": record.teacher_hash or "",
                "failure": "",
            }
            found.append({"method": label, "seed": str(seed), **own, **common})
        for seed, failure in compared.failures[label].items():
            own = dict.fromkeys(("value", "settings_hash", "data_hash", "teacher_hash"), "")
            own["failure"] = failure.reason
            found.append({"method": label, "seed": str(seed), **own, **common})
    return found


# -- drawing -------------------------------------------------------------------------------


def draw() -> None:
    """The figure and the table, from the CSV."""
    accuracy: dict[tuple[str, int], list[float]] = {}
    for row in read_rows(RESULTS):
        runs = accuracy.setdefault((row["method"], int(row["batch_size"])), [])
        runs += [100 * float(row["value"])] if row["value"] else []
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(BATCH_SIZES), sharey=True)
    for axes, batch_size in zip(panels, BATCH_SIZES, strict=True):
        for place, method in enumerate(METHODS):
            values = accuracy[method, batch_size]
            colour = COLOURS[0] if method in OTHERS else COLOURS[1]
            axes.plot([place] * len(values), values, MARKERS[0], color=colour, mfc="white", ms=5)
            mean = statistics.fmean(values)
            axes.plot([place - 0.3, place + 0.3], [mean, mean], color=colour, lw=2)
        axes.set_title(f"batch size {batch_size}", fontsize=10)
        axes.set_xticks(range(len(METHODS)), METHODS, rotation=60)
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy, %")
    save_figure(figure, "stability.png")
    rows = [
        [f"`{method}`", *(_spread(accuracy[method, batch_size]) for batch_size in BATCH_SIZES)]
        for method in METHODS
    ]
    write_table("stability", ["method", *(f"batch size {size}" for size in BATCH_SIZES)], rows)


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    """Run or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser(
        "run", help="make the comparisons; a quarter of an hour of one core"
    )
    making.add_argument("--work", type=Path, required=True, help="folder of the comparisons")
    making.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    commands.add_parser("draw", help="figure and table of what the CSV holds")
    options = parser.parse_args()
    if options.command == "run":
        run(options.work, batch_sizes=options.batch_sizes)
    else:
        draw()


if __name__ == "__main__":
    main()
