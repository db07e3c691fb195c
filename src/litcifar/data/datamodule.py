"""Images in memory, split once, handed out a batch at a time, augmented on the device.

Shape suffixes: N images of a set, B of a batch, H height, W width, C channels, K classes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from litcifar.data import cifar10_archive, cifar10_files, image_folder, shapes
from litcifar.data.augment import Augment
from litcifar.errors import ConfigError, DataError

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class ImageDataModule(L.LightningDataModule):
    """Base of the data sets. A subclass says how to read them: `class_names` and `read`.

    batch_size, eval_batch_size: images a step in training; in validation and test.
    val_size: images of the training set that are held out for validation, before `classes` selects: a number, or a
        share between 0 and 1.
    split_seed: of the random split, the same on every machine; None holds out the last images.
    classes: names of the classes to keep, relabelled 0, 1, ... in this order; None keeps all.
    shuffle: a new order every epoch, a function of `seed` and the epoch alone.
    drop_last: leave out an epoch's last, smaller batch.
    num_workers: processes that fetch batches.
    augment: keyword arguments of `Augment`, applied to training batches on the device; None is none.
    seed: of order and augmentation.

    Training batches are (images uint8 [B, H, W, 3], labels int64 [B] or float [B, K]), others the same, unaugmented.
    """

    name: str
    image_size = 32

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_size: int | float = 5000,
        split_seed: int | None = 42,
        classes: Sequence[str] | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        augment: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.selected = classes
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.augment_options = augment or {}
        self.seed = seed
        self.augment: Augment | None = None
        self._sets: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.fingerprint = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes of the set; DataError where they cannot be known."""
        raise NotImplementedError

    def read(self) -> Arrays:
        """Training images uint8 [N, H, W, 3] and labels int64 [N], test images and labels; DataError."""
        raise NotImplementedError

    @property
    def classes(self) -> list[str]:
        """The names of the classes in use, in label order."""
        if self.selected is None:
            return list(self.class_names)
        unknown = [name for name in self.selected if name not in self.class_names]
        if unknown or len(set(self.selected)) < len(self.selected):
            problem = f"unknown class '{unknown[0]}'" if unknown else "a class stands twice"
            raise ConfigError(
                f"data.classes={list(self.selected)}: {problem} - choose from {', '.join(self.class_names)}"
            )
        return list(self.selected)

    def setup(self, stage: str | None = None) -> None:
        """Reads the images once and splits them."""
        if self._sets:
            return
        train_images, train_labels, test_images, test_labels = self.read()
        digest = hashlib.sha256()
        for array in (train_images, train_labels, test_images, test_labels):
            digest.update(np.ascontiguousarray(array).data)
        self.fingerprint = digest.hexdigest()
        count = len(train_labels)
        held_out = self.val_size if isinstance(self.val_size, int) else round(self.val_size * count)
        if held_out >= count:
            raise ConfigError(f"data.val_size={self.val_size} leaves nothing of {count} images - choose a smaller one")
        order = torch.arange(count)
        if self.split_seed is not None:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.split_seed))
        train = self._select(train_images, train_labels, order[: count - held_out])
        val = (*train[:2], self._select(train_images, train_labels, order[count - held_out :])[2])
        test = self._select(test_images, test_labels, torch.arange(len(test_labels)))
        self._sets = {"train": train, "val": val, "test": test}
        for split, (_, _, indices) in self._sets.items():
            if not len(indices):
                raise DataError(f"{split} split of '{self.name}' has no images - change data.val_size or data.classes")
        if self.drop_last and self.batch_size > len(train[2]):
            raise ConfigError(
                f"data.batch_size={self.batch_size} is larger than the {len(train[2])} training images and "
                "data.drop_last=true - choose a smaller one"
            )
        self.augment = Augment(**self.augment_options, num_classes=len(self.classes), seed=self.seed)

    def train_dataloader(self) -> DataLoader:
        images, labels, indices = self._sets["train"]
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]  # the same batches, again and again
        seed = self.seed if self.shuffle and not overfit else None
        batches = EpochBatches(indices, self.batch_size, seed, self.drop_last, self)
        return self._loader(Images(images, labels, with_index=True), batches, self.num_workers)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def loader(self, split: str) -> DataLoader:
        """Batches of `train`, `val` or `test` in a fixed order, without augmentation."""
        return self._eval_loader(split)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not (isinstance(batch, tuple | list) and len(batch) == 3):  # only training batches carry their indices
            return batch
        images_BHWC, labels_B, indices_B = batch
        assert self.augment is not None
        assert self.trainer is not None
        step = self.trainer.fit_loop.epoch_loop.batch_idx + 1
        return self.augment(images_BHWC, labels_B, self.trainer.current_epoch, step, indices_B)

    def train_images(self, count: int) -> Tensor:
        """The first `count` images of the training split, uint8 [N, H, W, 3]."""
        images, _, indices = self._sets["train"]
        return images[indices[:count]]

    def class_counts(self) -> dict[str, dict[str, int]]:
        """The number of images of each class in each split."""
        counts = {
            s: labels[indices].bincount(minlength=len(self.classes)) for s, (_, labels, indices) in self._sets.items()
        }
        return {split: dict(zip(self.classes, counts[split].tolist(), strict=True)) for split in counts}

    def _select(self, images: np.ndarray, labels: np.ndarray, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All images with their new labels, and the indices of those whose class is in use."""
        new_label = torch.full((len(self.class_names),), -1)
        new_label[[self.class_names.index(name) for name in self.classes]] = torch.arange(len(self.classes))
        labels_N = new_label[torch.from_numpy(labels)]
        return torch.from_numpy(images), labels_N, indices[labels_N[indices] >= 0]

    def _eval_loader(self, split: str) -> DataLoader:
        images, labels, indices = self._sets[split]
        return self._loader(Images(images, labels), EpochBatches(indices, self.eval_batch_size), 0)

    def _loader(self, images: "Images", batches: "EpochBatches", num_workers: int) -> DataLoader:
        return DataLoader(
            images,
            batch_sampler=batches,  # type: ignore[arg-type]  # batches of indices are tensors here, not lists
            collate_fn=_as_is,  # type: ignore[arg-type]
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each epoch draws a number from the global one
        )


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
        train = image_folder.read(self.root, "train", self.class_names, self.image_size)
        return (*train, *image_folder.read(self.root, "test", self.class_names, self.image_size))


class Images(Dataset):
    """Fetches a whole batch of images by one indexing: [B, H, W, 3], labels [B], and, if asked for, the indices [B]."""

    def __init__(self, images_NHWC: Tensor, labels_N: Tensor, with_index: bool = False) -> None:
        # Rows of bytes: index_select copies each image at once, 20 times as fast as indexing [N, H, W, 3].
        self.rows = images_NHWC.reshape(len(images_NHWC), -1)
        self.shape = images_NHWC.shape[1:]
        self.labels = labels_N
        self.with_index = with_index

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices_B: Tensor) -> tuple[Tensor, ...]:
        images_BHWC = self.rows.index_select(0, indices_B).view(-1, *self.shape)
        batch = images_BHWC, self.labels.index_select(0, indices_B)
        return (*batch, indices_B) if self.with_index else batch


class EpochBatches(Sampler[Tensor]):
    """Batches of indices whose order is a function of `seed` and the epoch alone (seed None: as given).

    Where an interrupted epoch is resumed, it goes on with the first batch that was not trained on.
    """

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        seed: int | None = None,
        drop_last: bool = False,
        datamodule: L.LightningDataModule | None = None,
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.datamodule = datamodule

    def __len__(self) -> int:
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Tensor]:
        epoch, start = self._position()
        order = self.indices
        if self.seed is not None:
            shuffled = np.random.default_rng((self.seed, epoch)).permutation(len(order))
            order = order[torch.from_numpy(shuffled)]
        yield from order.split(self.batch_size)[start : len(self)]

    def _position(self) -> tuple[int, int]:
        """The epoch, and the batches of it that were trained on before."""
        trainer = self.datamodule.trainer if self.datamodule else None
        if trainer is None:
            return 0, 0
        fit = trainer.fit_loop
        # These counters are Lightning's own: the tests of resuming guard them against an upgrade.
        epoch: int = fit.epoch_progress.current.processed  # type: ignore[attr-defined]
        resumed = fit.restarting or fit.epoch_loop.restarting
        start: int = fit.epoch_loop.batch_progress.current.processed if resumed else 0  # type: ignore[attr-defined]
        return (epoch, start) if start < len(self) else (epoch + 1, 0)


def _as_is(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch
