"""What the benchmarks share: the command line, an experiment's configuration, the clock, and the report."""

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from rich.box import SIMPLE_HEAD
from rich.table import Table

from litcifar.config import TrainConfig
from litcifar.console import console, quiet
from litcifar.errors import UserError
from litcifar.machine import device


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The arguments of every benchmark; `description` is the module's docstring."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("overrides", nargs="*", metavar="key=value", help="as for litcifar-train, e.g. data.root=DIR")
    result.add_argument("--rounds", type=int, default=rounds, help=f"measurements of each variant ({rounds})")
    place = Path("outputs/benchmarks", f"{Path(sys.argv[0]).stem}_{time.strftime('%Y-%m-%d_%H-%M-%S')}.json")
    result.add_argument("--json", type=Path, default=place, help="file for the results (one in outputs/benchmarks)")
    return result


def run(main: Callable[[], None]) -> None:
    """Runs a benchmark; a user's mistake becomes one line."""
    quiet()
    try:
        main()
    except (UserError, HydraException) as error:
        print("error:", " ".join(str(error).split("Config search path")[0].split()), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


def device_of(config: TrainConfig) -> torch.device:
    """CUDA where litcifar takes it, else the CPU: other accelerators are not measured."""
    return torch.device("cuda" if device.chosen(config.trainer.accelerator) == "cuda" else "cpu")


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Report:
    """Rows of measured values, for the screen and for a file that is written anew with each of them."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.console = console()
        threads = [f"{key}={value}" for key, value in os.environ.items() if key == "OMP_NUM_THREADS"]
        self.content: dict[str, Any] = {
            "command": f"{' '.join([*threads, 'python'])} {shlex.join(sys.argv)}",
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch": torch.__version__,
            "load before": round(os.getloadavg()[0], 2),  # processes that wanted a core, mean of a minute
            "rows": [],
        }

    def add(self, values: Sequence[float], **labels: str) -> None:
        """labels: the row's first cells, the same keys in every row."""
        numbers = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "n": len(values),
        }
        self.content["rows"].append({**labels, **numbers, "values": list(values)})
        self.path.write_text(json.dumps(self.content, indent=2) + "\n")

    def show(self, *notes: str) -> None:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        rows: list[dict[str, Any]] = self.content["rows"]
        for title, value in rows[0].items():
            if title != "values":
                table.add_column(title, justify="left" if isinstance(value, str) else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(_cell(value) for title, value in row.items() if title != "values"))
        self.console.print(table)
        facts = (f"{key} {value}" for key, value in self.content.items() if key not in ("command", "rows"))
        for line in (*notes, ", ".join(facts), self.content["command"], str(self.path)):
            self.console.print(line, soft_wrap=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if value < 1000 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()
