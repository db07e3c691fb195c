"""A look at the data: the counts are exact, and the pictures show the images that a run would see."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from litcifar.config import LookConfig, check
from litcifar.data import CIFAR10DataModule, cifar10_files
from litcifar.errors import MachineError
from litcifar.keys import compose
from litcifar.look import augmented, look, of_each_class


@pytest.fixture
def given(tiny_cifar10: Path, tmp_path: Path) -> list[str]:
    return [f"data.root={tiny_cifar10}", "data.verify=false", "data.val_size=50", f"folder={tmp_path / 'look'}"]


def shown(figure: Figure) -> np.ndarray:
    """uint8 [N, H, W, 3]"""
    return np.stack([np.asarray(image.get_array()) for image in figure.axes[0].images])


def test_the_counts_are_those_of_the_files(given: list[str], tiny_cifar10: Path, tmp_path: Path) -> None:
    counts = look(check(compose("look", *given, "data.split_seed=null"), LookConfig))
    _, train, _, test = cifar10_files.read(tiny_cifar10, verify=False)
    for k, name in enumerate(cifar10_files.CLASSES):
        expected = [int((labels == k).sum()) for labels in (train[:150], train[150:], test)]
        assert [counts[split][name] for split in ("train", "val", "test")] == expected
    assert {path.name for path in (tmp_path / "look").iterdir()} == {"images.png", "augmented.png"}


def test_what_is_printed(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    counts = look(check(compose("look", *given, "data.classes=[ship,cat]"), LookConfig))
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    for name in ("ship", "cat"):
        assert [name, *(str(counts[split][name]) for split in ("train", "val", "test"))] in lines
    sums = [sum(counts[split].values()) for split in ("train", "val", "test")]
    assert sums[0] + sums[1] == 40
    assert sums[2] == 8
    assert ["all", *map(str, sums)] in lines
    assert ["shape", "32", "x", "32", "x", "3,", "uint8"] in lines
    (fingerprint,) = (line for line in lines if line[:1] == ["fingerprint"])
    assert len(fingerprint[1]) == 64


def test_the_pictures_show_each_class_and_its_augmentations(tiny_cifar10: Path) -> None:
    augment = {"flip": "alternating"}
    data = CIFAR10DataModule(str(tiny_cifar10), verify=False, val_size=50, classes=["ship", "cat"], augment=augment)
    data.setup()
    figure = of_each_class(data, columns=4)
    images, labels = data.images("train"), data.labels("train")
    expected = torch.cat([images[labels == k][:4] for k in (0, 1)])
    assert shown(figure).tolist() == expected.tolist()
    assert [text.get_text() for text in figure.axes[0].texts[:-1]] == 4 * ["ship"] + 4 * ["cat"]
    original, *draws = shown(augmented(data, columns=4))[4:]  # the second row: a cat
    assert original.tolist() == expected[4].tolist()
    mirrored = original[:, ::-1]
    first = draws[0]
    assert first.tolist() in (original.tolist(), mirrored.tolist())
    assert draws[1].tolist() == first[:, ::-1].tolist()  # every other epoch shows the other side
    assert draws[2].tolist() == first.tolist()


def test_a_class_with_few_images_has_empty_places(tiny_cifar10: Path) -> None:
    data = CIFAR10DataModule(str(tiny_cifar10), verify=False, val_size=50, classes=["ship", "cat"])
    data.setup()
    figure = of_each_class(data, columns=30)
    ships = data.class_counts()["train"]["ship"]
    assert ships < 30
    assert (shown(figure)[ships:30] == 255).all()
    assert [text.get_text() for text in figure.axes[0].texts[:30]] == ships * ["ship"] + (30 - ships) * [""]


def test_a_folder_that_cannot_be_written_is_refused_first(given: list[str], tmp_path: Path) -> None:
    (tmp_path / "look").touch()
    config = check(compose("look", *given, "data.root=nowhere"), LookConfig)
    with pytest.raises(MachineError, match=r"give another one: folder=\.\.\."):
        look(config)
