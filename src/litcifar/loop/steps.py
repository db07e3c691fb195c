"""What happens around every turn of the training loop."""

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from litcifar.errors import DivergedError, Interrupted
from litcifar.machine import signals
from litcifar.models import ImageClassifier
from litcifar.run_folder import LAST


class Steps(Checkpoint):
    """Looks at the loss, and stops in order.

    A `Checkpoint`, and the last of them: what it saves has everything that the other callbacks did after the step.
    The loss is looked at ten times an epoch: reading it waits for the device, so the next turn's images are fetched
    first. The logits of a validation are looked at too: the last step may have been the one. On SIGINT or SIGTERM the
    step is finished and `last.ckpt` is written; on submitit's signal too, before its own handler is called.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.signal_number = 0
        self._model: ImageClassifier | None = None
        self._loss: Tensor | None = None  # that is to be looked at
        self._handlers: dict[int, Any] = {}  # of the signals, before training

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        self._model = pl_module
        # In the place of Lightning's own, which restores at an error those that were there before it.
        self._handlers = signals.install(signals.Handler(self._stop))
        if signals.REQUEUE and callable(signal.getsignal(signals.REQUEUE)):
            self._handlers[signals.REQUEUE] = signal.signal(signals.REQUEUE, signals.Handler(self._stop))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._check_loss(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        tenth = max(1, int(trainer.num_training_batches) // 10)
        if (batch_idx + 1) % tenth == 0 or trainer.is_last_batch:
            self._loss = outputs["loss"]
        # After its last step an epoch is validated first: a checkpoint in between would go on with the next epoch.
        if trainer.is_last_batch:
            self._check_loss(trainer)
        elif trainer.global_step != trainer.max_steps and self._signal(trainer):  # after the last step the run ends
            self._check_loss(trainer)
            trainer.save_checkpoint(self.run_dir / LAST)
            self._interrupt(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *where: int
    ) -> None:
        self._check("network's answer", outputs, trainer)  # before a checkpoint is ranked by it

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._signal(trainer):
            self._interrupt(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number, handler in self._handlers.items():  # before the last look
            signal.signal(number, handler)
        if self._signal(trainer):
            self._interrupt(trainer)

    def _check_loss(self, trainer: L.Trainer) -> None:
        loss, self._loss = self._loss, None
        if loss is not None:
            self._check("loss", loss, trainer)

    def _check(self, what: str, values: Tensor, trainer: L.Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(values).all())):
            raise DivergedError(
                f"the {what} became infinite or NaN in epoch {trainer.current_epoch + 1}, by step "
                f"{trainer.global_step} - lower optim.lr or set trainer.gradient_clip_val; "
                "earlier epochs' checkpoints are kept"
            )

    def _signal(self, trainer: L.Trainer) -> int:
        """The number of the signal that has come, to any of the processes; 0 for none. They stop at the same step."""
        if trainer.world_size > 1:
            seen = torch.tensor(float(self.signal_number), device=trainer.strategy.root_device)
            self.signal_number = int(trainer.strategy.reduce(seen, reduce_op="max"))
        return self.signal_number

    def _stop(self, signal_number: int) -> None:
        if self.signal_number != signals.REQUEUE:  # the others come with it when a job is pre-empted
            self.signal_number = signal_number
        assert self._model is not None
        self._model.interrupted = True

    def _interrupt(self, trainer: L.Trainer) -> None:
        if self.signal_number == signals.REQUEUE:
            self._handlers[self.signal_number](self.signal_number, None)
        name = signal.Signals(self.signal_number).name
        where = f"epoch {trainer.current_epoch + 1} after step {trainer.global_step}"
        raise Interrupted(f"stopped by {name} in {where} - resume={self.run_dir}", self.signal_number)
