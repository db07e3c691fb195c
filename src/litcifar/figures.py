"""Pictures of data, networks and their answers: each function returns a matplotlib figure."""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from litcifar.models import ImageClassifier
from litcifar.models.classifier import ChannelsFirst
from litcifar.style import BLUE, GREEN, GREY, RED, STYLE, styled

if TYPE_CHECKING:
    from litcifar.evaluation import Evaluation

TRAIN, VAL = BLUE, RED
SCORES = {"precision": BLUE, "recall": RED, "F1": GREEN}
MOST_NUMBERS = 20  # classes of a confusion matrix whose cells have room for numbers
MOST_BARS = 30  # classes with room for bars
LETTER = 0.63  # the width of a usual letter, in units of the font's size
BOLD = 1.15  # a bold letter's width, that of a usual one being 1
BINS = 15  # of confidence: torchmetrics' own number


def of_answers(evaluation: "Evaluation", images_NHWC: Tensor, model: ImageClassifier) -> dict[str, Figure]:
    """All pictures of a network and its answers on a split, by name; the arguments are those of each."""
    weights = first_layer(model)
    return {
        "confusion_matrix": confusion_matrix(evaluation),
        "per_class": per_class(evaluation),
        "mistakes": mistakes(evaluation, images_NHWC),
        "reliability": reliability(evaluation),
        **({"first_layer": weights} if weights else {}),
    }


@styled
def curves(rows: Sequence[dict[str, float]]) -> Figure:
    """Accuracy and loss of each epoch, training and validation on shared axes.

    rows: those of metrics.csv (`run_folder.read_rows`); an epoch without validation lacks its columns.
    """
    figure = _figure(11.4, 3.4)
    labels = {"acc": ("training", "validation"), "loss": ("training, as minimised", "validation, cross-entropy")}
    for axes, metric in zip(figure.subplots(1, 2), labels, strict=True):
        for split, colour, label in zip(("train", "val"), (TRAIN, VAL), labels[metric], strict=True):
            known = [row for row in rows if f"{split}/{metric}" in row]
            factor = 100 if metric == "acc" else 1
            values = [factor * row[f"{split}/{metric}"] for row in known]
            axes.plot([row["epoch"] for row in known], values, color=colour, label=label, **_markers(known))
        axes.set_title("Accuracy" if metric == "acc" else "Loss")
        axes.set_ylabel("top-1 accuracy, %" if metric == "acc" else "loss")
        _epochs(axes, rows)
        axes.legend()
    return figure


@styled
def learning_rate(rows: Sequence[dict[str, float]]) -> Figure:
    """The learning rate at the end of each epoch; on a logarithmic axis where it falls to a twentieth or less."""
    known = [row for row in rows if "lr" in row]
    rates = [row["lr"] for row in known]
    figure = _figure(11.4, 2.3)
    axes = figure.subplots()
    axes.plot([row["epoch"] for row in known], rates, color=BLUE, **_markers(known))
    axes.set_title("Learning rate")
    axes.set_ylabel("at the epoch's end")
    if rates and 0 < min(rates) <= max(rates) / 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # its own writes powers as formulas, which are off here
        axes.yaxis.set_minor_formatter("")
    else:
        axes.set_ylim(0, 1.1 * max(rates, default=1) or 1)
    _epochs(axes, rows)
    return figure


@styled
def learning_rate_finder(
    rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], suggested: int
) -> Figure:
    """The loss of each step of a range test against its learning rate, on a logarithmic axis.

    smooth: the losses without their noise. suggested: the place in `rates` that is marked.
    """
    figure = _figure(7.2, 3.8)
    axes = figure.subplots()
    axes.plot(rates, losses, ".", ms=4, color=GREY, alpha=0.5, label="each step")
    axes.plot(rates, smooth, color=BLUE, lw=2, label="smoothed")
    axes.axvline(rates[suggested], color=RED, lw=1.2, ls="--", label=f"steepest: {rates[suggested]:.2g}")
    axes.plot(rates[suggested], smooth[suggested], "o", ms=8, color=RED)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    low, high = min(losses), max(smooth[: suggested + 1])
    axes.set_ylim(low - 0.1 * (high - low), high + 0.35 * (high - low))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title("Learning-rate range test")
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@styled
def confusion_matrix(evaluation: "Evaluation") -> Figure:
    """Counts, and beside them the shares of each true class in %, which also shade both; numbers up to 20 classes."""
    counts = evaluation.confusion()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    K = len(evaluation.classes)
    side = min(max(3.4, 0.46 * K + 0.9), 9)
    figure = _figure(2 * side + 0.7, side + 0.8)
    size = min(9.0, 29 * side / K)
    written = {"images": [f"{count:d}" for count in counts.flatten().tolist()]}
    written["% of the true class"] = [f"{100 * share:.0f}" for share in shares.flatten().tolist()]
    for axes, (unit, numbers) in zip(figure.subplots(1, 2, sharey=True), written.items(), strict=True):
        axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
        for place, number in enumerate(numbers if K <= MOST_NUMBERS else ()):
            true, predicted = divmod(place, K)
            colour = "white" if shares[true, predicted] > 0.5 else "black" if counts[true, predicted] else "#9AA5AF"
            text = axes.text(predicted, true, number, ha="center", va="center", fontsize=min(8, size), color=colour)
            text.set_in_layout(False)  # it is inside anyway, and to measure them all takes half of the time
        names = [short(name) for name in evaluation.classes]
        axes.set_xticks(range(K), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(K), names, fontsize=size)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted class")
        axes.set_title(unit[0].upper() + unit[1:])
        axes.spines[:].set_visible(False)
    figure.axes[0].set_ylabel("true class")
    return figure


@styled
def per_class(evaluation: "Evaluation") -> Figure:
    """Precision, recall and F1 of each class as bars; of more than 30 classes, the 30 with the lowest F1."""
    scores, classes = evaluation.per_class(), evaluation.classes
    shown = sorted(sorted(range(len(classes)), key=lambda k: scores["F1"][k])[:MOST_BARS])
    figure = _figure(6.0, 0.42 * len(shown) + 1.3)
    axes = figure.subplots()
    for number, (name, colour) in enumerate(SCORES.items()):
        places = [place + 0.26 * (number - 1) for place in range(len(shown))]
        axes.barh(places, [100 * scores[name][k] for k in shown], 0.23, color=colour, label=name)
    axes.set_yticks(range(len(shown)), [short(classes[k]) for k in shown])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")
    axes.grid(axis="x")
    axes.set_title("Each class" if len(shown) == len(classes) else f"{MOST_BARS} lowest by F1")
    axes.legend(loc="lower right", bbox_to_anchor=(1.01, 1), ncols=3, borderaxespad=0.1)
    return figure


@styled
def reliability(evaluation: "Evaluation") -> Figure:
    """How often the network is right when it is so confident: the accuracy in each fifteenth of confidence.

    Guo et al. 2017, arXiv 1706.04599, figure 1. Confidence is the probability of the predicted class.
    """
    confidence_N = evaluation.probabilities_NK.max(1).values.numpy()
    right_N = (evaluation.predictions_N == evaluation.labels_N).numpy()
    edges = np.linspace(0, 1, BINS + 1)
    bin_N = np.digitize(confidence_N, edges[1:-1])
    count = np.bincount(bin_N, minlength=BINS)
    full = count > 0
    accuracy, confidence = (np.bincount(bin_N, of_N, BINS)[full] / count[full] for of_N in (right_N, confidence_N))
    centres, width = 100 * (edges[:-1] + edges[1:]) / 2, 100 / BINS
    figure = _figure(5.2, 5.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.bar(centres[full], 100 * accuracy, 0.92 * width, color=BLUE, label="accuracy")
    gap = 100 * (confidence - accuracy)
    above.bar(
        *(centres[full], gap, 0.92 * width, 100 * accuracy),
        color="none",
        edgecolor=RED,
        hatch="////",
        linewidth=0.8,
        label="gap to the mean confidence",
    )
    above.plot([0, 100], [0, 100], "--", color=GREY, linewidth=1, label="as right as confident")
    above.set_ylim(0, 100)
    above.set_ylabel("accuracy, %")
    above.set_title(f"Expected calibration error {100 * evaluation.calibration_error():.1f} %")
    above.legend(loc="upper left")
    below.bar(centres, 100 * count / max(len(bin_N), 1), 0.92 * width, color=GREY)
    below.set_xlim(0, 100)
    below.set_xlabel("confidence, %")
    below.set_ylabel("images, %")
    for axes in (above, below):
        axes.grid()
    return figure


@styled
def mistakes(evaluation: "Evaluation", images_NHWC: Tensor, count: int = 30) -> Figure:
    """The wrong answers that the network was surest of: what it said with which probability, and the true class.

    images_NHWC: uint8, those of the split in their order, as `ImageDataModule.images` gives them.
    """
    wrong = evaluation.mistakes()
    if not len(wrong):
        figure = Figure(figsize=(9, 1.2))
        figure.text(0.5, 0.5, f"No mistakes: all {len(evaluation.labels_N):,} answers are right.", ha="center", size=11)
        return figure
    labels = []
    for index in (shown := wrong[:count]).tolist():
        true, said = evaluation.labels_N[index], evaluation.predictions_N[index]
        said_name = short(evaluation.classes[said], 10)
        probability = 100 * evaluation.probabilities_NK[index, said].item()
        labels.append(f"{said_name} {probability:.1f} %\nis {short(evaluation.classes[true], 12)}")
    title = f"The {len(shown)} most confident of {len(wrong):,} mistakes" if len(wrong) > 1 else "The only mistake"
    return image_grid(images_NHWC[shown], labels, title=title)


@styled
def image_grid(
    images: Tensor | Sequence[np.ndarray],
    labels: Sequence[str] = (),
    columns: int = 10,
    title: str = "",
    size: float = 1.0,
) -> Figure:
    """Images with a label of at most two lines below each, in rows of `columns`.

    images: [N, height, width, 3], uint8 0 to 255 or float 0 to 1, or a list of images of any sizes. size: of one, in
        inches.
    """
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    lines = max((label.count("\n") + 1 for label in labels), default=0)
    across, down = size + 0.16, size + 0.08 + 0.155 * lines + (0.06 if lines else 0)  # inches
    top, width = 0.42 if title else 0.04, max(columns * across, BOLD * ems(title) * 11 / 72 + 0.2)
    figure = Figure(figsize=(width, rows * down + top))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    left = 0.08
    for number, image in enumerate(images.numpy() if isinstance(images, Tensor) else images):
        row, column = divmod(number, columns)
        x, y = left + column * across, top + row * down
        axes.add_patch(Rectangle((x, y), size, size, fill=False, edgecolor="#C3CAD1", linewidth=1))
        axes.imshow(image, extent=(x, x + size, y + size, y), interpolation="nearest", aspect="auto", zorder=2)
        if labels:
            place = (x + size / 2, y + size + 0.04)
            axes.text(*place, labels[number], ha="center", va="top", fontsize=7.5, linespacing=1.15)
    if title:
        axes.text(left, 0.1, title, fontsize=11, fontweight="bold", va="top")
    axes.set_xlim(0, width)
    axes.set_ylim(rows * down + top, 0)
    return figure


def training_images(images_BHWC: Tensor, labels: Tensor, classes: Sequence[str], count: int = 40) -> Figure:
    """Images of a training batch, as `ImageDataModule.first_batch` gives them, and their classes.

    labels: int64 [B], or float [B, K] after mixup or cutmix: then with the share of each of two classes.
    """
    names = [label_text(label, classes) for label in labels[:count]]
    height, width = images_BHWC.shape[1:3]
    return image_grid(images_BHWC[:count], names, title=f"Training images as the network sees them, {height} x {width}")


def label_text(label: Tensor, classes: Sequence[str]) -> str:
    """The class of a label (int64, a number), or the classes of mixed ones (float [K], shares) with their shares."""
    if not label.ndim:
        return short(classes[int(label)])
    shares, order = label.topk(2)
    if shares[1] < 0.005:
        return short(classes[int(order[0])])
    named = zip(shares.tolist(), order.tolist(), strict=True)
    return "\n".join(f"{100 * share:.0f} % {short(classes[k], 11)}" for share, k in named)


def first_layer(model: ImageClassifier, count: int = 48) -> Figure | None:
    """The weights of the first layer as images: its filters, or what each unit multiplies the pixels with.

    Of more than `count`, those with the largest norms. Each is scaled by its largest absolute weight: grey is 0. None
    where the first layer, as a network of the user's own names them, does not take an image's three colours.
    """
    layers = [layer for layer in model.net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    layer = layers[0] if layers else None
    side = model.image_size
    if isinstance(layer, nn.Conv2d) and layer.in_channels == 3:
        weight_NCHW = layer.weight
    elif isinstance(layer, nn.Linear) and layer.in_features == 3 * side * side:
        channels_first = isinstance(model.net, nn.Sequential) and isinstance(model.net[0], ChannelsFirst)
        weight_NCHW = (
            layer.weight.view(-1, 3, side, side)
            if channels_first
            else layer.weight.view(-1, side, side, 3).permute(0, 3, 1, 2)
        )
    else:
        return None
    whole = isinstance(layer, nn.Linear)
    weight_NHWC = weight_NCHW.detach().float().cpu().permute(0, 2, 3, 1)
    N, height, width, _ = weight_NHWC.shape
    norm_N = weight_NHWC.flatten(1).norm(dim=1)
    shown = torch.arange(N) if count >= N else norm_N.argsort(descending=True, stable=True)[:count]
    largest = weight_NHWC[shown].abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    is_answer = len(layers) == 1  # logistic regression: a unit for each class
    what = "Weight images of the classes" if is_answer else "Weight images" if whole else "Filters"
    of = "" if is_answer else " of the first layer"
    selected = f"{N}" if len(shown) == N else f"{len(shown)} of {N}, the largest norms first"
    return image_grid(
        0.5 + 0.5 * weight_NHWC[shown] / largest,
        [short(name) for name in model.classes] if is_answer else (),
        columns=5 if is_answer else 12,
        title=f"{what}{of}, {height} x {width} x 3 ({selected})",
        size=1.3 if is_answer else 0.75,
    )


@functools.cache
def short(name: str, letters: int = 14) -> str:
    """A class's name, cut in its middle so that it is drawn no wider than so many letters of a usual width."""
    line = " ".join(name.split())
    longest = min(len(line) - 1, 3 * letters)
    cuts = [f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}" for kept in range(longest, 0, -1)]
    fitting = (text for text in (line, *cuts) if len(text) <= 3 * letters and ems(text) <= LETTER * letters)
    return next(fitting, "…")


def ems(text: str) -> float:
    """The width of a line of text, in units of its font's size."""
    font = get_font(findfont(STYLE["font.family"]))
    font.set_size(10, 72)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        font.set_text(text)
    return font.get_width_height()[0] / 64 / 10


def _figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def _epochs(axes: Axes, rows: Sequence[dict[str, float]]) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(rows) == 1:
        axes.set_xlim(rows[0]["epoch"] - 1, rows[0]["epoch"] + 1)
    axes.grid()


def _markers(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4 if len(rows) <= 30 else 0, "linewidth": 1.6}
