"""The learning-rate range test of Smith 2017, "Cyclical learning rates for training neural networks" (1506.01186)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text
from scipy.ndimage import gaussian_filter1d

from litcifar import commands, figures, run_folder, style
from litcifar.config import TrainConfig
from litcifar.console import console as make_console
from litcifar.console import quiet, short
from litcifar.errors import UserError
from litcifar.machine import device, memory
from litcifar.run_folder import FIGURES, FINDER
from litcifar.training import new_model, prepare

STEPS = 150
DECADES = (-3, 3)  # of the configured learning rate, from the first step to the last
SMOOTH = 5.0  # steps: of the Gaussian that the losses are smoothed with
DIVERGED = 4.0  # times the lowest loss: there the test ends


class RangeTest(Callback):
    """Raises the learning rate from step to step and notes the loss of each, until that grows or STEPS are done.

    All parameter groups keep the ratio of their learning rates. A turn of the loop has to be one step.
    Lightning's own `Tuner.lr_find` steps its scheduler under automatic optimization alone, which ours is not.
    """

    def __init__(self, console: Console, progress_bar: bool) -> None:
        self.factors: list[float] = []  # of the configured learning rate
        self.losses: list[float] = []
        self._rates: list[float] = []  # configured, of each group
        self._bar = Progress(
            TextColumn("learning rate {task.fields[rate]}  loss {task.fields[loss]}"),
            BarColumn(),
            console=console,
            transient=True,
            disable=not (progress_bar and console.is_terminal),
        )
        self._task = self._bar.add_task("", total=STEPS, rate="", loss="")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self._bar.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        low, high = DECADES
        self.factors.append(10 ** (low + (high - low) * trainer.global_step / (STEPS - 1)))
        for group, rate in zip(trainer.optimizers[0].param_groups, self._rates, strict=True):
            group["lr"] = rate * self.factors[-1]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())
        trainer.should_stop = not self.losses[-1] <= DIVERGED * min(self.losses)
        self._bar.update(
            self._task, advance=1, rate=f"{self._rates[0] * self.factors[-1]:.1e}", loss=f"{self.losses[-1]:.3f}"
        )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._bar.stop()


def smoothed(losses: Sequence[float]) -> list[float]:
    """The losses without the noise of their batches, at the same steps."""
    return gaussian_filter1d(losses, SMOOTH, mode="nearest").tolist()


def suggested(losses: Sequence[float]) -> int | None:
    """The step where the smoothed loss falls most steeply on its way to the lowest; None where it only rises.

    The learning rates are taken as logarithms.
    Lightning's finder looks for the same place on a linear axis, which favours the lowest of them.
    """
    lowest = int(np.argmin(smoothed(losses))) if losses else 0
    return int(np.argmin(np.gradient(smoothed(losses)[: lowest + 1]))) if lowest else None


def find_learning_rate(config: TrainConfig, run_dir: Path) -> float:
    """The learning rate that a range test suggests; it draws the loss against it, and keeps no network.

    Raises ConfigError, DataError, MachineError, UserError where the loss falls nowhere, and Interrupted on a signal.
    """
    console = make_console()
    quiet()
    kind = device.chosen(config.trainer.accelerator)
    data, config, _ = prepare(config, console)
    data.setup()
    memory.keep_freed()
    # Without a schedule, which would be another one than the test's.
    groups = {name: options.model_copy(update={"until": 1.0}) for name, options in config.optim.groups.items()}
    optim = config.optim.model_copy(update={"groups": groups})
    model = new_model(config.model_copy(update={"optim": optim, "scheduler": None}), data)
    precision, reason = device.precision_of(config, kind)
    what = f" seed {config.seed}: learning-rate range test in {precision} ({reason})"
    console.print(Text.assemble((config.name, "bold"), what))
    test = RangeTest(console, config.trainer.enable_progress_bar)
    options = config.trainer.model_dump(include={"deterministic", "benchmark"})
    L.Trainer(
        **options,
        accelerator=kind,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=STEPS,
        max_epochs=STEPS,
        limit_train_batches=0.999 if data.train_batches > 1 else None,  # a share: then a turn is one step
        limit_val_batches=0,
        logger=False,
        callbacks=[test],
        plugins=[LightningEnvironment()],
        default_root_dir=run_dir,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    ).fit(model, datamodule=data)
    losses = [loss for loss in test.losses if math.isfinite(loss)]
    rates = [config.optim.lr * factor for factor in test.factors[: len(losses)]]
    place = suggested(losses)
    if place is None:
        raise UserError(
            f"the loss falls at no learning rate from {config.optim.lr * 10 ** DECADES[0]:.1e} on - change optim.lr"
        )
    picture = run_dir / FIGURES / FINDER
    run_folder.write(picture, style.png(figures.learning_rate_finder(rates, losses, smoothed(losses), place)))
    factor = float(f"{test.factors[place] * config.optim.lr:.1e}") / config.optim.lr
    seen = (
        f"loss {losses[0]:.3f} at {rates[0]:.1e}, lowest {min(losses):.3f} at {rates[losses.index(min(losses))]:.1e}, "
        "steepest at "
    )
    console.print(Text.assemble(seen, (f"optim.lr={config.optim.lr * factor:.2g}", "bold")))
    console.print(f"figure    {short(picture)}", soft_wrap=True)
    console.print(f"train     {commands.with_learning_rate(config, run_dir, factor)}", soft_wrap=True)
    return config.optim.lr * factor
