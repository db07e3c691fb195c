"""What every network here shares: pixels in, logits out, the loss, the metrics and the optimizer.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import CatMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from litcifar.config import ParameterKind
from litcifar.data.cifar10_files import CLASSES
from litcifar.errors import DataError
from litcifar.machine import ranks
from litcifar.models.recipe import build_optimizer, build_scheduler

RANKS_APART = 2_654_435_761  # seeds of processes: a CPU's generator takes the last 32 bits of one

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
    optim, scheduler: `_target_` and keyword arguments. An optimizer's `groups` are other ones for some of the kinds of
        `parameter_kinds`, and `until` (see `Triangular`). A scheduler's `interval` is `step` or `epoch`, `monitor` the
        metric it watches, and a value `total_steps` stands for the number of steps (or epochs) of the run.
    accumulate_grad_batches: batches of an optimizer step; it takes the sum of their losses divided by this number, also
        at an epoch's end, where there may be fewer.
    gradient_clip_val, gradient_clip_algorithm: largest norm (or absolute value) of the gradients before a step.
    seed: of dropout, whose random numbers are then a function of seed and step; None takes torch's as they come.
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
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    seed: int | None


class Normalize(nn.Module):
    """uint8 pixels [B, H, W, 3] to floating point, as (pixel / 255 - mean) / std.

    width: the usual W; others take longer.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], width: int = 32) -> None:
        super().__init__()
        mean_C, std_C = torch.tensor(mean), torch.tensor(std)
        # For whole rows of W * C values: broadcasting over three channels takes ten times as long on a CPU.
        self.register_buffer("scale", (1 / (255 * std_C)).repeat(width), persistent=False)
        self.register_buffer("shift", (-mean_C / std_C).repeat(width), persistent=False)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        scale, shift, width = self.scale, self.shift, images_BHWC.shape[2]
        if 3 * width != len(scale):
            scale, shift = (row[:3].repeat(width) for row in (scale, shift))
        rows = images_BHWC.flatten(2).to(scale.dtype)
        return rows.mul_(scale).add_(shift).view(images_BHWC.shape)


class ChannelsFirst(nn.Module):
    """[B, H, W, C] to [B, C, H, W]: a view, in channels_last memory format."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC.permute(0, 3, 1, 2)


class MeanOfBatches(CatMetric):
    """The weighted mean of values [N], added up at once: the same to the last bit wherever it was interrupted.

    torchmetrics' own leaves NaN out, with a warning, and adds halves up in half precision.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, values_N: Tensor, weight: Tensor) -> None:  # type: ignore[override]
        super().update(torch.stack([values_N, weight.to(values_N.dtype)], 1))

    def compute(self) -> Tensor:
        pairs_N2 = super().compute()
        values_N, weights_N = pairs_N2.to(torch.promote_types(pairs_N2.dtype, torch.float32)).unbind(1)
        return (values_N * weights_N).sum() / weights_N.sum()


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
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a turn of Lightning's loop is many steps
        self.classes = list(classes)
        self.image_size = image_size
        self.label_smoothing = label_smoothing
        self.l1 = l1
        self.loss_reduction = loss_reduction
        self.optim = optim or {"_target_": "torch.optim.Adam", "lr": 1e-3}
        self.scheduler = scheduler
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.seed = seed
        self.interrupted = False  # set from outside: the turn ends after the step that is being made
        self.provenance: dict[str, Any] = {}
        self.normalize = Normalize(mean, std, image_size)
        self.example_input_array = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
        metrics = MetricCollection(
            {"acc": MulticlassAccuracy(len(self.classes), average="micro"), "loss": MeanOfBatches()}
        )
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self._train_outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._validated = False  # since the last epoch's end; not where trainer.max_steps cuts one

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, H, W, 3]."""
        return self.net(self.normalize(images_BHWC))

    def training_step(self, turn: list[tuple[Tensor, Tensor]], batch_idx: int) -> Tensor:
        """Trains on the batches of a turn one after the other; the last one's loss.

        A turn of Lightning's loop takes longer than a small network's step, hence many steps in a turn. The numbers are
        those of one step a turn.
        """
        if isinstance(turn[0], Tensor):  # the one batch of an ordinary loader
            turn = [turn]
        optimizer, schedulers = self.optimizers(), self._schedulers("step")
        assert isinstance(optimizer, LightningOptimizer)
        loss, several = torch.zeros(()), self.trainer.world_size > 1
        backward, step = self._backward_and_step(optimizer)
        without_autocast = torch.autocast(self.device.type, enabled=False)
        for number, (images_BHWC, labels) in enumerate(turn, 1):
            part = (number - 1) % self.accumulate_grad_batches
            if self.seed is not None:
                count = self.trainer.global_step * self.accumulate_grad_batches + part
                self._draw_anew(self.seed * 1_000_003 + count + self.trainer.global_rank * RANKS_APART)
            if several:
                loss = self.loss(self._share(images_BHWC), self._share(labels), len(labels))
            else:
                loss = self.loss(images_BHWC, labels)
            trained, ended = self._still_trained(optimizer)
            inputs = None if several else trained  # several processes wait for all gradients
            share = loss / self.accumulate_grad_batches if self.accumulate_grad_batches > 1 else loss
            with without_autocast:  # backward has the types that forward chose
                backward(share, inputs=inputs)
            for parameter in ended:
                parameter.grad = None  # neither clipped nor stepped with
            if part + 1 < self.accumulate_grad_batches and number < len(turn):
                continue
            step()
            optimizer.zero_grad()
            for scheduler in schedulers:
                scheduler.step()
            over = self.trainer.global_step == self.trainer.max_steps
            if over or (self.interrupted and not several and not self.trainer.is_last_batch):
                break
        return loss.detach()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradients; those of float16 are no longer scaled here."""
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)

    def loss(self, images_BHWC: Tensor, labels: Tensor, batch_size: int | None = None) -> Tensor:
        """The loss that is minimised; labels are int64 [B], or probabilities [B, K] after mixup or cutmix.

        batch_size: of the whole batch, where these images are this process's share of it. The mean of the processes'
        gradients is then that of the whole batch.
        """
        logits_BK = self(images_BHWC)
        mean = self.loss_reduction == "mean"
        # Autocast does this on a CPU; on CUDA it would leave the logarithms in half precision.
        wide_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
        loss = seen = cross_entropy(
            wide_BK, labels, label_smoothing=self.label_smoothing, reduction=self.loss_reduction
        )
        part = 1.0
        if batch_size is not None:
            part = len(labels) / batch_size
            loss = loss * self.trainer.world_size * (part if mean else 1)
        if self.l1:
            penalty = self.l1 * sum(p.abs().sum() for p in self.net.parameters() if p.ndim > 1)
            loss, seen = loss + penalty, seen + penalty * (1 if mean else part)
        # Updating torchmetrics takes longer than a small network's step, so the epoch's outputs are kept on the device;
        # not the logits, whose memory a CUDA graph (compile=max-autotune) takes for the next step's.
        self._train_outputs.append((logits_BK.detach().argmax(1), labels, seen.detach()))
        return loss

    def on_train_epoch_end(self) -> None:
        self._update_train_metrics()
        self._log(self.train_metrics)
        validated, self._validated = self._validated, False
        for scheduler in self._schedulers("epoch"):
            if isinstance(scheduler, ReduceLROnPlateau):
                assert self.scheduler is not None
                monitor = self.scheduler["monitor"]
                if validated or monitor.startswith("train/"):  # Lightning keeps the figures of earlier epochs
                    scheduler.step(self.trainer.callback_metrics[monitor])
            else:
                scheduler.step()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Logits float32 [B, K]."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Logits float32 [B, K]."""
        return self._evaluate(batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        self._log(self.val_metrics)
        self._validated = not self.trainer.sanity_checking

    def on_test_epoch_end(self) -> None:
        self._log(self.test_metrics)

    @property
    def steps_of_epoch(self) -> int:
        """The optimizer steps of an epoch."""
        trainer = self.trainer
        batches = getattr(trainer.datamodule, "train_batches", None)  # type: ignore[attr-defined]
        if batches is None:  # which sets workers to fetch from the first batch on, wherever a resumed epoch goes on
            trainer.fit_loop.setup_data()
            batches = trainer.num_training_batches
        return math.ceil(batches / self.accumulate_grad_batches)

    @property
    def total_steps(self) -> int:
        """The optimizer steps of the whole run."""
        steps = self.steps_of_epoch * (self.trainer.max_epochs or 1)
        return steps if self.trainer.max_steps == -1 else min(steps, self.trainer.max_steps)

    def configure_optimizers(self) -> Any:
        in_steps = self.scheduler is not None and self.scheduler.get("interval") == "step"
        epochs = self.trainer.max_epochs or 1
        if not in_steps and self.trainer.max_steps != -1:
            epochs = min(epochs, math.ceil(self.trainer.max_steps / self.steps_of_epoch))
        return self.recipe(self.total_steps if in_steps else epochs)

    def recipe(self, total_steps: int) -> Any:
        """The optimizer and its scheduler, as Lightning takes them; ConfigError where their arguments do not fit.

        total_steps: the number of the scheduler's steps in the whole run.
        """
        optimizer = build_optimizer(self.optim, self.scheduler, self.parameters(), self.parameter_kinds())
        if self.gradient_clip_val is not None:
            # A fused optimizer would unscale the gradients of float16 itself, after they have been clipped.
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        if self.scheduler is None:
            return optimizer
        return [optimizer], [build_scheduler(self.scheduler, optimizer, total_steps)]

    def parameter_kinds(self) -> dict[nn.Parameter, ParameterKind]:
        """The kind of each parameter, for the optimizer's groups.

        norm: scales and biases of batch norm. head: weight and bias of the last linear layer. hidden: weights of all
        other linear and convolution layers. bias: their biases. stem: all of a whitened stem.
        """
        head = [layer for layer in self.net.modules() if isinstance(layer, nn.Linear)][-1:]
        kinds: dict[nn.Parameter, ParameterKind] = {}
        for layer in self.net.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                if isinstance(layer, _BatchNorm):
                    kinds[parameter] = "norm"
                elif layer in head:
                    kinds[parameter] = "head"
                elif isinstance(layer, nn.Linear | nn.Conv2d):
                    kinds[parameter] = "hidden" if name == "weight" else "bias"
        return kinds

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._update_train_metrics()
        checkpoint["litcifar"] = self.provenance
        # Of the epoch so far, so that a resumed one has the metrics of the whole; of all processes, as one has them.
        saved = checkpoint["train_metrics"] = {}
        for name, metric in self.train_metrics.items():
            lists = {state for state, value in metric.metric_state.items() if isinstance(value, list)}
            with metric.sync_context():  # which makes one tensor of a list, of none too
                saved[name] = metric.metric_state
            for state in lists:
                if isinstance(value := saved[name][state], Tensor):
                    saved[name][state] = [value] if value.numel() else []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Brings what `on_save_checkpoint` took; DataError where a run would go on with other images than before."""
        now, before = (of.get("fingerprint") for of in (self.provenance, checkpoint.get("litcifar", {})))
        if now and before and now != before:
            raise DataError("these are not the images that the run was begun with - give their folder, or train anew")
        self.provenance = self.provenance or checkpoint.get("litcifar", {})
        for name, metric in self.train_metrics.items() if ranks.rank() == 0 else ():
            for state, value in checkpoint.get("train_metrics", {}).get(name, {}).items():
                setattr(metric, state, value)

    def _update_train_metrics(self) -> None:
        if not self._train_outputs:
            return
        predictions, labels, losses = zip(*self._train_outputs, strict=True)
        self._train_outputs.clear()
        sizes = torch.tensor([len(labels_B) for labels_B in labels], device=self.device)
        labels_N = torch.cat(labels)
        labels_N = labels_N if labels_N.ndim == 1 else labels_N.argmax(1)
        loss = torch.stack(losses)
        self.train_metrics["acc"].update(torch.cat(predictions), labels_N)
        self.train_metrics["loss"].update(loss / sizes if self.loss_reduction == "sum" else loss, weight=sizes)

    def _backward_and_step(self, optimizer: LightningOptimizer) -> tuple[Callable[..., None], Callable[[], Any]]:
        """Backward and the optimizer's step, by way of Lightning where something needs that, else directly.

        Lightning's calls hooks, keeps a profile, scales float16's gradients and waits for other processes, and takes a
        seventh of a small network's step.
        """
        trainer, hooks = self.trainer, ("on_before_backward", "on_after_backward")
        changed = any(_overrides(self, L.LightningModule, name) for name in ("backward", "manual_backward", *hooks))
        heard = any(
            _overrides(callback, Callback, name)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            for name in (*hooks, "on_before_optimizer_step")
        )
        profiled = not isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if changed or heard or profiled or scaled or trainer.world_size > 1:
            return self.manual_backward, optimizer.step

        def step() -> None:
            self.on_before_optimizer_step(optimizer.optimizer)
            optimizer._on_before_step()  # counts it, as `_on_after_step` does
            optimizer.optimizer.step()
            optimizer._on_after_step()

        return Tensor.backward, step

    def _schedulers(self, interval: str) -> list[Any]:
        if self.scheduler is None or self.scheduler.get("interval", "epoch") != interval:
            return []
        return [self.lr_schedulers()]

    def _still_trained(self, optimizer: LightningOptimizer) -> tuple[list[nn.Parameter] | None, list[nn.Parameter]]:
        """The parameters that still need a gradient, and those that do not: their group's `until` is over.

        None, for all, and none where no group's is over, or every one's. A whitened stem ends early, and the way back
        to it, over the largest images, takes up to a quarter of a step.
        """
        groups = optimizer.param_groups
        over = ["until" in group and group["lr"] == 0 and self.trainer.global_step > 0 for group in groups]
        if not any(over) or all(over):
            return None, []
        parts: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for group, is_over in zip(groups, over, strict=True):
            parts[is_over] += group["params"]
        return parts[False], parts[True]

    def _draw_anew(self, seed: int) -> None:
        """Seeds torch's generators: its `manual_seed` takes 0.9 ms, it formats a stack trace for CUDA."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch [B, ...], of which each has the whole: every so many-th image."""
        group = torch.distributed
        together = group.is_available() and group.is_initialized()
        return batch[group.get_rank() :: group.get_world_size()] if together else batch

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection) -> Tensor:
        images_BHWC, labels_B = (self._share(whole) for whole in batch)
        logits_BK = self(images_BHWC).float()
        metrics["acc"].update(logits_BK, labels_B)
        metrics["loss"].update(cross_entropy(logits_BK, labels_B)[None], weight=labels_B.new_full((1,), len(labels_B)))
        return logits_BK

    def _log(self, metrics: MetricCollection) -> None:
        self.log_dict(metrics.compute(), sync_dist=self.trainer.world_size > 1)  # synchronised: that silences a warning
        metrics.reset()


def _overrides(instance: object, base: type, name: str) -> bool:
    """Whether a method is not that of `base`: a subclass's, or of this instance alone, as LambdaCallback's are."""
    return getattr(getattr(instance, name), "__func__", None) is not getattr(base, name)


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
