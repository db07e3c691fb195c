"""What a run leaves to be looked at: its page and its figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litcifar import commands, figures
from litcifar.config import TrainConfig, plain
from litcifar.data import ImageDataModule
from litcifar.evaluation import Evaluation, headline
from litcifar.loop.history import duration
from litcifar.models import ImageClassifier
from litcifar.models.layers import Layer
from litcifar.report import SPLITS, Report


def write(
    run_dir: Path,
    config: TrainConfig,
    metrics: dict[str, Any],
    layers: list[Layer],
    rows: Sequence[dict[str, float]],
    data: ImageDataModule,
    model: ImageClassifier,
    evaluation: Evaluation,
) -> dict[str, bytes]:
    """Writes report.html and figures/<name>.png; the PNG files by name.

    metrics: what metrics.json holds. rows: of metrics.csv. model, evaluation: of best.ckpt, the latter on the test set,
    or on the validation set where test=false.
    """
    numbers = headline(evaluation, config.tta)
    if evaluation.split == "test":
        numbers["validation accuracy"] = f"{100 * metrics['val/acc']:.2f} %"
    numbers |= {
        "parameters": f"{metrics['params']:,}",
        "FLOPs an image": f"{layers[-1].flops / 1e6:,.1f} M",
        "best epoch": f"{metrics['best_epoch']} of {metrics['epochs']}",
        "training time": duration(metrics["train_seconds"]),
        "images a second": f"{metrics['images_per_second']:,.0f}",
    }
    facts = {"data": metrics["data"], "SHA-256 of the images": metrics["fingerprint"]}
    facts |= {key: metrics[key] for key in ("device", "precision")}
    facts["versions"] = ", ".join(f"{name} {number}" for name, number in metrics["versions"].items())
    why = metrics["substituted"]
    page = Report(
        title=f"{config.name}: {100 * evaluation.acc:.2f} % on the {SPLITS[evaluation.split]} set",
        subtitle=f"seed {config.seed}, data {metrics['data']}, best.ckpt of epoch {metrics['best_epoch']}",
        headline=numbers,
        evaluation=evaluation,
        layers=layers,
        config=plain(config),
        commands=commands.how_to(config, run_dir),
        facts=facts,
        notes=[f"Trained on the built-in shapes, not on CIFAR-10: {why}"] if why else [],
        class_counts=metrics["class_counts"],
    )
    drawn = {
        "curves": figures.curves(rows),
        "learning_rate": figures.learning_rate(rows),
        **figures.of_answers(evaluation, data.images(evaluation.split), model),
        "training_images": figures.training_images(*data.first_batch(), data.classes),
    }
    return page.write(run_dir, drawn)
