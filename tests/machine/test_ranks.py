"""A training that several processes share is the training of one: the same figures, and each image once."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from litcifar import training
from litcifar.config import TrainConfig
from litcifar.data import turns
from litcifar.errors import Interrupted
from litcifar.machine import processes, ranks
from litcifar.models import ImageClassifier
from litcifar.run_folder import read_metrics
from tests.conftest import Compose
from tests.test_training import rows

FIGURES = ("train/acc", "train/loss", "val/acc", "val/loss")
# The differences are those of sums in another order; biases before batch norm would add noise, scaled up by Adam.
CNN = ("model=conv_pool", "model.widths=[4,8]", "data.batch_size=24", "data.eval_batch_size=30", "test=false")
NORM = ("model.norm=conv", "model.conv_bias=false")
SUMS = ("model.loss_reduction=sum", "model.l1=1e-3", "optim=sgd", "optim.lr=1e-4")
PARTS = ("augment.mixup=0.2", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1")
ENDING = ("optim=sgd", "scheduler=triangular", "model.stem=whitened", "optim.groups={stem:{until:0.3}}")
RECIPES = {
    "an MLP, tested": ("model=mlp", "model.hidden=[16]", "optim=sgd", "figures=true", "logger=tensorboard"),
    "batch norm": (*CNN, *NORM, "augment=standard", "scheduler=triangular"),
    "sums": (*CNN, *SUMS),
    "mixup and parts of steps": (*CNN, *PARTS),
    "averages": (*CNN, *NORM, "ema=0.9", "lookahead=3", "optim=muon", "model.stem=whitened"),
    "a stem that ends, clipped": (*CNN, *NORM, *ENDING, "trainer.gradient_clip_val=0.1"),
}
WHOLE, STOPPED, SEEN = "whole", "stopped", "seen"  # folders


def train_all(jobs: list[tuple[TrainConfig, Path]], stopped: tuple[TrainConfig, Path] | None = None) -> None:
    for config, folder in jobs:
        training._train(config, folder, None, None)
    if stopped:
        train_and_stop(*stopped)


def train_and_stop(config: TrainConfig, root: Path) -> None:
    """Trains; again, and stopped by a signal to one process; and on. Notes the images that each process has seen."""
    seen: list[bytes] = []
    loss, steps = ImageClassifier.loss, 0
    turns.TURNS_OF_SEVERAL = 4

    def noted(self: ImageClassifier, images_BHWC: torch.Tensor, *others: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        seen.extend(image.numpy().tobytes() for image in images_BHWC)
        if folder.name == STOPPED and steps == 14 and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, images_BHWC, *others)

    ImageClassifier.loss = noted  # type: ignore[assignment,method-assign]  # in a process of its own
    folder = root / WHOLE
    training._train(config, folder, None, None)
    torch.save(seen, root / f"{SEEN} {ranks.rank()}")
    folder, steps = root / STOPPED, 0
    with pytest.raises(Interrupted, match="SIGTERM in epoch 2 after step 16"):
        training._train(config, folder, None, None)
    torch.distributed.destroy_process_group()
    training._train(config, folder, folder / "last.ckpt", None)


@pytest.fixture(scope="module")
def trained(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of each recipe and number of processes, and those of `train_and_stop`."""
    root = tmp_path_factory.mktemp("ranks")
    for count, strategy in ((1, "default"), (2, "ddp")):
        jobs = [(compose(*RECIPES[name], f"trainer={strategy}"), root / f"{name} {count}") for name in RECIPES]
        if count == 1:
            train_all(jobs)
        else:
            config = compose("model=mlp", "model.hidden=[8]", "model.dropout=0.3", "test=false", "trainer=ddp")
            processes.run(train_all, count, jobs, (config, root))
    return root


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_reach_the_figures_of_one(trained: Path, name: str) -> None:
    one, two = (rows(trained / f"{name} {count}") for count in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for ours, theirs in zip(one, two, strict=True):
        for figure in FIGURES:
            assert float(ours[figure]) == pytest.approx(float(theirs[figure]), abs=1e-3 if "loss" in figure else 1e-7)


def test_one_process_of_several_writes_and_its_checkpoint_is_as_ever(trained: Path) -> None:
    one, two = (trained / f"an MLP, tested {count}" for count in (1, 2))
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    assert len(list((two / "tensorboard").iterdir())) == len(list((one / "tensorboard").iterdir()))
    metrics = [read_metrics(folder) for folder in (one, two)]
    assert metrics[0] is not None
    assert metrics[1] is not None
    assert metrics[0]["test/acc"] == metrics[1]["test/acc"]
    assert metrics[1]["device"].startswith("2 x CPU")
    states = [torch.load(folder / "best.ckpt", weights_only=True)["state_dict"] for folder in (one, two)]
    assert states[0].keys() == states[1].keys()


def test_each_image_is_trained_on_once_an_epoch_by_one_of_them(trained: Path) -> None:
    parts = [torch.load(trained / f"{SEEN} {rank}", weights_only=True) for rank in (0, 1)]
    halves = [[set(part[: len(part) // 2]), set(part[len(part) // 2 :])] for part in parts]
    for first, second in zip(*halves, strict=True):
        assert first.isdisjoint(second)
        assert len(first | second) == 150


def test_a_signal_to_one_of_them_stops_all_at_the_same_step_and_they_go_on_to_the_bit(trained: Path) -> None:
    whole, stopped = (torch.load(trained / name / "last.ckpt", weights_only=True) for name in (WHOLE, STOPPED))
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, stopped["state_dict"][name]), name
    for ours, theirs in zip(rows(trained / WHOLE), rows(trained / STOPPED), strict=True):
        for figure in FIGURES:  # the loss is the mean of the same numbers in another order
            assert float(ours[figure]) == pytest.approx(float(theirs[figure]), abs=1e-6)


def test_what_two_have_trained_one_trains_on(compose: Compose, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / "an MLP, tested 2", tmp_path / "run")
    config = compose(f"resume={folder}", "trainer=default", "trainer.max_epochs=3")
    training.train(config, folder, changed=("resume", "trainer.max_epochs", "trainer.devices", "trainer.strategy"))
    whole = tmp_path / "whole"
    training.train(compose(*RECIPES["an MLP, tested"], "trainer.max_epochs=3"), whole)
    for ours, theirs in zip(rows(folder), rows(whole), strict=True):
        for figure in FIGURES:
            assert float(ours[figure]) == pytest.approx(float(theirs[figure]), abs=1e-3)


def test_where_ddp_finds_one_device_it_is_a_run_of_one_process(compose: Compose, tmp_path: Path) -> None:
    folders = [tmp_path / strategy for strategy in ("default", "ddp")]
    for folder in folders:
        training.train(compose("model=mlp", f"trainer={folder.name}", "trainer.devices=1"), folder)
        assert not torch.distributed.is_initialized()
    one, ddp = ([[row[figure] for figure in FIGURES] for row in rows(folder)] for folder in folders)
    assert one == ddp
