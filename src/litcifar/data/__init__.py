"""Data sets: images in memory, their splits, loaders and augmentation."""

from litcifar.data.datamodule import ImageDataModule
from litcifar.data.sets import CIFAR10DataModule, ImageFolderDataModule, ShapesDataModule

__all__ = ["CIFAR10DataModule", "ImageDataModule", "ImageFolderDataModule", "ShapesDataModule"]
