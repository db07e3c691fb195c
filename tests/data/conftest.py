"""Data modules of the tiny CIFAR-10, and what of them comes to a training step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from litcifar.data import CIFAR10DataModule, ImageDataModule, cifar10_files
from litcifar.data.datamodule import Arrays
from tests.conftest import bare_trainer

TRAIN, TEST, VAL = 200, 40, 50  # images of `tiny_cifar10`, and how many of the training images are held out
Make = Callable[..., CIFAR10DataModule]
Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def files(tiny_cifar10: Path) -> Arrays:
    """Training images, training labels, test images, test labels, as they lie in the files."""
    return cifar10_files.read(tiny_cifar10, verify=False)


@pytest.fixture
def make(tiny_cifar10: Path) -> Make:
    """A data module that has read the tiny CIFAR-10."""

    def make(**options: Any) -> CIFAR10DataModule:
        data = CIFAR10DataModule(root=str(tiny_cifar10), verify=False, **{"val_size": VAL, **options})
        data.setup()
        return data

    return make


class Recorder(L.LightningModule):
    """Keeps every batch that it gets, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.zeros(1))
        self.epochs: list[list[Batch]] = []
        self.evaluated: list[Batch] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, turn: list[Batch], batch_idx: int) -> None:
        self.epochs[-1].extend(turn)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated.append(batch)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(data: L.LightningDataModule, epochs: int = 1) -> Recorder:
    recorder = Recorder()
    bare_trainer(epochs).fit(recorder, datamodule=data)
    return recorder


def places(batches: DataLoader | list[Batch], images: np.ndarray) -> list[int]:
    """Where in `images` those of the batches are, one after another."""
    place = {image.tobytes(): row for row, image in enumerate(images)}
    return [place[image.numpy().tobytes()] for batch in batches for image in batch[0]]


def labels_of(batches: DataLoader | list[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch[1]]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for c, d in zip(a, b, strict=True) for x, y in zip(c, d, strict=True)
    )


def epochs(data: ImageDataModule, files: Arrays, count: int = 3) -> list[list[int]]:
    return [places(epoch, files[0]) for epoch in fitted(data, count).epochs]
