"""The data module: who is in which split, and what a step gets."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset, random_split

from litcifar.data import CIFAR10DataModule, cifar10_files
from litcifar.data.augment import Augment
from litcifar.data.datamodule import Arrays, ImageDataModule
from litcifar.errors import ConfigError, DataError
from tests.conftest import bare_trainer, fake_gpu, in_a_child, trainer_on
from tests.data.conftest import TEST, TRAIN, VAL, Make, Recorder, epochs, fitted, labels_of, places, same

# Lightning compares the workers with the processors, but the images are in memory.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

# --- What is read


IMAGES = np.zeros((4, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "what"),
    [
        (IMAGES.astype(np.float32), np.arange(4), "images float32 [4, 32, 32, 3], labels int64 [4]"),
        (np.zeros((4, 3, 32, 32), np.uint8), np.arange(4), "images uint8 [4, 3, 32, 32], labels int64 [4]"),
        (np.zeros((4, 28, 28, 3), np.uint8), np.arange(4), "images uint8 [4, 28, 28, 3], labels int64 [4]"),
        (np.zeros((5, 32, 32, 3), np.uint8), np.arange(4), "images uint8 [5, 32, 32, 3], labels int64 [4]"),
        (IMAGES, np.arange(4, dtype=np.int32), "images uint8 [4, 32, 32, 3], labels int32 [4]"),
        (IMAGES, np.arange(4)[:, None], "images uint8 [4, 32, 32, 3], labels int64 [4, 1]"),
        (IMAGES[:, None], np.arange(4)[:, None], "images uint8 [4, 1, 32, 32, 3], labels int64 [4, 1]"),
        (IMAGES, np.arange(4) - 1, "labels -1 to 2"),
        (IMAGES, np.arange(4) + 1, "labels 1 to 4"),
        (IMAGES[:0], np.arange(0), "no images"),
    ],
)
def test_what_a_users_own_set_reads_is_refused_if_it_does_not_fit(
    images: np.ndarray, labels: np.ndarray, what: str
) -> None:
    class Own(ImageDataModule):
        name = "own"
        class_names = ("a", "b", "c", "d")

        def __init__(self, *arrays: np.ndarray) -> None:
            super().__init__(val_size=1)
            self.arrays = arrays

        def read(self) -> Arrays:
            return self.arrays  # type: ignore[return-value]

    right = (IMAGES[..., ::-1], np.arange(4)[::-1])  # which torch alone would refuse
    Own(*right, *right).setup()
    for split, arrays in (("training", (images, labels, *right)), ("test", (*right, images, labels))):
        told = f"'own': {what} for {split} - `read` has to give images uint8 [N, 32, 32, 3], labels int64 [N] of 0 to 3"
        with pytest.raises(DataError, match=f"^{re.escape(told)}$"):
            Own(*arrays).setup()


class Named(ImageDataModule):
    """Two images of each class, one of them for training; the second for validation and the test."""

    def __init__(self, name: str, class_names: Sequence[str]) -> None:
        super().__init__(val_size=0.5, split_seed=None)
        self.name = name
        self.given = class_names

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.given)

    def read(self) -> Arrays:
        count = len(self.given)
        images, labels = np.zeros((count, 32, 32, 3), np.uint8), np.arange(count)
        return images.repeat(2, 0), np.tile(labels, 2), images, labels


@pytest.mark.parametrize("name", ["CIFAR 100", "a/b", "", "a:b"])
def test_a_name_that_no_checkpoint_could_hold_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"Named.name='{name}' - use letters, digits, _ and . + -")):
        Named(name, ["a", "b"]).setup()


def test_a_set_without_a_name_is_refused() -> None:
    data = Named("own", ["a", "b"])
    del data.name
    with pytest.raises(DataError, match=r"^Named\.name='None' - use letters"):
        data.setup()


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="'own' has two classes 'crane' - give each a name of its own"):
        Named("own", ["crane", "ox", "crane"]).setup()


def test_names_out_of_an_array_are_plain() -> None:
    data = Named("own", np.array(["ox", "ant"]))  # type: ignore[arg-type]
    data.setup()
    assert [type(name) for name in data.classes] == [str, str]
    assert data.class_counts() == {split: {"ox": 1, "ant": 1} for split in ("train", "val", "test")}


# --- Splits


def test_splits_have_the_sizes_asked_for_and_share_no_image(make: Make, files: Arrays) -> None:
    data = make()
    train, val = (places(data.loader(split), files[0]) for split in ("train", "val"))
    assert (len(train), len(val)) == (TRAIN - VAL, VAL)
    assert sorted(train + val) == list(range(TRAIN))


@pytest.mark.parametrize("split_seed", [42, 7])
def test_splits_are_those_of_torchs_random_split(make: Make, files: Arrays, split_seed: int) -> None:
    generator = torch.Generator().manual_seed(split_seed)
    subsets = random_split(TensorDataset(torch.arange(TRAIN)), [TRAIN - VAL, VAL], generator)
    data = make(split_seed=split_seed)
    assert [places(data.loader(split), files[0]) for split in ("train", "val")] == [list(s.indices) for s in subsets]


def test_split_seed_is_42_unless_set(make: Make, files: Arrays) -> None:
    assert places(make().val_dataloader(), files[0]) == places(make(split_seed=42).val_dataloader(), files[0])


def test_splits_do_not_depend_on_the_runs_seed(make: Make, files: Arrays) -> None:
    torch.manual_seed(1)
    first = places(make(seed=1).val_dataloader(), files[0])
    torch.manual_seed(2)
    assert places(make(seed=2).val_dataloader(), files[0]) == first


def test_without_split_seed_the_last_images_are_held_out(make: Make, files: Arrays) -> None:
    data = make(split_seed=None)
    assert places(data.loader("train"), files[0]) == list(range(TRAIN - VAL))
    assert places(data.loader("val"), files[0]) == list(range(TRAIN - VAL, TRAIN))


@pytest.mark.parametrize("split_seed", [42, None])
def test_test_set_is_that_of_the_files(make: Make, files: Arrays, split_seed: int | None) -> None:
    batches = make(split_seed=split_seed).test_dataloader()
    assert places(batches, files[2]) == list(range(TEST))
    assert labels_of(batches) == files[3].tolist()


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_image_keeps_its_label(make: Make, files: Arrays, split: str) -> None:
    batches = make().loader(split)
    assert labels_of(batches) == files[1][places(batches, files[0])].tolist()


@pytest.mark.parametrize("val_size", [TRAIN, TRAIN + 1])
def test_validation_set_that_leaves_nothing_to_train_on_is_refused(make: Make, val_size: int) -> None:
    with pytest.raises(ConfigError, match=f"data.val_size={val_size} leaves nothing of 200 images"):
        make(val_size=val_size)


def test_validation_set_may_leave_a_single_image(make: Make) -> None:
    assert sum(make(val_size=TRAIN - 1).class_counts()["train"].values()) == 1


def test_the_validation_set_can_be_a_share(make: Make) -> None:
    counts = make(val_size=0.1).class_counts()
    assert (sum(counts["train"].values()), sum(counts["val"].values())) == (180, 20)


def test_images_are_the_first_of_their_split(make: Make, files: Arrays) -> None:
    data = make()
    images = data.images("train", 7)
    assert images.dtype == torch.uint8
    assert places([(images, images)], files[0]) == places(data.loader("train"), files[0])[:7]


def test_images_are_no_more_than_there_are(make: Make) -> None:
    data = make()
    assert len(data.images("train", 5000)) == TRAIN - VAL
    assert len(data.images("val")) == VAL


def test_indices_are_the_places_in_the_sets_own_files(make: Make, files: Arrays) -> None:
    data = make(classes=["cat", "bird"])
    for split, (images, labels) in {"train": files[:2], "val": files[:2], "test": files[2:]}.items():
        indices = data.indices(split)
        assert torch.equal(data.images(split), torch.from_numpy(images)[indices])
        assert torch.equal(data.labels(split), (torch.from_numpy(labels)[indices] == 2).long())


def test_the_first_batch_is_the_one_that_a_run_begins_with(make: Make) -> None:
    data, recorder = make(augment={"flip": "random", "translate": 2, "resolution": {16: 0.5}}), Recorder()
    bare_trainer(epochs=2).fit(recorder, datamodule=data)
    (images, labels), (seen_images, seen_labels) = data.first_batch(), recorder.epochs[0][0]
    assert images.shape == (64, 16, 16, 3)
    assert torch.equal(images, seen_images)
    assert torch.equal(labels, seen_labels)


# --- Classes


def test_all_classes_are_kept_by_default(make: Make) -> None:
    assert make().classes == list(cifar10_files.CLASSES)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_chosen_classes_are_kept_and_relabelled_in_their_order(make: Make, files: Arrays, split: str) -> None:
    images, labels = files[2:] if split == "test" else files[:2]
    every, chosen = make().loader(split), make(classes=["ship", "cat"]).loader(split)
    new_label = {cifar10_files.CLASSES.index("ship"): 0, cifar10_files.CLASSES.index("cat"): 1}
    kept = [place for place in places(every, images) if labels[place] in new_label]
    assert places(chosen, images) == kept
    assert labels_of(chosen) == [new_label[labels[place]] for place in kept]


def test_chosen_classes_are_the_classes(make: Make) -> None:
    assert make(classes=["ship", "cat"]).classes == ["ship", "cat"]


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (["cat", "boat"], "unknown class 'boat' - choose from airplane, automobile"),
        (["cat", "dog", "cat"], "a class stands twice"),
    ],
    ids=["unknown", "doubled"],
)
def test_classes_that_cannot_be_chosen_are_refused(make: Make, classes: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        make(classes=classes)
    assert "\n" not in str(error.value)


def test_split_that_the_chosen_classes_leave_empty_is_refused(make: Make, files: Arrays) -> None:
    first, last = (cifar10_files.CLASSES[files[1][row]] for row in (0, TRAIN - 1))
    other = next(name for name in cifar10_files.CLASSES if name not in (first, last))
    with pytest.raises(DataError, match="val split of 'cifar10' has no images"):
        make(split_seed=None, val_size=1, classes=[first, other])


def test_class_counts_are_those_of_the_labels(make: Make, files: Arrays) -> None:
    data = make()
    for split, labels in (("train", files[1]), ("val", files[1]), ("test", files[3])):
        rows = places(data.loader(split), files[2] if split == "test" else files[0])
        by_hand = {name: int((labels[rows] == label).sum()) for label, name in enumerate(cifar10_files.CLASSES)}
        assert data.class_counts()[split] == by_hand


def test_class_counts_are_of_the_chosen_classes_alone(make: Make, files: Arrays) -> None:
    cat, ship = (cifar10_files.CLASSES.index(name) for name in ("cat", "ship"))
    test_counts = np.bincount(files[3])
    counts = make(classes=["ship", "cat"]).class_counts()
    assert list(counts["test"].items()) == [("ship", test_counts[ship]), ("cat", test_counts[cat])]
    assert sum(counts[split]["cat"] for split in ("train", "val")) == np.bincount(files[1])[cat]


# --- Batches


def test_batches_are_bytes_and_int64_and_the_last_is_smaller(make: Make) -> None:
    (epoch,) = fitted(make(batch_size=16)).epochs
    assert [tuple(images.shape) for images, _ in epoch] == [(16, 32, 32, 3)] * 9 + [(6, 32, 32, 3)]
    assert [tuple(labels.shape) for _, labels in epoch] == [(16,)] * 9 + [(6,)]
    assert {(images.dtype, labels.dtype) for images, labels in epoch} == {(torch.uint8, torch.int64)}


def test_evaluation_batches_have_a_size_of_their_own(make: Make) -> None:
    data = make(batch_size=16, eval_batch_size=30)
    for batches, sizes in ((data.val_dataloader(), [30, 20]), (data.test_dataloader(), [30, 10])):
        assert [len(images) for images, _ in batches] == sizes
        assert {(images.dtype, labels.dtype) for images, labels in batches} == {(torch.uint8, torch.int64)}


def test_drop_last_leaves_the_smaller_batch_out(make: Make) -> None:
    data = make(batch_size=16, drop_last=True)
    assert len(data.train_dataloader()) == 9
    assert [len(images) for images, _ in fitted(data).epochs[0]] == [16] * 9


def test_drop_last_keeps_a_last_batch_that_is_full(make: Make) -> None:
    assert [len(images) for images, _ in fitted(make(batch_size=15, drop_last=True)).epochs[0]] == [15] * 10


def test_drop_last_does_not_touch_evaluation(make: Make) -> None:
    assert [len(images) for images, _ in make(batch_size=16, eval_batch_size=30, drop_last=True).val_dataloader()] == [
        30,
        20,
    ]


def test_drop_last_that_leaves_no_batch_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size=151 is larger than the 150 training images"):
        make(batch_size=151, drop_last=True)


def test_loader_is_in_a_fixed_order_and_not_augmented(make: Make, files: Arrays) -> None:
    loader = make(augment={"translate": 4}).loader("train")
    assert places(loader, files[0]) == places(loader, files[0]) == places(make().loader("train"), files[0])


@pytest.mark.parametrize(("workers", "share", "there"), [(0, 0.25, True), (0, 0.26, False), (2, 0.25, False)])
@in_a_child
def test_a_set_lies_on_the_gpu_where_it_fits_and_no_worker_fetches_it(
    make: Make, workers: int, share: float, there: bool
) -> None:
    data = make(num_workers=workers, batch_size=16)
    before = data.train_dataloader(), data.val_dataloader()
    batches = [next(iter(loader.batch_sampler)) for loader in before]  # type: ignore[arg-type]
    free = TRAIN * (32 * 32 * 3 + 8) / share
    with fake_gpu() as gpu, patch("torch.cuda.mem_get_info", return_value=(free, free)):
        data.trainer = trainer_on(gpu)
        for loader, batch in zip((data.train_dataloader(), data.val_dataloader()), batches, strict=True):
            assert loader.pin_memory is not there
            fetched = loader.dataset.__getitems__(batch)  # type: ignore[attr-defined]
            assert {whole.device.type for whole in fetched[:2]} == {"cuda" if there else "cpu"}


# --- Augmentation

AUGMENT: dict[str, Any] = {"flip": "random", "translate": 3, "cutout": 4}


def test_training_batches_are_what_augment_makes_of_them_for_seed_epoch_and_step(make: Make) -> None:
    data = make(batch_size=64, shuffle=False, augment=AUGMENT, seed=5)
    augment = Augment(**AUGMENT, seed=5)
    plain = [(images, labels) for images, labels in make(eval_batch_size=64).loader("train")]
    for epoch, batches in enumerate(fitted(data, epochs=2).epochs):
        assert same(batches, [augment(*batch, epoch=epoch, step=step) for step, batch in enumerate(plain)])


def test_alternating_flip_shows_the_other_side_in_the_next_epoch(make: Make, files: Arrays) -> None:
    batches = fitted(make(augment={"flip": "alternating"}), epochs=3).epochs
    row = {image.tobytes(): (place, False) for place, image in enumerate(files[0])}
    row |= {image[:, ::-1].tobytes(): (place, True) for place, image in enumerate(files[0])}
    first, second, third = (dict(row[x.numpy().tobytes()] for images, _ in epoch for x in images) for epoch in batches)
    assert set(first.values()) == {False, True}
    assert second == {place: not flipped for place, flipped in first.items()}
    assert third == first


def test_validation_and_test_batches_are_never_augmented(make: Make, files: Arrays) -> None:
    data = make(augment=AUGMENT)
    recorder, run = Recorder(), bare_trainer()
    run.fit(recorder, datamodule=data)
    assert places(recorder.evaluated, files[0]) == places(data.loader("val"), files[0])
    recorder.evaluated.clear()
    run.test(recorder, datamodule=data, verbose=False)
    assert places(recorder.evaluated, files[2]) == list(range(TEST))


def test_without_augmentation_training_images_are_those_of_the_files(make: Make, files: Arrays) -> None:
    (order,) = epochs(make(), files, count=1)  # a KeyError where an image is none of the files'
    assert len(order) == TRAIN - VAL


@pytest.mark.parametrize(("classes", "columns"), [(None, 10), (["ship", "cat", "dog"], 3)])
def test_mixup_makes_labels_probabilities_of_the_classes_in_use(
    make: Make, classes: list[str] | None, columns: int
) -> None:
    for images, labels in fitted(make(classes=classes, augment={"mixup": 1.0})).epochs[0]:
        assert images.dtype == torch.uint8
        assert labels.shape == (len(images), columns)
        assert labels.is_floating_point()
        torch.testing.assert_close(labels.sum(1), torch.ones(len(images)))


def test_progressive_resizing_follows_the_progress_of_the_run(make: Make) -> None:
    data = make(batch_size=50, augment={"resolution": {8: 0.25, 16: 0.5}})  # 3 batches an epoch: 12 steps in all
    sides = [images.shape[1] for epoch in fitted(data, epochs=4).epochs for images, _ in epoch]
    assert sides == [8] * 3 + [16] * 3 + [32] * 6


def test_progressive_resizing_follows_the_steps_where_they_end_the_run(make: Make) -> None:
    data, recorder = make(batch_size=50, augment={"resolution": {8: 0.25, 16: 0.5}}), Recorder()
    bare_trainer(9, max_steps=8).fit(recorder, datamodule=data)  # 3 batches an epoch
    sides = [images.shape[1] for epoch in recorder.epochs for images, _ in epoch]
    assert sides[:8] == [8] * 2 + [16] * 2 + [32] * 4  # this module counts no steps, so the run goes on


# --- Fingerprint and reading


class Altered(CIFAR10DataModule):
    """The tiny CIFAR-10 with one value changed, in one of the four arrays."""

    array = 0

    def read(self) -> Arrays:
        arrays = [array.copy() for array in super().read()]
        arrays[self.array].flat[5] ^= 1
        return arrays[0], arrays[1], arrays[2], arrays[3]


@pytest.mark.parametrize("array", range(4), ids=["train_pixel", "train_label", "test_pixel", "test_label"])
def test_fingerprint_changes_with_a_single_value(make: Make, tiny_cifar10: Path, array: int) -> None:
    data = Altered(root=str(tiny_cifar10), verify=False, val_size=VAL)
    data.array = array
    data.setup()
    assert data.fingerprint != make().fingerprint


def test_fingerprint_is_of_the_files_alone(make: Make) -> None:
    other = make(val_size=20, split_seed=1, seed=3, batch_size=5, classes=["cat", "dog"], shuffle=False)
    assert len(other.fingerprint) == 64
    assert other.fingerprint == make().fingerprint


def test_images_are_read_once(tiny_cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CIFAR10DataModule(root=str(tiny_cifar10), verify=False, val_size=VAL)
    read = Mock(return_value=data.read())
    monkeypatch.setattr(data, "read", read)
    data.setup("fit")
    data.setup("test")
    read.assert_called_once()
