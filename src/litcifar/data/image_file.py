"""One image file of any size and kind, as a square of RGB pixels.

It is turned as its EXIF says; transparent parts are laid on white; grey, palette, 1-bit and CMYK become RGB; 16 bits
are scaled to 8, and floating-point pixels, from 0 to 1, to 0 to 255; an animation gives its first frame. Then the
shorter side is scaled to the square's (bicubic, antialiased), and the middle of the longer one is kept.
"""

import os
import stat
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from litcifar.errors import DataError

# Pillow knows more, but some of it runs other programs (EPS starts Ghostscript). JPEG includes MPO, as phones write it.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
MAX_PIXELS = 50_000_000  # a PNG of 48 kB can hold 400 megapixels
MAX_BYTES = 50_000_000
SIDE_FILES = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".log", ".ini", ".db")
AHEAD = 512  # images decoded before they are asked for


class Decoded(NamedTuple):
    """pixels: uint8 [size, size, 3]. note: what of the file they do not show, or an empty text."""

    pixels: np.ndarray
    note: str


def decode(path: Path, size: int) -> Decoded:
    """Raises DataError if the file cannot be used; pipes and devices, which could block, are not opened."""
    if regular(path).st_size > MAX_BYTES:
        raise DataError(f"{quoted(path)} has more than {MAX_BYTES // 1_000_000} MB - scale it down or remove it")
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            notes = []
            if getattr(image, "is_animated", False) and image.format != "MPO":  # whose others are previews
                notes.append("the first frame of several")
            if 2 * min(width, height) < size:
                notes.append(f"scaled up from {width} x {height}")
            if max(width, height) > 2 * min(width, height):
                notes.append(f"the middle of {width} x {height}")
            image.draft(None, (4 * size, 4 * size))  # large JPEGs: skips detail that scaling down would lose anyway
            rgb = _rgb(ImageOps.exif_transpose(image))
            square = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
            return Decoded(np.asarray(square), ", ".join(notes))
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problem = f"has more than {MAX_PIXELS // 1_000_000} megapixels - scale it down or remove it"
    except UnidentifiedImageError:
        problem = f"is not an image of a known format{_format(path)} - save it as PNG or JPEG, or remove it"
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = f"cannot be read as an image ({reason}) - replace or remove it"
    raise DataError(f"{quoted(path)} {problem}")


def decode_all(paths: Sequence[Path], size: int) -> Iterator[Decoded | DataError]:
    """What `decode` gives for each path, in their order; a thread for each core works ahead of who asks."""
    Image.init()  # loads the readers of all formats, once, before the threads need them
    threads = min(os.cpu_count() or 1, 8)  # each may hold an image of MAX_PIXELS a few times over
    ahead: deque[Future[Decoded | DataError]] = deque()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # Pillow's, on odd metadata; what matters is an error
        try:
            for path in paths:
                ahead.append(pool.submit(_decode_or_error, path, size))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # where nobody asks for the rest


def regular(path: Path) -> os.stat_result:
    """The state of a regular file, also behind a link; DataError for a folder, a dead link, a pipe, a device."""
    try:
        info = path.stat()
    except OSError as error:
        raise DataError(f"{quoted(path)} is not a file that can be read ({error.strerror}) - correct it") from None
    except ValueError:
        raise DataError(f"{quoted(path)} is not a file: its name holds a zero byte - correct it") from None
    if not stat.S_ISREG(info.st_mode):
        raise DataError(f"{quoted(path)} is not a file - only regular files are read, move it out")
    return info


def quoted(path: Path) -> str:
    """The path as it may stand in an error, which is one line."""
    return repr(str(path))


def _decode_or_error(path: Path, size: int) -> Decoded | DataError:
    try:
        return decode(path, size)
    except DataError as error:
        return error


def _format(path: Path) -> str:
    """Of a photograph that only its maker's programs read, or an HEIC: what its name calls it."""
    known = Image.registered_extensions().get(path.suffix.lower()) in FORMATS
    return f" (nor is {path.suffix[1:].upper()} one)" if path.suffix[1:].isalnum() and not known else ""


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        levels = np.asarray(image)
        if not (levels.min() >= 0 and levels.max() <= 1):
            raise ValueError("its floating-point pixels are not from 0 to 1")
        image = Image.fromarray((levels * 255 + 0.5).astype(np.uint8))
    if image.mode.startswith("I"):  # Pillow would clip these at 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("pixels of more than 16 bits have no known range")
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
