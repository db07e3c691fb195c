"""Microseconds an image takes from the set in memory to an augmented batch on the device, and the memory for it.

    OMP_NUM_THREADS=1 python tests/benchmarks/data_path.py data.root=DIR data.verify=false

A pass is an epoch of the training loader: turns in a shuffled order, on or sent to the device, split into batches of
`--batch` and augmented there; `none` is the loader alone. Each kind first does a turn untimed. With OMP_NUM_THREADS=1
it is the time of one core. Memory is the process's peak, Python, torch and Lightning included.
"""

import itertools
import resource
import sys
from typing import Any

import lightning.pytorch as L
import measure  # type: ignore[import-not-found]  # it lies beside this file; mypy's name for it begins with `tests.`
import torch

from litcifar import checkpoints
from litcifar.config import train_config
from litcifar.data import ImageDataModule
from litcifar.data.augment import Augment
from litcifar.machine import memory

KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "flip random": {"flip": "random"},
    "flip alternating": {"flip": "alternating"},
    "translate 2 reflect": {"translate": 2},
    "translate 4 reflect": {"translate": 4},
    "translate 2 zero": {"translate": 2, "padding": "zero"},
    "translate 4 zero": {"translate": 4, "padding": "zero"},
    "flip alternating, translate 2": {"flip": "alternating", "translate": 2},
    "cutout 12": {"cutout": 12},
    "rotation 15": {"rotation": 15.0},
    "mixup 1": {"mixup": 1.0},
    "cutmix 1": {"cutmix": 1.0},
    "resize to 24": {"resolution": {24: 1.0}},
}


def seconds(data: ImageDataModule, augment: Augment, device: torch.device, turns: int | None = None) -> float:
    """Of a pass through the training split, or through its first turns."""
    start = measure.now(device)
    for *whole, epoch, first in itertools.islice(data.train_dataloader(), turns):
        of_turn = (tensor.to(device, non_blocking=True).split(data.batch_size) for tensor in whole)
        for step, (images_BHWC, labels_B, indices_B) in enumerate(zip(*of_turn, strict=True), first):
            augment(images_BHWC, labels_B, epoch, step, indices_B, progress=0.0)
    return measure.now(device) - start


def peak_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--batch", type=int, default=512, help="images in a batch (512)")
    arguments = parser.parse_intermixed_args()
    standard = train_config("augment=standard", *arguments.overrides, f"data.batch_size={arguments.batch}")
    report = measure.Report(arguments.json)
    device = measure.device_of(standard)
    data = checkpoints.data_of(standard)
    options = KINDS | {"standard": standard.augment.model_dump()}
    kinds = {name: Augment(**kind, num_classes=len(data.classes)) for name, kind in options.items()}

    peaks = {"before": peak_mib()}
    data.prepare_data()
    data.setup()
    data.trainer = L.Trainer(accelerator=device.type, devices=1, logger=False, enable_checkpointing=False)
    memory.keep_freed()  # as litcifar-train does
    report.content["data"] = f"{data.name} {data.fingerprint[:8]}"
    peaks["after reading"] = peak_mib()
    seconds(data, kinds["standard"], device)
    peaks["after a standard pass"] = peak_mib()
    for when, mib in peaks.items():
        report.add([mib], what=f"peak memory {when}", unit="MiB")
    images = sum(data.class_counts()["train"].values())
    values: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, augment in kinds.items():
            seconds(data, augment, device, turns=1)
            values[name].append(seconds(data, augment, device) / images)
    for name, of_kind in values.items():
        report.add([1e6 * value for value in of_kind], what=name, unit="us/image")
        report.add([1 / value for value in of_kind], what=name, unit="images/s")
    report.show(f"{images:,} images a pass, batches of {arguments.batch}, on {device}")


if __name__ == "__main__":
    measure.run(main)
