"""A user's own images: which files count, what is refused, when the cache is used."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from litcifar.data import ImageFolderDataModule, image_file, image_folder
from litcifar.errors import DataError
from tests.data.test_image_file import BLUE, GREEN, RED, image_of, plain, save

WHITE = (255, 255, 255)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes: train/ has three cats (red, green, blue) and a dog (white), test/ one of each."""
    for name, colour in (("b", GREEN), ("a", RED), ("c", BLUE)):
        save(tmp_path / f"train/cat/{name}.png", plain(colour=colour))
    save(tmp_path / "train/dog/a.png", plain(colour=WHITE))
    save(tmp_path / "test/cat/a.png", plain(colour=RED))
    save(tmp_path / "test/dog/a.png", plain(colour=WHITE))
    return tmp_path


def read(root: Path, split: str = "train", size: int = 4) -> tuple[np.ndarray, np.ndarray]:
    return image_folder.read(root, split, ("cat", "dog"), size)


def cached(root: Path) -> list[str]:
    return sorted(file.name for file in (root / ".litcifar-cache").iterdir())


def one_line(caught: pytest.ExceptionInfo[DataError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert " - " in message
    return message


# Classes and files


def test_a_class_whose_name_cannot_be_printed_is_an_error(root: Path) -> None:
    os.mkdir(os.fsencode(root / "train") + b"/b\xe4r")
    with pytest.raises(DataError, match=r"b\\udce4r': the name cannot be printed - rename the folder"):
        image_folder.classes(root)


def test_what_is_wrong_in_test_is_said_before_an_image_of_train_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(root / "test/cow/a.png", plain())
    monkeypatch.setattr(image_file, "decode", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(DataError, match="cow"):
        ImageFolderDataModule(str(root), image_size=4).setup()


def test_classes_are_the_sorted_visible_folders_of_train(root: Path) -> None:
    (root / "train" / "ant").mkdir()
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "notes.txt").write_text("not a class")
    assert image_folder.classes(root) == ("ant", "cat", "dog")


@pytest.mark.parametrize("made", ["", "train", "train/.hidden"])
def test_no_class_folder_is_an_error(tmp_path: Path, made: str) -> None:
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError) as caught:
        image_folder.classes(tmp_path)
    assert str(tmp_path / "train") in one_line(caught)


def test_images_come_class_by_class_sorted_by_name(root: Path) -> None:
    images, labels = read(root)
    assert images.shape == (4, 4, 4, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 0, 0, 1]
    assert images[:, 2, 2].tolist() == [list(RED), list(GREEN), list(BLUE), list(WHITE)]


def test_labels_follow_the_given_class_names(root: Path) -> None:
    _, labels = image_folder.read(root, "train", ("dog", "cat"), 4)
    assert labels.tolist() == [0, 1, 1, 1]


def test_hidden_files_and_side_files_are_passed_over(root: Path) -> None:
    for name in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", "labels.TXT"):
        (root / "train/cat" / name).write_bytes(b"not an image")
    assert len(read(root)[0]) == 4


def test_a_link_to_an_image_counts(root: Path) -> None:
    (root / "train/dog/link.png").symlink_to(root / "train/cat/a.png")
    assert read(root)[0][-1, 2, 2].tolist() == list(RED)


def test_a_class_only_in_test_is_an_error(root: Path) -> None:
    save(root / "test/cow/a.png", plain())
    with pytest.raises(DataError, match="cow"):
        read(root, "test")


def test_a_missing_class_folder_is_an_error(root: Path) -> None:
    (root / "test/dog/a.png").unlink()
    (root / "test/dog").rmdir()
    with pytest.raises(DataError) as caught:
        read(root, "test")
    assert str(root / "test/dog") in one_line(caught)


def test_a_class_folder_without_images_is_an_error(root: Path) -> None:
    (root / "test/dog/a.png").rename(root / "test/dog/.a.png")
    with pytest.raises(DataError, match="dog' has no images"):
        read(root, "test")


@pytest.mark.parametrize("kind", ["folder", "pipe", "dead link"])
def test_only_regular_files_are_opened(root: Path, kind: str) -> None:
    odd = root / "train/dog/odd.png"
    match kind:
        case "folder":
            odd.mkdir()
        case "pipe":
            os.mkfifo(odd)
        case _:
            odd.symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"odd\.png' is not a file"):
        read(root)


# Files that cannot be used


def damaged(path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    image_of(noise).save(path, "JPEG" if kind == "truncated JPEG" else "PNG")
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<svg></svg>")
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("kind", ["truncated PNG", "truncated JPEG", "empty", "text"])
def test_a_damaged_image_is_named(root: Path, kind: str) -> None:
    path = root / "train/dog/bad.jpg"
    damaged(path, kind)
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(path) in one_line(caught)
    assert "more" not in str(caught.value)


def test_damaged_images_are_named_together_and_those_beyond_twenty_counted(root: Path) -> None:
    names = ["cat/a", "cat/c", "dog/a", *(f"dog/b{number:02}" for number in range(20))]
    for name in names:
        (root / f"train/{name}.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read(root)
    message = one_line(caught)
    assert [name for name in names if str(root / f"train/{name}.png") in message] == names[:21]
    assert message.endswith("b17.png' and 2 more")
    assert not (root / ".litcifar-cache").exists()


def test_a_line_break_in_a_file_name_does_not_break_the_message(root: Path) -> None:
    (root / "train/cat/two\nlines.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read(root)
    assert r"two\nlines.png" in one_line(caught)


# The cache


@pytest.fixture
def decoded_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files decoded since the test began."""
    seen: list[str] = []
    decode = image_file.decode

    def spy(path: Path, size: int) -> image_file.Decoded:
        seen.append(f"{path.parent.name}/{path.name}")
        return decode(path, size)

    monkeypatch.setattr(image_file, "decode", spy)
    return seen


def test_a_second_read_takes_the_cache(root: Path, decoded_files: list[str]) -> None:
    first = read(root)
    assert sorted(decoded_files) == ["cat/a.png", "cat/b.png", "cat/c.png", "dog/a.png"]
    decoded_files.clear()
    second = read(root)
    assert decoded_files == []
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype


def test_a_moved_root_keeps_its_cache(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before, _ = read(root)
    moved = root.rename(tmp_path_factory.mktemp("elsewhere") / "data")
    files = cached(moved)
    np.testing.assert_array_equal(read(moved)[0], before)
    assert cached(moved) == files


@pytest.mark.parametrize("change", ["added", "removed", "changed", "touched", "renamed"])
def test_a_change_of_the_images_is_noticed(root: Path, decoded_files: list[str], change: str) -> None:
    path = save(root / "train/cat/a.png", plain(), format="BMP")  # its length does not depend on the colour
    read(root)
    old_files = cached(root)
    decoded_files.clear()
    expected = [RED, GREEN, BLUE, WHITE]
    match change:
        case "added":
            save(root / "train/dog/b.png", plain(colour=GREEN))
            expected = [RED, GREEN, BLUE, WHITE, GREEN]
        case "removed":
            path.unlink()
            expected = [GREEN, BLUE, WHITE]
        case "changed":
            save(path, plain(size=(9, 9), colour=WHITE))
            expected = [WHITE, GREEN, BLUE, WHITE]
        case "touched":  # same length, new content: only the time tells
            before = path.stat()
            save(path, plain(colour=BLUE), format="BMP")
            os.utime(path, ns=(before.st_mtime_ns + 1_000_000, before.st_mtime_ns + 1_000_000))
            assert path.stat().st_size == before.st_size
            expected = [BLUE, GREEN, BLUE, WHITE]
        case _:
            path.rename(root / "train/cat/z.png")
            expected = [GREEN, BLUE, RED, WHITE]
    images, labels = read(root)
    assert images[:, 2, 2].tolist() == [list(colour) for colour in expected]
    assert len(decoded_files) == len(images) == len(labels)
    assert len(cached(root)) == 1
    assert cached(root) != old_files


def test_size_and_class_order_have_caches_of_their_own(root: Path) -> None:
    read(root, size=4)
    assert read(root, size=6)[0].shape == (4, 6, 6, 3)
    assert image_folder.read(root, "train", ("dog", "cat"), 4)[0][0, 2, 2].tolist() == list(WHITE)


def test_splits_do_not_remove_each_others_cache(root: Path, decoded_files: list[str]) -> None:
    read(root, "train")
    read(root, "test")
    decoded_files.clear()
    read(root, "train")
    read(root, "test")
    assert decoded_files == []


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "empty", "other shape"])
def test_a_damaged_cache_is_rebuilt(root: Path, decoded_files: list[str], damage: str) -> None:
    before, _ = read(root)
    decoded_files.clear()
    cache = root / ".litcifar-cache" / cached(root)[0]
    content = bytearray(cache.read_bytes())
    match damage:
        case "flipped bit":
            content[content.index(before.tobytes()) + 50] ^= 1
            cache.write_bytes(content)
        case "truncated":
            cache.write_bytes(content[:-100])
        case "empty":
            cache.write_bytes(b"")
        case _:
            np.savez(cache, images=before[:2])
    np.testing.assert_array_equal(read(root)[0], before)
    assert len(decoded_files) == 4
    decoded_files.clear()
    read(root)
    assert decoded_files == []


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_in_the_caches_place_is_not_run(root: Path) -> None:
    before, _ = read(root)
    np.savez(root / ".litcifar-cache" / cached(root)[0], images=np.array([Payload(root / "run")], dtype=object))
    np.testing.assert_array_equal(read(root)[0], before)
    assert not (root / "run").exists()


def test_other_users_can_read_the_cache(root: Path) -> None:
    read(root)
    assert (root / ".litcifar-cache" / cached(root)[0]).stat().st_mode & 0o777 == 0o644


def test_a_root_that_cannot_be_written_is_read_with_one_note(
    root: Path, decoded_files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the cache folder's place stops even the superuser, whom a read-only mode would not."""
    (root / ".litcifar-cache").write_text("in the way")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(root)[0]) == 4
        assert len(read(root)[0]) == 4
    assert len(decoded_files) == 8
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2
    assert notes[0].startswith("note: no cache written")


def test_a_failed_write_leaves_nothing_behind(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert len(read(root)[0]) == 4
    assert cached(root) == []
    assert "No space left" in capsys.readouterr().err


def test_temporary_files_of_killed_runs_are_removed_and_young_ones_kept(root: Path) -> None:
    folder = root / ".litcifar-cache"
    folder.mkdir()
    for name, age in (("train-4-old.tmp", 7200), ("train-4-young.tmp", 0)):
        (folder / name).write_bytes(b"half")
        now = (folder / name).stat().st_mtime
        os.utime(folder / name, (now - age, now - age))
    read(root)
    assert [name for name in cached(root) if name.endswith(".tmp")] == ["train-4-young.tmp"]
