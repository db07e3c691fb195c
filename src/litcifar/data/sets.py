"""The data sets: CIFAR-10, the drawn shapes, and a user's own images in folders."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litcifar.data import cifar10_archive, cifar10_files, image_folder, shapes
from litcifar.data.datamodule import Arrays, ImageDataModule


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10 (Krizhevsky 2009, "Learning multiple layers of features from tiny images"), read by torchvision.

    root: holds `cifar-10-batches-py` or its archive, or is where they are downloaded to.
    verify: compare each file's MD5 with the published one; False reads a re-encoded copy.
    mirrors: addresses of `cifar-10-python.tar.gz`. download_seconds: give up after so long.
    """

    name = "cifar10"

    def __init__(
        self,
        root: str = "~/.cache/litcifar",
        verify: bool = True,
        mirrors: Sequence[str] = cifar10_archive.MIRRORS,
        download_seconds: float = 7200,
        **splits: Any,
    ) -> None:
        super().__init__(**splits)
        self.root = Path(root).expanduser()
        self.verify = verify
        self.mirrors = mirrors
        self.download_seconds = download_seconds

    @property
    def class_names(self) -> tuple[str, ...]:
        return cifar10_files.CLASSES

    def prepare_data(self) -> None:
        """Downloads what is missing; DataError where that fails."""
        if not cifar10_files.is_present(self.root):
            cifar10_archive.fetch(self.root, self.mirrors, self.download_seconds)

    def read(self) -> Arrays:
        return cifar10_files.read(self.root, self.verify)


class ShapesDataModule(ImageDataModule):
    """Ten classes of drawn shapes, 50,000 + 10,000 images: the built-in set for a machine without CIFAR-10."""

    name = "shapes"
    sizes = (50_000, 10_000)

    @property
    def class_names(self) -> tuple[str, ...]:
        return shapes.CLASSES

    def read(self) -> Arrays:
        return (*shapes.draw(self.sizes[0], seed=0), *shapes.draw(self.sizes[1], seed=1))


class ImageFolderDataModule(ImageDataModule):
    """A user's own images, `root/train/<class>/*` and `root/test/<class>/*`, resized to `image_size` pixels."""

    name = "image_folder"

    def __init__(self, root: str, image_size: int = 32, **splits: Any) -> None:
        super().__init__(**splits)
        self.root = Path(root).expanduser()
        self.image_size = image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        return image_folder.classes(self.root)

    def read(self) -> Arrays:
        names = self.class_names
        image_folder.listing(self.root, "test", names)  # what is wrong there is said before any image is decoded
        for unread in filter(Path.is_dir, (self.root / name for name in ("val", "valid", "validation"))):
            print(f"note: {unread} is not read - validation takes data.val_size of train's images", file=sys.stderr)
        train = image_folder.read(self.root, "train", names, self.image_size)
        return (*train, *image_folder.read(self.root, "test", names, self.image_size))
