"""The turns of the training loop, some batches each, and the images that they fetch.

Shape suffixes: N images of a set, T of a turn, B of a batch, H height, W width, C channels.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

TURNS = 10  # of the training loop in an epoch: Lightning takes 0.9 ms a turn on a CPU, a small network's step 1 ms
TURNS_OF_SEVERAL = 50  # where several processes train on CPUs: a signal ends a turn of theirs, not a step


@dataclasses.dataclass
class Place:
    """What a run has to know of its epoch to go on amid it; None in a checkpoint that is older than this.

    first_step: the optimizer steps before the epoch. batches_a_turn: where its turns end.
    """

    first_step: int | None = None
    batches_a_turn: int | None = None


class Images(Dataset):
    """A set's images and labels; fetches a whole batch of them by one indexing: [B, H, W, 3] and labels [B]."""

    def __init__(self, images_NHWC: Tensor, labels_N: Tensor) -> None:
        # Rows of bytes: index_select copies each image at once, 20 times as fast as indexing [N, H, W, 3].
        self.rows = images_NHWC.reshape(len(images_NHWC), -1)
        self.shape = images_NHWC.shape[1:]
        self.labels = labels_N

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices_B: Tensor) -> tuple[Any, ...]:
        indices_B = indices_B.to(self.rows.device, non_blocking=True)
        return self.rows.index_select(0, indices_B).view(-1, *self.shape), self.labels.index_select(0, indices_B)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.labels.nbytes

    def move(self, device: torch.device) -> None:
        """Brings all images and labels to a device, where batches are then fetched."""
        self.rows, self.labels = self.rows.to(device), self.labels.to(device)


class TrainImages(Dataset):
    """Fetches a turn's images and labels, followed by what `Turns` says of it: its indices, epoch and first batch."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, turn: tuple[np.ndarray, int, int]) -> tuple[Any, ...]:
        indices_T = torch.from_numpy(turn[0]).to(self.images.rows.device, non_blocking=True)
        return (*self.images.__getitems__(indices_T), indices_T, *turn[1:])


class Turns(Sampler[tuple[np.ndarray, int, int]]):
    """The turns of the training loop: (indices of some batches, epoch, number of the first batch in its epoch).

    An epoch's order is a function of `seed` and the epoch alone (seed None: as given), whatever the turns. Where
    an interrupted epoch is resumed, it goes on with the first batch that was not trained on.
    batches: that an epoch trains on. all_batches: of the whole set, of whose turns Lightning may be asked for a share;
        a turn is then as short as can be.
    place: of the run, which is kept up to date.
    """

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        batches: int,
        all_batches: int,
        seed: int | None,
        trainer: L.Trainer | None,
        place: Place,
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self.trainer = trainer
        self.place = place
        self.accumulate = batches_of_step(trainer)
        limit = trainer.limit_train_batches if trainer else None
        share = isinstance(limit, float) and limit < 1
        several = trainer is not None and trainer.world_size > 1 and trainer.strategy.root_device.type != "cuda"
        turns = TURNS_OF_SEVERAL if several else TURNS
        usual = self.accumulate * (1 if share else math.ceil(batches / turns / self.accumulate))
        # An epoch that another number of processes has begun, in other turns, goes on in those.
        self.batches_a_turn = place.batches_a_turn if self._is_amid and place.batches_a_turn else usual
        place.batches_a_turn = self.batches_a_turn
        self.turns = math.ceil(batches / self.batches_a_turn)
        self.length = math.ceil(all_batches / self.batches_a_turn) if share else self.turns

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[np.ndarray, int, int]]:
        epoch, turn, first = self._position()
        order = self.indices.numpy()  # a tensor would reach a worker by a file that its process must still hold open
        if self.seed is not None:
            order = order[np.random.default_rng((self.seed, epoch)).permutation(len(order))]
        for end in range(turn + 1, self.turns + 1):
            last = min(end * self.batches_a_turn, self.batches)
            yield order[first * self.batch_size : last * self.batch_size], epoch, first
            first = last

    def _position(self) -> tuple[int, int, int]:
        """The epoch, and its turns and batches that were trained on before; a turn that was cut short counts."""
        if self.trainer is None:
            return 0, 0, 0
        fit = self.trainer.fit_loop
        # These counters are Lightning's own: the tests of resuming guard them against an upgrade.
        epoch: int = fit.epoch_progress.current.processed  # type: ignore[attr-defined]
        if not self._is_amid:
            self.place.first_step = self.trainer.global_step
            return epoch + (fit.restarting or fit.epoch_loop.restarting), 0, 0
        if self.place.first_step is None:
            self.place.first_step = epoch * math.ceil(self.batches / self.accumulate)
        turn: int = fit.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        return epoch, turn, (self.trainer.global_step - self.place.first_step) * self.accumulate

    @property
    def _is_amid(self) -> bool:
        """Whether the run goes on amid an epoch."""
        if self.trainer is None:
            return False
        fit = self.trainer.fit_loop
        restarting: bool = fit.restarting or fit.epoch_loop.restarting
        return restarting and not fit.epoch_loop.batch_progress.is_last_batch


def limited(batches: int, limit: float | None, turn: int = 1) -> int:
    """The batches that a limit of Lightning's leaves of an epoch's: so many, or (a float) a share of its turns.

    turn: the batches of a turn, where a share is asked for.
    """
    if isinstance(limit, float):
        return min(batches, int(math.ceil(batches / turn) * limit) * turn)
    return batches if limit is None else min(batches, limit)


def batches_of_step(trainer: L.Trainer | None) -> int:
    """The batches of an optimizer step."""
    batches: int = getattr(trainer and trainer.lightning_module, "accumulate_grad_batches", 1)
    return batches
