"""What every network here shares: pixels in, logits out, the loss, the metrics and the optimizer.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from litcifar.config import build
from litcifar.data.cifar10_files import CLASSES
from litcifar.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class ClassifierOptions(TypedDict, total=False):
    """The keyword arguments that every network takes besides its own.

    classes: the class names, in label order; their number is K.
    image_size: height and width of the images, in pixels.
    mean, std: per channel (red, green, blue), of pixels scaled to [0, 1].
    label_smoothing: share of the target spread over all classes, 0 to 1.
    l1: factor of the sum of absolute weights (not biases) added to the loss.
    loss_reduction: over the batch.
    optim, scheduler: `_target_` and keyword arguments. A scheduler's `interval` is `step` or `epoch`, `monitor` the
        metric it watches, and a value `total_steps` stands for the number of steps (or epochs) of the run.
    """

    classes: Sequence[str]
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    label_smoothing: float
    l1: float
    loss_reduction: Literal["mean", "sum"]
    optim: dict[str, Any]
    scheduler: dict[str, Any] | None


class Normalize(nn.Module):
    """uint8 pixels [B, H, W, 3] to floating point, as (pixel / 255 - mean) / std."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean_C, std_C = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", 1 / (255 * std_C), persistent=False)
        self.register_buffer("shift", -mean_C / std_C, persistent=False)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        # By rows of W * C values: broadcasting over three channels takes ten times as long on a CPU.
        width = images_BHWC.shape[2]
        rows = images_BHWC.flatten(2).to(self.scale.dtype)
        return rows.mul_(self.scale.repeat(width)).add_(self.shift.repeat(width)).view(images_BHWC.shape)


class ImageClassifier(L.LightningModule):
    """A network with its loss, metrics and optimizer; takes raw pixels, so it needs no recipe to be used.

    A subclass builds `self.net` (normalised pixels [B, H, W, 3] to logits [B, K]) from plain arguments and calls
    `save_hyperparameters()`, so that `load_from_checkpoint(path)` needs nothing else.
    """

    net: nn.Module

    def __init__(
        self,
        classes: Sequence[str] = CLASSES,
        image_size: int = 32,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        label_smoothing: float = 0.0,
        l1: float = 0.0,
        loss_reduction: Literal["mean", "sum"] = "mean",
        optim: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.classes = list(classes)
        self.image_size = image_size
        self.label_smoothing = label_smoothing
        self.l1 = l1
        self.loss_reduction = loss_reduction
        self.optim = optim or {"_target_": "torch.optim.Adam", "lr": 1e-3}
        self.scheduler = scheduler
        self.provenance: dict[str, Any] = {}
        self.normalize = Normalize(mean, std)
        self.example_input_array = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
        metrics = MetricCollection(
            {"acc": MulticlassAccuracy(len(self.classes), average="micro"), "loss": MeanMetric()}
        )
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self._train_outputs: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, H, W, 3]."""
        return self.net(self.normalize(images_BHWC))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss that is minimised; labels are int64 [B], or probabilities [B, K] after mixup or cutmix."""
        images_BHWC, labels = batch
        logits_BK = self(images_BHWC)
        loss = cross_entropy(logits_BK, labels, label_smoothing=self.label_smoothing, reduction=self.loss_reduction)
        if self.l1:
            loss = loss + self.l1 * sum(p.abs().sum() for p in self.net.parameters() if p.ndim > 1)
        labels_B = labels if labels.ndim == 1 else labels.argmax(1)
        # Updating torchmetrics takes longer than a small network's step, so the epoch's outputs are kept on the device.
        self._train_outputs.append((logits_BK.detach().argmax(1), labels_B, loss.detach()))
        return loss

    def on_train_epoch_end(self) -> None:
        self._update_train_metrics()
        self._log(self.train_metrics)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Logits float32 [B, K]."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Logits float32 [B, K]."""
        return self._evaluate(batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        self._log(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log(self.test_metrics)

    def configure_optimizers(self) -> Any:
        interval = (self.scheduler or {}).get("interval")
        steps = self.trainer.estimated_stepping_batches if interval == "step" else self.trainer.max_epochs
        return self.recipe(int(steps or 0))

    def recipe(self, total_steps: int) -> Any:
        """The optimizer and its scheduler, as Lightning takes them; ConfigError where their arguments do not fit.

        total_steps: the number of the scheduler's steps in the whole run.
        """
        optimizer = build(self.optim, torch.optim.Optimizer, [p for p in self.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        lightning = {key: value for key, value in self.scheduler.items() if key in ("interval", "monitor")}
        spec = {
            key: total_steps if value == "total_steps" else value
            for key, value in self.scheduler.items()
            if key not in lightning
        }
        scheduler = build(spec, torch.optim.lr_scheduler.LRScheduler, optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) and not lightning.get("monitor"):
            raise ConfigError("scheduler: ReduceLROnPlateau watches a metric - set scheduler.monitor=val/loss")
        return [optimizer], [lightning | {"scheduler": scheduler}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._update_train_metrics()
        checkpoint["litcifar"] = self.provenance
        # Of the epoch so far, so that a resumed one has the metrics of the whole.
        checkpoint["train_metrics"] = {name: metric.metric_state for name, metric in self.train_metrics.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.provenance = self.provenance or checkpoint.get("litcifar", {})
        for name, metric in self.train_metrics.items():
            for state, value in checkpoint.get("train_metrics", {}).get(name, {}).items():
                setattr(metric, state, value)

    def _update_train_metrics(self) -> None:
        if not self._train_outputs:
            return
        predictions, labels, losses = zip(*self._train_outputs, strict=True)
        self._train_outputs.clear()
        sizes = torch.tensor([len(labels_B) for labels_B in labels], device=self.device)
        loss = torch.stack(losses)
        self.train_metrics["acc"].update(torch.cat(predictions), torch.cat(labels))
        self.train_metrics["loss"].update(loss / sizes if self.loss_reduction == "sum" else loss, weight=sizes)

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection) -> Tensor:
        images_BHWC, labels_B = batch
        logits_BK = self(images_BHWC).float()
        metrics["acc"].update(logits_BK, labels_B)
        metrics["loss"].update(cross_entropy(logits_BK, labels_B), weight=len(labels_B))
        return logits_BK

    def _log(self, metrics: MetricCollection) -> None:
        self.log_dict(metrics.compute())
        metrics.reset()


def initialise(module: nn.Module, init: str) -> None:
    """Draws the weights of all linear and convolution layers anew and zeroes their biases.

    init: `default` (PyTorch's own, nothing is done), `fan_in`: N(0, 1/fan_in), `he`: N(0, 2/fan_in) (He et al. 2015,
    arXiv 1502.01852), `glorot`: uniform, variance 2/(fan_in + fan_out) (Glorot and Bengio 2010; Keras' own), `dirac`:
    PyTorch's own, with the identity on the first C_in filters of each convolution.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if init == "dirac" and isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight.data[: layer.in_channels])
        elif init in ("fan_in", "he", "glorot"):
            if init == "glorot":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=((2 if init == "he" else 1) / layer.weight[0].numel()) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
