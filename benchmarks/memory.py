"""Memory that each relation loss takes, over batch sizes and widths; and VRM's two forms compared.

Counted is what torch allocates for one forward and backward pass of the loss alone, in float32 on
the CPU, the inputs' gradients among it and the inputs not: the most that is alive at once, from
torch's own record of every allocation. It is the same on every machine.

Embeddings are ``(B, D)``; for VRM D is the number of classes; FSP and LONDON have D channels of
8x8 places before and 4x4 behind. LONDON is its Lipschitz part alone.

    python benchmarks/memory.py run     # results/memory.csv; minutes, and 13 GB for the largest
    python benchmarks/memory.py draw    # figure and tables of docs/relations.md
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.axes import Axes
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

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = ROOT / "results" / "memory.csv"
FORM_RESULTS = ROOT / "results" / "vrm_forms.csv"
BATCH_SIZES = (64, 128, 256, 512, 1024)
WIDTHS = (64, 512)
CLASSES = (100, 200, 400, 1000)
CLASS_BATCH = 256
SHOWN = (64, 256, 1024)  # batch sizes of the table
MEGABYTE = 1e6


# -- measuring -----------------------------------------------------------------------------


def run() -> None:
    """Measure everything."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler talks about its own errors alone
    run_methods()
    run_forms()


def provenance() -> dict[str, str]:
    """What made a row."""
    # Drawing needs neither of these, and need not wait for torch.
    import torch

    from limbeck.runs.provenance import code_commit

    return {"commit": code_commit() or "", "torch": torch.__version__, "machine": machine()}


def run_methods() -> None:
    """Memory of every method."""
    from limbeck import losses

    def rkd(student: Tensor, teacher: Tensor) -> Tensor:
        return losses.rkd_distance_loss(student, teacher) + losses.rkd_angle_loss(student, teacher)

    def vrm(*four: Tensor) -> Tensor:
        return losses.vrm_loss(*four)

    def fsp(*maps: Tensor) -> Tensor:
        return losses.fsp_loss(maps[:2], maps[2:])

    def london(*maps: Tensor) -> Tensor:
        return losses.lipschitz_loss(maps[:2], maps[2:])

    embedded = {
        "rkd": rkd,
        "sp": losses.sp_loss,
        "pkt": losses.pkt_loss,
        "cc": losses.cc_loss,
        "cc_kernel": losses.kernel_correlation_loss,
        "irg": losses.irg_loss,
    }
    common = {"unit": "bytes", **provenance()}

    def add(method: str, count: int, width: int, peak: int) -> None:
        row = {"method": method, "batch_size": str(count), "width": str(width), "value": str(peak)}
        write_rows(RESULTS, [row | common], identity=("method", "batch_size", "width"))
        print(f"{method} B={count} D={width}: {peak / MEGABYTE:.1f} MB", flush=True)

    normal = drawer()
    for width in WIDTHS:
        for count in BATCH_SIZES:
            pair = [normal(count, width) for _ in range(2)]
            for name, loss in embedded.items():
                add(name, count, width, measured(loss, 1, *pair).peak_bytes)
            add("vrm", count, width, measured(vrm, 2, *answers(count, width)).peak_bytes)
            maps = [normal(count, width, side, side) for side in (8, 4, 8, 4)]
            add("fsp", count, width, measured(fsp, 2, *maps).peak_bytes)
            add("london", count, width, measured(london, 2, *maps).peak_bytes)


def run_forms() -> None:
    """Memory, value and gradient of VRM's two forms between classes."""
    from limbeck import losses

    for classes in CLASSES:
        four = answers(CLASS_BATCH, classes)
        closed = measured(losses.vrm_class_loss, 2, *four)
        explicit = measured(explicit_classes, 2, *four)
        differences = {
            "value_difference": abs(closed.value / explicit.value - 1),
            "gradient_difference": float(
                (closed.gradient - explicit.gradient).norm() / explicit.gradient.norm()
            ),
        }
        row = {
            "batch_size": str(CLASS_BATCH),
            "classes": str(classes),
            "closed_bytes": str(closed.peak_bytes),
            "explicit_bytes": str(explicit.peak_bytes),
            **{name: f"{value:.2g}" for name, value in differences.items()},
        }
        write_rows(FORM_RESULTS, [row | provenance()], identity=("batch_size", "classes"))
        print(row, flush=True)


def drawer() -> Callable[..., Tensor]:
    """Makes tensors of normal numbers, from a seed."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def answers(count: int, classes: int) -> list[Tensor]:
    """Logits of a student and a teacher that mostly agree, each of two views."""
    import torch

    normal = drawer()
    label = torch.nn.functional.one_hot(torch.arange(count) % classes, classes)
    four = [8 * label + 2 * normal(count, classes) for _ in range(2)]
    return [*(x + normal(count, classes) for x in four), *four]


class Measured(NamedTuple):
    """One pass: the most that it had allocated at a time, its value, its gradients in one row."""

    peak_bytes: int
    value: float
    gradient: Tensor


def measured(loss: Callable[..., Tensor], num_students: int, *tensors: Tensor) -> Measured:
    """A forward and backward pass; the first tensors are the student's."""
    import torch

    students = tensors[:num_students]
    for tensor in students:
        tensor.requires_grad_().grad = None
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        value = loss(*tensors)
        value.backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    gradients = [t.grad.flatten() for t in students if t.grad is not None]
    return Measured(max(itertools.accumulate(changes)), value.item(), torch.cat(gradients))


def explicit_classes(*four: Tensor) -> Tensor:
    """VRM's loss between classes as its formula stands: edges as vectors, for every pair."""
    import torch
    import torch.nn.functional as F

    def edges(real: Tensor, virtual: Tensor) -> Tensor:
        classes = torch.cat([x - x.mean(dim=1, keepdim=True) for x in (real, virtual)]).T
        return F.normalize(classes[:, None] - classes, dim=2, eps=1e-6)

    with torch.no_grad():
        theirs = edges(*four[2:])
    each = F.huber_loss(edges(*four[:2]), theirs, reduction="none").sum(dim=2)
    return each.triu(diagonal=1).sum() * 2 / (len(each) * (len(each) - 1))


# -- drawing -------------------------------------------------------------------------------


def draw() -> None:
    """The figure and the tables, from the two CSVs."""
    rows, forms = read_rows(RESULTS), read_rows(FORM_RESULTS)
    found = {
        (row["method"], int(row["batch_size"]), int(row["width"])): float(row["value"]) / MEGABYTE
        for row in rows
    }
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, len(WIDTHS) + 1)
    for axes, width in zip(panels, WIDTHS, strict=False):
        for place, method in enumerate(methods):
            values = [found[method, count, width] for count in BATCH_SIZES]
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            style = "-" if place < len(COLOURS) else "--"
            axes.plot(BATCH_SIZES, values, style, marker=marker, color=colour, ms=4, label=method)
        _scale(axes, BATCH_SIZES, f"D = {width}", "batch size")
    for place, form in enumerate(("closed", "explicit")):
        values = [float(row[f"{form}_bytes"]) / MEGABYTE for row in forms]
        classes = [int(row["classes"]) for row in forms]
        panels[-1].plot(classes, values, marker=MARKERS[place], color=COLOURS[place], label=form)
    _scale(panels[-1], CLASSES, f"VRM's classes, B = {CLASS_BATCH}", "classes")
    panels[0].set_ylabel("MB")
    panels[-1].legend(fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    save_figure(figure, "memory.png")
    header = ["method", *(f"B = {b}, D = {d}" for d in WIDTHS for b in SHOWN)]
    write_table(
        "memory",
        header,
        [[f"`{m}`", *(_digits(found[m, b, d]) for d in WIDTHS for b in SHOWN)] for m in methods],
    )
    write_table(
        "forms",
        ["classes", "closed form, MB", "explicit form, MB", "value differs by", "gradient by"],
        [
            [
                row["classes"],
                *(
                    _digits(float(row[f"{form}_bytes"]) / MEGABYTE)
                    for form in ("closed", "explicit")
                ),
                row["value_difference"],
                row["gradient_difference"],
            ]
            for row in forms
        ],
    )


def _digits(megabytes: float) -> str:
    """Three of them, or all in front of the point."""
    return f"{megabytes:.3g}" if megabytes < 1000 else f"{megabytes:,.0f}"


def _scale(axes: Axes, places: Sequence[int], title: str, label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(label)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


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
