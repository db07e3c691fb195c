"""The files of a run's folder."""

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from litcifar.errors import CheckpointError, ConfigError, InUseError, MachineError

BEST, LAST, METRICS, HISTORY, FIGURES = "best.ckpt", "last.ckpt", "metrics.json", "metrics.csv", "figures"
REPORT, EVALUATION, PREDICTIONS = "report.html", "evaluation", "predictions.csv"
FINDER = "learning_rate_finder.png"  # all that tune=lr leaves
MULTIRUN = "multirun.yaml"  # Hydra's name of the configuration in a sweep's folder
LOCK = ".lock"
LOCK_SECONDS = 10.0  # the workers of a killed run hold its lock until they notice, after five seconds


def has_begun(folder: Path) -> bool:
    """Whether a run has left a checkpoint, or its end, in this folder."""
    return os.path.isfile(folder / LAST) or os.path.isfile(folder / METRICS)  # False for what no file can be called


def find_checkpoint(path: str, name: str) -> Path:
    """The checkpoint `path`, or the one called `name` in the run's folder `path`; CheckpointError if there is none."""
    if re.match(r"\w{2,}://", path):  # one letter is a drive of Windows
        raise CheckpointError(f"'{path}' is an address, and nothing is loaded from the network - download it first")
    found = Path(os.path.expanduser(path))  # as it is where there is no such user
    if found.is_dir():
        found = found / name
    if found.is_file():
        return found
    near = sorted(map(str, found.parent.glob("*.ckpt")))
    raise CheckpointError(
        f"no checkpoint '{found}' - "
        + (f"there is {', '.join(near)}" if near else "give a run's folder or a checkpoint")
    )


@contextlib.contextmanager
def claimed(folder: Path, seconds: float | None = None) -> Iterator[None]:
    """Keeps other processes out of a run's folder; InUseError where one is in it for so long (None: LOCK_SECONDS)."""
    from filelock import FileLock, Timeout  # here because it takes a tenth of the time that an error may take

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / LOCK, LOCK_SECONDS if seconds is None else seconds))
        except Timeout:
            raise InUseError(f"another process trains in '{folder}' - wait for it, or use another folder") from None
        yield


def check_writable(folder: Path, key: str) -> None:
    """MachineError, before any work, where no file can be put into the folder, which need not exist; key: names it."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise MachineError(f"'{there}' is no folder, and '{folder}' cannot be made - give another one: {key}=...")
    if not os.access(there, os.W_OK | os.X_OK):
        raise MachineError(f"'{there}' cannot be written - give another folder: {key}=...")


def output_file(path: str, overwrite: bool) -> Path:
    """Where a result goes; ConfigError where something is there already that may not be replaced."""
    file = Path(os.path.expanduser(path))
    if os.path.lexists(file) and not (overwrite and file.is_file()):
        way_out = "set overwrite=true, or give another output" if file.is_file() else "give another output"
        raise ConfigError(f"'{file}' is there already - {way_out}")
    return file


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes a file as `writing` does."""
    with writing(path) as file:
        file.write(content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that is there whole or not at all, also where the process is killed or the power fails; MachineError.

    The temporary file of a killed process stays, and the next write of the same file takes its place.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # in the same folder: only within a file system a move is atomic
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # where it can be done, the new name is made to outlive a power cut too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        raise MachineError(
            f"'{path}' cannot be written ({error.strerror or error}) - free disk space, or use another folder; "
            "what was saved before is kept"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Writes metrics.json, which marks a finished run."""
    write(folder / METRICS, (json.dumps(metrics, indent=2) + "\n").encode())


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """What metrics.json holds; None where the run has not finished."""
    path = folder / METRICS
    return json.loads(path.read_text()) if path.is_file() else None


def write_rows(csv_path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a table as `write` does; None, and what a row lacks, is left empty."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns)
    table.writeheader()
    table.writerows(rows)
    write(csv_path, text.getvalue().encode())


def read_rows(csv_path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, as `History` has them: what an epoch lacks, such as a validation, is left out."""
    with csv_path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
