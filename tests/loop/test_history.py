"""metrics.csv is read as it was written."""

from pathlib import Path

from rich.console import Console

from litcifar.loop.history import History
from litcifar.run_folder import read_rows


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.csv", Console())
    history.rows = [
        {"epoch": 1, "step": 10, "lr": 1e-3, "train/acc": 0.3, "val/acc": 1 / 3, "val/loss": 0.0},
        {"epoch": 2, "step": 20, "lr": 1e-3, "train/acc": 0.5},  # an epoch without validation
    ]
    history.write()
    assert read_rows(tmp_path / "metrics.csv") == history.rows
