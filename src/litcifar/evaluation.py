"""A checkpoint's figures on the validation and test images: exactly those that training printed."""

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from litcifar import checkpoints
from litcifar.config import TTA, EvaluateConfig, TrainConfig
from litcifar.console import console as make_console
from litcifar.console import quiet
from litcifar.data import ImageDataModule
from litcifar.models import ImageClassifier
from litcifar.run_folder import BEST, find_checkpoint
from litcifar.tta import mean_logits


@dataclass(frozen=True)
class Evaluation:
    """A network's answers on one split.

    acc: top-1 accuracy, 0 to 1. loss: mean cross-entropy, nats. logits: float32 [N, K]. labels: int64 [N].
    tta_logits: float32 [N, K], with test-time augmentation; None without. All else is without.
    """

    split: str
    classes: list[str]
    acc: float
    loss: float
    logits_NK: Tensor
    labels_N: Tensor
    tta_logits_NK: Tensor | None = None

    @property
    def tta_acc(self) -> float | None:
        """Top-1 accuracy with test-time augmentation, 0 to 1."""
        if self.tta_logits_NK is None:
            return None
        count = len(self.classes)
        return multiclass_accuracy(self.tta_logits_NK, self.labels_N, num_classes=count, average="micro").item()

    def per_class(self) -> dict[str, list[float]]:
        """Precision, recall and F1 of each class, 0 to 1; a class that is never predicted has precision 0."""
        scores = {"precision": multiclass_precision, "recall": multiclass_recall, "F1": multiclass_f1_score}
        count = len(self.classes)
        return {
            name: score(self.logits_NK, self.labels_N, num_classes=count, average="none").tolist()
            for name, score in scores.items()
        }

    def confusion(self) -> Tensor:
        """Counts int64 [K, K]: row = true class, column = predicted class."""
        return multiclass_confusion_matrix(self.logits_NK, self.labels_N, num_classes=len(self.classes))


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
        accelerator=accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        limit_val_batches=config.trainer.limit_val_batches,
        limit_test_batches=config.trainer.limit_test_batches,
        deterministic=config.trainer.deterministic,
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
    return Evaluation(split, model.classes, acc, loss, logits_NK, labels_N, tta_logits_NK)


def evaluate(config: EvaluateConfig) -> list[Evaluation]:
    """Evaluates a checkpoint and prints what it found.

    Raises CheckpointError and DataError.
    """
    console = make_console()
    quiet()
    path = find_checkpoint(config.ckpt, BEST)
    checkpoint = checkpoints.read(path)
    trained = checkpoints.config_of(checkpoint, config.trust)
    where = {key: value for key, value in config.data.model_dump().items() if value is not None}
    data_config = trained.data.model_copy(update=where)
    trained = trained.model_copy(update={"data": data_config, "tta": config.tta or trained.tta})
    known = checkpoint["litcifar"]
    console.print(f"{path}: {trained.name} seed {trained.seed}, epoch {checkpoint['epoch'] + 1}, data {known['data']}")
    data = checkpoints.data_of(trained)
    data.prepare_data()
    data.setup()
    if data.fingerprint != known["fingerprint"]:
        console.print("[yellow]These are not the images that it was trained on: the figures will differ.")
    model = checkpoints.model_of(checkpoint, config.trust)
    splits = ["val", "test"] if config.split == "both" else [config.split]
    results = [evaluate_model(model, data, split, trained, known["precision"], config.accelerator) for split in splits]
    for result in results:
        tta = "" if result.tta_acc is None else f"  {result.split}/tta_acc {result.tta_acc:.4f} ({trained.tta})"
        console.print(f"{result.split}/acc {result.acc:.4f}  {result.split}/loss {result.loss:.4f}{tta}")
    print_report(results[-1], console)
    return results


def print_report(result: Evaluation, console: Console) -> None:
    """Per-class precision, recall and F1, and the confusion matrix."""
    table = Table(title=f"{result.split}: each class, in %", title_justify="left")
    scores, confusion = result.per_class(), result.confusion()
    for column in ("class", "images", *scores):
        table.add_column(column, justify="left" if column == "class" else "right")
    for number, name in enumerate(result.classes):
        values = [f"{100 * score[number]:.1f}" for score in scores.values()]
        table.add_row(name, f"{int(confusion[number].sum()):,}", *values)
    macro = [f"{100 * sum(score) / len(score):.1f}" for score in scores.values()]
    table.add_section()
    table.add_row("macro average", f"{len(result.labels_N):,}", *macro)
    console.print(table)
    matrix = Table(title=f"{result.split}: row = true class, column = predicted class", title_justify="left")
    matrix.add_column("")
    for name in result.classes:
        matrix.add_column(name if len(result.classes) < 6 else name[:5], justify="right")
    for name, row in zip(result.classes, confusion.tolist(), strict=True):
        matrix.add_row(name, *map(str, row))
    console.print(matrix)
