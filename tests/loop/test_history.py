"""metrics.csv is read as it was written; when the clock is read."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from rich.console import Console

from litcifar.loop.history import History
from litcifar.models import ImageClassifier
from litcifar.run_folder import read_rows


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.csv", Console())
    history.rows = [
        {"epoch": 1, "step": 10, "lr": 1e-3, "train/acc": 0.3, "val/acc": 1 / 3, "val/loss": 0.0},
        {"epoch": 2, "step": 20, "lr": 1e-3, "train/acc": 0.5},  # an epoch without validation
    ]
    history.write()
    assert read_rows(tmp_path / "metrics.csv") == history.rows


@pytest.mark.parametrize(
    ("is_last", "max_steps", "interrupted", "waits"),
    [(False, -1, False, 0), (True, -1, False, 1), (False, 3, False, 1), (False, -1, True, 1)],
)
def test_a_gpu_has_ended_an_epochs_last_step_when_the_clock_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_last: bool, max_steps: int, interrupted: bool, waits: int
) -> None:
    wait = Mock()
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(torch.cuda, "Event", Mock())
    model = Mock(spec=ImageClassifier, device=torch.device("cuda"), interrupted=interrupted, accumulate_grad_batches=1)
    trainer = Mock(is_last_batch=is_last, global_step=3, max_steps=max_steps)
    trainer.optimizers = [Mock(param_groups=[{"lr": 0.1}])]
    history = History(tmp_path / "metrics.csv", Console())
    history.on_train_epoch_start(trainer, model)
    history.on_train_batch_start(trainer, model, [], 0)
    history.on_train_batch_end(trainer, model, None, [], 0)
    assert wait.call_count == waits
