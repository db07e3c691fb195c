"""A checkpoint's figures on the validation and test images: exactly those that training printed."""

import csv
import io
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from litcifar import checkpoints, commands, figures, run_folder
from litcifar.config import TTA, EvaluateConfig, TrainConfig, plain
from litcifar.console import console as make_console
from litcifar.console import quiet, short
from litcifar.data import ImageDataModule
from litcifar.errors import DataError
from litcifar.keys import assignment
from litcifar.machine import device, memory
from litcifar.models import ImageClassifier
from litcifar.models.layers import layers
from litcifar.report import SPLITS, Report
from litcifar.run_folder import EVALUATION, PREDICTIONS, REPORT
from litcifar.tta import mean_logits


@dataclass(frozen=True)
class Evaluation:
    """A network's answers on one split.

    acc: top-1 accuracy, 0 to 1. loss: mean cross-entropy, nats. logits: float32 [N, K]. labels: int64 [N].
    tta_logits: float32 [N, K], with test-time augmentation; None without. All else is without.
    indices: int64 [N], the place of each image in the data set's own training files, or test files; None if unknown.
    """

    split: str
    classes: list[str]
    acc: float
    loss: float
    logits_NK: Tensor
    labels_N: Tensor
    tta_logits_NK: Tensor | None = None
    indices_N: Tensor | None = None

    @property
    def probabilities_NK(self) -> Tensor:
        """float64 [N, K]; each row sums to one."""
        return self.logits_NK.double().softmax(1)

    @property
    def predictions_N(self) -> Tensor:
        """The class with the highest probability, int64 [N]."""
        return self.logits_NK.argmax(1)

    @property
    def tta_acc(self) -> float | None:
        """Top-1 accuracy with test-time augmentation, 0 to 1."""
        if self.tta_logits_NK is None:
            return None
        count = len(self.classes)
        return multiclass_accuracy(self.tta_logits_NK, self.labels_N, num_classes=count, average="micro").item()

    def per_class(self) -> dict[str, list[float]]:
        """Precision, recall and F1 of each class, 0 to 1; a class that is never predicted has precision 0."""
        return {name: score.tolist() for name, score in self._scores("none").items()}

    def macro(self) -> dict[str, float]:
        """The means of `per_class` over the classes that occur, as a label or as an answer."""
        return {name: score.item() for name, score in self._scores("macro").items()}

    def _scores(self, average: Literal["none", "macro"]) -> dict[str, Tensor]:
        scores = {"precision": multiclass_precision, "recall": multiclass_recall, "F1": multiclass_f1_score}
        count = len(self.classes)
        return {
            name: score(self.logits_NK, self.labels_N, num_classes=count, average=average)
            for name, score in scores.items()
        }

    def confusion(self) -> Tensor:
        """Counts int64 [K, K]: row = true class, column = predicted class."""
        return multiclass_confusion_matrix(self.logits_NK, self.labels_N, num_classes=len(self.classes))

    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1: confidence against accuracy in bins (Guo et al. 2017, 1706.04599)."""
        return multiclass_calibration_error(
            self.probabilities_NK, self.labels_N, num_classes=len(self.classes), n_bins=figures.BINS
        ).item()

    def mistakes(self) -> Tensor:
        """The rows of the wrong answers, int64 [M]; those with the highest probability first."""
        predictions_N = self.predictions_N
        wrong = (predictions_N != self.labels_N).nonzero().flatten()
        confidence = self.probabilities_NK[wrong, predictions_N[wrong]]
        return wrong[confidence.argsort(descending=True, stable=True)]

    def predictions_csv(self) -> str:
        """A row for each image: index, label, prediction, and the probability of each class."""
        indices_N = torch.arange(len(self.labels_N)) if self.indices_N is None else self.indices_N
        names = [[self.classes[k] for k in of.tolist()] for of in (self.labels_N, self.predictions_N)]
        probabilities = [[f"{p:.9g}" for p in row] for row in self.probabilities_NK.tolist()]
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["index", "label", "prediction", *(f"p_{name}" for name in self.classes)])
        writer.writerows(
            [index, label, prediction, *row]
            for index, label, prediction, row in zip(indices_N.tolist(), *names, probabilities, strict=True)
        )
        return text.getvalue()


class Answers(L.Callback):
    """Keeps the logits and labels of an evaluation, on the device until its end."""

    def __init__(self, tta: TTA) -> None:
        self.tta = tta
        self.logits: list[Tensor] = []
        self.tta_logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *answer: Any) -> None:
        logits_BK, (images_BHWC, labels_B), *_ = answer
        self.logits.append(logits_BK)
        self.labels.append(labels_B)
        if self.tta != "none":
            with trainer.precision_plugin.forward_context():  # Lightning's own ends with the step
                self.tta_logits.append(mean_logits(module, images_BHWC, logits_BK, self.tta))

    def on_test_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *answer: Any) -> None:
        self.on_validation_batch_end(trainer, module, *answer)


def evaluate_model(
    model: ImageClassifier, data: ImageDataModule, split: str, config: TrainConfig, precision: str, accelerator: str
) -> Evaluation:
    """Runs the network over `val` or `test` with the batches, precision, limits and `tta` of training."""
    answers = Answers(config.tta)
    trainer = L.Trainer(
        accelerator=device.chosen(accelerator),
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        limit_val_batches=config.trainer.limit_val_batches,
        limit_test_batches=config.trainer.limit_test_batches,
        deterministic=config.trainer.deterministic,
        benchmark=False,  # as training may have left it on for its process, and other convolutions round otherwise
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[answers],
        plugins=[LightningEnvironment()],
    )
    run = trainer.validate if split == "val" else trainer.test
    metrics = run(model, datamodule=data, verbose=False)[0]
    logits_NK, labels_N = torch.cat(answers.logits).cpu(), torch.cat(answers.labels).cpu()
    tta_logits_NK = torch.cat(answers.tta_logits).cpu() if answers.tta_logits else None
    acc, loss = metrics[f"{split}/acc"], metrics[f"{split}/loss"]
    indices_N = data.indices(split)[: len(labels_N)]
    return Evaluation(split, model.classes, acc, loss, logits_NK, labels_N, tta_logits_NK, indices_N)


def evaluate(config: EvaluateConfig) -> list[Evaluation]:
    """Evaluates a checkpoint, prints what it found, and writes predictions.csv, figures and a report for each split.

    Raises CheckpointError, DataError and MachineError.
    """
    console = make_console()
    quiet()
    checkpoint = checkpoints.load(config.ckpt, config.trust)
    path, provenance, model = checkpoint.path, checkpoint.provenance, checkpoint.model
    folder = Path(config.folder) if config.folder else path.parent / EVALUATION / path.stem
    run_folder.check_writable(folder, "folder")
    trained = checkpoint.config.with_data(config.data)
    trained = trained.model_copy(update={"tta": config.tta or trained.tta})
    subtitle = f"seed {trained.seed}, epoch {checkpoint.epoch}, data {provenance.data}"
    console.print(f"{path}: {trained.name} {subtitle}")
    data = checkpoints.data_of(trained)
    data.prepare_data()
    data.setup()
    memory.keep_freed()
    notes: list[str] = []
    if data.fingerprint != provenance.fingerprint:
        notes.append("These are not the images that it was trained on: the figures will differ.")
        console.print(notes[0], style="yellow")
    if data.classes != model.classes:
        raise DataError(
            f"the classes of these images are {', '.join(data.classes)}, the network's {', '.join(model.classes)} - "
            "give the folder that it was trained on: data.root=..."
        )
    splits = ["val", "test"] if config.split == "both" else [config.split]
    results = [
        evaluate_model(model, data, split, trained, provenance.precision, config.accelerator) for split in splits
    ]
    for result in results:
        tta = "" if result.tta_acc is None else f"  {result.split}/tta_acc {result.tta_acc:.4f} ({trained.tta})"
        console.print(f"{result.split}/acc {result.acc:.4f}  {result.split}/loss {result.loss:.4f}{tta}")
    print_answers(results[-1], console)
    facts = {
        "checkpoint": str(path),
        "epoch": str(checkpoint.epoch),
        "data": provenance.data,
        "SHA-256 of the images": data.fingerprint,
        "precision": provenance.precision,
    }
    rows = layers(model) if config.figures else []
    for result in results:
        place = folder / result.split
        run_folder.write(place / PREDICTIONS, result.predictions_csv().encode())
        if config.figures:
            page = Report(
                title=f"{trained.name}, {path.name}: {100 * result.acc:.2f} % on the {SPLITS[result.split]} set",
                subtitle=subtitle,
                headline=headline(result, trained.tta),
                evaluation=result,
                layers=rows,
                config=plain(trained),
                commands={"Evaluate again": _again(config, path)},
                facts=facts,
                notes=notes,
            )
            page.write(place, figures.of_answers(result, data.images(result.split), model))
        console.print(f"{result.split:9} {short(place / (REPORT if config.figures else PREDICTIONS))}", soft_wrap=True)
    return results


def _again(config: EvaluateConfig, path: Path) -> str:
    """The command of an evaluation."""
    given = {"ckpt": path, "split": config.split, "data.root": config.data.root, "data.verify": config.data.verify}
    given |= {"tta": config.tta, "folder": config.folder}
    given["accelerator"] = None if config.accelerator == "auto" else config.accelerator
    options = [assignment(key, value) for key, value in given.items() if value is not None]
    arguments = [*options, *commands.trusting(config.trust)]
    return shlex.join(["litcifar-evaluate", *arguments])


def headline(result: Evaluation, tta: TTA) -> dict[str, str]:
    """A report's most important numbers: names and values."""
    named = {f"{SPLITS[result.split]} accuracy": f"{100 * result.acc:.2f} %"}
    if result.tta_acc is not None:
        named[f"with {tta.replace('_', ' and ')}"] = f"{100 * result.tta_acc:.2f} %"
    named[f"{SPLITS[result.split]} loss"] = f"{result.loss:.4f}"
    named["calibration error"] = f"{100 * result.calibration_error():.1f} %"
    return named


def print_answers(result: Evaluation, console: Console) -> None:
    """Per-class precision, recall and F1, and the confusion matrix."""
    table = Table(title=f"{result.split}: each class, in %", title_justify="left")
    scores, confusion = result.per_class(), result.confusion()
    for column in ("class", "images", *scores):
        table.add_column(column, justify="left" if column == "class" else "right")
    for number, name in enumerate(result.classes):
        values = [f"{100 * score[number]:.1f}" for score in scores.values()]
        table.add_row(name, f"{int(confusion[number].sum()):,}", *values)
    table.add_section()
    macro = [f"{100 * mean:.1f}" for mean in result.macro().values()]
    table.add_row("macro average", f"{len(result.labels_N):,}", *macro)
    console.print(table)
    digits = len(str(int(confusion.max())))
    if (len(result.classes) + 1) * (digits + 3) >= console.width:  # a column has two blanks and a line beside it
        console.print(f"The confusion matrix of {len(result.classes)} classes is wider than this screen.")
        return
    matrix = Table(title=f"{result.split}: row = true class, column = predicted class", title_justify="left")
    matrix.add_column("")
    for name in result.classes:
        matrix.add_column(name if len(result.classes) < 6 else name[:5], justify="right")
    for name, row in zip(result.classes, confusion.tolist(), strict=True):
        matrix.add_row(name, *map(str, row))
    console.print(matrix)
