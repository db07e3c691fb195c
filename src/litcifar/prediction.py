"""What a checkpoint's network sees in image files, one row each.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

import csv
import glob
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from litcifar import checkpoints
from litcifar.config import TTA, PredictConfig
from litcifar.console import quiet
from litcifar.data.image_file import SIDE_FILES, Decoded, decode_all, quoted
from litcifar.errors import CheckpointError
from litcifar.machine import device
from litcifar.models import ImageClassifier
from litcifar.run_folder import output_file, writing
from litcifar.tta import mean_logits

BATCH = 256
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins with one


@dataclass(frozen=True)
class Row:
    """What is said of one file.

    image: its path; bytes that are no UTF-8 stand as \\xff. answers: the most probable classes and their probabilities,
    0 to 1. note: what of the file the network did not see. error: why there are no answers.
    """

    image: str
    answers: list[tuple[str, float]]
    note: str = ""
    error: str = ""


def predict(config: PredictConfig) -> int:
    """Prints a row for each image, or writes them to `config.output`; the number of images.

    Raises CheckpointError where no image is found, or, after all rows, where one could not be read; ConfigError for an
    output that may not be written.
    """
    quiet()
    output = output_file(config.output, config.overwrite) if config.output else None
    paths = find_images([config.images] if isinstance(config.images, str) else config.images)
    checkpoint = checkpoints.load(config.ckpt, config.trust)
    model = checkpoint.model.to(device.chosen(config.accelerator))
    top = min(config.top, len(model.classes))
    what = f"{checkpoint.config.name}, {model.image_size} x {model.image_size} pixels, {', '.join(model.classes)}"
    print(printable(f"{checkpoint.path}: {what}"))
    start, failed = time.perf_counter(), 0
    width = min(max(len(printable(text_of(path))) for path in paths), 60)
    class_width = max(len(name) for name in model.classes)
    with writing(output) if output else nullcontext() as file:
        table = _Table(file, top, output.suffix) if output and file else None
        hidden = table is None or not sys.stderr.isatty()
        console = Console(stderr=True)
        rows = rows_of(model, paths, top, config.tta)
        for row in track(rows, "Looking at images", len(paths), console=console, disable=hidden, transient=True):
            failed += bool(row.error)
            if table:
                table.write(row)
            if not table or row.error:
                print(line(row, width, class_width), flush=not table)
        if table:
            table.end()
    seconds = time.perf_counter() - start
    print(f"{len(paths):,} images in {seconds:.1f} s, {len(paths) / seconds:,.0f} images/s")
    if output:
        print(f"written to {output}")
    if failed:
        raise CheckpointError(f"{failed:,} of {len(paths):,} images could not be read - their rows say why")
    return len(paths)


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The files that are named, in folders that are named, or that match a pattern; each once, the latter two sorted.

    Of folders and patterns, hidden files and those whose names end as in SIDE_FILES do not count, nor do folders in
    them; `**` in a pattern stands for any folders. CheckpointError for a folder or a pattern without images.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(os.path.expanduser(pattern))
        if path.is_dir():
            named = [entry.path for entry in os.scandir(path) if not entry.name.startswith(".")]
        elif os.path.lexists(path) or not glob.has_magic(pattern):
            found[path] = None
            continue
        else:
            named = glob.glob(str(path), recursive=True)
        images = [name for name in sorted(named) if not name.lower().endswith(SIDE_FILES) and not os.path.isdir(name)]
        if not images:
            raise CheckpointError(f"{quoted(path)} has no images - give a file, a folder or a pattern of image files")
        found |= dict.fromkeys(map(Path, images))
    return list(found)


def rows_of(model: ImageClassifier, paths: Sequence[Path], top: int, tta: TTA = "none") -> Iterator[Row]:
    """A row for each path, in their order; only a few hundred images are in memory at a time."""
    decoded = decode_all(paths, model.image_size)
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        images = list(itertools.islice(decoded, len(some)))
        pixels = [image.pixels for image in images if isinstance(image, Decoded)]
        best = iter(_best(model, np.stack(pixels), top, tta) if pixels else [])
        for path, image in zip(some, images, strict=True):
            if isinstance(image, Decoded):
                yield Row(text_of(path), next(best), image.note)
            else:
                yield Row(text_of(path), [], error=str(image).removeprefix(quoted(path)).strip())


def probabilities(model: ImageClassifier, images_BHWC: Tensor, tta: TTA = "none") -> Tensor:
    """Float32 [B, K] of uint8 [B, H, W, 3], on the CPU; in float32, whatever the precision of training."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        images_BHWC = images_BHWC.to(model.device)
        logits_BK = model(images_BHWC)
        if tta != "none":
            logits_BK = mean_logits(model, images_BHWC, logits_BK, tta)
        return logits_BK.softmax(1).cpu()


def text_of(path: Path) -> str:
    """The path as text that any encoding can hold: a byte that is no UTF-8 becomes \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """One line, which no line break or control character of a file's name can break."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def line(row: Row, width: int, class_width: int) -> str:
    """A row as it is printed; the widths are those of the columns, in characters."""
    answers = "  ".join(f"{name:<{class_width}} {100 * share:6.2f} %" for name, share in row.answers)
    rest = f"error: {row.error}" if row.error else answers + (f"  ({row.note})" if row.note else "")
    return printable(f"{printable(row.image):<{width}}  {rest}")


def _best(model: ImageClassifier, images: np.ndarray, top: int, tta: TTA) -> list[list[tuple[str, float]]]:
    shares, labels = probabilities(model, torch.from_numpy(images), tta).topk(top)
    return [
        [(model.classes[label], share) for label, share in zip(*pair, strict=True)]
        for pair in zip(labels.tolist(), shares.tolist(), strict=True)
    ]


class _Table:
    """Rows as CSV or JSON, written as they come."""

    def __init__(self, file: BinaryIO, top: int, suffix: str) -> None:
        self.file, self.top, self.suffix = file, top, suffix
        self.rows = 0
        if suffix == ".csv":
            numbered = [f"{what}_{n}" for n in range(1, top + 1) for what in ("class", "probability")]
            self._csv(["image", *numbered, "note", "error"])

    def write(self, row: Row) -> None:
        if self.suffix == ".csv":
            answers: list[str] = [str(cell) for answer in row.answers for cell in answer]
            self._csv([row.image, *(answers or [""] * 2 * self.top), row.note, row.error])
        else:
            answers_json = [{"class": name, "probability": share} for name, share in row.answers]
            content = {"image": row.image, "answers": answers_json, "note": row.note, "error": row.error}
            self.file.write((",\n" if self.rows else "[\n").encode() + json.dumps(content).encode())
        self.rows += 1

    def end(self) -> None:
        if self.suffix == ".json":
            self.file.write(b"\n]\n")

    def _csv(self, cells: list[str]) -> None:
        text = io.StringIO()
        csv.writer(text).writerow([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in cells])
        self.file.write(text.getvalue().encode())
