"""Data sets: images in memory, their splits, loaders and augmentation."""

from litcifar.data.datamodule import CIFAR10DataModule, ImageDataModule, ImageFolderDataModule, ShapesDataModule

__all__ = ["CIFAR10DataModule", "ImageDataModule", "ImageFolderDataModule", "ShapesDataModule"]
