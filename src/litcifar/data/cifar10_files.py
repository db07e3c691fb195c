"""The files of CIFAR-10's "python version": which they are, unpacking and reading them.

Each file is a pickle, and a pickle may run any code. So a file is first read by an unpickler that knows arrays and
plain values only; torchvision then gets files that it can do no harm with.
"""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from litcifar.errors import DataError

CLASSES: tuple[str, ...] = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
FOLDER = "cifar-10-batches-py"
TRAIN_FILES: tuple[str, ...] = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
META_FILE = "batches.meta"
FILES: tuple[str, ...] = (*TRAIN_FILES, TEST_FILE, META_FILE)

PIXELS = 3 * 32 * 32
UNPACKED_BYTES = 200_000_000  # the official files have 186 MB

# All that a pickled array refers to. The originals of 2009 say numpy.core, NumPy 2 says numpy._core; Python 3 writes
# bytes in an old protocol as a call of _codecs.encode.
ALLOWED_NAMES = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }
)


class _ForeignName(Exception):
    """A pickle refers to something that is no part of an array."""


class _ArrayUnpickler(pickle.Unpickler):
    """Every way in which a pickle can name a function or a class ends in `find_class`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_NAMES:
            raise _ForeignName(f"{module}.{name}")
        return super().find_class(module, name)


def is_present(root: Path) -> bool:
    """Whether `root/cifar-10-batches-py` has all seven files; what is in them is not looked at."""
    return not missing(root)


def missing(root: Path) -> list[str]:
    """The names of the files that `root/cifar-10-batches-py` lacks."""
    return [name for name in FILES if not os.path.isfile(root / FOLDER / name)]


def unpack(archive: Path, root: Path) -> None:
    """Completes `root/cifar-10-batches-py` from the archive; files that are there stay as they are.

    A process that is killed meanwhile leaves no half-written file there. Only one process may do this at a time.

    Raises:
        DataError: the archive is damaged, or holds anything else than CIFAR-10's files.
        OSError: `root` cannot be written.
    """
    fresh = root / f"{FOLDER}.part"
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed here
    allowed = {f"{FOLDER}/{name}" for name in (*FILES, "readme.html")}
    try:
        unpacked = 0
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                unpacked += member.size
                is_known = member.isdir() if member.name == FOLDER else member.isreg() and member.name in allowed
                if not is_known or unpacked > UNPACKED_BYTES:
                    raise DataError(
                        f"{archive} is not CIFAR-10's: it holds {member.name!r} of {member.size} bytes - "
                        "delete it and run again"
                    )
                tar.extract(member, fresh, filter="data")
        lacking = [name for name in FILES if not (fresh / FOLDER / name).is_file()]
        if lacking:
            raise DataError(f"{archive} lacks {', '.join(lacking)} - delete it and run again")
        if not (root / FOLDER).exists():
            (fresh / FOLDER).rename(root / FOLDER)
        for name in FILES:
            if not (root / FOLDER / name).is_file():
                (fresh / FOLDER / name).replace(root / FOLDER / name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{archive} is no archive of CIFAR-10 ({reason}) - delete it and run again") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read(root: Path, verify: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, training labels, test images, test labels, in the order of the files.

    Images are uint8 [N, 32, 32, 3], labels int64 [N] from 0 to 9. torchvision.datasets.CIFAR10 reads the pixels.

    Args:
        root: the folder that holds `cifar-10-batches-py`.
        verify: compare each file with its published MD5 sum; a re-encoded copy passes only without.

    Raises:
        DataError: a file is missing, unreadable, damaged or not one of CIFAR-10; its path is in the message.
    """
    if not is_present(root):
        raise _absence(root)
    from torchvision.datasets import CIFAR10  # here because it takes 4 s

    published = dict([*CIFAR10.train_list, *CIFAR10.test_list, (META_FILE, CIFAR10.meta["md5"])])

    class CheckedCIFAR10(CIFAR10):
        """torchvision hashes all files for each of the two sets; here each was hashed once, or not, as asked."""

        train_list = [[name, None] for name in TRAIN_FILES]  # noqa: RUF012
        test_list = [[TEST_FILE, None]]  # noqa: RUF012
        meta = {**CIFAR10.meta, "md5": None}  # noqa: RUF012

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)  # see _unpickled
        for name in FILES:
            _check(root / FOLDER / name, published[name] if verify else None)
        arrays = []
        for train in (True, False):
            reader = CheckedCIFAR10(root, train=train)
            arrays += [np.ascontiguousarray(reader.data), np.array(reader.targets, np.int64)]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _absence(root: Path) -> DataError:
    folder = root / FOLDER
    for path in (root, folder):
        if os.path.exists(path) and not os.path.isdir(path):
            return DataError(f"{path} is a file, not a folder - set data.root to the folder that holds {FOLDER}")
    way_out = f"set data.root to the folder that holds {FOLDER}, or put cifar-10-python.tar.gz into {root}"
    where = folder if folder.is_dir() else root
    if not where.is_dir():
        return DataError(f"there is no folder {root} - {way_out}")
    try:
        found = sorted(os.listdir(where))
    except OSError as error:
        return DataError(f"{where} cannot be read ({error.strerror}) - change its permissions")
    lacking = missing(root) if where == folder else [FOLDER]
    there = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "") or "nothing"
    return DataError(f"{where} lacks {', '.join(lacking)} and holds {there} - {way_out}")


def unpickle(path: Path) -> Any:
    """What a pickle of arrays and plain values holds, such as a file of CIFAR-100; DataError where it holds more."""
    return _unpickled(path, _content(path))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there - put it there, or correct the path") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}) - change its permissions, or delete it") from error


def _unpickled(path: Path, content: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            # NumPy 2.4.0 says of each original file that its dtype was pickled with the integer 0 instead of False.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _ForeignName as error:
        raise DataError(f"{path} would run code: it refers to {error} - do not trust it, delete it") from error
    except Exception as error:  # a damaged pickle can raise any of the built-in exceptions
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path} is damaged or not a file of CIFAR's ({fault}) - delete it and run again") from error


def _check(path: Path, md5: str | None) -> None:
    """Raises DataError unless the file has this MD5 sum (None: any), holds no code, and what CIFAR-10 has there."""
    content = _content(path)
    if md5 is not None and (actual := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise DataError(
            f"{path} is not the published file: its MD5 is {actual} instead of {md5} - "
            "delete it and run again, or set data.verify=false if it is a deliberate re-encoding"
        )
    entry = _unpickled(path, content)
    try:
        fault = _meta_fault(entry) if path.name == META_FILE else _batch_fault(entry)
    except Exception as error:  # what is of another kind than expected
        fault = " ".join(f"{type(error).__name__}: {error}".split())
    if fault:
        raise DataError(f"{path} is damaged or not a file of CIFAR-10 ({fault}) - delete it and run again")


def _meta_fault(entry: dict[str, Any]) -> str | None:
    names = entry["label_names"]
    return None if tuple(names) == CLASSES else f"its classes are {', '.join(map(str, names))}"[:200]


def _batch_fault(entry: dict[str, Any]) -> str | None:
    if "fine_labels" in entry:
        return "it is one of CIFAR-100"
    images, labels = entry["data"], np.asarray(entry["labels"])
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (PIXELS,):
        shape = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        return f"its images are {shape}, not uint8 [N, {PIXELS}]"
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not len(labels):
        return f"its labels are {labels.dtype} {list(labels.shape)} for {len(images)} images"
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        return f"its labels go from {labels.min()} to {labels.max()}, not from 0 to {len(CLASSES) - 1}"
    return None
