"""The files of a run's folder."""

import json
import os
from pathlib import Path
from typing import Any

from litcifar.errors import CheckpointError

BEST, LAST, METRICS, HISTORY, FIGURES = "best.ckpt", "last.ckpt", "metrics.json", "metrics.csv", "figures"


def find_checkpoint(path: str, name: str) -> Path:
    """The checkpoint `path`, or the one called `name` in the run's folder `path`; CheckpointError if there is none."""
    found = Path(path).expanduser()
    if found.is_dir():
        found = found / name
    if found.is_file():
        return found
    near = sorted(map(str, found.parent.glob("*.ckpt")))
    raise CheckpointError(
        f"no checkpoint '{found}' - "
        + (f"there is {', '.join(near)}" if near else "give a run's folder or a checkpoint")
    )


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Writes metrics.json, whole or not at all: it marks a finished run."""
    temporary = folder / f".{METRICS}.tmp"
    temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    os.replace(temporary, folder / METRICS)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """What metrics.json holds; None where the run has not finished."""
    path = folder / METRICS
    return json.loads(path.read_text()) if path.is_file() else None
