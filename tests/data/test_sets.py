"""The data sets: each has the same interface."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from litcifar.data import CIFAR10DataModule, ImageDataModule, ImageFolderDataModule, ShapesDataModule, cifar10_archive
from litcifar.errors import ConfigError
from tests.data.conftest import fitted

# Lightning compares the workers with the processors, but the images are in memory.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def test_nothing_is_downloaded_where_the_files_are(tiny_cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10_archive, "fetch", fetch := Mock())
    CIFAR10DataModule(root=str(tiny_cifar10)).prepare_data()
    fetch.assert_not_called()


def test_missing_files_are_fetched_from_the_mirrors_in_the_time_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10_archive, "fetch", fetch := Mock())
    CIFAR10DataModule(root=str(tmp_path), mirrors=["a", "b"], download_seconds=9).prepare_data()
    fetch.assert_called_once_with(tmp_path, ["a", "b"], 9)


# --- Every data set has the same interface


def shapes_module(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> ImageDataModule:
    monkeypatch.setattr(ShapesDataModule, "sizes", (60, 20))
    return ShapesDataModule(**options)


def folder_module(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> ImageDataModule:
    """Classes cat (dark) and dog (bright) of 30 + 10 images each, 12 pixels high and wide."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for name, low in (("cat", 0), ("dog", 128)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number:02}.png")
    return ImageFolderDataModule(root=str(folder), image_size=12, **options)


@pytest.fixture(params=[shapes_module, folder_module], ids=["shapes", "image_folder"])
def other(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageDataModule:
    """60 training images and 20 test images that are not CIFAR-10's, ten of them for validation."""
    return request.param(tmp_path, monkeypatch, batch_size=16, val_size=10, augment={"flip": "random"})


def test_other_data_sets_give_batches_of_their_size(other: ImageDataModule) -> None:
    size = other.image_size
    (epoch,) = fitted(other).epochs
    assert [tuple(images.shape) for images, _ in epoch] == [(n, size, size, 3) for n in (16, 16, 16, 2)]
    assert {(images.dtype, labels.dtype) for images, labels in epoch} == {(torch.uint8, torch.int64)}


def test_other_data_sets_are_split_and_counted(other: ImageDataModule) -> None:
    other.setup()
    counts = other.class_counts()
    assert {split: sum(of_class.values()) for split, of_class in counts.items()} == {"train": 50, "val": 10, "test": 20}
    assert all(list(of_class) == other.classes == list(other.class_names) for of_class in counts.values())
    assert set(counts["test"].values()) == {20 // len(other.classes)}


def test_other_data_sets_need_no_download(other: ImageDataModule) -> None:
    other.prepare_data()
    other.setup()
    assert len(other.fingerprint) == 64


def test_other_data_sets_have_names(other: ImageDataModule) -> None:
    assert other.name == ("shapes" if isinstance(other, ShapesDataModule) else "image_folder")


def test_image_folders_labels_are_those_of_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder_module(tmp_path, monkeypatch, val_size=10)
    data.setup()
    assert data.classes == ["cat", "dog"]
    for split in ("train", "val", "test"):
        ((images, labels),) = data.loader(split)
        assert torch.equal((images.float().mean((1, 2, 3)) > 127).long(), labels)


def test_a_folder_of_validation_images_is_told_not_to_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_module(tmp_path, monkeypatch, val_size=10)
    (tmp_path / "val").mkdir()
    data.setup()
    assert capsys.readouterr().err == (
        f"note: {tmp_path / 'val'} is not read - validation takes data.val_size of train's images\n"
    )


def test_the_last_images_of_a_set_that_comes_class_by_class_are_not_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder_module(tmp_path, monkeypatch, val_size=10, split_seed=None)
    with pytest.raises(ConfigError, match="the last images, which are of the last classes alone - give a number"):
        data.setup()


def test_image_folders_images_get_the_size_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder_module(tmp_path, monkeypatch, val_size=10)
    data.setup()
    assert data.image_size == 12
    assert data.images("train", 3).shape == (3, 12, 12, 3)


def test_shapes_test_images_are_not_among_the_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shapes_module(tmp_path, monkeypatch)
    monkeypatch.setattr(data, "sizes", (40, 40))
    train_images, _, test_images, _ = data.read()
    assert not {image.tobytes() for image in train_images} & {image.tobytes() for image in test_images}


def test_shapes_can_be_chosen_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shapes_module(tmp_path, monkeypatch, val_size=10, classes=["star", "circle"])
    data.setup()
    assert data.class_counts()["test"] == {"star": 2, "circle": 2}
