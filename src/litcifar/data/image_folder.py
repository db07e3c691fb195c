"""A user's own images: root/train/<class>/* and root/test/<class>/*, read into one uint8 array a split.

`image_file` says how each becomes a square. The result stays in root/.litcifar-cache/ and is used again for as long as
no image is added, removed or changed.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from litcifar.data import image_file
from litcifar.data.image_file import SIDE_FILES, quoted, regular
from litcifar.errors import DataError

CACHE = ".litcifar-cache"
NAMED = 20  # files that one error names
CACHE_VERSION = 1  # to be raised when the same files give other arrays

Listing = list[tuple[str, int, int, int]]  # of each image: path below the split, label, bytes, mtime in ns


def classes(root: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders root/train/<class>/; hidden ones do not count.

    Raises DataError if there is none, or one of a name that could not be printed.
    """
    names = tuple(entry.name for entry in _visible(root / "train") if entry.is_dir())
    if unclear := next((name for name in names if not name.isprintable()), None):
        raise DataError(f"{quoted(root / 'train' / unclear)}: the name cannot be printed - rename the folder")
    if not names:
        raise DataError(f"{quoted(root / 'train')} has no class folders - put images into train/<class>/")
    return names


def read(root: Path, split: str, class_names: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of root/<split>/<class>/* as uint8 [N, size, size, 3] and int64 labels [N].

    `split` is "train" or "test"; a label is an index into `class_names`; images come class by class, sorted by file
    name. Hidden files and those whose names end as in SIDE_FILES are passed over.

    Raises DataError if a class folder is missing, empty or not one of `class_names`, or if anything in one of them is
    not a regular file, not an image, damaged or larger than `image_file` allows.
    """
    found = listing(root, split, class_names)
    labels = np.array([label for _, label, _, _ in found], dtype=np.int64)
    key = hashlib.sha256(json.dumps([CACHE_VERSION, found]).encode()).hexdigest()
    cache = root / CACHE / f"{split}-{size}-{key[:32]}.npz"
    images = _load(cache, (len(found), size, size, 3))
    if images is None:
        images = _decode_all([root / split / path for path, *_ in found], size)
        _save(cache, images)
    return images, labels


def _visible(folder: Path) -> list[Path]:
    """Return what a folder holds, hidden entries left out, sorted by name."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{quoted(folder)} cannot be read ({error.strerror}) - "
            "the data's root needs the folders train/<class>/ and test/<class>/ with images"
        ) from None


def listing(root: Path, split: str, class_names: Sequence[str]) -> Listing:
    """Return what `read` would read of a split; DataError for what can be told without opening a file."""
    folder = root / split
    for entry in _visible(folder):
        if entry.is_dir() and entry.name not in class_names:
            raise DataError(f"{quoted(entry)} is not one of the classes in train - rename or remove it")
    found: Listing = []
    for label, name in enumerate(class_names):
        files = [file for file in _visible(folder / name) if not file.name.lower().endswith(SIDE_FILES)]
        if not files:
            raise DataError(f"{quoted(folder / name)} has no images - each class needs at least one")
        for file in files:
            try:
                info = regular(file)
            except DataError as error:
                raise DataError(f"{error}; a class folder holds images only") from None
            found.append((f"{name}/{file.name}", label, info.st_size, info.st_mtime_ns))
    return found


def _decode_all(paths: Sequence[Path], size: int) -> np.ndarray:
    from rich.console import Console
    from rich.progress import track

    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)

    errors: list[tuple[Path, DataError]] = []
    console = Console(stderr=True)
    done = image_file.decode_all(paths, size)
    bar = track(done, "Reading images", len(paths), console=console, disable=not sys.stderr.isatty(), transient=True)
    for row, image in enumerate(bar):
        if isinstance(image, DataError):
            errors.append((paths[row], image))
        else:
            images[row] = image.pixels
    if errors:
        others = [quoted(path) for path, _ in errors[1:]]
        unnamed = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        more = f"; also unusable: {', '.join(others[:NAMED])}{unnamed}" if others else ""
        raise DataError(f"{errors[0][1]}{more}")
    return images


def _load(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the cached images, or None if there are none or they are damaged."""
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images = arrays["images"]  # the zip's CRC is checked here
    except Exception:  # damage shows as OSError, ValueError, BadZipFile, KeyError, NotImplementedError, ...
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _save(cache: Path, images: np.ndarray) -> None:
    """Write the cache whole or not at all, then remove those of the same split and size that it replaces."""
    prefix = cache.name.rsplit("-", 1)[0] + "-"
    temporary = None
    try:
        cache.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, prefix=prefix, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, images=images)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(cache)
    except OSError as error:
        print(f"note: no cache written to {cache.parent} ({error.strerror or error})", file=sys.stderr)
        return
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another run may remove them at the same time
        for old in cache.parent.glob(f"{prefix}*"):
            # A temporary file of the last hour may belong to a run that is writing it; an older one's run was killed.
            if old != cache and (old.suffix == ".npz" or time.time() - old.stat().st_mtime > 3600):
                old.unlink()
