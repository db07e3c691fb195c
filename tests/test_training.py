"""Training: what a run leaves behind, and that a resumed run is the one that was never stopped."""

import csv
import io
import json
import os
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from litcifar import training
from litcifar.config import TrainConfig, plain
from litcifar.data import ShapesDataModule
from litcifar.data.turns import Turns
from litcifar.errors import ConfigError, DataError, DivergedError, Interrupted
from litcifar.evaluation import evaluate
from litcifar.loop import history
from litcifar.models import ImageClassifier
from litcifar.run_folder import read_metrics
from tests.conftest import Compose
from tests.test_evaluation import config as evaluation

CNN = ("model.widths=[4,8]", "model.norm=conv", "model.dropout=0.2", "augment=standard", "scheduler=triangular")
DROPOUT = ("model=mlp", "model.hidden=[16]", "model.dropout=0.2")
ACCUMULATED = (*DROPOUT, "trainer.accumulate_grad_batches=2")
DOUBLE = (*DROPOUT, "trainer.precision=64-true")
MLP = (*DROPOUT, "ema=0.9", "augment=standard")
MUON = (*CNN, "optim=muon", "optim.groups.hidden.lr=0.24")
LOOKAHEAD = (*CNN, "model.stem=whitened", "model.global_pool=max", "lookahead=4", "augment.resolution={16:0.5}")

# They end the run amid its third epoch, which has no validation to judge by.
MAX_STEPS = ("model=mlp", "augment=standard", "early_stopping=1", "scheduler=plateau", "trainer.max_steps=24")

RECIPES = {
    "max_steps": MAX_STEPS,
    "cnn": CNN,
    "mlp_ema": MLP,
    "accumulated": ACCUMULATED,
    "double": DOUBLE,
    "lookahead": LOOKAHEAD,
    "muon": MUON,
}


def weights(run_dir: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(run_dir / name, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_checkpoints_metrics_and_figures(compose: Compose, tmp_path: Path) -> None:
    config = compose("model=mlp", "seed=3", "logger=tensorboard", "figures=true")
    metrics = training.train(config, tmp_path)
    files = {"best.ckpt", "last.ckpt", "metrics.csv", "metrics.json", "figures", "report.html", "tensorboard"}
    assert {p.name for p in tmp_path.iterdir()} == files
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert {"curves.png", "confusion_matrix.png"} < {p.name for p in (tmp_path / "figures").iterdir()}
    assert not [p for p in tmp_path.rglob("*") if "=" in p.name]
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    promised = (
        "name seed data val/acc val/loss test/acc test/loss best_epoch epochs params train_seconds images_per_second "
        "device precision versions"
    )
    assert metrics.keys() >= set(promised.split())
    assert metrics["name"] == "mlp"
    assert metrics["seed"] == 3
    assert metrics["data"] == "cifar10"
    assert metrics["params"] == 3072 * 512 + 512 + 512 * 10 + 10
    assert metrics["epochs"] == 2
    assert metrics["precision"] == "32-true"


def test_history_has_one_row_an_epoch_and_best_is_its_highest_validation_accuracy(
    compose: Compose, tmp_path: Path
) -> None:
    metrics = training.train(compose("model=mlp", "trainer.max_epochs=4"), tmp_path)
    history = rows(tmp_path)
    assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4]
    assert [int(row["step"]) for row in history] == [10, 20, 30, 40]
    best = max(history, key=lambda row: float(row["val/acc"]))
    assert metrics["best_epoch"] == int(best["epoch"]) == weights(tmp_path, "best.ckpt")["epoch"] + 1
    assert metrics["val/acc"] == float(best["val/acc"])
    assert all(float(row["images_per_second"]) > 0 for row in history)


def test_training_learns_what_there_is_to_learn(compose: Compose, tmp_path: Path) -> None:
    metrics = training.train(compose("model=mlp", "model.hidden=[64]", "trainer.max_epochs=15"), tmp_path)
    assert metrics["test/acc"] > 0.6


def test_the_same_seed_gives_the_same_run_and_another_seed_another(compose: Compose, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(len(name) + seed)  # whatever was drawn before
        training.train(compose(*CNN, f"seed={seed}"), tmp_path / name)
    assert same(weights(tmp_path / "a")["state_dict"], weights(tmp_path / "b")["state_dict"])
    assert not same(weights(tmp_path / "a")["state_dict"], weights(tmp_path / "c")["state_dict"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on two cores
def test_the_number_of_workers_changes_nothing(compose: Compose, tmp_path: Path) -> None:
    for workers in (0, 1, 2, 4):
        training.train(compose(*CNN, "test=false", f"data.num_workers={workers}"), tmp_path / str(workers))
    assert all(same(result(tmp_path / str(workers)), result(tmp_path / "0")) for workers in (1, 2, 4))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_number_of_steps_in_a_turn_changes_nothing(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: tuple[str, ...], precision: str
) -> None:
    config = compose(*recipe, f"trainer.precision={precision}", "test=false", "trainer.gradient_clip_val=0.5")
    for turns in (50, 3):
        monkeypatch.setattr("litcifar.data.turns.TURNS", turns)
        training.train(config, tmp_path / str(turns))
    one_by_one, many = (weights(tmp_path / str(turns)) for turns in (50, 3))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(one_by_one[part], many[part]), part


def test_max_steps_is_kept_to_the_step(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litcifar.data.turns.TURNS", 3)
    training.train(compose("model=mlp", "trainer.max_steps=12"), tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "12"]


def test_the_progress_bar_goes_on_with_every_step_of_a_turn(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, int, int]] = []
    monkeypatch.setattr("litcifar.data.turns.TURNS", 3)
    monkeypatch.setattr(history, "BAR_SECONDS", 0)
    monkeypatch.setattr(training, "make_console", lambda: Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr(
        history.Progress,
        "update",
        lambda bar, task, **given: shown.append((given["description"], given["completed"], given["total"])),
    )
    training.train(compose("model=mlp", "trainer.max_epochs=2", "test=false"), tmp_path)
    assert shown == [(f"epoch {epoch}/2", step, 10) for epoch in (1, 2) for step in range(1, 10)]


def test_the_progress_bar_says_what_is_known_of_the_epoch_before(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[tuple[str, ...]] = []
    monkeypatch.setattr(history, "BAR_SECONDS", 0)
    monkeypatch.setattr(training, "make_console", lambda: Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr(
        history.Progress,
        "update",
        lambda bar, task, **given: known.append(
            tuple(name for name in ("train", "val") if f"{name}/acc" in given["rate"])
        ),
    )
    every_second = ("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3", "test=false")
    training.train(compose("model=mlp", *every_second), tmp_path)
    assert list(dict.fromkeys(known)) == [(), ("train",), ("train", "val")]


def test_a_share_of_an_epoch_is_the_run_that_the_same_number_of_batches_is(compose: Compose, tmp_path: Path) -> None:
    for limit in ("0.55", "5"):  # of 10 batches; the schedule ends with the run, and a stopped run goes on in place
        config = compose(*RECIPES["lookahead"], "test=false", f"trainer.limit_train_batches={limit}")
        training.train(config, tmp_path / limit)
        stop(config, tmp_path / f"{limit} stopped", 8)
        training.train(config, tmp_path / f"{limit} stopped")
    expected = result(tmp_path / "5")
    assert expected["last.ckpt"]["global_step"] == 5 * config.trainer.max_epochs
    for folder in ("5 stopped", "0.55", "0.55 stopped"):
        assert same(result(tmp_path / folder), expected), folder


def test_a_run_that_overfits_some_batches_is_validated_on_all_images(compose: Compose, tmp_path: Path) -> None:
    some = ("trainer.overfit_batches=1", "data.eval_batch_size=10", "test=false", "tta=mirror")
    metrics = training.train(compose("model=mlp", *some), tmp_path)  # with tta it is evaluated once more
    (answer,) = evaluate(evaluation(tmp_path, "split=val", "tta=none"))
    assert len(answer.labels_N) == 50
    assert (answer.acc, answer.loss) == (metrics["val/acc"], metrics["val/loss"])


def test_a_share_of_batches_that_leaves_none_is_named(compose: Compose, tmp_path: Path) -> None:
    for key in ("overfit_batches", "limit_train_batches", "limit_val_batches"):
        with pytest.raises(ConfigError, match=rf"^trainer\.{key}=0\.0001 leaves no batch"):
            training.train(compose("model=mlp", f"trainer.{key}=0.0001"), tmp_path)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.float32), ("64-true", torch.float64)])
def test_averages_of_weights_of_another_precision(
    compose: Compose, tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    config = compose("model=mlp", "ema=0.9", f"trainer.precision={precision}", "trainer.max_epochs=4")
    metrics = training.train(config, tmp_path)
    saved = weights(tmp_path)
    average, last = (saved[key]["net.1.weight"] for key in ("state_dict", "current_model_state"))
    assert (average.dtype, last.dtype) == (
        dtype,
        getattr(torch, {"bf16-true": "bfloat16", "64-true": "float64"}[precision]),
    )
    assert not torch.equal(average.to(last.dtype), last)
    (result_of_best,) = evaluate(evaluation(tmp_path, "split=val"))
    assert (result_of_best.acc, result_of_best.loss) == (metrics["val/acc"], metrics["val/loss"])


def test_the_learning_rate_that_is_told_is_of_a_group_that_trains_to_the_end(compose: Compose, tmp_path: Path) -> None:
    groups = "optim.groups={stem:{until:0.3},norm:{lr:0.02},head:{lr:0.02},hidden:{lr:0.02}}"
    stem = ("model.stem=whitened", "model.widths=[4]", "model.norm=conv", "model.conv_bias=false")
    training.train(compose("model=conv_pool", *stem, "scheduler=triangular", groups), tmp_path)
    assert [float(row["lr"]) > 0 for row in rows(tmp_path)] == [True, True]


def test_the_time_left_is_that_of_max_steps(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(compose("model=mlp", "trainer.max_epochs=100000", "trainer.max_steps=20"), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert all(line.endswith("0:00 left") for line in lines)


def test_test_set_is_left_alone_unless_asked_for(compose: Compose, tmp_path: Path) -> None:
    metrics = training.train(compose("model=mlp", "test=false"), tmp_path)
    assert metrics["test/acc"] is None
    assert metrics["test/loss"] is None


def test_test_time_augmentation_is_reported_beside_the_plain_figures(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = training.train(compose("model=mlp"), tmp_path / "plain")
    assert " with " not in capsys.readouterr().out.partition("best epoch")[2]
    metrics = training.train(compose("model=mlp", "tta=mirror_translate"), tmp_path / "tta")
    assert (plain["tta"], plain["val/tta_acc"], plain["test/tta_acc"]) == ("none", None, None)
    assert metrics["tta"] == "mirror_translate"
    for key in ("val/acc", "val/loss", "test/acc", "test/loss", "best_epoch"):
        assert metrics[key] == plain[key]
    assert same(weights(tmp_path / "tta")["state_dict"], weights(tmp_path / "plain")["state_dict"])
    val, val_tta, test, test_tta = (
        f"{100 * metrics[key]:.2f} %" for key in ("val/acc", "val/tta_acc", "test/acc", "test/tta_acc")
    )
    words = f"val {val} ({val_tta} with mirror_translate), test {test} ({test_tta} with mirror_translate)"
    assert words in " ".join(capsys.readouterr().out.split())


def test_without_a_test_the_validation_set_alone_is_augmented(compose: Compose, tmp_path: Path) -> None:
    metrics = training.train(compose("model=mlp", "tta=mirror", "test=false"), tmp_path)
    assert 0 <= metrics["val/tta_acc"] <= 1
    assert metrics["test/tta_acc"] is None


class StopAfter(Callback):
    """Sends this process a signal before an optimizer step, amid a turn of the loop, or in the validation after it."""

    def __init__(self, step: int, in_validation: bool, number: int) -> None:
        self.step = step
        self.in_validation = in_validation
        self.number = number

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.in_validation and trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.in_validation and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Uninterrupted:
    """Runs of three epochs that nothing has stopped, one of each recipe: their configurations and folders."""

    def __init__(self, compose: Compose, folder: Path) -> None:
        self.compose = compose
        self.folder = folder

    def __call__(self, recipe: str) -> tuple[TrainConfig, Path]:
        config = self.compose(*RECIPES[recipe], "trainer.max_epochs=3")
        if not (self.folder / recipe).exists():
            training.train(config, self.folder / recipe)
        return config, self.folder / recipe


@pytest.fixture
def few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litcifar.data.turns.TURNS", 4)  # of 3 batches, or 4 where two make a step


@pytest.fixture(scope="module")
def uninterrupted(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return Uninterrupted(compose, tmp_path_factory.mktemp("uninterrupted"))


def stop(
    config: TrainConfig,
    folder: Path,
    step: int,
    in_validation: bool = False,
    number: int = signal.SIGTERM,
    changed: tuple[str, ...] = (),
) -> Interrupted:
    """Trains, and stops at an optimizer step."""
    trainer = training.L.Trainer

    def with_signal(*args: Any, callbacks: list[Callback], **kwargs: Any) -> L.Trainer:
        return trainer(*args, callbacks=[StopAfter(step, in_validation, number), *callbacks], **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.L, "Trainer", with_signal)
        with pytest.raises(Interrupted) as interrupted:
            training.train(config, folder, changed)
    return interrupted.value


def test_a_job_that_is_to_be_queued_again_is_saved_first(
    uninterrupted: Uninterrupted, few_turns: None, tmp_path: Path
) -> None:
    """submitit's handler of SIGUSR2 ends the process, by SystemExit."""
    config, whole = uninterrupted("cnn")
    queued: list[int] = []

    def queue_again(number: int, frame: object) -> None:
        queued.append(weights(tmp_path)["global_step"])
        raise SystemExit(77)

    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        with pytest.raises(SystemExit, match="77"):
            stop(config, tmp_path, 14, number=signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert queued == [14]
    training.train(config, tmp_path)
    assert same(result(tmp_path), result(whole))


def result(folder: Path) -> dict[str, Any]:
    """All of a run but what its times say."""
    parts = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    found = {name: {part: weights(folder, name).get(part) for part in parts} for name in ("best.ckpt", "last.ckpt")}
    times = ("seconds", "step_seconds", "images_per_second")
    history = [{key: value for key, value in row.items() if key not in times} for row in rows(folder)]
    metrics = read_metrics(folder) or {}
    figures = ("val/acc", "val/loss", "test/acc", "test/loss", "best_epoch", "epochs")
    return {**found, "history": history, "metrics": {key: metrics.get(key) for key in figures}}


# Optimizer steps, in a training or a validation step; workers.
STOPS = [(3, False, 0), (10, False, 0), (14, False, 0), (10, True, 0)]
MORE = [
    *[("cnn", 30, True, 0), ("mlp_ema", 30, True, 0), ("accumulated", 15, True, 0)],
    *[("max_steps", 22, False, 0), ("max_steps", 24, False, 0)],
    *[("muon", 3, False, 2), ("mlp_ema", 10, True, 2), ("lookahead", 14, False, 2)],
]


@pytest.mark.parametrize(
    ("recipe", "step", "in_validation", "workers"), [(r, *s) for r in RECIPES for s in STOPS] + MORE
)
def test_interrupted_and_resumed_equals_uninterrupted(
    uninterrupted: Uninterrupted,
    few_turns: None,
    tmp_path: Path,
    recipe: str,
    step: int,
    in_validation: bool,
    workers: int,
) -> None:
    config, whole = uninterrupted(recipe)
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": workers})})
    interrupted = stop(config, tmp_path, step, in_validation)
    assert interrupted.exit_code == 143
    assert read_metrics(tmp_path) is None
    training.train(config, tmp_path)
    assert same(result(tmp_path), result(whole))


@pytest.mark.parametrize(
    ("owner", "mechanism", "without"),
    [
        (Turns, "_position", lambda turns: (turns.trainer.fit_loop.epoch_progress.current.processed, 0, 0)),
        (ImageClassifier, "_draw_anew", lambda model, seed: None),
        (ImageClassifier, "on_save_checkpoint", lambda model, checkpoint: checkpoint.update(litcifar=model.provenance)),
    ],
)
def test_without_what_makes_it_so_a_resumed_run_is_another(
    compose: Compose,
    few_turns: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    mechanism: str,
    without: Callable[..., Any],
) -> None:
    """The comparison above can fail: where an epoch begins anew, dropout goes on, or half an epoch is forgotten."""
    monkeypatch.setattr(owner, mechanism, without)
    config = compose(*CNN, "trainer.max_epochs=2", "test=false")
    training.train(config, tmp_path / "whole")
    stop(config, tmp_path / "stopped", 3)
    training.train(config, tmp_path / "stopped")
    assert not same(result(tmp_path / "stopped"), result(tmp_path / "whole"))


def test_every_image_is_trained_on_once_an_epoch_whatever_interrupts_it(
    compose: Compose, few_turns: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    loss = ImageClassifier.loss

    def noted(self: ImageClassifier, images_BHWC: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.extend(image.numpy().tobytes() for image in images_BHWC)
        return loss(self, images_BHWC, labels)

    monkeypatch.setattr(ImageClassifier, "loss", noted)
    config = compose("model=mlp", "model.hidden=[8]", "trainer.max_epochs=3", "test=false")
    training.train(config, tmp_path / "whole")
    in_order, seen[:] = seen.copy(), []
    for step in (1, 5, 6, 10, 17, 29):
        stop(config, tmp_path / "stopped", step)
    training.train(config, tmp_path / "stopped")
    assert seen == in_order
    assert [len(set(seen[start : start + 150])) for start in (0, 150, 300)] == [150, 150, 150]
    assert seen[:150] != seen[150:300]


def test_early_stopping_and_gradient_clipping_reach_the_trainer(compose: Compose, tmp_path: Path) -> None:
    overrides = ("model=mlp", "early_stopping=1", "optim.lr=1e-12", "trainer.gradient_clip_val=0.5")
    metrics = training.train(compose(*overrides, "trainer.max_epochs=9"), tmp_path)
    assert metrics["epochs"] == 2  # the accuracy cannot rise


def test_an_epoch_that_max_steps_cuts_is_judged_by_no_validation(compose: Compose, tmp_path: Path) -> None:
    training.train(compose(*MAX_STEPS, "optim.lr=1e-12", "trainer.max_steps=12"), tmp_path)
    last = weights(tmp_path)
    (stopping,) = (state for name, state in last["callbacks"].items() if name.startswith("EarlyStopping"))
    assert (stopping["wait_count"], last["lr_schedulers"][0]["last_epoch"]) == (0, 1)


def test_early_stopping_before_min_epochs_only_counts() -> None:
    def epoch(number: int, accuracy: float) -> bool:
        trainer.current_epoch = number - 1
        trainer.callback_metrics = {"val/acc": torch.tensor(accuracy)}
        stopping._run_early_stopping_check(trainer)
        return bool(trainer.should_stop)

    trainer: Any = SimpleNamespace(min_epochs=4, should_stop=False, fast_dev_run=False)
    trainer.strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    stopping = training.EarlyStopping(patience=1)
    assert [epoch(*pair) for pair in enumerate((0.5, 0.4, 0.3, 0.6, 0.7, 0.6), 1)] == [False] * 5 + [True]
    resumed = training.EarlyStopping(patience=1)
    for state, ended in (({"wait_count": 2, "stopped_epoch": 2}, False), (stopping.state_dict(), True)):
        trainer.should_stop = False
        resumed.load_state_dict(stopping.state_dict() | state)
        resumed.on_fit_start(trainer, None)  # type: ignore[arg-type]
        assert trainer.should_stop is ended


def test_a_last_batch_of_one_image_is_refused_before_training_where_batch_norm_cannot_take_it(
    compose: Compose, tmp_path: Path
) -> None:
    norm, one = ("model=mlp", "model.batch_norm=true"), "data.batch_size=149"  # of 150 images
    with pytest.raises(
        ConfigError, match=r"data\.batch_size=149 leaves one image in an epoch's last batch, which batch"
    ):
        training.train(compose(*norm, one), tmp_path / "refused")
    accepted = ("data.drop_last=true", "trainer.limit_train_batches=1", "model.batch_norm=false")
    for number, override in enumerate(accepted):
        config = compose(*norm, one, override, "trainer.max_epochs=1", "test=false")
        training.train(config, tmp_path / str(number))


def test_ema_is_what_is_saved_and_evaluated(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp", "trainer.max_epochs=1"), tmp_path / "plain")
    training.train(compose("model=mlp", "trainer.max_epochs=1", "ema=0.5"), tmp_path / "ema")
    plain_weight, averaged = (weights(tmp_path / run)["state_dict"]["net.1.weight"] for run in ("plain", "ema"))
    assert not torch.equal(plain_weight, averaged)
    assert torch.allclose(plain_weight, averaged, atol=0.01)


@pytest.mark.parametrize("rate", ["1e30", "1e38"])
@pytest.mark.parametrize("optim", ["sgd", "adam"])
def test_a_learning_rate_that_is_far_too_high_stops_the_run(
    compose: Compose, tmp_path: Path, optim: str, rate: str
) -> None:
    with pytest.raises(DivergedError, match=r"epoch 1, by step [12] - lower optim\.lr"):
        training.train(compose("model=mlp", f"optim={optim}", f"optim.lr={rate}"), tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))
    assert read_metrics(tmp_path) is None


def nan_image(model: ImageClassifier, images_BHWC: torch.Tensor) -> torch.Tensor:
    return images_BHWC.float().index_fill(0, torch.tensor([3]), torch.nan)


def nan_weight(model: ImageClassifier, images_BHWC: torch.Tensor) -> torch.Tensor:
    next(model.parameters()).data[0] = torch.nan
    return images_BHWC


def endless_step(model: ImageClassifier, images_BHWC: torch.Tensor) -> torch.Tensor:
    """Of which the loss before it knows nothing."""
    model.trainer.optimizers[0].param_groups[0]["lr"] = torch.inf
    return images_BHWC


def nan_after_the_step(model: ImageClassifier, images_BHWC: torch.Tensor) -> torch.Tensor:
    """In a weight that no answer depends on."""

    def spoil(*_: Any) -> None:
        model.net.register_parameter("unused", torch.nn.Parameter(torch.tensor(torch.nan)))

    model.trainer.optimizers[0].register_step_post_hook(spoil)
    return images_BHWC


def huge_weights_after_the_step(model: ImageClassifier, images_BHWC: torch.Tensor) -> torch.Tensor:
    """Which are finite, as an answer of theirs is not."""

    def spoil(*_: Any) -> None:
        for parameter in model.parameters():
            parameter.data.fill_(1e37)

    model.trainer.optimizers[0].register_step_post_hook(spoil)
    return images_BHWC


FAULTS: list[tuple[Any, int, tuple[str, ...]]] = [
    *[(nan_image, 12, ()), (nan_image, 20, ()), (nan_image, 13, ("lookahead=3",)), (nan_image, 20, ("ema=0.5",))],
    *[(nan_weight, 11, ()), (nan_weight, 30, ()), (nan_weight, 15, ("ema=0.5",))],
    *[(endless_step, 13, ()), (endless_step, 20, ()), (endless_step, 20, ("ema=0.5",))],
    *[(endless_step, 20, ("lookahead=3",)), (nan_after_the_step, 20, ())],
    (huge_weights_after_the_step, 20, ()),
]


@pytest.mark.parametrize(("fault", "step", "averaged"), FAULTS)
def test_divergence_stops_within_a_tenth_of_an_epoch_and_keeps_the_good_checkpoints(
    compose: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[ImageClassifier, torch.Tensor], torch.Tensor],
    step: int,
    averaged: tuple[str, ...],
) -> None:
    config = compose("model=mlp", "model.hidden=[8]", "trainer.max_epochs=3", "optim=sgd", *averaged)
    calls = 0
    kept: dict[int, dict[str, bytes]] = {}  # the checkpoints as they were at the end of an epoch
    loss = ImageClassifier.loss

    def faulty(self: ImageClassifier, images_BHWC: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        if calls % 10 == 0:
            kept[calls] = {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
        calls += 1
        return loss(self, fault(self, images_BHWC) if calls == step else images_BHWC, labels)

    monkeypatch.setattr(ImageClassifier, "loss", faulty)
    with pytest.raises(DivergedError, match=f"step {step}|step {step + 1}") as error:
        training.train(config, tmp_path)
    assert error.value.exit_code == 5
    assert calls <= step + 1  # a tenth of an epoch of ten steps
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")} == kept[(step - 1) // 10 * 10]
    for name in ("best.ckpt", "last.ckpt"):
        assert all(torch.isfinite(weight).all() for weight in weights(tmp_path, name)["state_dict"].values())


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        *[(recipe, ()) for recipe in RECIPES if recipe != "max_steps"],
        ("max_steps", ("trainer.max_steps=30",)),  # which ends with an epoch
        ("mlp_ema", ("trainer.check_val_every_n_epoch=2",)),
        ("cnn", ("tta=mirror_translate", "early_stopping=1", "trainer.precision=bf16-mixed")),
    ],
)
def test_every_kept_checkpoint_gives_the_figures_it_was_kept_for(
    compose: Compose, tmp_path: Path, recipe: str, options: tuple[str, ...]
) -> None:
    metrics = training.train(compose(*RECIPES[recipe], "trainer.max_epochs=4", "test=false", *options), tmp_path)
    known = {int(row["epoch"]): row for row in rows(tmp_path) if row["val/acc"]}
    for name in ("best.ckpt", "last.ckpt"):
        epoch = weights(tmp_path, name)["epoch"] + 1
        (answer,) = evaluate(evaluation(tmp_path / name, "split=val"))
        assert (str(answer.acc), str(answer.loss)) == (known[epoch]["val/acc"], known[epoch]["val/loss"])
        if name == "best.ckpt":
            assert (answer.acc, answer.loss, answer.tta_acc) == tuple(
                metrics[f"val/{key}"] for key in ("acc", "loss", "tta_acc")
            )
            assert (
                epoch
                == metrics["best_epoch"]
                == min(e for e, row in known.items() if float(row["val/acc"]) == answer.acc)
            )
            assert answer.acc == max(float(row["val/acc"]) for row in known.values())


def test_an_epoch_without_validation_has_no_validation_figures(compose: Compose, tmp_path: Path) -> None:
    training.train(compose(*MLP, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2", "test=false"), tmp_path)
    assert [bool(row["val/acc"]) for row in rows(tmp_path)] == [False, True, False, True]
    assert [bool(row["train/acc"]) for row in rows(tmp_path)] == [True] * 4


def test_impossible_networks_and_optimizers_are_refused_before_the_data_is_touched(
    compose: Compose, tmp_path: Path
) -> None:
    nowhere = f"data.root={tmp_path}/nowhere"
    for override, message in {
        "model.pool_size=8": "nothing is left",
        "optim._target_=torch.optim.Nope": "no Optimizer",
        "+optim.momentun=0.9": "momentun",
        "+optim.betas=[0.9]": "betas|index out of range",
        "optim._target_=torch.optim.LBFGS ~optim.weight_decay": "it takes several passes a step - choose another",
        "optim._target_=torch.optim.SparseAdam ~optim.weight_decay": "it takes sparse gradients - choose another",
    }.items():
        with pytest.raises(ConfigError, match=message):
            training.train(compose(nowhere, *override.split()), tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_only_auto_substitutes_and_says_so_everywhere(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ShapesDataModule, "sizes", (300, 100))
    nowhere = ("model=mlp", f"data.root={tmp_path}/nowhere", "data.mirrors=[]", "data.val_size=50")
    with pytest.raises(DataError, match="data=shapes"):
        training.train(compose(*nowhere), tmp_path / "cifar10")
    with pytest.raises(DataError, match="none of 0 mirrors delivers"):  # the shapes are of other classes
        training.train(compose("data=auto", *nowhere, "data.classes=[cat,dog]"), tmp_path / "classes")
    metrics = training.train(compose("data=auto", *nowhere), tmp_path / "auto")
    assert metrics["data"] == "shapes"
    assert metrics["substituted"]
    assert metrics["config"]["data"]["_target_"] == "litcifar.data.ShapesDataModule"
    assert weights(tmp_path / "auto", "best.ckpt")["litcifar"]["data"] == "shapes"
    assert weights(tmp_path / "auto", "best.ckpt")["litcifar"]["substituted"] == metrics["substituted"]
    longer = compose("data=auto", *nowhere, f"resume={tmp_path / 'auto'}", "trainer.max_epochs=3")
    assert training.train(longer, tmp_path / "auto", ("trainer.max_epochs",))["substituted"] == metrics["substituted"]
    printed = capsys.readouterr().out
    assert "could not be had: taking the built-in shapes instead" in printed
    assert "These figures are on the built-in shapes, not on CIFAR-10" in printed


def test_auto_takes_the_shapes_where_nothing_can_be_downloaded_to(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShapesDataModule, "sizes", (300, 100))
    (tmp_path / "file").touch()
    config = compose("data=auto", "model=mlp", f"data.root={tmp_path}/file/data", "data.val_size=50")
    why = training.train(config, tmp_path / "run")["substituted"]
    assert why.startswith(f"{tmp_path}/file/data cannot be written (Not a directory) - ")


def test_auto_takes_what_is_on_disk(compose: Compose, tmp_path: Path, tiny_cifar10: Path) -> None:
    config = compose("data=auto", "model=mlp", f"data.root={tiny_cifar10}", "data.verify=false", "data.val_size=50")
    metrics = training.train(config, tmp_path)
    assert metrics["data"] == "cifar10"
    assert metrics["substituted"] is None


def test_the_end_says_where_the_results_are_and_what_to_run_next(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(compose("model=mlp"), tmp_path)
    printed = capsys.readouterr().out
    for words in (
        "epoch 2/2",
        "best epoch",
        f"litcifar-evaluate ckpt={tmp_path}/best.ckpt",
        "litcifar-compare",
        "left",
    ):
        assert words in printed
    assert "total" in printed  # of the layers' table
    assert "1,578,506" in printed


def test_the_checkpoint_holds_plain_data_alone(compose: Compose, tmp_path: Path) -> None:
    config = compose("model=mlp", "data.classes=[cat,dog]")
    training.train(config, tmp_path)
    known = weights(tmp_path, "best.ckpt")["litcifar"]
    assert known["config"] == plain(config)
    assert known["versions"]["torch"] == version("torch")
    assert weights(tmp_path, "best.ckpt")["hyper_parameters"]["classes"] == ["cat", "dog"]


def test_a_network_that_progressive_resizing_does_not_fit_is_refused_before_the_data_is_touched(
    compose: Compose, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"augment\.resolution: 16 pixels do not fit .* model\.global_pool=max"):
        training.train(compose("augment.resolution={16:0.5}", "data.root=/nowhere"), tmp_path)
