"""The turns of the training loop: in what order an epoch's images come, and how many at a time."""

import math
from typing import Any

import pytest
import torch

from litcifar.data.datamodule import Arrays
from tests.conftest import bare_trainer
from tests.data.conftest import Make, Recorder, epochs, fitted, places, same

# Lightning compares the workers with the processors, but the images are in memory. Workers are forked by PyTorch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

# --- The order of an epoch


def test_every_training_image_comes_once_an_epoch(make: Make, files: Arrays) -> None:
    data = make(batch_size=16)
    training = sorted(places(data.loader("train"), files[0]))
    assert [sorted(epoch) for epoch in epochs(data, files)] == [training] * 3


def test_every_epoch_has_an_order_of_its_own(make: Make, files: Arrays) -> None:
    first, second, third = epochs(make(), files)
    assert first != second != third != first
    assert places(make().loader("train"), files[0]) not in (first, second, third)


def test_order_is_a_function_of_seed_and_epoch(make: Make, files: Arrays) -> None:
    torch.manual_seed(1)
    first = epochs(make(seed=5), files)
    torch.manual_seed(2)
    assert epochs(make(seed=5), files, count=2) == first[:2]


def test_another_seed_gives_another_order(make: Make, files: Arrays) -> None:
    assert epochs(make(seed=5), files, count=1) != epochs(make(seed=6), files, count=1)


def test_without_shuffle_every_epoch_has_the_splits_order(make: Make, files: Arrays) -> None:
    data = make(shuffle=False)
    assert epochs(data, files) == [places(data.loader("train"), files[0])] * 3


def test_batches_draw_no_global_random_numbers(make: Make) -> None:
    data = make()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert len(list(data.train_dataloader())) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_change_nothing(make: Make) -> None:
    options: dict[str, Any] = {"batch_size": 16, "augment": {"flip": "alternating", "translate": 2}}
    alone, helped = (fitted(make(num_workers=workers, **options), epochs=2).epochs for workers in (0, 2))
    assert same(alone[0], helped[0])
    assert same(alone[1], helped[1])


# --- Turns of the training loop


@pytest.mark.parametrize(("turns", "lengths"), [(50, [1] * 10), (10, [1] * 10), (4, [3, 3, 3, 1]), (1, [10])])
def test_a_turn_is_a_share_of_the_epochs_batches(
    make: Make, monkeypatch: pytest.MonkeyPatch, turns: int, lengths: list[int]
) -> None:
    monkeypatch.setattr("litcifar.data.turns.TURNS", turns)
    data = make(batch_size=16)
    loader = data.train_dataloader()
    assert len(loader) == len(lengths)
    assert data.train_batches == 10
    assert [math.ceil(len(turn[1]) / 16) for turn in loader] == lengths


def test_the_number_of_turns_changes_no_batch(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"batch_size": 16, "augment": {"flip": "random", "translate": 3, "cutout": 4}}
    one_by_one = fitted(make(**options), epochs=2).epochs
    monkeypatch.setattr("litcifar.data.turns.TURNS", 3)
    turned = fitted(make(**options), epochs=2).epochs
    assert same(turned[0], one_by_one[0])
    assert same(turned[1], one_by_one[1])


def test_a_number_of_batches_can_be_asked_for_whatever_the_turns(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litcifar.data.turns.TURNS", 3)
    recorder = Recorder()
    bare_trainer(1, limit_train_batches=5).fit(recorder, datamodule=make(batch_size=16))
    assert len(recorder.epochs[0]) == 5


def test_a_share_of_the_batches_can_be_asked_for_whatever_the_turns(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litcifar.data.turns.TURNS", 3)
    recorder = Recorder()
    bare_trainer(1, limit_train_batches=0.5).fit(recorder, datamodule=make(batch_size=16))
    assert len(recorder.epochs[0]) == 5


def test_overfitting_repeats_the_same_batches(make: Make, files: Arrays) -> None:
    recorder = Recorder()
    bare_trainer(3, overfit_batches=1).fit(recorder, datamodule=make(batch_size=16))
    first, second, third = (places(epoch, files[0]) for epoch in recorder.epochs)
    assert first == second == third


def test_the_first_batch_of_a_run_that_overfits_stays_its_first_batch(make: Make) -> None:
    data, recorder = make(batch_size=16), Recorder()
    bare_trainer(1, overfit_batches=1).fit(recorder, datamodule=data)
    data.trainer = bare_trainer(1)  # as of the evaluation at the run's end
    assert torch.equal(data.first_batch()[0], recorder.epochs[0][0][0])
