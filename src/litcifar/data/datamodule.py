"""Images in memory, split once, handed out some batches at a time, augmented on the device.

Shape suffixes: N images of a set, T of a turn, B of a batch, H height, W width, C channels, K classes.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from litcifar.config import WORD
from litcifar.data.augment import Augment
from litcifar.data.turns import Images, Place, TrainImages, Turns, batches_of_step, limited
from litcifar.errors import ConfigError, DataError
from litcifar.machine import signals

GPU_SHARE = 0.25  # of a GPU's free memory, that a set may take

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Batch = tuple[Tensor, Tensor]


class ImageDataModule(L.LightningDataModule):
    """Base of the data sets. A subclass has a `name` and says how to read them: `class_names`, `read`, `image_size`.

    batch_size, eval_batch_size: images a step in training; in validation and test.
    val_size: images of the training set that are held out for validation, before `classes` selects: a number, or a
        share between 0 and 1.
    split_seed: of the random split, the same on every machine; None holds out the last images.
    classes: names of the classes to keep, relabelled 0, 1, ... in this order; None keeps all.
    shuffle: a new order every epoch, a function of `seed` and the epoch alone.
    drop_last: leave out an epoch's last, smaller batch.
    num_workers: processes that fetch batches, on a GPU by way of pinned memory. With 0 a set that takes a quarter of
        the GPU's free memory or less lies there, and batches are fetched without the CPU.
    augment: keyword arguments of `Augment`, applied to training batches on the device; None is none.
    seed: of order and augmentation.

    A batch is (images uint8 [B, H, W, 3], labels int64 [B]; float [B, K] after mixup or cutmix). In training they come
    in turns: lists of a tenth of the epoch's batches (of a fiftieth where several processes train on CPUs), each of
    which is a step of `ImageClassifier.training_step`.
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
        self._sets: dict[str, tuple[Images, Tensor]] = {}
        self._place = Place()
        self._overfits = False
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
        known = [str(name) for name in self.class_names]  # of an array, too: a checkpoint's names are plain
        if self.selected is None:
            return known
        unknown = [name for name in self.selected if name not in known]
        if unknown or len(set(self.selected)) < len(self.selected):
            problem = f"unknown class '{unknown[0]}'" if unknown else "a class stands twice"
            raise ConfigError(f"data.classes={list(self.selected)}: {problem} - choose from {', '.join(known)}")
        return list(self.selected)

    def setup(self, stage: str | None = None) -> None:
        """Reads the images once and splits them."""
        if self._sets:
            return
        self._check_names()
        train_images, train_labels, test_images, test_labels = map(np.ascontiguousarray, self.read())
        self._check_arrays("training", train_images, train_labels)
        self._check_arrays("test", test_images, test_labels)
        digest = hashlib.sha256()
        for array in (train_images, train_labels, test_images, test_labels):
            digest.update(array.data)
        self.fingerprint = digest.hexdigest()
        count = len(train_labels)
        held_out = self.val_size if isinstance(self.val_size, int) else round(self.val_size * count)
        if held_out >= count:
            raise ConfigError(f"data.val_size={self.val_size} leaves nothing of {count} images - choose a smaller one")
        order = torch.arange(count)
        if self.split_seed is not None:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.split_seed))
        elif held_out and train_labels[0] < train_labels[-1] and (np.diff(train_labels) >= 0).all():
            raise ConfigError(
                "data.split_seed=null holds out the last images, which are of the last classes alone - give a number, "
                "such as data.split_seed=42"
            )
        trained = Images(torch.from_numpy(train_images), self._relabelled(train_labels))
        tested = Images(torch.from_numpy(test_images), self._relabelled(test_labels))
        splits = {
            "train": (trained, order[: count - held_out]),
            "val": (trained, order[count - held_out :]),
            "test": (tested, torch.arange(len(test_labels))),
        }
        sets = {split: (images, indices[images.labels[indices] >= 0]) for split, (images, indices) in splits.items()}
        for split, (_, indices) in sets.items():
            if not len(indices):
                raise DataError(f"{split} split of '{self.name}' has no images - change data.val_size or data.classes")
        count = len(sets["train"][1])
        if self.drop_last and self.batch_size > count:
            raise ConfigError(
                f"data.batch_size={self.batch_size} is larger than the {count} training images and "
                "data.drop_last=true - choose a smaller one"
            )
        self.augment = Augment(**self.augment_options, num_classes=len(self.classes), seed=self.seed)
        self._sets = sets

    @property
    def train_batches(self) -> int:
        """The batches of a training epoch."""
        limit = self.trainer.limit_train_batches if self.trainer else None
        return limited(self._all_train_batches, limit, batches_of_step(self.trainer))

    @property
    def _all_train_batches(self) -> int:
        images = len(self.indices("train"))
        return images // self.batch_size if self.drop_last else math.ceil(images / self.batch_size)

    @property
    def _order_seed(self) -> int | None:
        return self.seed if self.shuffle and not self._overfits else None

    def train_dataloader(self) -> DataLoader:
        # The same batches, again and again.
        self._overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        images, _ = self._sets["train"]
        return self._loader(images, TrainImages(images), self._turns(self.trainer), self.num_workers)

    @property
    def first_step(self) -> int:
        """The optimizer steps before the epoch that is trained."""
        return self._place.first_step or 0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self._place)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._place = Place(**state_dict)

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")

    def loader(self, split: str) -> DataLoader:
        """Batches of `train`, `val` or `test` in a fixed order, without augmentation."""
        images, indices = self._sets[split]
        return self._loader(images, images, indices.split(self.eval_batch_size), 0)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The augmented batches of a turn; other batches as they are."""
        if not (isinstance(batch, tuple | list) and len(batch) == 5):  # only a turn has its indices and its place
            return batch
        images_THWC, labels_T, indices_T, epoch, first = batch
        assert self.augment is not None
        assert self.trainer is not None
        epochs: float
        epochs, batches = self.trainer.max_epochs or 1, self.train_batches
        if self.trainer.max_steps != -1:
            epochs = min(epochs, self.trainer.max_steps / math.ceil(batches / batches_of_step(self.trainer)))
        parts = zip(*(whole.split(self.batch_size) for whole in (images_THWC, labels_T, indices_T)), strict=True)
        turn = []
        for step, (images_BHWC, labels_B, indices_B) in enumerate(parts, first):
            progress = (epoch + step / batches) / epochs
            turn.append(self.augment(images_BHWC, labels_B, epoch, step, indices_B, progress))
        return turn

    def images(self, split: str, count: int | None = None) -> Tensor:
        """The first `count` images of a split (None: all), in its order, uint8 [N, H, W, 3]."""
        images, indices = self._sets[split]
        return images.__getitems__(indices[:count])[0].cpu()

    def labels(self, split: str) -> Tensor:
        """The labels of a split, in its order, int64 [N]."""
        images, indices = self._sets[split]
        return images.labels.cpu()[indices]

    def indices(self, split: str) -> Tensor:
        """The place of each image of a split in the set's own training files, or test files, int64 [N]."""
        return self._sets[split][1]

    def first_batch(self) -> Batch:
        """The first batch of a run's first epoch, as the network sees it: augmented."""
        assert self.augment is not None
        order, epoch, first = next(iter(self._turns(None)))
        chosen = torch.from_numpy(order[: self.batch_size])
        images_BHWC, labels_B = (whole.cpu() for whole in self._sets["train"][0].__getitems__(chosen))
        return self.augment(images_BHWC, labels_B, epoch, first, chosen, progress=0.0)

    def class_counts(self) -> dict[str, dict[str, int]]:
        """The number of images of each class in each split."""
        counts = {split: self.labels(split).bincount(minlength=len(self.classes)) for split in self._sets}
        return {split: dict(zip(self.classes, counts[split].tolist(), strict=True)) for split in counts}

    def _check_names(self) -> None:
        """Refuses names of a user's own set that a checkpoint could not hold, or that would drop a class's images."""
        name = getattr(self, "name", None)
        if not (isinstance(name, str) and re.fullmatch(WORD, name)):
            raise DataError(f"{type(self).__name__}.name='{name}' - use letters, digits, _ and . + -")
        names = list(self.class_names)
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"'{self.name}' has two classes '{twice}' - give each a name of its own")

    def _check_arrays(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        """Refuses what a user's own `read` got wrong, which would be noticed later, and not so plainly."""
        size, classes = self.image_size, len(self.class_names)
        types_fit = (images.dtype, labels.dtype) == (np.uint8, np.int64)
        problem = ""
        if not types_fit or labels.ndim != 1 or images.shape != (len(labels), size, size, 3):
            problem = f"images {images.dtype} {list(images.shape)}, labels {labels.dtype} {list(labels.shape)}"
        elif not len(labels):
            problem = "no images"
        elif labels.min() < 0 or labels.max() >= classes:
            problem = f"labels {labels.min()} to {labels.max()}"
        if problem:
            raise DataError(
                f"'{self.name}': {problem} for {split} - `read` has to give images uint8 [N, {size}, {size}, 3], "
                f"labels int64 [N] of 0 to {classes - 1}"
            )

    def _relabelled(self, labels: np.ndarray) -> Tensor:
        """The labels as places in `classes`, int64 [N]; -1 where the class is not in use."""
        known, used = list(self.class_names), self.classes
        new_label = torch.full((len(known),), -1)
        new_label[[known.index(name) for name in used]] = torch.arange(len(used))
        return new_label[torch.from_numpy(labels)]

    def _turns(self, trainer: L.Trainer | None) -> Turns:
        indices, counts = self.indices("train"), (self.train_batches, self._all_train_batches)
        return Turns(indices, self.batch_size, *counts, self._order_seed, trainer, self._place if trainer else Place())

    def _loader(self, images: Images, fetched: Dataset, batches: Any, num_workers: int) -> DataLoader:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        on_gpu = device.type == "cuda"
        # A worker, which is forked, cannot use the GPU.
        if on_gpu and self.num_workers == 0 and images.nbytes <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            images.move(device)
        return Loader(
            fetched,
            batch_sampler=batches,  # of tensors here, not of lists
            collate_fn=_as_is,  # type: ignore[arg-type]
            num_workers=num_workers,
            pin_memory=on_gpu and not images.rows.is_cuda,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each epoch draws a number from the global one
        )


class Loader(DataLoader):
    """A loader whose workers live until it ends them: a signal to the whole process group is its process's alone."""

    def __iter__(self) -> Any:
        with signals.blocked():
            return super().__iter__()


def _as_is(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch
