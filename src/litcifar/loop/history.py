"""The history of a run: one row an epoch, in metrics.csv, on the screen and inside the checkpoints."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from litcifar import run_folder
from litcifar.models import ImageClassifier

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train/acc",
    "train/loss",
    "val/acc",
    "val/loss",
    "seconds",
    "step_seconds",
    "images_per_second",
)

NOTHING = {"images": 0, "seconds": 0.0, "step_seconds": 0.0}

BAR_SECONDS = 0.2  # between two looks of the progress bar


class History(Checkpoint):
    """Collects each epoch's metrics, when all of them are known.

    A `Checkpoint`, so that Lightning calls it after the model's own `on_train_epoch_end`, and before the checkpoint
    callbacks that stand behind it. It travels in the checkpoints: a resumed run goes on with exactly the rows that
    its checkpoint knows. `epoch` counts from 1; `lr` is that at its end; `seconds` and `images_per_second` are of the
    training batches alone, `step_seconds` of their forward and backward passes and optimizer steps.
    """

    def __init__(self, csv_path: Path, console: Console, progress_bar: bool = True) -> None:
        self.csv_path = csv_path
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
            transient=True,
            disable=not (progress_bar and console.is_terminal) or console.quiet,
        )
        self._next_look = 0.0
        self.rows: list[dict[str, float]] = []
        self._epoch = dict(NOTHING)  # of the epoch that is being trained
        self._start = 0.0
        self._step = 0  # before the turn
        self._stopwatch = Stopwatch()

    def state_dict(self) -> dict[str, Any]:
        self._epoch["step_seconds"] += self._stopwatch.read()
        return {"rows": self.rows, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self._epoch = NOTHING | state_dict["epoch"]

    @property
    def best(self) -> dict[str, float] | None:
        """The first row with the highest validation accuracy: the epoch of best.ckpt."""
        return max((row for row in self.rows if "val/acc" in row), key=lambda row: row["val/acc"], default=None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter() - self._epoch["seconds"]
        if trainer.is_global_zero:  # it tells of the fewer epochs of a run that goes on
            self.csv_path.with_name(run_folder.METRICS).unlink(missing_ok=True)
        self.bar.add_task("", rate="")
        self.bar.start()
        if not self.bar.disable:
            trainer.optimizers[0].register_step_post_hook(lambda *_: self._look(trainer, pl_module))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch = dict(NOTHING)
        self._start = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stopwatch.start(pl_module.device)
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stopwatch.stop()
        assert isinstance(pl_module, ImageClassifier)
        cut_short = pl_module.interrupted or trainer.global_step == trainer.max_steps
        if (cut_short or trainer.is_last_batch) and pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        groups = trainer.optimizers[0].param_groups
        self._epoch["lr"] = next((group for group in groups if "until" not in group), groups[0])["lr"]
        if cut_short:
            batch = batch[: (trainer.global_step - self._step) * pl_module.accumulate_grad_batches]
        self._epoch["images"] += sum(len(labels) for _, labels in batch)
        self._epoch["seconds"] = time.perf_counter() - self._start

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()  # it has hidden the cursor

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch |= _known(trainer, "val/")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch["step_seconds"] += self._stopwatch.read()
        images = self._epoch.pop("images")
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **self._epoch,
            **_known(trainer, "train/"),
            "images_per_second": images / self._epoch["seconds"],
        }
        self.rows.append(row)
        self._epoch = dict(NOTHING)
        if trainer.is_global_zero:
            self.write()
        assert isinstance(pl_module, ImageClassifier)
        left = self._steps_left(trainer, pl_module, trainer.current_epoch + 1) / pl_module.steps_of_epoch
        self.console.print(self._line(row, trainer.max_epochs or 0, left))

    def write(self) -> None:
        """Writes metrics.csv."""
        run_folder.write_rows(self.csv_path, COLUMNS, self.rows)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now = time.perf_counter()
        if now > self._next_look:
            self._next_look = now + BAR_SECONDS
            assert isinstance(pl_module, ImageClassifier)
            self._show(trainer, pl_module, now - self._start)

    def _show(self, trainer: L.Trainer, model: ImageClassifier, seconds: float) -> None:
        epoch, epochs, total = trainer.current_epoch, trainer.max_epochs, model.steps_of_epoch
        steps = trainer.global_step - trainer.datamodule.first_step  # type: ignore[attr-defined]
        if not steps:
            return
        images = steps * model.accumulate_grad_batches * trainer.datamodule.batch_size  # type: ignore[attr-defined]
        left = seconds / steps * self._steps_left(trainer, model, epoch, steps)
        latest = self.rows[-1] if self.rows else {}
        known = [f"{name} {100 * latest[name]:.2f} %" for name in ("train/acc", "val/acc") if name in latest]
        text = "  ".join([f"{images / seconds:,.0f} images/s", f"{duration(left)} left", *known])
        self.bar.update(TaskID(0), total=total, completed=steps, description=f"epoch {epoch + 1}/{epochs}", rate=text)

    def _steps_left(self, trainer: L.Trainer, model: ImageClassifier, epochs: int, steps: int = 0) -> int:
        """The optimizer steps of the rest of the run after so many epochs and steps of the next one."""
        left = ((trainer.max_epochs or 0) - epochs) * model.steps_of_epoch - steps
        return left if trainer.max_steps == -1 else min(left, trainer.max_steps - trainer.global_step)

    def _line(self, row: dict[str, float], epochs: int, epochs_left: float) -> str:
        parts = [f"epoch {int(row['epoch']):>{len(str(epochs))}}/{epochs}"]
        for split in ("train", "val"):
            if f"{split}/acc" in row:
                parts.append(f"{split} {100 * row[f'{split}/acc']:5.2f} % (loss {row[f'{split}/loss']:.4f})")
        if self.best:
            parts.append(f"best {100 * self.best['val/acc']:5.2f} %")
        parts.append(f"{row['images_per_second']:,.0f} images/s")
        left = (time.perf_counter() - self._start) * epochs_left
        parts.append(f"{duration(left)} left")
        return "  ".join(parts)


class Stopwatch:
    """The seconds between `start` and `stop`, summed; those of the GPU's own clock for work on a GPU."""

    def __init__(self) -> None:
        self._intervals: list[tuple[Any, Any]] = []
        self._start: Any = None
        self._cuda = False

    def start(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start = self._now()

    def stop(self) -> None:
        self._intervals.append((self._start, self._now()))

    def read(self) -> float:
        """The sum since the last reading; waits for the GPU."""
        intervals, self._intervals = self._intervals, []
        if not self._cuda:
            return float(sum(stop - start for start, stop in intervals))
        torch.cuda.synchronize()
        return float(sum(start.elapsed_time(stop) for start, stop in intervals)) / 1000

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _known(trainer: L.Trainer, split: str) -> dict[str, float]:
    """The last figures of a split, of whichever epoch."""
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if name in COLUMNS and name.startswith(split)}


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
