"""Charts that compare runs: an answer to a sweep's question, accuracy against cost, and overlaid curves."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox, ScaledTranslation

from litcifar.style import BLUE, GREEN, GREY, RED, styled

# Okabe and Ito's palette, which colour-blind people can tell apart, without its yellow, too light on white.
COLOURS = (BLUE, RED, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--")
CURVES = len(COLOURS) * len(DASHES)  # as many can be told apart
SIZE = (6.6, 4.2)  # inches
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # of a point, for its label
LOG_FROM = 4.0  # ratio of the largest to the smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Point:
    """A row in a scatter plot. y: accuracy, 0 to 1. Deviations over seeds; None where there is none."""

    label: str
    x: float
    y: float
    x_sd: float | None = None
    y_sd: float | None = None


@dataclass(frozen=True)
class Spread:
    """The accuracies, 0 to 1, that the seeds of one value reached."""

    label: str
    accs: Sequence[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accs)

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.accs) if len(self.accs) > 1 else None


@styled
def answer(title: str, axis: str, spreads: Sequence[Spread], numbers: Sequence[float] | None = None) -> Figure:
    """The mean and the deviation of each value, and beside them a circle for each seed.

    numbers: the values, where they are numbers: these lie on the x axis, joined by a line. Else each value is a row.
    """
    if numbers is None:
        return _rows(title, axis, spreads)
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    means = [100 * spread.mean for spread in spreads]
    axes.plot(numbers, means, "-", color=COLOURS[0], lw=1.5, zorder=1)
    for number, spread in zip(numbers, spreads, strict=True):
        accs = [100 * acc for acc in spread.accs]
        axes.errorbar(
            number, 100 * spread.mean, yerr=100 * (spread.sd or 0), fmt="o", ms=8, capsize=4, color=COLOURS[0]
        )
        _seeds(axes, [number] * len(accs), accs, right=9)
        axes.annotate(
            _mean_and_sd(spread), (number, max([*accs, 100 * (spread.mean + (spread.sd or 0))])), (0, 7),
            textcoords="offset points", ha="center", color=GREY,
        )  # fmt: skip
    axes.set_xticks(numbers, [spread.label for spread in spreads])
    axes.set_xlabel(axis)
    axes.set_ylabel("validation accuracy, %")
    axes.margins(x=0.14, y=0.18)
    _finish(axes, title)
    return figure


def _rows(title: str, axis: str, spreads: Sequence[Spread]) -> Figure:
    """One row for each value, the first on top."""
    figure = Figure(figsize=(7.2, 1.5 + 0.55 * len(spreads)), layout="constrained")
    axes = figure.subplots()
    for place, spread in enumerate(spreads):
        mean, sd = 100 * spread.mean, 100 * (spread.sd or 0)
        accs = [100 * acc for acc in spread.accs]
        axes.errorbar(mean, place, xerr=sd, fmt="o", ms=8, capsize=4, color=COLOURS[0])
        _seeds(axes, accs, [place] * len(accs), down=9)
        axes.annotate(
            _mean_and_sd(spread), (1, place), (6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", color=GREY,
        )  # fmt: skip
    axes.set_yticks(range(len(spreads)), [spread.label for spread in spreads])
    axes.set_ylim(len(spreads) - 0.5, -0.5)
    axes.set_ylabel(axis)
    axes.set_xlabel("validation accuracy, %")
    axes.margins(x=0.06)
    _finish(axes, title)
    return figure


def _seeds(axes: Axes, xs: Sequence[float], ys: Sequence[float], right: float = 0, down: float = 0) -> None:
    """A circle at each (x, y), moved by so many points so that the mean's dot covers none."""
    moved = axes.transData + ScaledTranslation(right / 72, -down / 72, axes.get_figure().dpi_scale_trans)  # type: ignore[union-attr]
    axes.plot(xs, ys, "o", ms=4.5, mfc="white", color=COLOURS[1], transform=moved)


@styled
def scatter(points: Sequence[Point], x_label: str, x_text: Callable[[float], str]) -> Figure:
    """Accuracy against a cost, each point labelled where there is room; the x axis is logarithmic where that serves.

    x_text: a value of the x axis in words.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for place, point in enumerate(points):
        axes.errorbar(
            point.x,
            100 * point.y,
            xerr=point.x_sd,
            yerr=None if point.y_sd is None else 100 * point.y_sd,
            fmt="o",
            ms=7,
            capsize=3,
            color=COLOURS[place % len(COLOURS)],
        )
    xs = [point.x for point in points]
    if min(xs) > 0 and max(xs) / min(xs) >= LOG_FROM:
        axes.set_xscale("log")
        axes.set_xticks(_ticks(min(xs), max(xs)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: x_text(x)))
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel(x_label)
    axes.set_ylabel("validation accuracy, %")
    _finish(axes)
    _label(axes, points)
    return figure


@styled
def curves(runs_of: Mapping[str, Sequence[Mapping[int, float]]]) -> Figure:
    """Validation accuracy of each epoch: the mean over seeds, and a band of one deviation where there are several.

    runs_of: for each label the runs, as {epoch: accuracy, 0 to 1}; the first `CURVES` labels are drawn.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for place, (label, runs) in enumerate(list(runs_of.items())[:CURVES]):
        epochs = sorted(set[int]().union(*runs))
        values = [[100 * run[epoch] for run in runs if epoch in run] for epoch in epochs]
        means = [statistics.fmean(of_epoch) for of_epoch in values]
        sds = [statistics.stdev(of_epoch) if len(of_epoch) > 1 else 0.0 for of_epoch in values]
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS)]
        axes.plot(epochs, means, dash, marker="o", ms=3, color=colour, label=label)
        if any(sds):
            low, high = ([m + sign * sd for m, sd in zip(means, sds, strict=True)] for sign in (-1, 1))
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes)
    figure.legend(loc="outside right center")
    return figure


@styled
def search_history(complete: Mapping[int, float], pruned: Mapping[int, float], failed: Sequence[int]) -> Figure:
    """Validation accuracy of each trial of a search, and the best one so far.

    complete: {trial: accuracy, 0 to 1}. pruned: {trial: the last accuracy before it was given up}.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    best = list(accumulate((acc for _, acc in sorted(complete.items())), max))
    last = max([*complete, *pruned, *failed], default=0)
    if best:
        steps = [*sorted(complete), last]
        axes.step(steps, [100 * acc for acc in [*best, best[-1]]], where="post", color=COLOURS[0], label="best so far")
    for label, trials, marker, face in (("complete", complete, "o", COLOURS[0]), ("pruned", pruned, "v", "white")):
        colour = COLOURS[0] if trials is complete else COLOURS[1]
        accs = [100 * acc for acc in trials.values()]
        if accs:
            axes.plot(list(trials), accs, marker, ms=6, color=colour, mfc=face, label=label)
    if failed:
        below = axes.get_xaxis_transform()
        axes.plot(failed, [0.03] * len(failed), "x", ms=6, color=COLOURS[6], transform=below, label="failed")
    axes.set_xlabel("trial")
    axes.set_ylabel("validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.1)
    _finish(axes, "Search history")
    figure.legend(loc="outside right upper")
    return figure


@styled
def importance(shares: Mapping[str, float], top: int, complete: int) -> Figure:
    """The share of each key, 0 to 1, in what tells the top trials from all: one bar each, the largest on top."""
    figure = Figure(figsize=(6.6, 1.3 + 0.42 * len(shares)), layout="constrained")
    axes = figure.subplots()
    ranked = sorted(shares.items(), key=lambda item: item[1])
    bars = axes.barh([key for key, _ in ranked], [100 * share for _, share in ranked], height=0.6, color=COLOURS[0])
    axes.bar_label(bars, [f"{100 * share:.0f} %" for _, share in ranked], padding=4, color=GREY)
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"importance for being among the best {top} of {complete} complete trials (PED-ANOVA), %")
    _finish(axes, "Which key matters")
    axes.grid(visible=False, axis="y")
    return figure


def _finish(axes: Axes, title: str = "") -> None:
    axes.grid()
    axes.set_title(title)


def _mean_and_sd(spread: Spread) -> str:
    return f"{100 * spread.mean:.1f}" + ("" if spread.sd is None else f" ± {100 * spread.sd:.1f}")


def _ticks(low: float, high: float) -> list[float]:
    """At most eight round numbers about low to high: 1, 2, 5, or 1, 3, or 1 of each decade."""
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = sorted(digit * decade for digit, decade in product(digits, decades))
        inside = [tick for tick in ticks if low / 1.5 <= tick <= high * 1.5]
        if len(inside) <= 8:
            break
    return inside


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Writes each label beside its point where it covers no point, bar or other label; the first come first.

    Where the places next to a point are taken it stands further off, with a line to it; without any it is left out.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # so that the layout is known
    frame = axes.get_window_extent(renderer)
    taken = [box for point in points for box in _extents(axes, point)]
    for point in points:
        for distance, (right, up) in product((8, 18, 32, 48), SIDES):
            text = axes.annotate(
                point.label,
                (point.x, 100 * point.y),
                (right * distance, up * distance),
                textcoords="offset points",
                fontsize=8.5,
                ha=("center", "left", "right")[right],
                va=("center", "bottom", "top")[up],
                arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.7, "shrinkB": 4} if distance > 8 else None,
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # of the words, without the line
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                text.set_in_layout(False)
                break
            text.remove()


def _extents(axes: Axes, point: Point) -> list[Bbox]:
    """The pixels of a point's two bars, each with the dot."""
    boxes = []
    for x_sd, y_sd in ((point.x_sd or 0, 0), (0, 100 * (point.y_sd or 0))):
        low, high = (max(point.x - x_sd, 1e-9), 100 * point.y - y_sd), (point.x + x_sd, 100 * point.y + y_sd)
        corners = [axes.transData.transform(corner) for corner in (low, high)]
        boxes.append(Bbox(corners).padded(7))
    return boxes
