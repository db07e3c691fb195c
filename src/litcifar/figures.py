"""Pictures of a run."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from litcifar.evaluation import Evaluation

TRAIN, VAL = "#0072B2", "#D55E00"  # of Okabe and Ito's palette, which colour-blind people can tell apart
mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150})


def draw_run(folder: Path, rows: list[dict[str, float]], evaluation: Evaluation | None) -> None:
    """Writes curves.png, and confusion_matrix.png of `evaluation`."""
    folder.mkdir(exist_ok=True)
    curves(rows).savefig(folder / "curves.png")
    if evaluation:
        confusion_matrix(evaluation).savefig(folder / "confusion_matrix.png")


def curves(rows: list[dict[str, float]]) -> Figure:
    """Accuracy and loss of each epoch, training and validation on shared axes."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    labels = {"acc": ("train", "val"), "loss": ("train, as minimised", "val, cross-entropy")}
    for axes, metric in zip(figure.subplots(1, 2), labels, strict=True):
        for split, colour, label in zip(("train", "val"), (TRAIN, VAL), labels[metric], strict=True):
            known = [row for row in rows if f"{split}/{metric}" in row]
            factor = 100 if metric == "acc" else 1
            values = [factor * row[f"{split}/{metric}"] for row in known]
            axes.plot([row["epoch"] for row in known], values, "o-", ms=3, color=colour, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel("top-1 accuracy, %" if metric == "acc" else "loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Counts, shaded by their share of the true class."""
    counts = evaluation.confusion()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    size = max(3.6, 0.62 * len(evaluation.classes) + 1.4)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(counts.tolist()):
        for predicted, count in enumerate(row):
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            axes.text(predicted, true, str(count), ha="center", va="center", fontsize=8, color=colour)
    places = range(len(evaluation.classes))
    axes.set_xticks(places, evaluation.classes, rotation=45, ha="right")
    axes.set_yticks(places, evaluation.classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{evaluation.split} set, accuracy {100 * evaluation.acc:.2f} %", fontsize=11)
    axes.spines[:].set_visible(False)
    return figure
