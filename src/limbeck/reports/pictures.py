"""The pictures of a report, each of plain numbers; they are as wide as a phone can show.

K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from limbeck.metrics.calibration import Reliability
from limbeck.reports.statistics import Interval
from limbeck.reports.svg import COLOURS, draw_svg
from limbeck.reports.table import printable

__all__ = [
    "ClassGains",
    "CostPanel",
    "Curves",
    "Kind",
    "Measured",
    "Priced",
    "Reliable",
    "class_gains_svg",
    "cost_svg",
    "curves_svg",
    "forest_svg",
    "interval_svg",
    "on_front",
    "reliability_svg",
]

Kind = Literal["none", "output", "feature", "relation", "reference", "teacher"]
Points = Sequence[tuple[int, float]]


class _Look(NamedTuple):
    colour: str
    marker: str
    filled: bool


# Shape and filling tell apart what colour does, for whoever does not see it.
_LOOKS: Mapping[Kind, _Look] = {
    "none": _Look(COLOURS["ink"], "o", True),
    "output": _Look(COLOURS["output"], "s", True),
    "feature": _Look(COLOURS["feature"], "^", True),
    "relation": _Look(COLOURS["relation"], "D", True),
    "reference": _Look(COLOURS["muted"], "o", False),
    "teacher": _Look(COLOURS["muted"], "P", False),
}
_LONGEST = 24  # characters of a name
_ROW, _AXIS = 0.32, 0.6  # inches: of a row of a picture, and of the axis below them
_PANELS = 2  # side by side
_EXTREMES = 2  # classes that are named at either end


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number of one row over its seeds, with what is drawn beside it; all as fractions.

    Attributes:
        label: of the row.
        kind: what it looks like.
        each: of every seed.
        mean: of these.
        interval: of the mean; None where there is none.
        control: what the number is to be compared with, of every seed.
    """

    label: str
    kind: Kind
    each: Sequence[float]
    mean: float
    interval: Interval | None = None
    control: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Accuracy over the epochs of one row's runs: seed to (epoch, fraction)."""

    label: str
    kind: Kind
    by_seed: Mapping[int, Points]


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A network's accuracy, a fraction, and what it costs.

    Attributes:
        label: of it.
        kind: what it looks like.
        cost: in the panel's unit.
        accuracy: mean over seeds.
        matched: whether it takes part in the match; only then it can be on the front.
    """

    label: str
    kind: Kind
    cost: float
    accuracy: float
    matched: bool = True


@dataclass(frozen=True, kw_only=True)
class CostPanel:
    """What is paid, and by whom."""

    title: str
    networks: Sequence[Priced]


@dataclass(frozen=True, kw_only=True)
class Reliable:
    """Confidence and accuracy of one row; ``note`` is added to its label."""

    label: str
    kind: Kind
    bins: Reliability
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ClassGains:
    """What one row gains in each class: ``(K,)``, fractions; NaN where there is no image."""

    label: str
    kind: Kind
    gains: NDArray[np.float64]
    names: Sequence[str] = field(default=())


def forest_svg(rows: Sequence[Measured]) -> str:
    """Gains in points, a row each: every seed, the mean, its interval, and the line of no gain."""
    return _rows_svg("gains", rows, xlabel="gain over the baseline, points", zero=True)


def interval_svg(name: str, rows: Sequence[Measured], *, xlabel: str) -> str:
    """Shares in percent, a row each: every seed, the mean, and the control, hollow."""
    return _rows_svg(name, rows, xlabel=xlabel, zero=False)


def _rows_svg(name: str, rows: Sequence[Measured], *, xlabel: str, zero: bool) -> str:
    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        if zero:
            axes.axvline(0, color=COLOURS["ink"], lw=1)
        for place, row in enumerate(rows):
            look = _LOOKS[row.kind]
            if row.interval is not None:
                ends = [100 * end for end in row.interval]
                axes.plot(ends, [place] * 2, color=look.colour, lw=2.5)
                for end in ends:
                    axes.plot([end] * 2, [place - 0.16, place + 0.16], color=look.colour)
            # Below the mean, so that seeds and interval do not hide one another.
            for value in row.each:
                _point(axes, 100 * value, place + 0.3, look, size=3, alpha=0.6)
            _point(axes, 100 * row.mean, place, look, size=7)
            for value in row.control:
                _point(axes, 100 * value, place - 0.3, look._replace(filled=False), size=4)
        _name_rows(axes, [row.label for row in rows], xlabel)

    return draw_svg(name, paint, height=_AXIS + _ROW * len(rows))


def curves_svg(rows: Sequence[Curves], *, baseline: Curves | None, ylabel: str) -> str:
    """Accuracy over epochs, a panel for each row: seeds thin, mean thick, baseline dashed."""
    reference = [] if baseline is None else _mean_curve(baseline.by_seed)

    def paint(axes: Axes, row: Curves) -> None:
        colour = _LOOKS[row.kind].colour
        if row is not baseline:
            axes.plot(*_percent(reference), color=COLOURS["ink"], lw=1, linestyle="--")
        for points in row.by_seed.values():
            _line(axes, points, color=colour, lw=0.6, alpha=0.6)
        _line(axes, _mean_curve(row.by_seed), color=colour, lw=1.8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))

    return _panels_svg("epochs", rows, paint, xlabel="epoch", ylabel=ylabel)


def reliability_svg(rows: Sequence[Reliable], *, name: str = "calibration") -> str:
    """Accuracy over confidence, a panel for each row: as large as the images of a bin are many."""

    def paint(axes: Axes, row: Reliable) -> None:
        look, bins = _LOOKS[row.kind], row.bins
        full = bins.num_images > 0
        images = bins.num_images[full]
        confidence = bins.summed_confidence[full] / images
        accuracy = bins.num_correct[full] / images
        axes.plot([0, 100], [0, 100], color=COLOURS["muted"], lw=1, linestyle="--")
        axes.vlines(100 * confidence, 100 * confidence, 100 * accuracy, color=look.colour, lw=1)
        sizes = 5 + 60 * images / images.max()
        axes.scatter(100 * confidence, 100 * accuracy, s=sizes, color=look.colour, linewidths=0)
        axes.set_xlim(-4, 104)
        axes.set_ylim(-4, 104)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=5))

    return _panels_svg(
        name, rows, paint, xlabel="confidence, %", ylabel="accuracy, %", panel_height=1.75
    )


def cost_svg(panels: Sequence[CostPanel], *, ylabel: str) -> str:
    """Accuracy over cost, a panel for each cost; whoever is on the Pareto front is ringed."""
    most = max(len(panel.networks) for panel in panels)
    height = max(2.0, 0.9 + 0.19 * most)

    def paint(figure: Figure) -> None:
        drawn = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, panel in zip(drawn, panels, strict=True):
            _draw_costs(axes, panel, label_gap=0.175 / (height - 0.7))
            axes.set_ylabel(ylabel)

    return draw_svg("cost", paint, height=height * len(panels))


def class_gains_svg(rows: Sequence[ClassGains]) -> str:
    """Gains in points, a row each: every class a point, those at the ends named."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=COLOURS["ink"], lw=1)
        for place, row in enumerate(rows):
            look = _LOOKS[row.kind]
            there = np.flatnonzero(~np.isnan(row.gains))
            order = there[np.argsort(row.gains[there], kind="stable")]
            for index in order:
                _point(axes, 100 * row.gains[index], place, look, size=5, alpha=0.5)
            ends = dict.fromkeys([*order[:_EXTREMES], *order[::-1][:_EXTREMES]])
            told = {index: 100 * row.gains[index] for index in ends}
            for side, chosen in (
                ("right", [k for k in told if k in order[: len(order) // 2]]),
                ("left", [k for k in told if k not in order[: len(order) // 2]]),
            ):
                if not chosen:
                    continue
                names = ", ".join(_short(row.names[k], 12) for k in chosen)
                edge = min if side == "right" else max
                axes.annotate(
                    names,
                    (edge(told[k] for k in chosen), place),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="left" if side == "right" else "right",
                    color=COLOURS["muted"],
                    fontsize=9.5,
                    bbox={"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 0.5},
                )
        _name_rows(axes, [row.label for row in rows], "gain in a class, points")

    return draw_svg("classes", paint, height=_AXIS + 1.5 * _ROW * len(rows))


def on_front(networks: Sequence[Priced]) -> list[Priced]:
    """Those of the match that no other beats in accuracy for the same cost or less.

    Example:
        >>> def at(cost, accuracy):
        ...     return Priced(label="", kind="none", cost=cost, accuracy=accuracy)
        >>> [one.cost for one in on_front([at(1, 0.5), at(2, 0.4), at(3, 0.6)])]
        [1, 3]
    """
    matched = [one for one in networks if one.matched]
    return [
        one
        for one in matched
        if not any(
            other.cost <= one.cost
            and other.accuracy >= one.accuracy
            and (other.cost, other.accuracy) != (one.cost, one.accuracy)
            for other in matched
        )
    ]


def _draw_costs(axes: Axes, panel: CostPanel, *, label_gap: float) -> None:
    networks = sorted(panel.networks, key=lambda one: one.accuracy)
    front = sorted(on_front(networks), key=lambda one: one.cost)
    costs = [one.cost for one in networks]
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _quantity(value)))
    axes.step(
        [one.cost for one in front],
        [100 * one.accuracy for one in front],
        where="post",
        color=COLOURS["ink"],
        lw=1,
        linestyle=":",
    )
    for one in networks:
        _point(axes, one.cost, 100 * one.accuracy, _LOOKS[one.kind], size=6)
    for one in front:
        ring = _LOOKS[one.kind]._replace(marker="o", filled=False, colour=COLOURS["ink"])
        _point(axes, one.cost, 100 * one.accuracy, ring, size=11, hollow="none")
    axes.margins(x=0.08, y=0.12)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    wanted = [(100 * one.accuracy - low) / (high - low) for one in networks]
    for one, height in zip(networks, _apart(wanted, label_gap), strict=True):
        axes.annotate(
            _short(one.label),
            (one.cost, 100 * one.accuracy),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            arrowprops={"arrowstyle": "-", "color": COLOURS["grid"], "lw": 0.6},
        )
    axes.set_xlabel(panel.title)


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as needed, so that they lie ``gap`` apart below 1."""
    found: list[float] = []
    for height in wanted:
        found.append(max(height, found[-1] + gap) if found else height)
    top = 1.0
    for place in reversed(range(len(found))):
        found[place] = min(found[place], top)
        top = found[place] - gap
    return found


def _panels_svg(
    name: str,
    rows: Sequence[Curves] | Sequence[Reliable],
    paint: Callable[[Axes, Curves], None] | Callable[[Axes, Reliable], None],
    *,
    xlabel: str,
    ylabel: str,
    panel_height: float = 1.5,
) -> str:
    lines = -(-len(rows) // _PANELS)

    def paint_all(figure: Figure) -> None:
        drawn = figure.subplots(lines, _PANELS, sharex=True, sharey=True, squeeze=False)
        for place, axes in enumerate(drawn.flat):
            if place >= len(rows):
                axes.remove()
                continue
            row = rows[place]
            note = row.note if isinstance(row, Reliable) else ""
            axes.set_title(f"{_short(row.label, _LONGEST - len(note))}{note}")
            paint(axes, row)  # type: ignore[arg-type]
            axes.tick_params(labelbottom=place + _PANELS >= len(rows))
            axes.set_xlabel(xlabel if place + _PANELS >= len(rows) else "")
            axes.set_ylabel("" if place % _PANELS else ylabel)

    return draw_svg(name, paint_all, height=0.4 + panel_height * lines)


def _name_rows(axes: Axes, labels: Sequence[str], xlabel: str) -> None:
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.margins(x=0.04)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(xlabel)


def _point(
    axes: Axes,
    x: float,
    y: float,
    look: _Look,
    *,
    size: float,
    alpha: float = 1,
    hollow: str = COLOURS["paper"],
) -> None:
    axes.plot(
        x,
        y,
        look.marker,
        color=look.colour,
        markerfacecolor=look.colour if look.filled else hollow,
        markersize=size,
        markeredgewidth=1.2 if not look.filled else 0,
        alpha=alpha,
    )


def _line(axes: Axes, points: Points, *, color: str, lw: float, alpha: float = 1) -> None:
    marker = "." if len(points) == 1 else ""
    axes.plot(*_percent(points), color=color, lw=lw, alpha=alpha, marker=marker)


def _percent(points: Points) -> tuple[list[int], list[float]]:
    return [epoch for epoch, _ in points], [100 * value for _, value in points]


def _mean_curve(by_seed: Mapping[int, Points]) -> Points:
    """Of each epoch that every seed has."""
    curves = [dict(points) for points in by_seed.values()]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    return [(epoch, float(np.mean([curve[epoch] for curve in curves]))) for epoch in shared]


def _quantity(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _short(name: str, longest: int = _LONGEST) -> str:
    name = printable(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"
