"""The pictures show the numbers they are given, and nothing in them overlaps."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import nn

from litcifar import figures, style
from litcifar.data.cifar10_files import CLASSES
from litcifar.evaluation import Evaluation
from litcifar.models import MLP, ConvPool, ImageClassifier, Wrapped
from litcifar.report import size

ROWS = [
    {"epoch": 1, "train/acc": 0.3, "train/loss": 2.0, "val/acc": 0.35, "val/loss": 1.8, "lr": 0.1},
    {"epoch": 2, "train/acc": 0.5, "train/loss": 1.5, "lr": 0.05},  # an epoch without validation
    {"epoch": 3, "train/acc": 0.6, "train/loss": 1.2, "val/acc": 0.55, "val/loss": 1.3, "lr": 0.02},
]
NAMES = {
    2: ["cat", "dog"],
    3: ["a name that is longer than any picture has room for", "$x_1 & <b>", "line\nbreak"],
    10: list(CLASSES),
    40: [f"class number {k}" for k in range(40)],
}


def answers(labels: Sequence[int], predicted: Sequence[int], classes: list[str], sureness: float = 2.0) -> Evaluation:
    """Predictions whose logit is `sureness`, that of all other classes being 0; later ones are a little surer."""
    logits = sureness * torch.nn.functional.one_hot(torch.tensor(predicted), len(classes)).float()
    logits *= 1 + torch.arange(len(labels))[:, None] / 100
    right = np.mean(np.array(labels) == np.array(predicted))
    return Evaluation("test", classes, float(right), 0.1, logits, torch.tensor(labels))


def confused(count: int) -> Evaluation:
    """Each class three times, but for two images of class 0 that are taken for class 1."""
    labels = list(range(count)) * 3
    predicted = list(labels)
    predicted[0] = predicted[count] = 1
    return answers(labels, predicted, NAMES[count])


def pixels(count: int, side: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def every_figure(count: int, model: ImageClassifier) -> dict[str, Figure]:
    evaluation = confused(count)
    shares = torch.eye(count)[torch.arange(5) % count] * 0.6 + torch.eye(count)[(torch.arange(5) + 1) % count] * 0.4
    return {
        "curves": figures.curves(ROWS),
        "learning_rate": figures.learning_rate(ROWS),
        "training_images": figures.training_images(pixels(50), torch.arange(50) % count, NAMES[count]),
        "mixed_images": figures.training_images(pixels(5), shares, NAMES[count]),
        **figures.of_answers(evaluation, pixels(len(evaluation.labels_N)), model),
    }


def texts(figure: Figure) -> list[tuple[Text, Bbox]]:
    """The texts that are seen, each with its place in pixels."""
    figure.set_dpi(style.DPI)
    with mpl.rc_context(style.STYLE):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        # A tick outside its axis's limits is kept, but not drawn.
        drawn = {
            label
            for axes in figure.axes
            for axis in (axes.xaxis, axes.yaxis)
            if axes.axison
            for tick in axis._update_ticks()  # type: ignore[union-attr]
            for label in (tick.label1, tick.label2)
        }
        of_ticks = {
            label
            for axes in figure.axes
            for axis in (axes.xaxis, axes.yaxis)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
            for label in (tick.label1, tick.label2)
        }
        axis_labels = {axis.label for axes in figure.axes if not axes.axison for axis in (axes.xaxis, axes.yaxis)}
        seen = [text for text in found if text not in axis_labels and (text in drawn or text not in of_ticks)]
        return [(text, text.get_window_extent(canvas.get_renderer())) for text in seen]


def corners(text: Text, box: Bbox) -> np.ndarray:
    """The four corners of a text's own rectangle, in pixels, for texts turned by 45 degrees about their anchor too."""
    angle = text.get_rotation()
    if angle % 90 == 0:
        return box.corners()
    # A text of w x h turned by 45 degrees fills a box of (w + h) / sqrt(2); h is that of its letters.
    height = 1.4 * float(text.get_fontsize()) * style.DPI / 72
    x0, y0, x1, y1 = box.extents
    step = height / np.sqrt(2)
    return np.array([(x0, y0 + step), (x0 + step, y0), (x1, y1 - step), (x1 - step, y1)])


def near(shapes: list[np.ndarray]) -> list[tuple[int, int]]:
    """The pairs of shapes whose upright boxes share an area: of these alone `overlap` need be asked."""
    low, high = np.array([s.min(0) for s in shapes]), np.array([s.max(0) for s in shapes])
    apart = (low[:, None] >= high[None]).any(2)
    return [(int(i), int(j)) for i, j in np.argwhere(~(apart | apart.T)) if i < j]


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two convex shapes share an area: no line along a side of theirs separates them."""
    for shape in (a, b):
        hull = shape[np.argsort(np.arctan2(*(shape - shape.mean(0)).T))]
        for normal in (np.roll(hull, 1, 0) - hull)[:, ::-1] * (1, -1):
            (a_low, a_high), (b_low, b_high) = ((np.min(s @ normal), np.max(s @ normal)) for s in (a, b))
            if min(a_high, b_high) - max(a_low, b_low) <= 1e-6 * np.linalg.norm(normal):
                return False
    return True


def labels_of(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_no_text_overlaps_another_or_leaves_its_picture(count: int) -> None:
    model = MLP(hidden=[], image_size=8, classes=NAMES[count]) if count == 3 else ConvPool(classes=NAMES[count])
    for name, figure in every_figure(count, model).items():
        seen = [(text.get_text(), corners(text, box)) for text, box in texts(figure)]
        assert seen, name
        width, height = figure.get_size_inches() * style.DPI
        for text, shape in seen:
            assert shape.min() >= -1, (name, text)
            assert shape[:, 0].max() <= width + 1, (name, text)
            assert shape[:, 1].max() <= height + 1, (name, text)
        for place, other in near([shape for _, shape in seen]):
            assert not overlap(seen[place][1], seen[other][1]), (name, seen[place][0], seen[other][0])


def test_the_check_of_overlaps_sees_one() -> None:
    figure = Figure(figsize=(2, 1))
    for x in (0.3, 0.35):
        figure.text(x, 0.5, "word")
    (_, a), (_, b) = texts(figure)
    assert near([a.corners(), b.corners()]) == [(0, 1)]
    assert overlap(a.corners(), b.corners())
    assert near([a.corners(), a.corners() + 100]) == []
    assert not overlap(a.corners(), a.corners() + 100)


@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_every_figure_is_a_picture_of_a_size_for_a_page(count: int) -> None:
    for name, figure in every_figure(count, MLP(hidden=[5], image_size=8, classes=NAMES[count])).items():
        content = style.png(figure)
        assert content.startswith(b"\x89PNG"), name
        assert size(content) == pytest.approx(figure.get_size_inches() * style.DPI, abs=1), name
        width, height = figure.get_size_inches()
        assert 2 <= width <= 20, name
        assert 0.8 <= height <= 15, name


def test_a_users_own_style_stays_as_it_was() -> None:
    before = dict(mpl.rcParams)
    style.png(figures.curves(ROWS))
    assert dict(mpl.rcParams) == before


def test_curves_draw_training_and_validation_on_shared_axes() -> None:
    accuracy, loss = figures.curves(ROWS).axes
    (train, val), (train_loss, _) = accuracy.get_lines(), loss.get_lines()
    assert train.get_xydata() == pytest.approx(np.array([[1, 30], [2, 50], [3, 60]]))
    assert val.get_xydata() == pytest.approx(np.array([[1, 35], [3, 55]]))
    assert train_loss.get_xydata() == pytest.approx(np.array([[1, 2.0], [2, 1.5], [3, 1.2]]))
    assert (accuracy.get_ylabel(), loss.get_ylabel()) == ("top-1 accuracy, %", "loss")
    legend = accuracy.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]


@pytest.mark.parametrize("rows", [[], ROWS[:1]])
def test_few_rows_can_be_drawn(rows: list[dict[str, float]]) -> None:
    for figure in (figures.curves(rows), figures.learning_rate(rows)):
        assert style.png(figure)
        (line, *_) = figure.axes[0].get_lines()
        assert len(np.asarray(line.get_xydata())) == len(rows)


def test_the_learning_rate_is_drawn_from_zero_or_in_powers_of_ten() -> None:
    (axes,) = figures.learning_rate(ROWS).axes
    (line,) = axes.get_lines()
    assert line.get_xydata() == pytest.approx(np.array([[1, 0.1], [2, 0.05], [3, 0.02]]))
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0
    falling = figures.learning_rate([{"epoch": n + 1, "lr": 10.0**-n} for n in range(3)])
    assert falling.axes[0].get_yscale() == "log"
    assert {"1", "0.1", "0.01"} <= {text.get_text() for text, _ in texts(falling)}


@pytest.mark.parametrize("count", [3, 10])
def test_the_confusion_matrix_writes_every_count_and_share(count: int) -> None:
    evaluation = confused(count)
    counts, shares = figures.confusion_matrix(evaluation).axes
    written = torch.tensor([int(text.get_text()) for text in counts.texts]).view(count, count)
    expected = 3 * torch.eye(count, dtype=torch.int64)
    expected[0, 0], expected[0, 1] = 1, 2
    assert written.equal(expected)
    assert [int(text.get_text()) for text in shares.texts[: count + 2]] == [33, 67, *[0] * (count - 2), 0, 100]
    for axes in (counts, shares):
        assert np.asarray(axes.images[0].get_array())[0, :2] == pytest.approx([1 / 3, 2 / 3])
    assert labels_of(counts) == [figures.short(name) for name in NAMES[count]]
    assert (counts.get_title(loc="left"), shares.get_title(loc="left")) == ("Images", "% of the true class")


def test_a_confusion_matrix_of_many_classes_has_no_numbers() -> None:
    counts, _ = figures.confusion_matrix(confused(40)).axes
    assert not counts.texts
    assert len(labels_of(counts)) == 40


def test_bars_are_as_long_as_the_scores() -> None:
    (axes,) = figures.per_class(confused(3)).axes
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    precision, recall, f1 = widths[:3], widths[3:6], widths[6:]
    assert precision == pytest.approx([100, 60, 100])
    assert recall == pytest.approx([100 / 3, 100, 100])
    assert f1 == pytest.approx([50, 75, 100])
    assert labels_of(axes) == [figures.short(NAMES[3][0]), "$x_1 & <b>", "line break"]


def test_of_many_classes_the_worst_have_bars() -> None:
    (axes,) = figures.per_class(confused(40)).axes
    assert labels_of(axes)[:2] == ["class number 0", "class number 1"]
    assert len(axes.patches) == 3 * 30
    assert axes.get_title(loc="left") == "30 lowest by F1"


def test_the_surest_mistakes_come_first_with_both_classes() -> None:
    evaluation, images = confused(3), pixels(9)
    (axes,) = figures.mistakes(evaluation, images).axes
    assert [np.asarray(image.get_array()).tolist() for image in axes.images] == [images[3].tolist(), images[0].tolist()]
    surer, other = (np.exp(2 * f) / (np.exp(2 * f) + 2) for f in (1.03, 1.0))
    long = figures.short(NAMES[3][0], 12)
    assert [text.get_text() for text in axes.texts] == [
        f"$x_1 & <b> {100 * surer:.1f} %\nis {long}",
        f"$x_1 & <b> {100 * other:.1f} %\nis {long}",
        "The 2 most confident of 2 mistakes",
    ]


def test_without_a_mistake_it_says_so() -> None:
    figure = figures.mistakes(answers([0, 1], [0, 1], ["a", "b"]), pixels(2))
    assert [text.get_text() for text in figure.texts] == ["No mistakes: all 2 answers are right."]


def test_bars_of_the_reliability_diagram_by_hand() -> None:
    """Two answers of 0.9 of which one is right, and two of 0.7 that both are."""
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.7, 0.3]]).log()
    evaluation = Evaluation("test", ["a", "b"], 0.75, 0.1, logits, torch.tensor([0, 1, 0, 0]))
    above, below = figures.reliability(evaluation).axes
    accuracy, gap = above.containers
    assert [bar.get_height() for bar in accuracy] == pytest.approx([100, 50])
    assert [bar.get_x() + bar.get_width() / 2 for bar in accuracy] == pytest.approx([70, 90])
    assert [bar.get_height() for bar in gap] == pytest.approx([-30, 40], abs=1e-4)
    assert [bar.get_y() for bar in gap] == pytest.approx([100, 50])
    shares = [bar.get_height() for bar in below.patches]  # type: ignore[attr-defined]
    assert shares == pytest.approx([50 if number in (10, 13) else 0 for number in range(15)])
    assert above.get_title(loc="left") == "Expected calibration error 35.0 %"


def test_the_bars_add_up_to_the_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, generator=generator)
    labels = torch.randint(0, 4, (500,), generator=generator)
    evaluation = Evaluation("test", list("abcd"), 0.5, 0.1, logits, labels)
    above, below = figures.reliability(evaluation).axes
    gaps = [abs(bar.get_height()) for bar in above.containers[1]]
    shares = [bar.get_height() for bar in below.patches if bar.get_height()]  # type: ignore[attr-defined]
    assert np.dot(gaps, shares) / 1e4 == pytest.approx(evaluation.calibration_error(), abs=1e-6)


def test_training_images_are_drawn_with_their_classes() -> None:
    images, labels = pixels(50), torch.arange(50) % 3
    (axes,) = figures.training_images(images, labels, ["a", "b", "c"], count=12).axes
    assert np.stack([np.asarray(image.get_array()) for image in axes.images]).tolist() == images[:12].tolist()
    *names, title = [text.get_text() for text in axes.texts]
    assert names == ["a", "b", "c"] * 4
    assert title == "Training images as the network sees them, 8 x 8"


def test_mixed_images_have_the_shares_of_both_classes() -> None:
    labels = torch.tensor([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
    assert [figures.label_text(label, ["a", "b", "c"]) for label in labels] == ["75 % c\n25 % b", "a"]


def drawn(model: ImageClassifier, **options: int) -> Figure:
    figure = figures.first_layer(model, **options)
    assert figure is not None
    return figure


def test_filters_are_scaled_about_grey() -> None:
    model = ConvPool(widths=[2, 3], image_size=8)
    with torch.no_grad():
        model.net[1][0].weight.zero_()[1, 2, 0, 1] = -0.5  # type: ignore[index]
    (axes,) = drawn(model).axes
    first, second = (np.asarray(image.get_array()) for image in axes.images)
    assert first.shape == (3, 3, 3)
    assert (first == 0.5).all()
    assert second[0, 1].tolist() == [0.5, 0.5, 0.0]  # blue, in the first row
    assert (second == 0.5).sum() == 26


def test_weight_images_are_those_of_the_largest_norms() -> None:
    model = MLP(hidden=[4], image_size=8)
    with torch.no_grad():
        model.net[1].weight.copy_(torch.tensor([1.0, 4, 2, 3])[:, None] * torch.ones(4, 192))  # type: ignore[index]
        model.net[1].weight[1, 3] = -4  # type: ignore[index] # row 0, pixel 1, red
    (axes,) = drawn(model, count=2).axes
    first, second = (np.asarray(image.get_array()) for image in axes.images)
    assert first[0, 1].tolist() == [0, 1, 1]
    assert (second == 1).all()
    assert axes.texts[-1].get_text() == (
        "Weight images of the first layer, 8 x 8 x 3 (2 of 4, the largest norms first)"
    )


def test_the_first_layer_of_a_users_own_network_is_drawn_where_it_takes_the_colours() -> None:
    linear = nn.Linear(3 * 8 * 8, 10)
    with torch.no_grad():
        # Blue, row 1, column 3: a network of one's own gets [B, 3, H, W].
        linear.weight.zero_()[:, 2 * 8 * 8 + 8 + 3] = 1
    (axes,) = drawn(Wrapped(nn.Sequential(nn.Flatten(), linear), {}, image_size=8)).axes
    assert np.asarray(axes.images[0].get_array())[1, 3].tolist() == [0.5, 0.5, 1]
    assert figures.first_layer(Wrapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), {}, image_size=8)) is not None
    others = (nn.Identity(), nn.Conv2d(1, 4, 3), nn.Conv2d(12, 4, 3), nn.Linear(7, 10))
    assert [figures.first_layer(Wrapped(net, {}, image_size=8)) for net in others] == [None] * 4


def test_names_are_cut_in_their_middle_to_the_width_that_is_drawn() -> None:
    assert [figures.short(name) for name in CLASSES] == list(CLASSES)
    assert figures.short("class number 12") != figures.short("class number 13")
    assert figures.short("two\n  lines") == "two lines"
    assert figures.short("WWWWW", 4) == "W…"
    for name in ("i" * 300, "W" * 300, "\U0001f600" * 30, "a very long name of some class"):
        cut = figures.short(name)
        assert "…" in cut
        assert cut.startswith(name[0])
        assert 14 * 0.63 - 1.1 < figures.ems(cut) <= 14 * 0.63


def test_logistic_regression_has_a_weight_image_for_each_class() -> None:
    (axes,) = drawn(MLP(hidden=[], image_size=8, classes=["cat", "dog"])).axes
    assert [text.get_text() for text in axes.texts[:2]] == ["cat", "dog"]
    assert len(axes.images) == 2
