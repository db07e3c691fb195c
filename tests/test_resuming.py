"""Resuming: what a finished run does with more epochs or other figures, and which changes are refused."""

from pathlib import Path

import pytest

from litcifar import training
from litcifar.checkpoints import config_of, read
from litcifar.config import plain
from litcifar.data import CIFAR10DataModule, ShapesDataModule
from litcifar.errors import ConfigError, DataError
from litcifar.keys import flat
from litcifar.run_folder import read_metrics, write_metrics
from tests.conftest import Compose
from tests.test_training import result, rows, same, stop, weights


def test_a_finished_run_is_returned_as_it_is_and_goes_on_for_more_epochs(compose: Compose, tmp_path: Path) -> None:
    first = training.train(compose("model=mlp"), tmp_path)
    assert training.train(compose("model=mlp"), tmp_path) == first
    more = compose(f"resume={tmp_path}", "trainer.max_epochs=3")
    longer = training.train(more, tmp_path, changed=("resume", "trainer.max_epochs"))
    assert longer["epochs"] == 3
    assert len(rows(tmp_path)) == 3
    assert config_of(read(tmp_path / "last.ckpt")).trainer.max_epochs == 3
    assert longer["config"]["model"] == first["config"]["model"]  # mlp, although `more` was composed without model=mlp


def test_a_resumed_run_keeps_its_recipe(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp"), tmp_path)
    changed = compose("model=mlp", f"resume={tmp_path}", "optim.lr=0.5")
    with pytest.raises(ConfigError, match=r"optim\.lr=0\.5 \(was 0\.001\)"):
        training.train(changed, tmp_path, changed=("resume", "optim.lr"))


@pytest.mark.parametrize(
    ("before", "asked", "message"),
    [
        ("scheduler=triangular", "scheduler=constant", "scheduler=None"),
        ("scheduler=constant", "scheduler=cosine", r"scheduler\._target_=.+, scheduler\.interval="),
        ("augment=none", "augment.resolution={16:0.5}", r"augment\.resolution\.16=0\.5"),
        ("augment=none", "logger=tensorboard", r"logger\._target_="),
        ("augment=none", "+optim.amsgrad=true", r"optim\.amsgrad=True"),
        ("augment=none", "optim.groups={head:{lr:1}}", r"optim\.groups\.head\.until=1\.0, optim\.groups\.head\.lr=1"),
        ("optim.groups={head:{lr:1}}", "optim.groups={}", r"optim\.groups=\{\}"),
    ],
)
def test_what_its_recipe_has_no_key_for_is_a_change_too(
    compose: Compose, tmp_path: Path, before: str, asked: str, message: str
) -> None:
    training.train(compose("model=mlp", before), tmp_path)
    config = compose("model=mlp", before, asked, f"resume={tmp_path}", "trainer.max_epochs=3")
    name = asked.lstrip("+").split("=")[0]
    changed = tuple(key for key in flat(plain(config)) if key == name or key.startswith(f"{name}."))
    with pytest.raises(ConfigError, match=rf"^{message}.*: a resumed run keeps its configuration"):
        training.train(config, tmp_path, changed)


def test_what_may_change_is_taken_as_a_whole(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp"), tmp_path)
    limits = {"{hours:1,minutes:1}": {"hours": 1, "minutes": 1}, "{minutes:90}": {"minutes": 90}, "null": None}
    for epochs, (written, limit) in enumerate(limits.items(), 3):
        longer = compose("model=mlp", f"trainer.max_epochs={epochs}", f"trainer.max_time={written}")
        training.train(longer, tmp_path)
        assert config_of(read(tmp_path / "last.ckpt")).trainer.max_time == limit


def test_a_run_that_fell_back_to_the_shapes_goes_on_in_its_folder(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShapesDataModule, "sizes", (300, 100))
    auto = ("data=auto", "model=mlp", f"data.root={tmp_path}/nowhere", "data.mirrors=[]", "data.val_size=50")
    first = training.train(compose(*auto), tmp_path)
    assert first["data"] == "shapes"
    assert training.train(compose(*auto), tmp_path) == first
    longer = training.train(compose(*auto, "trainer.max_epochs=3"), tmp_path)
    assert (longer["epochs"], longer["substituted"]) == (3, first["substituted"])
    with pytest.raises(ConfigError, match=r"data\.batch_size=8 \(was 16\)"):
        training.train(compose(*auto, "data.batch_size=8"), tmp_path)


@pytest.mark.parametrize(
    "limits", [("trainer.max_steps=12", "trainer.max_steps=-1"), ("trainer.max_steps=12", "trainer.max_steps=18")]
)
def test_a_run_that_ended_by_its_steps_goes_on_for_more(
    compose: Compose, tmp_path: Path, limits: tuple[str, str]
) -> None:
    training.train(compose("model=mlp", limits[0]), tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "12"]
    training.train(compose("model=mlp", limits[1], "trainer.max_epochs=3"), tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "12", "18" if limits[1].endswith("18") else "22"]


def test_after_an_epoch_of_another_length_a_run_goes_on_where_it_was(compose: Compose, tmp_path: Path) -> None:
    recipe = ("model=mlp", "model.hidden=[8]", "augment=standard")
    short = compose(*recipe, "trainer.limit_train_batches=4", "trainer.max_epochs=1")
    whole = compose(*recipe, "trainer.max_epochs=3")
    for folder in (tmp_path / "whole", tmp_path / "stopped"):
        training.train(short, folder)
    training.train(whole, tmp_path / "whole")
    stop(whole, tmp_path / "stopped", 4 + 7)
    training.train(whole, tmp_path / "stopped")
    assert same(result(tmp_path / "stopped"), result(tmp_path / "whole"))


@pytest.mark.parametrize("turns", [(50, 3), (3, 50)])
def test_an_epoch_that_was_begun_in_other_turns_is_ended_as_it_would_have_been(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: tuple[int, int]
) -> None:
    """As where another number of processes goes on."""
    config = compose("model=mlp", "model.hidden=[8]", "augment=standard")
    training.train(config, tmp_path / "whole")
    monkeypatch.setattr("litcifar.data.turns.TURNS", turns[0])
    stop(config, tmp_path / "stopped", 6)
    monkeypatch.setattr("litcifar.data.turns.TURNS", turns[1])
    training.train(config, tmp_path / "stopped")
    assert same(result(tmp_path / "stopped"), result(tmp_path / "whole"))


def test_amid_an_epoch_its_length_stays(compose: Compose, tmp_path: Path) -> None:
    stop(compose("model=mlp"), tmp_path, 6)
    for key in ("limit_train_batches=4", "accumulate_grad_batches=2", "overfit_batches=2"):
        with pytest.raises(
            ConfigError, match=rf"^trainer\.{key[:-2]}: '.+last\.ckpt' was saved amid an epoch - go on without"
        ):
            training.train(compose("model=mlp", f"trainer.{key}"), tmp_path)


def test_figures_can_be_drawn_later(compose: Compose, tmp_path: Path) -> None:
    first = training.train(compose("model=mlp"), tmp_path)
    later = training.train(compose("model=mlp", "figures=true"), tmp_path)
    assert (tmp_path / "report.html").is_file()
    assert {**first, "config": None} == {**later, "config": None}


def test_a_finished_run_can_be_evaluated_with_test_time_augmentation(compose: Compose, tmp_path: Path) -> None:
    plain = training.train(compose("model=mlp", "scheduler=triangular"), tmp_path)
    before = weights(tmp_path)
    for key in ("tta", "val/tta_acc", "test/tta_acc"):  # as an earlier version left it
        del plain[key]
    write_metrics(tmp_path, plain)
    resumed = compose(f"resume={tmp_path}", "tta=none")
    assert training.train(resumed, tmp_path, changed=("resume", "tta")) == plain

    resumed = compose(f"resume={tmp_path}", "tta=mirror")
    metrics = training.train(resumed, tmp_path, changed=("resume", "tta"))
    assert metrics == read_metrics(tmp_path)
    assert metrics["tta"] == metrics["config"]["tta"] == "mirror"
    assert 0 <= metrics["test/tta_acc"] <= 1
    assert metrics["test/loss"] == plain["test/loss"]
    assert metrics["epochs"] == 2
    assert same(before["state_dict"], weights(tmp_path)["state_dict"])
    assert training.train(resumed, tmp_path, changed=("resume", "tta")) == metrics  # nothing is left to do


def test_a_schedule_that_was_planned_for_the_run_cannot_be_prolonged(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(compose("model=mlp", "scheduler=triangular"), tmp_path)
    assert "train on" not in capsys.readouterr().out
    longer = compose(f"resume={tmp_path}", "trainer.max_epochs=3")
    with pytest.raises(ConfigError, match="planned by its scheduler for 2 epochs"):
        training.train(longer, tmp_path, changed=("resume", "trainer.max_epochs"))


def test_a_folder_whose_run_had_a_key_more_is_refused(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp", "+optim.amsgrad=true"), tmp_path)
    with pytest.raises(ConfigError, match=r"^no optim\.amsgrad \(was True\): "):
        training.train(compose("model=mlp"), tmp_path)


def test_a_folder_with_another_run_is_refused(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp"), tmp_path)
    before = weights(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.hidden=\[9\]"):
        training.train(compose("model=mlp", "model.hidden=[9]"), tmp_path)
    assert same(before["state_dict"], weights(tmp_path)["state_dict"])


def test_a_run_whose_last_checkpoint_was_deleted_is_not_taken_for_another_one(compose: Compose, tmp_path: Path) -> None:
    metrics = training.train(compose("model=mlp"), tmp_path)
    (tmp_path / "last.ckpt").unlink()
    assert training.train(compose("model=mlp"), tmp_path) == metrics
    with pytest.raises(ConfigError, match=r"^optim\.lr=0\.5 \(was 0\.001\): a resumed run keeps its configuration"):
        training.train(compose("model=mlp", "optim.lr=0.5"), tmp_path)


def test_a_run_goes_on_in_its_own_folder_from_its_last_epoch(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp"), tmp_path / "run")
    for checkpoint, folder, message in (
        ("run", "other", "a resumed run goes on in its own folder, '.+run', not in '.+other' - give that"),
        ("run/best.ckpt", "run", "the epochs after it would be lost - a run goes on from its folder"),
    ):
        config = compose(f"resume={tmp_path / checkpoint}", "trainer.max_epochs=3")
        with pytest.raises(ConfigError, match=message):
            training.train(config, tmp_path / folder, changed=("resume", "trainer.max_epochs"))


def test_a_run_does_not_go_on_with_other_images(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.train(compose("model=mlp"), tmp_path)
    read_cifar10 = CIFAR10DataModule.read
    monkeypatch.setattr(CIFAR10DataModule, "read", lambda self: [array[::-1].copy() for array in read_cifar10(self)])
    longer = compose(f"resume={tmp_path}", "trainer.max_epochs=3")
    with pytest.raises(DataError, match="these are not the images that the run was begun with - give their folder"):
        training.train(longer, tmp_path, changed=("resume", "trainer.max_epochs"))


def test_a_run_on_cifar10_does_not_go_on_with_the_shapes(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp", "+data.fallback=shapes"), tmp_path / "run")
    missing = compose(
        "model=mlp", f"resume={tmp_path / 'run'}", "data.root=" + str(tmp_path / "none"), "data.mirrors=[]"
    )
    longer = missing.model_copy(update={"trainer": missing.trainer.model_copy(update={"max_epochs": 3})})
    with pytest.raises(DataError, match="none of 0 mirrors delivers"):
        training.train(longer, tmp_path / "run", ("resume", "trainer.max_epochs", "data.root", "data.mirrors"))


def test_what_early_stopping_has_ended_stays_ended(compose: Compose, tmp_path: Path) -> None:
    recipe = ("model=mlp", "optim.lr=1e-9", "early_stopping=1", "trainer.max_epochs=5")
    first = training.train(compose(*recipe), tmp_path)
    assert first["epochs"] == 2
    again = training.train(compose(f"resume={tmp_path}", "tta=mirror"), tmp_path, changed=("resume", "tta"))
    assert (again["epochs"], again["val/acc"]) == (2, first["val/acc"])
    longer = compose(f"resume={tmp_path}", "trainer.max_epochs=9")
    with pytest.raises(
        ConfigError, match="early stopping has ended this run - train anew with a larger early_stopping"
    ):
        training.train(longer, tmp_path, changed=("resume", "trainer.max_epochs"))


def test_epochs_are_compared_with_those_of_the_run(compose: Compose, tmp_path: Path) -> None:
    stop(compose("model=mlp", "trainer.max_epochs=4"), tmp_path, 13)
    key = "trainer.check_val_every_n_epoch"  # beside the usual two epochs
    with pytest.raises(ConfigError, match=rf"{key} is larger than trainer\.max_epochs - make it smaller"):
        training.train(compose(f"resume={tmp_path}", f"{key}=5"), tmp_path, (key,))
    assert training.train(compose(f"resume={tmp_path}", f"{key}=4"), tmp_path, (key,))["epochs"] == 4


def test_a_run_that_goes_on_is_no_longer_a_finished_one(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp"), tmp_path)
    longer = compose("model=mlp", "trainer.max_epochs=5", f"resume={tmp_path}")
    steps = weights(tmp_path)["global_step"]
    stop(longer, tmp_path, steps + 1, changed=("resume", "trainer.max_epochs"))
    assert read_metrics(tmp_path) is None


def test_averages_that_were_planned_for_the_run_cannot_be_prolonged(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(compose("model=mlp", "lookahead=5"), tmp_path)
    training.train(compose("model=mlp", "lookahead=5"), tmp_path)
    assert "max_epochs" not in capsys.readouterr().out
    more = compose(f"resume={tmp_path}", "trainer.max_epochs=3")
    with pytest.raises(ConfigError, match=r"planned by its lookahead for 2 epochs"):
        training.train(more, tmp_path, changed=("resume", "trainer.max_epochs"))


def test_image_sizes_that_were_planned_for_the_run_cannot_be_prolonged(compose: Compose, tmp_path: Path) -> None:
    training.train(
        compose("model=conv_pool", "model.widths=[4]", "model.global_pool=max", "augment.resolution={16:0.5}"), tmp_path
    )
    longer = compose(f"resume={tmp_path}", "trainer.max_epochs=3")
    with pytest.raises(ConfigError, match=r"planned by its augment\.resolution for 2 epochs"):
        training.train(longer, tmp_path, changed=("resume", "trainer.max_epochs"))
