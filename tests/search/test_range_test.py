"""The learning-rate range test: which rates it takes, what it suggests, and that it leaves no trace in a training."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest

from litcifar import figures, training
from litcifar.errors import UserError
from litcifar.search import range_test
from litcifar.search.range_test import STEPS, RangeTest, find_learning_rate, smoothed, suggested
from tests.conftest import TRAIN, Compose, Run
from tests.test_training import MUON, same, weights


def keep_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of each figure that will be drawn."""
    drawn: list[Any] = []
    draw = figures.learning_rate_finder

    def noted(*given: Any) -> Any:
        drawn.append(given)
        return draw(*given)

    monkeypatch.setattr(figures, "learning_rate_finder", noted)
    return drawn


def test_the_steepest_place_is_suggested() -> None:
    fall = [2 - math.tanh((step - 60) / 10) for step in range(120)]  # steepest at 60
    rise = [fall[-1] + 0.5 * step for step in range(30)]
    assert suggested(fall) == 60
    assert suggested([*fall, *rise]) == 60  # a steeper way up is none down
    assert suggested([loss + 0.05 * (-1) ** step for step, loss in enumerate(fall)]) == 60
    assert suggested(rise) is None
    assert suggested([]) is None


def test_losses_are_smoothed_in_their_place() -> None:
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    peak = smoothed([1.0 if step == 50 else 0.0 for step in range(101)])
    assert peak.index(max(peak)) == 50
    assert max(peak) == pytest.approx(1 / (range_test.SMOOTH * math.sqrt(2 * math.pi)), rel=0.01)


def test_the_rates_rise_by_six_decades_and_groups_keep_their_ratio(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[list[float], int]] = []
    drawn = keep_what_is_drawn(monkeypatch)
    real = RangeTest.on_train_batch_end

    def noted(test: RangeTest, trainer: L.Trainer, *rest: Any) -> None:
        seen.append(([group["lr"] for group in trainer.optimizers[0].param_groups], trainer.global_step))
        real(test, trainer, *rest)
        trainer.should_stop = False  # to the end

    monkeypatch.setattr(RangeTest, "on_train_batch_end", noted)
    config = compose("model=mlp", "model.hidden=[8]", "optim=muon", "optim.lr=0.1", "optim.groups.hidden.lr=0.02")
    suggestion = find_learning_rate(config, tmp_path)
    assert [step for _, step in seen] == list(range(1, STEPS + 1))  # one step a turn
    first, last = seen[0][0], seen[-1][0]
    assert sorted(first) == pytest.approx([0.02e-3, 0.1e-3])
    assert sorted(last) == pytest.approx([0.02e3, 0.1e3])
    ((rates, losses, smooth, place),) = drawn
    assert rates[:2] == pytest.approx([1e-4, 1e-4 * 10 ** (6 / (STEPS - 1))])
    assert len(rates) == len(losses) == len(smooth)
    assert rates[place] == pytest.approx(suggestion, rel=0.05)
    out = capsys.readouterr().out
    assert f"train     litcifar-train optim.lr={suggestion:.2g} optim.groups.hidden.lr={suggestion / 5:.2g}\n" in out
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == [
        "figures/learning_rate_finder.png"
    ]


def test_it_ends_where_the_loss_explodes_and_the_training_after_it_is_another_matter(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, order and dropout of a run are those that it has without a range test before it."""
    drawn = keep_what_is_drawn(monkeypatch)
    recipe = ("model=mlp", "model.hidden=[16]", "model.dropout=0.2", "optim=sgd", "optim.lr=0.1")
    training.train(compose(*recipe), tmp_path / "without")
    suggestion = find_learning_rate(compose(*recipe), tmp_path / "test")
    assert 1e-4 < suggestion < 100
    assert len(drawn[0][0]) < STEPS
    training.train(compose(*recipe), tmp_path / "after")
    assert same(weights(tmp_path / "without")["state_dict"], weights(tmp_path / "after")["state_dict"])


def test_an_epoch_of_one_step_is_enough(compose: Compose, tmp_path: Path) -> None:
    assert find_learning_rate(compose("model=mlp", "model.hidden=[8]", "data.batch_size=150"), tmp_path) > 0


def test_any_schedule_gives_way(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose groups end early."""
    monkeypatch.setattr(range_test, "DIVERGED", 0.0)  # after the first step
    config = compose(*MUON, "optim.groups.norm.until=0.5")
    with pytest.raises(UserError, match=r"the loss falls at no learning rate from 1\.0e-04 on - change optim\.lr"):
        find_learning_rate(config, tmp_path)


def test_on_the_command_line(run: Run, tiny: list[str], tmp_path: Path) -> None:
    outcome = run(TRAIN, "model=mlp", "tune=lr", *tiny, "optim.lr=1e-4", "hydra.run.dir=found")
    assert outcome.code == 0, outcome.err
    command = outcome.out.splitlines()[-1]
    assert command.startswith("train     litcifar-train model=mlp data.root=")
    assert command.count("optim.lr=") == 1
    assert "tune" not in command
    assert (tmp_path / "found" / "figures" / "learning_rate_finder.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.rglob("*.ckpt"))
    (tmp_path / "some.ckpt").touch()
    refused = run(TRAIN, "tune=lr", "resume=some.ckpt", *tiny)
    assert (refused.code, refused.err) == (2, "error: tune=lr begins with new weights - leave out resume\n")
    several = run(TRAIN, "-m", "tune=lr", "seed=0", *tiny, "hydra.sweep.dir=sweep")
    assert "tune=lr is one short run - leave out -m" in several.err
