"""Reading CIFAR-10's files: tiny ones, written in the forms in which they go round."""

import hashlib
import io
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from litcifar.data.cifar10_files import (
    CLASSES,
    FILES,
    FOLDER,
    META_FILE,
    TEST_FILE,
    TRAIN_FILES,
    is_present,
    read,
    unpickle,
)
from litcifar.errors import DataError

META = {"num_cases_per_batch": 20, "label_names": list(CLASSES), "num_vis": 3072}


class Python2Pickler(pickle._Pickler):
    """Writes str as Python 2 did, one byte a character."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_bytes(self: Any, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes
    dispatch[str] = lambda self, value: self.save_bytes(value.encode("latin1"))


def as_copied(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def as_original(value: object) -> bytes:
    """NumPy of 2009 had another module name, and integers where False and True are now."""
    text = as_copied(value).replace(b"numpy._core.multiarray", b"numpy.core.multiarray", 1)
    return text.replace(pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3, b"K\x00K\x01" + pickle.TUPLE3, 1)


def batch(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(FILES.index(name))
    return {
        "batch_label": name,
        "labels": rng.integers(0, 10, 20).tolist(),
        "data": rng.integers(0, 256, (20, 3072), np.uint8),
        "filenames": [f"{i}.png" for i in range(20)],
    }


def write(root: Path, form: Callable[[object], bytes] = as_copied) -> None:
    (root / FOLDER).mkdir()
    for name in FILES:
        (root / FOLDER / name).write_bytes(form(META if name == META_FILE else batch(name)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes torchvision's list of MD5 sums that of the files in a root."""

    def publish(root: Path) -> None:
        md5 = {name: hashlib.md5((root / FOLDER / name).read_bytes()).hexdigest() for name in FILES}
        monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in TRAIN_FILES])
        monkeypatch.setattr(CIFAR10, "test_list", [[TEST_FILE, md5[TEST_FILE]]])
        monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5[META_FILE]})

    return publish


def message(root: Path, verify: bool) -> str:
    with pytest.raises(DataError) as error:
        read(root, verify)
    text = str(error.value)
    assert " - " in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("form", [as_original, as_copied, lambda v: pickle.dumps(v, 2), lambda v: pickle.dumps(v, 4)])
def test_pixels_and_labels(
    tmp_path: Path, publish: Callable[[Path], None], form: Callable[[object], bytes], verify: bool
) -> None:
    write(tmp_path, form)
    if verify:
        publish(tmp_path)
    train_images, train_labels, test_images, test_labels = read(tmp_path, verify)
    for names, images, labels in [(TRAIN_FILES, train_images, train_labels), ((TEST_FILE,), test_images, test_labels)]:
        rows = np.concatenate([batch(name)["data"] for name in names])
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        np.testing.assert_array_equal(images, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        assert labels.dtype == np.int64
        assert labels.tolist() == [label for name in names for label in batch(name)["labels"]]


def test_the_two_forms_differ() -> None:
    assert b"numpy.core.multiarray" in as_original(batch(TEST_FILE))
    assert b"numpy._core.multiarray" in as_copied(batch(TEST_FILE))
    assert len(as_original(batch(TEST_FILE))) == len(as_copied(batch(TEST_FILE))) - 1 + 2


def test_published_sums_are_compared_only_if_asked(root: Path) -> None:
    read(root, verify=False)
    assert "MD5" in message(root, verify=True)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_named(root: Path, publish: Callable[[Path], None], name: str) -> None:
    publish(root)
    read(root, verify=True)
    path = root / FOLDER / name
    content = bytearray(path.read_bytes())
    expected = hashlib.md5(content).hexdigest()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    text = message(root, verify=True)
    assert all(word in text for word in (str(path), expected, hashlib.md5(content).hexdigest(), "data.verify=false"))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(root: Path, publish: Callable[[Path], None], name: str, verify: bool) -> None:
    publish(root)
    path = root / FOLDER / name
    for size in (path.stat().st_size // 2, 0):
        os.truncate(path, size)
        assert f"{path} " in message(root, verify)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    assert is_present(root)
    (root / FOLDER / name).unlink()
    assert not is_present(root)
    assert f"{root / FOLDER} lacks {name} " in message(root, verify=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (b"cos\nsystem\n(X\x0c\x00\x00\x00touch hackedtR.", "os.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch hacked\x85R.", "posix.system"),
        (b"(X\x0c\x00\x00\x00touch hackedios\nsystem\n.", "os.system"),
        (b"cbuiltins\neval\n(X\x16\x00\x00\x00open('hacked','w').xxxxtR.", "builtins.eval"),
        (b"cnumpy\nload\n(X\x06\x00\x00\x00hackedtR.", "numpy.load"),
    ],
    ids=["global", "stack global", "inst", "eval", "numpy"],
)
def test_code_in_a_file_does_not_run(
    root: Path,
    publish: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: bytes,
    shown: str,
) -> None:
    monkeypatch.chdir(root)
    (root / FOLDER / name).write_bytes(code)
    publish(root)
    for verify in (True, False):
        text = message(root, verify)
        assert str(root / FOLDER / name) in text
        assert shown in text
    assert [path.name for path in root.iterdir()] == [FOLDER]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"labels": [0] * 19 + [10]}, "from 0 to 10"),
        ({"labels": [-1] + [0] * 19}, "from -1 to 0"),
        ({"labels": [0] * 19}, "[19] for 20 images"),
        ({"labels": [0.5] * 20}, "float64"),
        ({"labels": [[0], [0, 1]]}, "ValueError"),
        ({"labels": "cat"}, "for 20 images"),
        ({"labels": [], "data": np.zeros((0, 3072), np.uint8)}, "for 0 images"),
        ({"data": np.zeros((20, 3071), np.uint8)}, "uint8 [20, 3071]"),
        ({"data": np.zeros((20, 3, 32, 32), np.uint8)}, "[20, 3, 32, 32]"),
        ({"data": np.zeros((20, 3072), np.float32)}, "float32"),
        ({"data": [[0] * 3072] * 20}, "list"),
        ({"fine_labels": [0] * 20}, "CIFAR-100"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["data_batch_3", TEST_FILE])
def test_what_is_not_cifar10_is_named(root: Path, name: str, change: dict[str, Any], shown: str) -> None:
    path = root / FOLDER / name
    path.write_bytes(as_copied({**batch(name), **change}))
    text = message(root, verify=False)
    assert str(path) in text
    assert shown in text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("value", [{}, [1, 2], None, "text", {"label_names": ["cat"], "data": None, "labels": None}])
def test_other_contents_are_named(root: Path, name: str, value: object) -> None:
    (root / FOLDER / name).write_bytes(as_copied(value))
    assert f"{root / FOLDER / name} is damaged" in message(root, verify=False)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that exists and cannot be read")
def test_an_unreadable_file_is_named(root: Path) -> None:
    path = root / FOLDER / "data_batch_2"
    path.unlink()
    path.symlink_to("/proc/self/mem")
    assert f"{path} cannot be read" in message(root, verify=False)


def test_places_without_cifar10(tmp_path: Path) -> None:
    assert f"no folder {tmp_path / 'absent'}" in message(tmp_path / "absent", verify=False)
    assert f"{tmp_path} lacks {FOLDER} and holds nothing" in message(tmp_path, verify=False)
    (tmp_path / "cifar-100-python").mkdir()
    assert f"{tmp_path} lacks {FOLDER} and holds cifar-100-python" in message(tmp_path, verify=False)
    (tmp_path / FOLDER).touch()
    assert f"{tmp_path / FOLDER} is a file" in message(tmp_path, verify=False)
    assert f"{tmp_path / FOLDER} is a file" in message(tmp_path / FOLDER, verify=False)
    (tmp_path / FOLDER).unlink()
    (tmp_path / FOLDER).mkdir()
    for name in ("meta", "test", "train"):
        (tmp_path / FOLDER / name).touch()
    assert re.search(r"lacks data_batch_1, .* and holds meta, test, train ", message(tmp_path, verify=False))


@pytest.mark.parametrize("form", [as_copied, as_original])
def test_another_sets_files_can_be_read_and_run_no_code(tmp_path: Path, form: Callable[[object], bytes]) -> None:
    """CIFAR-100's, say."""
    content = {"fine_labels": [3, 99], "data": np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)}
    (tmp_path / "train").write_bytes(form(content))
    read_back = unpickle(tmp_path / "train")
    assert read_back["fine_labels"] == [3, 99]
    np.testing.assert_array_equal(read_back["data"], content["data"])
    (tmp_path / "code").write_bytes(pickle.dumps({"data": os.getcwd}))
    for name, reason in (("code", "would run code"), ("absent", "is not there")):
        with pytest.raises(DataError, match=reason):
            unpickle(tmp_path / name)
    (tmp_path / "train").write_bytes(form(content)[:-20])
    with pytest.raises(DataError, match="is damaged"):
        unpickle(tmp_path / "train")
