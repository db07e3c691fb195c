"""A study: what its trials have found, in words, as the command that trains the best, and in litcifar-compare."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from litcifar import comparison
from litcifar.errors import CheckpointError
from litcifar.search.study import Search, open_study, search_of

SPACE: dict[str, BaseDistribution] = {
    "optim.lr": FloatDistribution(1e-4, 1e-1),
    "augment": CategoricalDistribution(["none", "flip"]),
}


def trial(
    number: int, state: TrialState, value: float | None = None, seen: dict[int, float] | None = None
) -> FrozenTrial:
    values = {"optim.lr": 0.00123456, "augment": "flip"}
    made = create_trial(state=state, value=value, params=values, distributions=SPACE, intermediate_values=seen)
    made.number = number
    return made


@pytest.mark.parametrize(("complete", "top"), [(2, 1), (4, 2), (10, 5), (12, 5), (60, 6)])
def test_the_best_trials_are_a_tenth_but_five_where_there_are_ten(complete: int, top: int) -> None:
    trials = [trial(number, TrialState.COMPLETE, number / 100) for number in range(complete)]
    assert Search(trials, SPACE, [], {}).top == top


def test_importance_is_that_of_the_best_trials(tmp_path: Path) -> None:
    """Half of them are good, and a key of two says which; the other one says nothing."""
    study = open_study(tmp_path)
    values: list[dict[str, Any]] = [
        {"optim.lr": rate, "augment": augment} for rate in (1e-4, 3e-2, 6e-2, 1e-1) for augment in ("none", "flip")
    ]
    made = [create_trial(value=0.5 + 0.1 * (v["augment"] == "flip"), params=v, distributions=SPACE) for v in values]
    study.add_trials([*made, create_trial(value=0.1, params=values[0], distributions=SPACE)])
    found = search_of(tmp_path)
    assert found is not None
    assert found.top == 4
    assert found.importance["augment"] > 0.9


def test_what_was_found_is_told_with_the_command_that_trains_it(tmp_path: Path) -> None:
    trials = [trial(0, TrialState.COMPLETE, 0.5), trial(1, TrialState.PRUNED), trial(2, TrialState.COMPLETE, 0.7)]
    fixed = ["sweep=optuna", "experiment=simple_cnn", "length=short", "model.head=[64]"]
    search = Search([*trials, trial(3, TrialState.FAIL), trial(4, TrialState.RUNNING)], SPACE, fixed, {})
    assert search.words() == (
        "optuna: best is trial 2 with val 70.00 %, optim.lr=0.001235 augment=flip "
        "(2 complete, 1 pruned, 1 failed, 1 interrupted)"
    )
    assert search.command() == (
        "litcifar-train experiment=simple_cnn length=short 'model.head=[64]' trainer.max_epochs=20 "
        "optim.lr=0.001235 augment=flip"
    )
    asked = dataclasses.replace(search, fixed=["length=short", "trainer.max_epochs=3"])
    assert asked.command() == (
        "litcifar-train length=short trainer.max_epochs=3 optim.lr=0.001235 augment=flip"  # as it was asked for
    )
    wanted: dict[str, BaseDistribution] = {"experiment": CategoricalDistribution(["simple_cnn", "keras_cnn"])}
    best = create_trial(value=0.5, params={"experiment": "keras_cnn"}, distributions=wanted)
    assert Search([best], wanted, ["length=short"], {}).command() == (
        "litcifar-train length=short trainer.max_epochs=25 experiment=keras_cnn"  # the epochs of the one that was found
    )
    unknown = dataclasses.replace(search, fixed=["experiment=of_mine", "length=short"])  # in a folder of the user's
    assert unknown.command() is None
    empty = Search([trial(0, TrialState.FAIL)], SPACE, fixed, {})
    assert (empty.words(), empty.command()) == ("optuna: no trial has finished (1 failed)", None)
    assert search_of(tmp_path) is None


def test_the_study_of_a_sweep_is_told_by_compare_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = open_study(tmp_path)
    study.add_trial(trial(0, TrialState.FAIL))
    with pytest.raises(CheckpointError, match="no finished run below"):
        comparison.compare([tmp_path])
    assert "optuna: no trial has finished (1 failed)" in capsys.readouterr().out
