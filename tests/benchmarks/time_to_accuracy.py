"""Seconds until an experiment has trained to the accuracy in its name: litcifar-train in a fresh process for each seed.

    python tests/benchmarks/time_to_accuracy.py --rounds 5 data.root=DIR data.verify=false

From the process's start, and from its first training step, until the last epoch's line is printed: with validation.
The first step lies before the first epoch's line by the training seconds in metrics.csv and the shortest time that an
epoch took beside them.
`reached` is 1 for a run whose val/acc is not below the percentage in the experiment's name. Round i has seed i.
"""

import csv
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import measure  # type: ignore[import-not-found]  # it lies beside this file; mypy's name for it begins with `tests.`

from litcifar.config import train_config
from litcifar.errors import ConfigError
from litcifar.keys import conf_dir
from litcifar.run_folder import HISTORY, read_metrics


def train(experiment: str, seed: int, folder: Path, overrides: list[str]) -> tuple[str, dict[tuple[str, str], float]]:
    """The data that was read, and what was measured, by name and unit."""
    program = str(Path(sys.executable).with_name("litcifar-train"))
    command = [program, f"experiment={experiment}", f"seed={seed}", f"hydra.run.dir='{folder}'", *overrides]
    lines = [0.0]  # when the last line before the epochs came, and each epoch's
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch "):
                lines.append(time.perf_counter())
            elif len(lines) == 1:
                lines[0] = time.perf_counter()
    metrics = read_metrics(folder)
    if process.returncode or metrics is None:
        sys.exit(process.returncode or 1)
    with (folder / HISTORY).open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    beside = min(b - a - s for a, b, s in zip(lines[:-1], lines[1:], seconds, strict=True))
    measured = {
        ("from the process's start", "s"): lines[-1] - start,
        ("from the first step", "s"): lines[-1] - (lines[1] - seconds[0] - beside),
        ("training batches alone", "s"): metrics["train_seconds"],
        ("val/acc", "%"): 100 * metrics["val/acc"],
        ("reached", "share"): float(100 * metrics["val/acc"] >= _percentage(experiment)),
    }
    for name in ("test/acc", "val/tta_acc", "test/tta_acc"):
        if metrics[name] is not None:
            measured[name, "%"] = 100 * metrics[name]
    return f"{metrics['data']} {metrics['fingerprint'][:8]}", measured


def _percentage(experiment: str) -> int:
    number = re.search(r"\d+", experiment)
    if number is None:
        raise ConfigError(f"--experiments: '{experiment}' names no accuracy - choose such as fast_90")
    return int(number[0])


def main() -> None:
    files = sorted((conf_dir() / "experiment").glob("*.yaml"))
    names = ",".join(file.stem for file in files if re.match(r"(fast|speed)_\d", file.stem))
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--experiments", default=names, help=f"({names})")
    arguments = parser.parse_intermixed_args()
    experiments = arguments.experiments.split(",")
    for experiment in experiments:
        _percentage(experiment)
        train_config(f"experiment={experiment}", *arguments.overrides)
    report = measure.Report(arguments.json)
    runs: dict[str, list[dict[tuple[str, str], float]]] = {experiment: [] for experiment in experiments}
    for seed in range(arguments.rounds):
        for experiment in experiments:
            folder = arguments.json.with_suffix("") / f"{experiment}_seed{seed}"
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier benchmark
            report.content["data"], measured = train(experiment, seed, folder, arguments.overrides)
            runs[experiment].append(measured)
            latest = ", ".join(f"{what} {value:.2f} {unit}" for (what, unit), value in measured.items())
            report.console.print(f"{experiment} seed {seed}: {latest}", soft_wrap=True)
    for experiment, of_seeds in runs.items():
        for what, unit in of_seeds[0]:
            report.add([run[what, unit] for run in of_seeds], experiment=experiment, what=what, unit=unit)
    report.show()


if __name__ == "__main__":
    measure.run(main)
