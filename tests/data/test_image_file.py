"""One image file: how its pixels become a square, and which files are refused, before they are decoded."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litcifar.data import image_file
from litcifar.data.image_file import Decoded, decode_all
from litcifar.errors import DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def plain(mode: str = "RGB", size: tuple[int, int] = (8, 8), colour: object = RED) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def image_of(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array)


def decoded(path: Path, size: int = 4) -> list[int]:
    """The colour of an image of one colour."""
    pixels = image_file.decode(path, size).pixels.reshape(-1, 3)
    assert len(pixels) == size * size
    assert (pixels == pixels[0]).all()
    return pixels[0].tolist()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), [10, 20, 30]),
        ("L", 77, [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (255, 0, 0, 51), [255, 204, 204]),
        ("LA", (0, 0), [255, 255, 255]),
        ("I;16", 32896, [128, 128, 128]),
        ("I;16", 400, [2, 2, 2]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: object, expected: list[int]) -> None:
    assert decoded(save(tmp_path / "a.png", plain(mode, colour=colour))) == expected


def test_palettes_become_rgb(tmp_path: Path) -> None:
    image = plain("P", colour=1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    assert decoded(save(tmp_path / "a.png", image)) == [9, 8, 7]
    assert decoded(save(tmp_path / "b.png", image, transparency=1)) == [255, 255, 255]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", plain("CMYK", colour=(0, 255, 255, 0)))
    np.testing.assert_allclose(decoded(path), RED, atol=3)


def test_floating_point_pixels_are_from_0_to_1(tmp_path: Path) -> None:
    for level, expected in ((0.0, 0), (0.5, 128), (1.0, 255)):
        assert decoded(save(tmp_path / "a.tiff", plain("F", colour=level))) == [expected] * 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_common_formats_are_read(tmp_path: Path, suffix: str) -> None:
    np.testing.assert_allclose(decoded(save(tmp_path / f"a.{suffix}", plain())), RED, atol=3)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gif", plain(colour=BLUE), save_all=True, append_images=[plain(colour=GREEN)])
    assert decoded(path) == list(BLUE)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """Orientation 6: the camera was turned, so that the stored left column is the upper row."""
    stored = np.zeros((8, 8, 3), dtype=np.uint8)
    stored[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = image_file.decode(save(tmp_path / "a.png", image_of(stored), exif=exif), 8).pixels
    assert (pixels[:4] == 255).all()
    assert (pixels[4:] == 0).all()


@pytest.mark.parametrize("wide", [True, False])
def test_the_middle_of_the_longer_side_is_kept(tmp_path: Path, wide: bool) -> None:
    """Bands red, green, blue of one square each: only the green one is left."""
    bands = np.repeat(np.array([RED, GREEN, BLUE], dtype=np.uint8), 16, axis=0)
    array = np.repeat(bands[None], 16, axis=0)
    path = save(tmp_path / "a.png", image_of(array if wide else array.transpose(1, 0, 2).copy()))
    assert (image_file.decode(path, 16).pixels == GREEN).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_scaling_down_averages(tmp_path: Path, suffix: str) -> None:
    """A board of black and white squares is grey from afar; picking single pixels would leave black and white."""
    board = np.kron(np.indices((64, 64)).sum(0) % 2, np.ones((8, 8))).astype(np.uint8) * 255
    pixels = image_file.decode(save(tmp_path / f"a.{suffix}", image_of(board)), 8).pixels
    np.testing.assert_allclose(pixels[1:-1, 1:-1], 127.5, atol=16)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_tiny_and_thin_images_are_scaled_up(tmp_path: Path, size: tuple[int, int]) -> None:
    assert decoded(save(tmp_path / "a.png", plain(size=size)), 32) == list(RED)


@pytest.mark.parametrize(
    ("size", "note"),
    [
        ((32, 32), ""),
        ((64, 32), ""),
        ((500, 375), ""),
        ((16, 16), ""),
        ((15, 15), "scaled up from 15 x 15"),
        ((100, 49), "the middle of 100 x 49"),
        ((1, 900), "scaled up from 1 x 900, the middle of 1 x 900"),
    ],
)
def test_what_the_square_does_not_show_is_noted(tmp_path: Path, size: tuple[int, int], note: str) -> None:
    assert image_file.decode(save(tmp_path / "a.png", plain(size=size)), 32).note == note


def test_an_animation_is_noted(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gif", plain(), save_all=True, append_images=[plain(colour=GREEN)])
    assert image_file.decode(path, 8).note == "the first frame of several"


# Files that cannot be used


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises an image of this size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7_072, 10_000, 20_000])  # Pillow is silent, warns, refuses
def test_more_than_50_megapixels_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(DataError, match=r"bomb\.png' has more than 50 megapixels"):
        image_file.decode(path, 32)


def test_more_than_50_megabytes_are_refused_before_decoding(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", plain())
    os.truncate(path, image_file.MAX_BYTES)
    assert image_file.decode(path, 8).note == ""
    os.truncate(path, image_file.MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"a\.png' has more than 50 MB - "):
        image_file.decode(path, 8)


@pytest.mark.parametrize("colour", [-0.1, 1.1, float("nan")])
def test_floating_point_pixels_of_another_range_are_refused(tmp_path: Path, colour: float) -> None:
    with pytest.raises(DataError, match="not from 0 to 1"):
        image_file.decode(save(tmp_path / "a.tiff", plain("F", colour=colour)), 4)


def test_a_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(DataError, match=r"is not an image of a known format \(nor is HEIC one\) - save it as PNG"):
        image_file.decode(tmp_path / "IMG_1.HEIC", 8)


def test_a_format_that_is_read_is_not_called_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<html>no such page</html>")
    with pytest.raises(DataError, match="is not an image of a known format - save it as PNG"):
        image_file.decode(tmp_path / "a.png", 8)


# Many files


def test_many_files_come_in_order_with_the_bad_ones_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_file, "AHEAD", 3)
    paths = [save(tmp_path / f"{level}.png", plain("L", colour=level)) for level in range(0, 250, 10)]
    paths[4].write_bytes(b"")
    answers = list(decode_all(paths, 8))
    assert isinstance(answers[4], DataError)
    levels = [answer.pixels[0, 0, 0] for answer in answers if isinstance(answer, Decoded)]
    assert levels == [level for level in range(0, 250, 10) if level != 40]


def test_no_more_are_decoded_ahead_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def spy(path: Path, size: int) -> Decoded:
        seen.append(path)
        return Decoded(np.zeros((size, size, 3), np.uint8), "")

    monkeypatch.setattr(image_file, "AHEAD", 3)
    monkeypatch.setattr(image_file, "decode", spy)
    answers = decode_all([tmp_path] * 100, 8)
    for asked in range(1, 5):
        next(answers)
        assert asked <= len(seen) <= asked + 3
    answers.close()  # type: ignore[attr-defined]
    assert len(seen) <= 8


def test_the_module_itself_imports_nothing_heavy() -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*{'torch', 'torchvision', 'rich'} & set(sys.modules))"
    command = [sys.executable, "-c", code, str(image_file.__file__)]
    assert subprocess.run(command, capture_output=True, check=True).stdout.strip() == b""
