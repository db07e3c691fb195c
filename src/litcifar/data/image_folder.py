"""A user's own images: root/train/<class>/* and root/test/<class>/*, read into one uint8 array a split.

Every image becomes a square in RGB: turned as its EXIF says, transparent parts on white, 16 bits scaled to 8, the first
frame of an animation, the shorter side scaled to `size` (bicubic, antialiased) and the middle kept. The result stays in
root/.litcifar-cache/ and is used again for as long as no image is added, removed or changed.
"""

import contextlib
import hashlib
import json
import os
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from litcifar.errors import DataError

# Pillow knows more, but some of it runs other programs (EPS starts Ghostscript). JPEG includes MPO, as phones write it.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
MAX_PIXELS = 50_000_000  # a PNG of 48 kB can hold 400 megapixels
SIDE_FILES = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".log", ".ini", ".db")
CACHE = ".litcifar-cache"
CACHE_VERSION = 1  # to be raised when the same files give other arrays

Listing = list[tuple[str, int, int, int]]  # of each image: path below the split, label, bytes, mtime in ns


def classes(root: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders root/train/<class>/; hidden ones do not count.

    Raises DataError if there is none.
    """
    names = tuple(entry.name for entry in _visible(root / "train") if entry.is_dir())
    if not names:
        raise DataError(f"{_quoted(root / 'train')} has no class folders - put images into train/<class>/")
    return names


def read(root: Path, split: str, class_names: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of root/<split>/<class>/* as uint8 [N, size, size, 3] and int64 labels [N].

    `split` is "train" or "test"; a label is an index into `class_names`; images come class by class, sorted by file
    name. Hidden files and those whose names end as in SIDE_FILES are passed over.

    Raises DataError if a class folder is missing, empty or not one of `class_names`, or if anything in one of them is
    not a regular file, not an image, damaged or larger than MAX_PIXELS.
    """
    listing = _list(root / split, class_names)
    labels = np.array([label for _, label, _, _ in listing], dtype=np.int64)
    key = hashlib.sha256(json.dumps([CACHE_VERSION, listing]).encode()).hexdigest()
    cache = root / CACHE / f"{split}-{size}-{key[:32]}.npz"
    images = _load(cache, (len(listing), size, size, 3))
    if images is None:
        images = _decode_all([root / split / path for path, *_ in listing], size)
        _save(cache, images)
    return images, labels


def decode(path: Path, size: int) -> np.ndarray:
    """Return one image as uint8 [size, size, 3]; raises DataError if it cannot be used."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.draft(None, (4 * size, 4 * size))  # large JPEGs: skips detail that scaling down would lose anyway
            rgb = _rgb(ImageOps.exif_transpose(image))
            return np.asarray(ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC))
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        problem = f"has more than {MAX_PIXELS // 1_000_000} megapixels - scale it down or remove it"
    except UnidentifiedImageError:
        problem = "is not an image of a known format - save it as PNG or JPEG, or remove it"
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = f"cannot be read as an image ({reason}) - replace or remove it"
    raise DataError(f"{_quoted(path)} {problem}")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # Pillow would clip these at 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("pixels of more than 16 bits have no known range")
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _quoted(path: Path) -> str:
    return repr(str(path))  # a file name may hold a line break, an error may not


def _visible(folder: Path) -> list[Path]:
    """Return what a folder holds, hidden entries left out, sorted by name."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{_quoted(folder)} cannot be read ({error.strerror}) - "
            "the data's root needs the folders train/<class>/ and test/<class>/ with images"
        ) from None


def _list(folder: Path, class_names: Sequence[str]) -> Listing:
    for entry in _visible(folder):
        if entry.is_dir() and entry.name not in class_names:
            raise DataError(f"{_quoted(entry)} is not one of the classes in train - rename or remove it")
    listing: Listing = []
    for label, name in enumerate(class_names):
        files = [file for file in _visible(folder / name) if not file.name.lower().endswith(SIDE_FILES)]
        if not files:
            raise DataError(f"{_quoted(folder / name)} has no images - each class needs at least one")
        for file in files:
            info = _regular(file)
            if info is None:
                raise DataError(f"{_quoted(file)} is not a file - a class folder holds images only, move it out")
            listing.append((f"{name}/{file.name}", label, info.st_size, info.st_mtime_ns))
    return listing


def _regular(file: Path) -> os.stat_result | None:
    """Return the state of a file, also behind a link; None for a folder, a dead link, a pipe that would block."""
    try:
        info = file.stat()
    except OSError:
        return None
    return info if stat.S_ISREG(info.st_mode) else None


def _decode_all(paths: Sequence[Path], size: int) -> np.ndarray:
    from rich.console import Console
    from rich.progress import track

    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)

    def fill(row: int) -> DataError | None:
        try:
            images[row] = decode(paths[row], size)
        except DataError as error:
            return error
        return None

    Image.init()  # loads the readers of all formats, once, before the threads need them
    threads = min(os.cpu_count() or 1, 8)  # each may hold an image of MAX_PIXELS a few times over
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # Pillow's, on odd metadata; what matters is an error
        done = pool.map(fill, range(len(paths)))
        console = Console(stderr=True)
        bar = track(
            done, "Reading images", len(paths), console=console, disable=not sys.stderr.isatty(), transient=True
        )
        errors = [error for error in bar if error is not None]
    if errors:
        more = f" ({len(errors) - 1} more such files)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{more}")
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
