"""A trial of a search that is given up."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint
from optuna.trial import Trial, TrialState

from litcifar.errors import Pruned
from litcifar.search.study import open_study


class Pruning(Checkpoint):
    """Tells the study each epoch's validation accuracy, and raises Pruned where its pruner gives the trial up.

    A `Checkpoint` behind those that save: the run's last.ckpt is written before, so it can be gone on with.
    go_on: the command with which the run goes on. folder: the sweep's. settings: the sweeper's. number: the trial's.
    """

    def __init__(self, go_on: str, folder: Path, settings: Any, number: int) -> None:
        self.go_on = go_on
        study = open_study(folder, settings.startup_trials, settings.warmup_epochs)
        self.trial = Trial(study, study.trials[number]._trial_id)
        self.number = number
        self._accuracy: float | None = None  # of an epoch that was validated

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._accuracy = float(trainer.callback_metrics["val/acc"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        accuracy, self._accuracy = self._accuracy, None
        epoch = trainer.current_epoch  # the pruner counts from 0 too
        if accuracy is None:
            return
        self.trial.report(accuracy, epoch)
        is_last = epoch + 1 == trainer.max_epochs
        if not is_last and self.trial.should_prune():
            self.trial.study.tell(self.number, state=TrialState.PRUNED)
            raise Pruned(
                f"val {100 * accuracy:.2f} % in epoch {epoch + 1}, best so far below the median of the trials before - "
                f"to go on all the same: {self.go_on}"
            )
