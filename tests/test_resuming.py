"""Resuming: what a finished run does with more epochs or other figures, and which changes are refused."""

from pathlib import Path

import pytest

from litcifar import training
from litcifar.checkpoints import config_of, read
from litcifar.errors import ConfigError
from litcifar.run_folder import read_metrics, write_metrics
from tests.conftest import Compose
from tests.test_training import rows, same, weights


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
    with pytest.raises(ConfigError, match="planned for 2 epochs"):
        training.train(longer, tmp_path, changed=("resume", "trainer.max_epochs"))


def test_a_folder_with_another_run_is_refused(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp"), tmp_path)
    before = weights(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.hidden=\[9\]"):
        training.train(compose("model=mlp", "model.hidden=[9]"), tmp_path)
    assert same(before["state_dict"], weights(tmp_path)["state_dict"])
