"""Loggers: they get the figures of metrics.csv, and leave no trace on the console."""

import time
from pathlib import Path
from typing import Any

import pytest
import wandb

from litcifar import training
from litcifar.errors import MachineError
from tests.conftest import Compose
from tests.test_training import rows


def test_weights_and_biases_gets_the_same_figures_offline(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logged: list[dict[str, Any]] = []
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda run, data, *given: logged.append(data) or log(run, data, *given))  # type: ignore[func-returns-value]
    run_dir = tmp_path / "sweep" / "0_mlp"
    training.train(compose("model=mlp", "logger=wandb", "figures=true"), run_dir)
    longer = compose(f"resume={run_dir}", "trainer.max_epochs=3")
    training.train(longer, run_dir, changed=("resume", "trainer.max_epochs"))
    assert wandb.run is None
    printed = capsys.readouterr()
    assert "wandb" not in printed.err + printed.out
    first, second = sorted((run_dir / "wandb").glob("offline-run-*-sweep-0_mlp/run-sweep-0_mlp.wandb"))  # one id
    for name in ("train/acc", "train/loss", "val/acc", "val/loss"):
        assert [row[name] for row in logged if name in row] == [float(row[name]) for row in rows(run_dir)]
    for file in (first, second):  # which W&B's own process may still be writing
        end = time.monotonic() + 30
        while b"val/acc" not in file.read_bytes():
            assert time.monotonic() < end
            time.sleep(0.1)
    assert list(first.parent.glob("files/media/images/figures/confusion_matrix_*.png"))


def test_without_wandb_that_is_said_before_the_data_is_touched(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"logger=wandb needs wandb - pip install 'litcifar\[wandb\]'"):
        training.train(compose("logger=wandb", "data.root=nowhere"), tmp_path)
