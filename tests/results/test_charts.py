"""The charts: what is drawn where, and labels that do not overlap."""

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from litcifar.results.charts import COLOURS, CURVES, Point, Spread, answer, curves, importance, scatter, search_history
from litcifar.results.page import si


def x_of(line: Line2D) -> list[float]:
    return np.asarray(line.get_xdata(), float).tolist()


def y_of(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata(), float).tolist()


def annotations(axes: Axes) -> list[Annotation]:
    return [child for child in axes.get_children() if isinstance(child, Annotation)]


def boxes(figure: Figure, texts: list[Annotation]) -> list[Bbox]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    for text in texts:
        text.update_positions(renderer)
    return [Text.get_window_extent(text, renderer) for text in texts]


def assert_apart(figure: Figure, texts: list[Annotation]) -> None:
    for a, b in itertools.combinations(boxes(figure, texts), 2):
        assert not a.overlaps(b)


SPREADS = [Spread("2", [0.70, 0.72, 0.74]), Spread("3", [0.60, 0.60, 0.63]), Spread("4", [0.5])]


def test_numbers_are_joined_by_a_line_through_their_means() -> None:
    (axes,) = answer("How?", "model.pool_size", SPREADS, [2, 3, 4]).axes
    line = axes.lines[0]
    assert x_of(line) == [2, 3, 4]
    assert y_of(line) == pytest.approx([72, 61, 50])
    dots = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [y_of(of_value) for of_value in dots] == [
        pytest.approx([70, 72, 74]),
        pytest.approx([60, 60, 63]),
        [50],
    ]
    assert [x_of(of_value) for of_value in dots] == [[2, 2, 2], [3, 3, 3], [4]]
    assert [text.get_text() for text in annotations(axes)] == ["72.0 ± 2.0", "61.0 ± 1.7", "50.0"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("model.pool_size", "validation accuracy, %")
    assert axes.get_title(loc="left") == "How?"


def test_words_are_rows_in_their_order_from_the_top() -> None:
    figure = answer("Which?", "optim", [Spread("adam", [0.7, 0.72]), Spread("a long name of a value", [0.6, 0.62])])
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["adam", "a long name of a value"]
    top, bottom = (axes.transData.transform((70, place))[1] for place in (0, 1))
    assert top > bottom
    dots = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [x_of(of_value) for of_value in dots] == [pytest.approx([70, 72]), pytest.approx([60, 62])]
    assert [y_of(of_value) for of_value in dots] == [[0, 0], [1, 1]]
    assert_apart(figure, annotations(axes))


def test_labels_of_a_scatter_stay_inside_and_apart() -> None:
    points = [Point(f"{n} a_network_of_some_name", 1e5 * (1 + n % 3), 0.7 + 0.002 * n, y_sd=0.001) for n in range(10)]
    figure = scatter(points, "parameters", si)
    (axes,) = figure.axes
    texts = annotations(axes)
    assert len(texts) >= 8
    assert {text.get_text() for text in texts} <= {point.label for point in points}
    assert_apart(figure, texts)
    frame = axes.get_window_extent()
    for box in boxes(figure, texts):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
    for text in texts:
        assert text.xy in [(point.x, pytest.approx(100 * point.y)) for point in points]


def test_labels_keep_off_the_bars_of_other_points() -> None:
    points = [Point("constant", 24.7, 0.456, 2.5, 0.017), Point("step", 26.2, 0.456, 1.6, 0.017)]
    points += [Point("cosine", 34.1, 0.453, 5.0, 0.012), Point("triangular", 29.9, 0.471, 1.0, 0.007)]
    figure = scatter(points, "training time", str)
    texts = annotations(figure.axes[0])
    assert len(texts) == 4
    for box in boxes(figure, texts):
        for point in points:
            for end in ((point.x - (point.x_sd or 0), point.y), (point.x + (point.x_sd or 0), point.y)):
                x, y = figure.axes[0].transData.transform((end[0], 100 * end[1]))
                assert not box.contains(x, y)


def test_a_cost_of_many_sizes_is_on_a_logarithmic_axis() -> None:
    near = scatter([Point("a", 1e5, 0.7), Point("b", 3e5, 0.8)], "parameters", si).axes[0]
    far = scatter([Point("a", 1e5, 0.7), Point("b", 5e6, 0.8, x_sd=1e6, y_sd=0.01)], "parameters", si).axes[0]
    assert (near.get_xscale(), far.get_xscale()) == ("linear", "log")
    ticks = [tick.get_text() for tick in far.get_xticklabels()]
    assert ticks == ["100 k", "200 k", "500 k", "1 M", "2 M", "5 M"]


def test_equal_points_keep_their_labels() -> None:
    figure = scatter([Point("first", 100, 0.5), Point("second", 100, 0.5)], "parameters", si)
    texts = annotations(figure.axes[0])
    assert {text.get_text() for text in texts} == {"first", "second"}
    assert_apart(figure, texts)


def test_curves_are_means_with_a_band_of_one_deviation() -> None:
    figure = curves({"a": [{1: 0.5, 2: 0.7}, {1: 0.6, 2: 0.7}], "b": [{1: 0.4, 2: 0.5, 3: 0.55}]})
    (axes,) = figure.axes
    a, b = axes.lines
    assert y_of(a) == pytest.approx([55, 70])
    assert (x_of(b), y_of(b)) == ([1, 2, 3], pytest.approx([40, 50, 55]))
    (band,) = axes.collections
    corners = np.asarray(band.get_paths()[0].vertices)
    first = sorted(corners[corners[:, 0] == 1, 1].tolist())
    assert (first[0], first[-1]) == (pytest.approx(55 - 7.0711, abs=1e-3), pytest.approx(55 + 7.0711, abs=1e-3))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_curves_that_cannot_be_told_apart_are_left_out() -> None:
    axes = curves({str(n): [{1: 0.5, 2: 0.6}] for n in range(CURVES + 3)}).axes[0]
    assert len(axes.lines) == CURVES == 2 * len(COLOURS)
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == CURVES


def test_a_search_shows_each_trial_and_the_best_so_far() -> None:
    (axes,) = search_history({0: 0.4, 3: 0.3, 4: 0.6}, {1: 0.2}, [2, 5]).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines) == ["best so far", "complete", "pruned", "failed"]
    assert (x_of(lines["best so far"]), y_of(lines["best so far"])) == ([0, 3, 4, 5], pytest.approx([40, 40, 60, 60]))
    assert (x_of(lines["complete"]), y_of(lines["complete"])) == ([0, 3, 4], pytest.approx([40, 30, 60]))
    assert (x_of(lines["pruned"]), y_of(lines["pruned"])) == ([1], [20])
    assert x_of(lines["failed"]) == [2, 5]
    (empty,) = search_history({}, {}, [0]).axes
    assert [line.get_label() for line in empty.lines] == ["failed"]


def test_the_key_that_matters_most_is_on_top() -> None:
    (axes,) = importance({"optim.lr": 0.3, "augment": 0.7}, 5, 12).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["optim.lr", "augment"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([30, 70])  # type: ignore[attr-defined]
    assert [text.get_text() for text in annotations(axes)] == ["30 %", "70 %"]
    assert axes.get_xlabel() == "importance for being among the best 5 of 12 complete trials (PED-ANOVA), %"
