"""Time of the relation family's general form beside each method's own function.

One forward and backward pass on the same float32 tensors, both functions in turn, one thread; of
each the least processor time of many, which other programs on the machine change little.

    python benchmarks/general_form.py run     # results/general_form.csv; minutes
    python benchmarks/general_form.py draw    # table of docs/relations.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from recorded import ROOT, machine, read_rows, write_rows, write_table

RESULTS = ROOT / "results" / "general_form.csv"
BATCH, WIDTH, CLASSES = 64, 256, 100
ROUNDS, WARM_UP = 100, 5


def run() -> None:
    """Time every preset."""
    import torch

    from limbeck import losses
    from limbeck.losses import RELATION_PRESETS
    from limbeck.runs.provenance import code_commit

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows = normal(BATCH, WIDTH).requires_grad_(), normal(BATCH, WIDTH)
    logits = normal(BATCH, CLASSES).requires_grad_(), normal(BATCH, CLASSES)
    sides = (8, 4)
    maps = [tuple(normal(BATCH, 64, side, side) for side in sides) for _ in range(2)]
    maps[0][0].requires_grad_()
    own = {
        "rkd_distance": (losses.rkd_distance_loss, rows),
        "rkd_angle": (losses.rkd_angle_loss, rows),
        "sp": (losses.sp_loss, rows),
        "pkt": (losses.pkt_loss, rows),
        "cc_kernel": (losses.kernel_correlation_loss, rows),
        "irg": (losses.irg_loss, rows),
        "fsp": (losses.fsp_loss, tuple(maps)),
        "dist_inter": (lambda s, t: losses.dist_loss(s, t, intra_weight=0.0), logits),
        "dist_intra": (lambda s, t: losses.dist_loss(s, t, inter_weight=0.0), logits),
    }
    found = []
    for name, spec in RELATION_PRESETS.items():
        loss, (student, teacher) = own[name]
        pair = (
            lambda loss=loss, s=student, t=teacher: loss(s, t),
            lambda spec=spec, s=student, t=teacher: losses.relation_loss(s, t, spec),
        )
        turns = [tuple(map(seconds, pair)) for _ in range(ROUNDS + WARM_UP)][WARM_UP:]
        ours, general = (min(values) for values in zip(*turns, strict=True))
        values = {"own_seconds": ours, "general_seconds": general, "ratio": general / ours}
        shown = {key: f"{value:.4g}" for key, value in values.items()}
        print(name, shown, flush=True)
        common = {"commit": code_commit() or "", "torch": torch.__version__}
        found.append({"preset": name, **shown, **common, "machine": f"{machine()}, 1 thread"})
    write_rows(RESULTS, found, identity=("preset", "machine"))


def seconds(loss: Callable[[], object]) -> float:
    """Processor time of one forward and backward pass."""
    start = time.process_time()
    loss().backward()
    return time.process_time() - start


def draw() -> None:
    """The table, from the CSV."""
    rows = [
        [
            f"`{row['preset']}`",
            f"{1e3 * float(row['own_seconds']):.2f}",
            f"{1e3 * float(row['general_seconds']):.2f}",
            f"{float(row['ratio']):.2f}",
        ]
        for row in read_rows(RESULTS)
    ]
    write_table("general form", ["preset", "own function, ms", "general form, ms", "ratio"], rows)


def main() -> None:
    """Run or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "draw"])
    if parser.parse_args().command == "run":
        run()
    else:
        draw()


if __name__ == "__main__":
    main()
