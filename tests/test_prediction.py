"""Prediction: what is said of images of every kind, in one run, and where it is written."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from litcifar import prediction, training
from litcifar.checkpoints import model_of, read
from litcifar.config import PredictConfig, check, train_config
from litcifar.data import image_file
from litcifar.errors import CheckpointError, ConfigError, MachineError
from litcifar.keys import compose
from litcifar.models import ImageClassifier
from litcifar.prediction import Row, find_images, line, predict, printable, rows_of, text_of
from litcifar.tta import mean_logits
from tests.data.test_image_file import png_header

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def ckpt(tiny_cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    overrides = [
        "model.widths=[4,8]",
        "trainer.max_epochs=1",
        "data.val_size=50",
        "data.verify=false",
        "logger=none",
        "figures=false",
    ]
    training.train(train_config(f"data.root={tiny_cifar10}", *overrides), folder)
    return folder / "best.ckpt"


@pytest.fixture(scope="module")
def model(ckpt: Path) -> ImageClassifier:
    return model_of(read(ckpt))


def config(ckpt: Path, images: str | list[str], *overrides: str) -> PredictConfig:
    return check(compose("predict", f"ckpt={ckpt}", *overrides) | {"images": images}, PredictConfig)


def photo(height: int = 48, width: int = 64) -> np.ndarray:
    """A sky that fades to the ground, and a little noise."""
    rng = np.random.default_rng(0)
    rows = np.linspace(0, 1, height)[:, None, None]
    colours = (1 - rows) * np.array([90, 150, 230]) + rows * np.array([70, 110, 40])
    return (colours + rng.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, **options: object) -> Callable[[Path], None]:
    return lambda path: image.save(path, **options)  # type: ignore[arg-type]


def _palette() -> Image.Image:
    return Image.fromarray(photo()).quantize(16)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _array(array: np.ndarray) -> Callable[[Path], None]:
    return saved(Image.fromarray(array))


PHOTO = Image.fromarray(photo())
GREY16 = photo()[..., 0].astype(np.uint16) * 257
GOOD: dict[str, Callable[[Path], None]] = {
    **{f"format.{suffix}": saved(PHOTO) for suffix in ("png", "jpg", "webp", "bmp", "gif", "tiff", "ppm", "tga")},
    "upper case.PNG": saved(PHOTO),
    "large.jpg": saved(Image.fromarray(photo(1500, 2000))),
    "progressive.jpg": saved(PHOTO, progressive=True),
    "cmyk.jpg": saved(PHOTO.convert("CMYK")),
    "grey.png": saved(PHOTO.convert("L")),
    "grey with alpha.png": saved(PHOTO.convert("LA")),
    "one bit.png": saved(PHOTO.convert("1")),
    "alpha.png": saved(PHOTO.convert("RGBA")),
    "palette.png": saved(_palette()),
    "transparent.png": saved(_palette(), transparency=3),
    "16 bit.png": _array(GREY16),
    "32 bit.tiff": _array(GREY16.astype(np.int32)),
    "float.tiff": _array((photo()[..., 0] / 255).astype(np.float32)),
    "turned.jpg": saved(PHOTO, exif=_exif()),
    "animated.gif": saved(PHOTO, save_all=True, append_images=[PHOTO.rotate(90)]),
    "several pages.tiff": saved(PHOTO, save_all=True, append_images=[PHOTO.rotate(90)]),
    "dot.png": _array(photo(1, 1)),
    "thread.png": _array(photo(1, 3000)),
    "wrong name.jpg": saved(PHOTO, format="PNG"),
    "no name": saved(PHOTO, format="PNG"),
    "=cmd|'!A1.png": saved(PHOTO),
    "two\nlines\x1b[31m.png": saved(PHOTO),
    os.fsdecode(b"latin\xff.png"): saved(PHOTO),
}


def _half(form: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        PHOTO.save(path, form)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def _sparse(path: Path) -> None:
    PHOTO.save(path)
    os.truncate(path, 50_000_001)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "half.jpg": (_half("JPEG"), "cannot be read as an image"),
    "half.png": (_half("PNG"), "cannot be read as an image"),
    "empty.png": (lambda path: path.touch(), "is not an image of a known format"),
    "text.jpg": (lambda path: path.write_text("not an image"), "is not an image of a known format"),
    "drawing.svg": (lambda path: path.write_text("<svg/>"), "(nor is SVG one)"),
    "photo.heic": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic"), "(nor is HEIC one)"),
    "script.eps": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"), "is not an image of a known format"),
    "bomb.png": (lambda path: path.write_bytes(png_header(20_000, 20_000)), "has more than 50 megapixels"),
    "huge.png": (_sparse, "has more than 50 MB"),
    "float 255.tiff": (_array(photo()[..., 0].astype(np.float32)), "not from 0 to 1"),
    "24 bit.tiff": (_array(GREY16.astype(np.int32) * 256), "more than 16 bits"),
    "pipe.png": (os.mkfifo, "is not a file"),
    "device.png": (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
    "loop.png": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "dead link.png": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for name, write in GOOD.items():
        write(folder / name)
    for name, (make, _) in BAD.items():
        make(folder / name)
    for name in (".DS_Store", "._photo.png", "Thumbs.db", "desktop.ini", "notes.txt"):
        (folder / name).write_bytes(b"not an image")
    (folder / "folder").mkdir()
    PHOTO.save(folder / "folder" / "deep.png")
    return folder


@pytest.fixture(scope="module")
def rows(zoo: Path, model: ImageClassifier) -> dict[str, Row]:
    paths = find_images([str(zoo)])
    return {path.name: row for path, row in zip(paths, rows_of(model, paths, 3), strict=True)}


def test_a_folder_is_its_own_visible_files(rows: dict[str, Row]) -> None:
    assert rows.keys() == GOOD.keys() | BAD.keys()
    assert len(GOOD) + len(BAD) >= 40


@pytest.mark.parametrize("name", GOOD)
def test_a_good_image_is_answered_as_its_pixels_are(
    rows: dict[str, Row], zoo: Path, model: ImageClassifier, name: str
) -> None:
    row = rows[name]
    assert row.error == ""
    pixels = image_file.decode(zoo / name, 32).pixels
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels[None].copy())).softmax(1)[0]
    shares, labels = expected.sort(descending=True)
    assert [answer for answer, _ in row.answers] == [CLASSES[label] for label in labels[:3]]
    np.testing.assert_allclose([share for _, share in row.answers], shares[:3], atol=1e-6)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_a_row_with_its_reason(rows: dict[str, Row], zoo: Path, name: str) -> None:
    row = rows[name]
    assert row.answers == []
    assert BAD[name][1] in row.error
    assert str(zoo) not in row.error
    assert printable(row.error) == row.error


def test_the_notes_say_what_was_left_out(rows: dict[str, Row]) -> None:
    assert {name: row.note for name, row in rows.items() if row.note} == {
        "animated.gif": "the first frame of several",
        "several pages.tiff": "the first frame of several",
        "dot.png": "scaled up from 1 x 1",
        "thread.png": "scaled up from 3000 x 1, the middle of 3000 x 1",
    }


def test_the_run_prints_all_rows_and_ends_with_an_error(
    ckpt: Path, zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match=f"^{len(BAD)} of {len(GOOD) + len(BAD)} images could not be read - "):
        predict(config(ckpt, str(zoo)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(GOOD) + len(BAD) + 2
    assert "airplane, automobile, bird" in lines[0]
    (line,) = [line for line in lines if "two" in line]
    assert r"two\nlines\x1b[31m.png" in line
    assert line.count(" %") == 3
    (line,) = [line for line in lines if "latin" in line]
    assert r"latin\xff.png" in line
    (line,) = [line for line in lines if "animated" in line]
    assert line.endswith("%  (the first frame of several)")
    (line,) = [line for line in lines if "bomb" in line]
    assert line.endswith("error: has more than 50 megapixels - scale it down or remove it")


def test_csv(ckpt: Path, zoo: Path, tmp_path: Path, rows: dict[str, Row], capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "x.csv"
    with pytest.raises(CheckpointError, match="could not be read"):
        predict(config(ckpt, str(zoo), "top=2", f"output={output}"))
    with output.open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2", "note", "error"]
    assert [row["image"] for row in written] == [row.image for row in rows.values()]
    by_name = {Path(row["image"]).name: row for row in written}
    one = by_name["format.png"]
    assert one["class_1"] == rows["format.png"].answers[0][0]
    assert float(one["probability_2"]) == pytest.approx(rows["format.png"].answers[1][1], abs=1e-6)
    assert by_name["bomb.png"]["error"].startswith("has more than 50 megapixels")
    assert by_name["bomb.png"]["class_1"] == ""
    printed = capsys.readouterr().out
    assert printed.count("error: ") == len(BAD)
    assert f"written to {output}" in printed
    assert [path.name for path in output.parent.iterdir()] == ["x.csv"]


def test_a_cell_that_a_spreadsheet_would_run_is_text(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("=cmd.png", "+1.png", "@a.png", "-1.png", "fine=.png"):
        PHOTO.save(name)
    predict(config(ckpt, sorted(os.listdir()), "output=x.csv"))
    cells = [line.split(",")[0] for line in Path("x.csv").read_text().splitlines()[1:]]
    assert cells == ["'+1.png", "'-1.png", "'=cmd.png", "'@a.png", "fine=.png"]


def test_json(ckpt: Path, zoo: Path, tmp_path: Path, rows: dict[str, Row]) -> None:
    with pytest.raises(CheckpointError, match="could not be read"):
        predict(config(ckpt, str(zoo), f"output={tmp_path}/x.json"))
    written = json.loads((tmp_path / "x.json").read_text())
    assert [row["image"] for row in written] == [row.image for row in rows.values()]
    for row, expected in zip(written, rows.values(), strict=True):
        assert [answer["class"] for answer in row["answers"]] == [name for name, _ in expected.answers]
        assert (row["note"], row["error"]) == (expected.note, expected.error)


def test_an_output_that_is_there_is_kept(ckpt: Path, tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "a.png")
    output = tmp_path / "x.json"
    output.write_text("precious")
    for name, message in (("x.json", "is there already - set overwrite"), ("x.txt", "has to end in .csv or .json")):
        with pytest.raises(ConfigError, match=message):
            predict(config(ckpt, str(tmp_path / "a.png"), f"output={tmp_path}/{name}"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="is there already - give another"):
        predict(config(ckpt, str(tmp_path / "a.png"), f"output={tmp_path}/folder.csv", "overwrite=true"))
    assert output.read_text() == "precious"
    predict(config(ckpt, str(tmp_path / "a.png"), f"output={output}", "overwrite=true"))
    assert len(json.loads(output.read_text())) == 1


def test_an_output_that_cannot_be_written_is_refused_before_any_image_is_read(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PHOTO.save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    monkeypatch.delattr(image_file, "decode")
    with pytest.raises(MachineError, match="cannot be written"):
        predict(config(ckpt, str(tmp_path / "a.png"), f"output={tmp_path}/file/x.csv"))


def test_a_run_that_breaks_off_leaves_no_output(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PHOTO.save(tmp_path / "a.png")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "probabilities", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(config(ckpt, str(tmp_path / "a.png"), f"output={tmp_path}/x.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_answers_do_not_depend_on_the_batches(
    model: ImageClassifier, zoo: Path, rows: dict[str, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 4)
    monkeypatch.setattr(image_file, "AHEAD", 2)
    for row, expected in zip(rows_of(model, [zoo / name for name in rows], 3), rows.values(), strict=True):
        assert (row.image, row.error) == (expected.image, expected.error)
        assert [name for name, _ in row.answers] == [name for name, _ in expected.answers]
        for (_, share), (_, other) in zip(row.answers, expected.answers, strict=True):
            assert share == pytest.approx(other, abs=1e-6)


def test_time_augmentation_and_top(model: ImageClassifier, tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "a.png")
    (row,) = rows_of(model, [tmp_path / "a.png"], 10, "mirror")
    images = torch.from_numpy(image_file.decode(tmp_path / "a.png", 32).pixels[None].copy())
    with torch.no_grad():
        expected = mean_logits(model, images, model(images), "mirror").softmax(1)[0]
    assert sum(share for _, share in row.answers) == pytest.approx(1, abs=1e-5)
    assert dict(row.answers) == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-6)


def test_more_classes_than_there_are_are_all_of_them(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PHOTO.save(tmp_path / "a.png")
    predict(config(ckpt, str(tmp_path / "a.png"), "top=99"))
    assert capsys.readouterr().out.splitlines()[1].count(" %") == 10


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.jpg", "deep/c.png", "deep/deeper/d.png", ".hidden.png", "Thumbs.db", "[x].png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for patterns, expected in {
        ("b.png",): ["b.png"],
        ("missing.png", "Thumbs.db"): ["missing.png", "Thumbs.db"],
        (".",): ["[x].png", "a.jpg", "b.png"],
        ("*",): ["[x].png", "a.jpg", "b.png"],
        ("**/*.png",): ["[x].png", "b.png", "deep/c.png", "deep/deeper/d.png"],
        ("deep", "b.png", "deep/*"): ["deep/c.png", "b.png"],
        ("[x].png",): ["[x].png"],
    }.items():
        assert list(map(str, find_images(patterns))) == expected, patterns


@pytest.mark.parametrize("nothing", ["*.gif", "folder", "folder/*"])
def test_a_folder_or_a_pattern_without_images_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "Thumbs.db").touch()
    with pytest.raises(CheckpointError, match="has no images - give a file, a folder or a pattern"):
        find_images([nothing])


def test_a_line_has_its_columns() -> None:
    row = Row("a.png", [("cat", 0.98765), ("dog", 0.01)], "the first frame of several")
    assert line(row, 7, 4) == "a.png    cat   98.77 %  dog    1.00 %  (the first frame of several)"
    assert line(Row("b", [], error="is empty"), 3, 4) == "b    error: is empty"
    assert text_of(Path(os.fsdecode(b"\xe9.png"))) == "\\xe9.png"


@pytest.mark.slow
def test_ten_thousand_files_need_no_more_memory_than_a_thousand(model: ImageClassifier, tmp_path: Path) -> None:
    """100 MB more at most; 1 % of them are bad."""
    PHOTO.resize((500, 375)).save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    peak = 0
    start = 0
    for number, row in enumerate(
        rows_of(model, [tmp_path / ("good.jpg" if n % 100 else "bad.jpg") for n in range(10_000)], 3)
    ):
        assert bool(row.error) == (number % 100 == 0)
        if number % 500 == 499:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident = pages * os.sysconf("SC_PAGE_SIZE") // 2**20
            start, peak = start or resident, max(peak, resident)
    print(f"{start} MiB after 500 images, {peak} MiB at most after")
    assert peak - start <= 100
