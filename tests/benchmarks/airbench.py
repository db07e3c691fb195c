"""A public airbench script against litcifar's experiment of the same recipe: same machine, same images, interleaved.

    python tests/benchmarks/airbench.py --script FILE --rounds 20 data.root=DIR data.verify=false

FILE is airbench94_muon.py, legacy/airbench94.py or legacy/airbench95.py of github.com/KellerJordan/cifar10-airbench,
a copy outside this repository. It is given litcifar's training images and the test set, and is otherwise run as it is;
on a CPU, where it cannot, with the words of ON_A_CPU replaced, in litcifar's precision. Each of the two runs in a
process of its own, and there once untimed before it counts: the script's warm-up on random labels compiles it on a GPU,
in torch's max-autotune mode. litcifar does the same with the override compile=max-autotune.

seconds: of all training batches; the script's own count has its whitening too, some thousandths of it. Accuracies are
of the test set, plain and with six views: the script's of its last epoch, litcifar's of its best on validation.
Round i has seed i in litcifar, and a new network, whose CUDA graphs are recorded in its first epoch; the script goes on
with its process's random numbers, and with its graphs.
"""

import contextlib
import functools
import inspect
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import measure  # type: ignore[import-not-found]  # it lies beside this file; mypy's name for it begins with `tests.`
import torch

from litcifar import checkpoints, training
from litcifar.config import train_config
from litcifar.errors import ConfigError
from litcifar.machine import device

ON_A_CPU = {
    'torch.device("cuda")': 'torch.device("cpu")',
    "torch.device(gpu)": 'torch.device("cpu")',
    ".cuda()": "",
    "torch.cuda.Event": "Clock",
    "torch.cuda.synchronize()": "None",
    "@torch.compile": "",
}


class Clock:
    """What of torch.cuda.Event the scripts use."""

    def __init__(self, enable_timing: bool) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, later: "Clock") -> float:
        return 1000 * (later.seconds - self.seconds)


class Script:
    """The script's own code, without what it does when it is started."""

    def __init__(self, path: Path, overrides: list[str], folder: str) -> None:
        config = train_config(*overrides)
        cuda = measure.device_of(config).type == "cuda"
        data = checkpoints.data_of(config)
        data.prepare_data()
        data.setup()
        os.chdir(folder)
        Path("cifar10").mkdir()
        for split in ("train", "test"):
            content = {"images": data.images(split), "labels": data.labels(split), "classes": data.classes}
            torch.save(content, f"cifar10/{split}.pt")
        source = path.read_text()
        if not cuda:
            precision, _ = device.precision_of(config, "cpu")
            dtype = "float" if precision == "32-true" else "bfloat16"
            words = {".half()": f".{dtype}()", ".bfloat16()": f".{dtype}()", "torch.half": f"torch.{dtype}"}
            for word, on_a_cpu in (ON_A_CPU | words).items():
                source = source.replace(word, on_a_cpu)
        sys.argv[0] = str(path)  # it reads itself
        self.names: dict[str, Any] = {"__name__": "airbench", "Clock": Clock}
        exec(compile(source, path, "exec"), self.names)
        self.main: Callable[[Any], float] = self.names["main"]
        takes = list(inspect.signature(self.main).parameters)
        if takes == ["run", "model"]:
            model = self.names["CifarNet"]().to("cuda" if cuda else "cpu", memory_format=torch.channels_last)
            if cuda:
                model.compile(mode="max-autotune")
            self.main = functools.partial(self.main, model=model)
        elif takes != ["run"]:
            raise ConfigError(
                f"'{path}' has main({', '.join(takes)}) - give a script whose main takes run, or run, model"
            )

    def run(self, number: Any) -> dict[str, float]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            with_views = self.main(number)
        columns = [name.strip() for name in self.names["logging_columns_list"]]
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.getvalue().splitlines()]
        rows = [dict(zip(columns, cells, strict=True)) for cells in lines if len(cells) == len(columns)]
        last = [row for row in rows if row["epoch"].isdigit()][-1]
        seconds = float(last[columns[-1]])
        return {"seconds": seconds, "test/acc": 100 * float(last["val_acc"]), "test/tta_acc": 100 * with_views}


_loaded: list[Script] = []  # of the script's process: one


def _load(*arguments: Any) -> None:
    _loaded.append(Script(*arguments))


def _script(number: Any) -> dict[str, float]:
    return _loaded[0].run(number)


def _litcifar(overrides: list[str], seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        metrics = training.train(train_config(*overrides, f"seed={seed}", "figures=false", "logger=none"), Path(folder))
    accuracies = {name: 100 * metrics[name] for name in ("test/acc", "test/tta_acc")}
    return {"seconds": metrics["train_seconds"], **accuracies}


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--script", type=Path, required=True, help="of github.com/KellerJordan/cifar10-airbench")
    parser.add_argument("--experiment", default="speed_94_muon", help="of the same recipe (speed_94_muon)")
    parser.add_argument("--cold", action="store_true", help="without the untimed runs, for minutes on a CPU")
    arguments = parser.parse_intermixed_args()
    if not arguments.script.is_file():
        raise ConfigError(f"no script '{arguments.script}' - give a copy of the public one")
    overrides = [f"experiment={arguments.experiment}", "tta=mirror_translate", *arguments.overrides]
    report = measure.Report(arguments.json)
    report.content["data"] = checkpoints.data_of(train_config(*overrides)).name
    own, its = (ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder, own, its:
        its.submit(_load, arguments.script.resolve(), overrides, folder).result()
        if not arguments.cold:
            its.submit(_script, "warmup").result()
            own.submit(_litcifar, overrides, 0).result()
        found: dict[str, list[dict[str, float]]] = {"litcifar": [], "script": []}
        for number in range(arguments.rounds):
            found["litcifar"].append(own.submit(_litcifar, overrides, number).result())
            found["script"].append(its.submit(_script, number).result())
            latest = {name: {what: round(value, 2) for what, value in of[-1].items()} for name, of in found.items()}
            report.console.print(f"round {number + 1}: {latest}", soft_wrap=True)
    for name, of_rounds in found.items():
        for what, unit in (("seconds", "s"), ("test/acc", "%"), ("test/tta_acc", "%")):
            report.add([values[what] for values in of_rounds], variant=name, what=what, unit=unit)
    pairs = zip(found["litcifar"], found["script"], strict=True)
    ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
    report.add(ratios, variant="litcifar / script", what="seconds", unit="ratio")
    report.show(f"{arguments.experiment} and {arguments.script.name}")


if __name__ == "__main__":
    measure.run(main)
