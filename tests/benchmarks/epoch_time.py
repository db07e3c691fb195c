"""Seconds that an epoch's training batches take: litcifar, its limits and what it replaces, interleaved.

    python tests/benchmarks/epoch_time.py data.root=DIR data.verify=false

litcifar         litcifar.training.train, from its metrics.csv
plain loop       a bare PyTorch loop of the same step, the images in memory, on the device
  memory kept    the same in a process that keeps freed memory, as in litcifar (`litcifar.machine.memory`): the limit
usual Lightning  the same network, its ReLU before its pool and its dropout torch's, and optimizer; PIL images
                 transformed one by one in two workers, automatic optimization, loss and accuracy logged each step,
                 progress bar and CSVLogger on
FLOP floor       the epoch's training FLOPs at the rate of a large matrix product in litcifar's precision
NumPy            numpy_mlp's step in float32 NumPy, of pixels that lie there divided by 255, without the loss's value
with validation  litcifar's whole epoch of keras_cnn at its own batch size: validation and checkpoints too

Each variant runs the same number of steps twice, short epochs more often, and times all passes but the first, from
before their first batch is fetched; their median counts. None computes gradients for a group of parameters whose
`until` lies before such a pass; litcifar alone makes averages of the weights, where the experiment has them. Where a
pass is less than an epoch, its time is scaled by the images. litcifar, the loop with memory kept and all others run in
three processes, so that what litcifar does to its process does not help them; each round begins with another variant.
Use an idle machine.
"""

import contextlib
import csv
import functools
import io
import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
import unittest.mock
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import measure  # type: ignore[import-not-found]  # it lies beside this file; mypy's name for it begins with `tests.`
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms

from litcifar import checkpoints, training
from litcifar.config import TrainConfig, train_config
from litcifar.console import quiet
from litcifar.errors import ConfigError
from litcifar.keys import flat
from litcifar.machine import device, memory
from litcifar.models import ImageClassifier
from litcifar.models.classifier import ChannelsFirst
from litcifar.models.conv_pool import ConvPoolBlock
from litcifar.models.dropout import Dropout
from litcifar.run_folder import BEST, HISTORY

EXPERIMENTS = "logistic_regression,numpy_mlp,keras_cnn,deep_cnn,speed_94"
LEFT_OUT = {  # of the plain loops: each key and the value that it has to have
    "compile": False,
    "model.l1": 0.0,
    "trainer.strategy": "auto",
    "trainer.gradient_clip_val": None,
    "trainer.accumulate_grad_batches": 1,
}
RATIOS = (
    ("litcifar", "plain loop"),
    ("litcifar", "memory kept"),
    ("usual Lightning", "litcifar"),
    ("plain loop", "FLOP floor"),
    ("litcifar", "NumPy"),
)


class Case:
    """An experiment at a batch size, as every variant needs it; each variant returns the seconds of a whole epoch.

    seconds: about what the timed passes of the plain loop take, which decides the number of steps and of passes.
    """

    def __init__(self, overrides: list[str], seconds: float) -> None:
        self.overrides = overrides
        self.steps, self.passes, self.images_of_epoch = 2, 2, 1
        self.own, self.others, self.kept = (
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for _ in range(3)
        )
        with tempfile.TemporaryDirectory() as folder:
            self.litcifar(folder=folder)
            if self.precision not in ("32-true", "bf16-mixed"):
                raise ConfigError(
                    f"trainer.precision={self.precision} has no plain loop here - use 32-true or bf16-mixed"
                )
            config = flat(self.metrics["config"])
            for key, value in LEFT_OUT.items():
                if config[key] != value:
                    raise ConfigError(f"{key} has no plain loop here - leave it out")
            network = Path(folder, BEST)  # of the other variants too
            for pool in (self.others, self.kept):
                pool.submit(_prepare, overrides, network, self.precision, pool is self.kept).result()
        chosen = self.others.submit(_choose, seconds).result()
        self.steps, self.steps_of_epoch, self.passes, self.images_of_epoch = chosen

    def litcifar(self, validation: bool = False, folder: str = "") -> float:
        limits = [] if validation else ["trainer.limit_val_batches=1", "data.eval_batch_size=100"]
        limits += [f"trainer.max_epochs={self.passes}", f"trainer.limit_train_batches={self.steps}", "test=false"]
        with tempfile.TemporaryDirectory() as temporary:
            overrides = [*self.overrides, *limits, "figures=false", "logger=none"]
            self.metrics, rates, beside = self.own.submit(_litcifar, overrides, folder or temporary).result()
        self.precision: str = self.metrics["precision"]
        seconds = [self.images_of_epoch / rate for rate in rates]
        return statistics.median(map(sum, zip(seconds, beside, strict=True)) if validation else seconds)

    def variant(self, name: str, *arguments: Any, kept: bool = False) -> Callable[[], float]:
        """A method of `Others`, called in its process."""
        pool = self.kept if kept else self.others
        return lambda: pool.submit(_measure, name, self.steps, self.passes, *arguments).result()

    def close(self) -> None:
        for pool in (self.own, self.others, self.kept):
            pool.shutdown()


class Others:
    """The variants that litcifar is compared with, in a process where litcifar trains nothing."""

    def __init__(self, overrides: list[str], checkpoint: Path, precision: str) -> None:
        self.config: TrainConfig = train_config(*overrides)
        self.checkpoint, self.precision = checkpoints.read(checkpoint), precision
        self.device: torch.device = measure.device_of(self.config)
        self.data = checkpoints.data_of(self.config)
        self.data.prepare_data()
        self.data.setup()
        images, labels = zip(*self.data.loader("train"), strict=True)
        self.images_NHWC, self.labels_N = torch.cat(images), torch.cat(labels)
        self.batch = self.config.data.batch_size
        self.images_of_epoch = len(self.labels_N)
        if self.config.data.drop_last:
            self.images_of_epoch -= self.images_of_epoch % self.batch
        self.steps_of_epoch = -(-self.images_of_epoch // self.batch)
        self.steps, self.passes = min(2, self.steps_of_epoch), 2

    def choose(self, seconds: float) -> None:
        for wanted in (seconds / 10, seconds):
            epochs = wanted / self.plain_loop()
            self.steps = int(min(self.steps_of_epoch, max(self.steps, epochs * self.steps_of_epoch)))
        if math.isfinite(epochs):
            self.passes = 1 + max(1, int(epochs))

    def plain_loop(self) -> float:
        model = checkpoints.model_of(self.checkpoint).train().to(self.device)
        (optimizer,), schedulers = _recipe(model, total_steps=self.passes * self.steps)
        if not in_steps(model):
            schedulers = []
        rows, labels_N = self.images_NHWC.flatten(1).to(self.device), self.labels_N.to(self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")
        assert self.data.augment is not None
        starts = []
        for epoch in range(self.passes):
            starts.append(measure.now(self.device))
            _freeze_ended(optimizer, epoch / self.passes)
            order = torch.randperm(len(rows)) if self.config.data.shuffle else torch.arange(len(rows))
            for step, indices_B in enumerate(order.to(self.device).split(self.batch)[: self.steps]):
                images_BHWC = rows.index_select(0, indices_B).view(-1, *self.images_NHWC.shape[1:])
                labels_B = labels_N.index_select(0, indices_B)
                progress = (epoch + step / self.steps) / self.passes
                batch = self.data.augment(images_BHWC, labels_B, epoch, step, indices_B, progress)
                with autocast:
                    loss = _loss(model, model(batch[0]), batch[1])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for scheduler in schedulers:
                    scheduler.step()
        return self._seconds([*starts, measure.now(self.device)])

    def usual_lightning(self, precision: Any) -> float:
        options = self.config.data
        images = PILImages(self.images_NHWC.numpy(), self.labels_N.tolist(), _transform(self.config))
        count = min(len(images), self.steps * self.batch)  # else its workers fetch batches that no step takes
        loader = DataLoader(
            images,
            batch_size=self.batch,
            sampler=RandomSampler(images, num_samples=count) if options.shuffle else range(count),
            drop_last=options.drop_last,
            num_workers=2,
            persistent_workers=True,  # else an epoch starts new ones, which a part of an epoch would overstate
            pin_memory=self.device.type == "cuda",
        )
        module = UsualModule(checkpoints.model_of(self.checkpoint).train(), self.steps, self.passes)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            trainer = L.Trainer(
                accelerator="gpu" if self.device.type == "cuda" else "cpu",
                devices=1,
                precision=precision,
                max_epochs=self.passes,
                limit_train_batches=self.steps,
                logger=CSVLogger(folder),
                default_root_dir=folder,
                enable_model_summary=False,
            )
            with unittest.mock.patch.dict(os.environ, PYTORCH_NVML_BASED_CUDA_CHECK="1"):  # as it is with Lightning
                trainer.fit(module, loader)
        return self._scaled(statistics.median(module.seconds[1:]))

    def flop_floor(self) -> float:
        model, few = checkpoints.model_of(self.checkpoint).train(), 8
        (optimizer,), _ = _recipe(model, total_steps=2)
        _freeze_ended(optimizer, 1 / self.passes)
        with FlopCounterMode(display=False) as counter:
            _loss(model, model(self.images_NHWC[:few]), self.labels_N[:few]).backward()
        size, times = 2048 if self.device.type == "cpu" else 8192, []
        dtype = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32
        a, b = torch.randn(2, size, size, device=self.device).to(dtype)
        for _ in range(6):
            start = measure.now(self.device)
            torch.mm(a, b)
            times.append(measure.now(self.device) - start)
        return counter.get_total_flops() / few * self.images_of_epoch * min(times[1:]) / (2 * size**3)

    def numpy(self) -> float:
        x_NP = self.images_NHWC.flatten(1).numpy() / np.float32(255)
        one_hot_NK = np.eye(10, dtype=np.float32)[self.labels_N.numpy()]
        rng = np.random.default_rng(0)
        w1, w2 = ((rng.standard_normal((m, n)) / m**0.5).astype(np.float32) for m, n in ((3072, 128), (128, 10)))
        b1, b2 = np.zeros(128, np.float32), np.zeros(10, np.float32)
        lr = np.float32(0.01)
        starts = []
        for _ in range(self.passes):
            starts.append(time.perf_counter())
            for first in range(0, self.steps * self.batch, self.batch):
                x, one_hot = x_NP[first : first + self.batch], one_hot_NK[first : first + self.batch]
                hidden = np.maximum(x @ w1 + b1, 0)
                logits = hidden @ w2 + b2
                exp = np.exp(logits - logits.max(1, keepdims=True))
                d_logits = (exp / exp.sum(1, keepdims=True) - one_hot) / np.float32(len(x))
                d_hidden = (d_logits @ w2.T) * (hidden > 0)
                w2 -= lr * (hidden.T @ d_logits)
                b2 -= lr * d_logits.sum(0)
                w1 -= lr * (x.T @ d_hidden)
                b1 -= lr * d_hidden.sum(0)
        return self._seconds([*starts, time.perf_counter()])

    def _seconds(self, times: list[float]) -> float:
        """From the time at the start of each pass and at the last one's end."""
        return self._scaled(statistics.median(b - a for a, b in itertools.pairwise(times[1:])))

    def _scaled(self, seconds: float) -> float:
        return seconds * self.images_of_epoch / min(self.steps * self.batch, self.images_of_epoch)


_others: list[Others] = []  # of a process that is not litcifar's: one


def _prepare(overrides: list[str], checkpoint: Path, precision: str, keep: bool) -> None:
    quiet()
    torch.backends.cudnn.benchmark = True  # as litcifar has it on a GPU
    device.ask_cuda_itself()  # as it is without Lightning, which litcifar has imported
    _others.append(Others(overrides, checkpoint, precision))
    if keep:
        memory.keep_freed()


def _choose(seconds: float) -> tuple[int, int, int, int]:
    (others,) = _others
    others.choose(seconds)
    return others.steps, others.steps_of_epoch, others.passes, others.images_of_epoch


def _measure(variant: str, steps: int, passes: int, *arguments: Any) -> float:
    (others,) = _others
    others.steps, others.passes = steps, passes
    with warnings.catch_warnings(action="ignore"):
        seconds: float = getattr(others, variant)(*arguments)
    return seconds


def _litcifar(overrides: list[str], folder: str) -> tuple[dict[str, Any], list[float], list[float]]:
    """metrics.json, images a second of each pass but the first, and the seconds that each took beside its batches."""
    printed = EpochLines()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(action="ignore"):
        metrics = training.train(train_config(*overrides), Path(folder))
    with Path(folder, HISTORY).open() as file:
        rows = list(csv.DictReader(file))[1:]
    whole = [b - a for a, b in itertools.pairwise(printed.times)]
    beside = [seconds - float(row["seconds"]) for seconds, row in zip(whole, rows, strict=True)]
    return metrics, [float(row["images_per_second"]) for row in rows], beside


class EpochLines(io.StringIO):
    """Notes when each epoch's line is printed, which is after its validation."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, text: str) -> int:
        if text.startswith("epoch "):
            self.times.append(time.perf_counter())
        return super().write(text)


@dataclass
class PILImages(Dataset):
    """An image at a time, as torchvision.datasets.CIFAR10 has it."""

    images: np.ndarray
    labels: list[int]
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class UsualModule(L.LightningModule):
    """The network of `model` on normalised images [B, C, H, W]; `seconds` are of each epoch's batches."""

    def __init__(self, model: ImageClassifier, steps: int, epochs: int) -> None:
        super().__init__()
        assert isinstance(model.net, nn.Sequential)
        self.net = nn.Sequential(*(_as_written(layer) for layer in model.net if not isinstance(layer, ChannelsFirst)))
        self.loss = functools.partial(_loss, model)  # in a partial, so that `model` is no submodule
        self.recipe = functools.partial(_recipe, model, steps * epochs)
        self.epochs, self.seconds = epochs, list[float]()
        self.interval = "step" if in_steps(model) else "epoch"
        self.acc = MulticlassAccuracy(len(model.classes), average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images_BCHW, labels_B = batch
        logits_BK = self.net(images_BCHW)
        loss = self.loss(logits_BK, labels_B)
        self.acc(logits_BK, labels_B)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/acc", self.acc, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizers, schedulers = self.recipe()
        return optimizers, [{"scheduler": scheduler, "interval": self.interval} for scheduler in schedulers]

    def on_train_epoch_start(self) -> None:
        self.start = measure.now(self.device)
        _freeze_ended(self.optimizers(), self.current_epoch / self.epochs)

    def on_train_batch_end(self, *batch: Any) -> None:
        if self.trainer.is_last_batch:
            self.seconds.append(measure.now(self.device) - self.start)


def _as_written(layer: nn.Module) -> nn.Module:
    """As scripts have it: torch's dropout, and ReLU before the max pool; `ConvPool` lets them change places."""
    if isinstance(layer, Dropout):
        return nn.Dropout(layer.p)
    if isinstance(layer, ConvPoolBlock):
        for place, inner in enumerate(list(layer)):
            layer[place] = _as_written(inner)
        for place, (pool, activation) in enumerate(itertools.pairwise(list(layer))):
            if isinstance(pool, nn.MaxPool2d) and isinstance(activation, nn.ReLU):
                layer[place], layer[place + 1] = activation, pool
    return layer


def in_steps(model: ImageClassifier) -> bool:
    return model.scheduler is not None and model.scheduler.get("interval") == "step"


def _recipe(model: ImageClassifier, total_steps: int) -> tuple[list[Any], list[Any]]:
    """The optimizer, and its scheduler where there is one."""
    recipe = model.recipe(total_steps)
    return recipe if isinstance(recipe, tuple) else ([recipe], [])


def _freeze_ended(optimizer: Any, progress: float) -> None:
    """The parameters that are no longer trained after that share of the run."""
    for group in optimizer.param_groups:
        if group.get("until", 1.0) <= progress:
            for parameter in group["params"]:
                parameter.requires_grad = False


def _loss(model: ImageClassifier, logits_BK: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(
        logits_BK.float(), labels, label_smoothing=model.label_smoothing, reduction=model.loss_reduction
    )


def _transform(config: TrainConfig) -> Callable[[Image.Image], Tensor]:
    """The usual way of an image; of the experiment's augmentation the crop and the flip alone."""
    augment = config.augment
    mode = "reflect" if augment.padding == "reflect" else "constant"
    crop = [transforms.RandomCrop(32, augment.translate, padding_mode=mode)] if augment.translate else []
    flip = [transforms.RandomHorizontalFlip()] if augment.flip != "none" else []
    normalize = transforms.Normalize(config.model.mean, config.model.std)
    return transforms.Compose([*crop, *flip, transforms.ToTensor(), normalize])


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--experiments", default=EXPERIMENTS, help=f"({EXPERIMENTS})")
    parser.add_argument("--batches", default="own,512", help="batch sizes; own is the experiment's (own,512)")
    parser.add_argument("--seconds", type=float, default=2, help="of the plain loop's timed passes; inf: an epoch (2)")
    parser.add_argument("--usual-precision", default="32-true", help="of usual Lightning (32-true, its own default)")
    arguments = parser.parse_intermixed_args()
    report = measure.Report(arguments.json)
    cases: dict[tuple[str, int], list[str]] = {}
    for experiment in arguments.experiments.split(","):
        for batch in arguments.batches.split(","):
            size = [] if batch == "own" else [f"data.batch_size={batch}"]
            overrides = [f"experiment={experiment}", *arguments.overrides, *size]
            cases.setdefault((experiment, train_config(*overrides).data.batch_size), overrides)

    for (experiment, batch), overrides in cases.items():
        case = Case(overrides, arguments.seconds)
        report.content["data"] = f"{case.metrics['data']} {case.metrics['fingerprint'][:8]}"
        variants: dict[str, Callable[[], float]] = {
            "litcifar": case.litcifar,
            "plain loop": case.variant("plain_loop"),
            "memory kept": case.variant("plain_loop", kept=True),
            "usual Lightning": case.variant("usual_lightning", arguments.usual_precision),
            "FLOP floor": case.variant("flop_floor"),
        }
        if experiment == "numpy_mlp":
            variants["NumPy"] = case.variant("numpy")
        if (experiment, batch) == ("keras_cnn", 64):
            variants["with validation"] = functools.partial(case.litcifar, validation=True)
        values: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(arguments.rounds):
            order = [*variants][number % len(variants) :] + [*variants][: number % len(variants)]
            for name in order:
                values[name].append(variants[name]())
            latest = ", ".join(f"{name} {seconds[-1]:.3f} s" for name, seconds in values.items())
            report.console.print(f"{experiment} {batch}, round {number + 1}: {latest}", soft_wrap=True)
        labels = {"experiment": experiment, "batch": str(batch), "steps": f"{case.steps} of {case.steps_of_epoch}"}
        labels["timed passes"] = str(case.passes - 1)
        precisions = {"NumPy": "32-true", "usual Lightning": arguments.usual_precision}
        for name, seconds in values.items():
            report.add(seconds, **labels, what=name, unit=f"s, {precisions.get(name, case.precision)}")
        for over, under in RATIOS:
            if under in values:
                pairs = zip(values[over], values[under], strict=True)
                report.add([a / b for a, b in pairs], **labels, what=f"{over} / {under}", unit="ratio")
        case.close()
    report.show(
        "Seconds of a whole epoch, ratios of the pairs of a round. The Keras notebook reports, and nobody measured "
        "here, 11 minutes for keras_cnn's 25 epochs: 26.4 s an epoch with validation."
    )


if __name__ == "__main__":
    measure.run(main)
