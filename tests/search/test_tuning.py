"""A search: it draws, prunes, fails and goes on, in the words of the command line."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from litcifar import training
from litcifar.config import SearchConfig, check
from litcifar.data import ImageDataModule
from litcifar.errors import Pruned
from litcifar.keys import compose as composed
from litcifar.keys import conf_dir
from litcifar.run_folder import read_metrics
from litcifar.search.pruning import Pruning
from litcifar.search.study import open_study, trials_of
from litcifar.search.tuning import distribution
from tests.conftest import COMPARE, TRAIN, Compose, Run
from tests.search.test_study import trial
from tests.test_training import rows

SEARCH = ["-m", "sweep=optuna", "model=mlp", "model.hidden=[8]", "trainer.precision=32-true", "trainer.max_epochs=3"]


def drawn(folder: Path) -> list[tuple[dict[str, Any], str, float | None]]:
    """The values, the state and the value of each trial."""
    return [(trial.params, trial.state.name, trial.value) for trial in trials_of(open_study(folder))]


def parsed(text: str) -> BaseDistribution:
    return distribution(OverridesParser.create().parse_override(f"key={text}"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,b", CategoricalDistribution(["a", "b"])),
        ("choice(16,32)", CategoricalDistribution(["16", "32"])),
        ("[16,32],[32,64]", CategoricalDistribution(["[16,32]", "[32,64]"])),
        ("interval(0,0.5)", FloatDistribution(0.0, 0.5)),
        ("tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("int(interval(16,64))", IntDistribution(16, 64)),
        ("tag(log,int(interval(16,64)))", IntDistribution(16, 64, log=True)),
        ("range(2,9,3)", IntDistribution(2, 8, step=3)),
        ("range(0,0.3,0.1)", CategoricalDistribution(["0.0", "0.1", "0.2"])),
    ],
)
def test_a_space_is_written_in_hydras_words(text: str, found: BaseDistribution) -> None:
    assert parsed(text) == found


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        (
            "optim.lr=interval(0.1,0.01)",
            "optim.lr=interval(0.1,0.01): 0.1 is not below 0.01 - write interval(low,high)",
        ),
        ("optim.lr=tag(log,interval(0,1))", "0.0 has no logarithm - begin above 0"),
        ("optim.lr=tag(lg,interval(1,2))", "unknown tag lg - the only one is log"),
        ("seed=tag(log,range(1,3))", "only an interval can be logarithmic - leave out the tag"),
        ("seed=range(3,3)", "seed=range(3,3): no values - give at least one"),
        ("optim.lrr=1e-3,1e-2", "unknown key 'optim.lrr' - did you mean 'optim.lr'?"),
        ("model.dropout=interval(0,2)", "model.dropout=2 - input should be less than or equal to 1"),
        ("augment=none,flop", "unknown augment=flop"),
        ("hydra.sweeper.n_trials=0", "n_trials=0 - input should be greater than or equal to 1"),
        ("optim.lr=0.1 data.batch_size=8 model.dropout=0 augment=none", "nothing is searched - give a key values"),
        ("trainer=ddp", "a trial of a search is one process - leave out trainer=ddp"),
        ("tune=lr", "tune=lr is one short run - leave out -m"),
        ("data=image_folder", "'data.root' is missing - give it: data.root=..."),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_in_a_line(
    run: Run, tmp_path: Path, override: str, answer: str
) -> None:
    outcome = run(TRAIN, *SEARCH, *override.split(), "hydra.sweep.dir=sweep")
    assert outcome.code == 2
    assert answer in outcome.err
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.rglob("study.db"))


def test_without_optuna_that_is_said_before_anything_is_done(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = run(TRAIN, *SEARCH, "hydra.sweep.dir=sweep")
    assert outcome.code == 6
    assert outcome.err == "error: sweep=optuna needs optuna - pip install 'litcifar[optuna]'\n"
    assert not (tmp_path / "sweep").exists()


def test_a_search_that_was_interrupted_is_the_one_that_never_was(
    run: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its third trial, and killed while its fourth was drawn."""
    search = [*SEARCH, *tiny, "trainer.max_epochs=1", "data.batch_size=16", "augment=none"]
    search.append("hydra.sweeper.startup_trials=1")
    assert run(TRAIN, *search, "hydra.sweep.dir=whole", "hydra.sweeper.n_trials=3").code == 0
    search.append("hydra.sweeper.n_trials=5")

    real = ImageDataModule.train_dataloader

    def stopped(data: ImageDataModule) -> Any:
        if (tmp_path / "sweep").exists() and len(list((tmp_path / "sweep").glob("*_mlp_seed0"))) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(data)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDataModule, "train_dataloader", stopped)
        outcome = run(TRAIN, *search, "hydra.sweep.dir=sweep")
    assert outcome.code == 143
    assert "go on with: litcifar-train -m sweep=optuna" in outcome.err
    assert [state for _, state, _ in drawn(tmp_path / "sweep")][2:] == ["RUNNING"]
    open_study(tmp_path / "sweep").ask()
    outcome = run(TRAIN, *search, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    found = drawn(tmp_path / "sweep")
    assert found[:3] == drawn(tmp_path / "whole")
    assert len(found) == len({str(values) for values, _, _ in found}) == 5
    assert {state for _, state, _ in found} == {"COMPLETE"}
    best = max(value for _, _, value in found if value is not None)
    assert re.search(
        rf"^optuna: best is trial \d with val {100 * best:.2f} %, .* \(5 complete\)$", outcome.out, re.MULTILINE
    )
    assert "\ntrain it  litcifar-train model=mlp" in outcome.out
    for name in ("search_history.png", "importance.png"):
        assert (tmp_path / "sweep" / name).read_bytes()[:4] == b"\x89PNG"
    assert "Search history" in (tmp_path / "sweep" / "leaderboard.html").read_text()

    again = run(TRAIN, *search, "hydra.sweep.dir=sweep")
    assert (again.code, drawn(tmp_path / "sweep")) == (0, found)
    assert "epoch 1/1" not in again.out
    other = run(TRAIN, *search, "hydra.sweep.dir=sweep", "model.hidden=[9]", "augment=none,shift")
    assert other.code == 2
    assert "'sweep' holds a search that differs in augment, model.hidden - give the same keys" in other.err
    other = run(TRAIN, *search, "hydra.sweep.dir=sweep", "seed=1", "test=true")
    assert (other.code, "'sweep' holds a search that differs in seed - give" in other.err) == (2, True)


def test_the_best_of_short_trials_is_trained_for_the_experiments_epochs(run: Run, tiny: list[str]) -> None:
    few = [argument for argument in tiny if not argument.startswith("trainer.max_epochs=")]
    few += ["trainer.limit_train_batches=1", "hydra.sweeper.n_trials=1", "model.hidden=[8]"]
    outcome = run(TRAIN, "-m", "sweep=optuna", "experiment=numpy_mlp", "length=short", *few)
    assert outcome.code == 0, outcome.err
    assert "epoch 10/10" in outcome.out
    train = outcome.out.split("\ntrain it  ")[1].splitlines()[0]
    assert " length=short " in train
    assert " trainer.max_epochs=100 " in train


def test_a_failed_trial_is_never_the_best(run: Run, tiny: list[str], tmp_path: Path) -> None:
    """And a space of two trials has no third."""
    fixed = ["data.batch_size=16", "model.dropout=0", "augment=none", "trainer.max_epochs=1"]
    outcome = run(TRAIN, *SEARCH, *tiny, *fixed, "optim.lr=1e-3,1e36", "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    assert outcome.err.count("error: ") == 1
    assert {(values["optim.lr"], state) for values, state, _ in drawn(tmp_path / "sweep")} == {
        ("0.001", "COMPLETE"),
        ("1e+36", "FAIL"),
    }
    assert "optim.lr=0.001 (1 complete, 1 failed)" in outcome.out
    assert "go on" not in outcome.out


def test_missing_data_end_a_search_whose_trials_are_all_run_once_they_are_there(
    run: Run, tiny: list[str], tmp_path: Path
) -> None:
    search = [*SEARCH, *tiny, "trainer.max_epochs=1", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep"]
    outcome = run(TRAIN, *search, "data.root=nowhere", "data.mirrors=[]")
    assert outcome.code == 3
    assert outcome.err.startswith("downloading CIFAR-10")
    assert "\nerror: " in outcome.err
    assert outcome.err.count("\n") == 2
    assert "\ngo on     litcifar-train -m sweep=optuna" in outcome.out
    assert [state for _, state, _ in drawn(tmp_path / "sweep")] == ["RUNNING"]
    outcome = run(TRAIN, *search)
    assert outcome.code == 0, outcome.err
    assert [state for _, state, _ in drawn(tmp_path / "sweep")] == ["COMPLETE", "COMPLETE"]
    train = outcome.out.split("\ntrain it  ")[1].splitlines()[0]
    assert "nowhere" not in train
    assert f" {tiny[0]} " in train


def test_a_machine_that_lacks_what_all_trials_need_ends_a_search(
    run: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    search = [*SEARCH, *tiny, "trainer.max_epochs=1", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep"]
    outcome = run(TRAIN, *search, "trainer.accelerator=gpu")
    assert (outcome.code, outcome.err) == (6, "error: accelerator=gpu: none was found - use auto\n")
    assert "\ngo on     litcifar-train -m sweep=optuna" in outcome.out
    assert [state for _, state, _ in drawn(tmp_path / "sweep")] == ["RUNNING"]


def test_a_study_that_cannot_be_read_is_exit_code_6(run: Run, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "study.db").write_text("no database, " * 100)
    for program, arguments in ((TRAIN, [*SEARCH, *tiny, "hydra.sweep.dir=sweep"]), (COMPARE, ["sweep"])):
        outcome = run(program, *arguments)
        assert outcome.code == 6
        assert outcome.err.startswith("error: study.db: ")
        assert "file is not a database" in outcome.err
        assert outcome.err.count("\n") == 1


def test_keys_that_a_users_own_network_lacks_are_not_searched(
    run: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes): super().__init__(nn.Flatten(), nn.Linear(3072, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["model=own", "model._target_=own_net.Net", "trust=[own_net]", "hydra.sweeper.n_trials=1"]
    outcome = run(TRAIN, "-m", "sweep=optuna", *own, *tiny, "trainer.max_epochs=1", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert "not searched: model.dropout, which this configuration does not have\n" in outcome.out
    ((values, _, _),) = drawn(tmp_path / "sweep")
    assert set(values) == {"optim.lr", "data.batch_size", "augment"}


def test_a_pruned_trial_is_told_and_no_error(run: Run, tiny: list[str], tmp_path: Path) -> None:
    """After two that knew all from their first epoch on."""
    (tmp_path / "sweep").mkdir()
    sure = create_trial(value=1.0, intermediate_values=dict.fromkeys(range(3), 1.0))
    open_study(tmp_path / "sweep").add_trials([sure, sure])
    few = ["hydra.sweeper.n_trials=3", "hydra.sweeper.startup_trials=2", "trainer.max_epochs=3"]
    outcome = run(TRAIN, *SEARCH, *tiny, *few, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert drawn(tmp_path / "sweep")[2][1] == "PRUNED"
    folder = tmp_path / "sweep" / "2_mlp_seed0"
    assert f"\npruned    {folder}: val " in outcome.out
    assert "no trial" not in outcome.out
    assert "(2 complete, 1 pruned)" in outcome.out
    assert len(rows(folder)) == 2
    assert read_metrics(folder) is None
    assert not (folder / "error.txt").exists()


def settings() -> Any:
    given = {"n_trials": 9, "seed": 0, "startup_trials": 2, "warmup_epochs": 1}
    return check(given, SearchConfig)


def test_a_run_below_the_median_is_given_up_after_the_warm_up(compose: Compose, tmp_path: Path) -> None:
    """Two trials that reached 0.9 and 1: the median is 0.95, and a network's accuracy here is below that."""
    study = open_study(tmp_path)
    for accuracy in (0.9, 1.0):
        study.add_trial(trial(0, TrialState.COMPLETE, accuracy, dict.fromkeys(range(4), accuracy)))
    number = study.ask().number
    run_dir = tmp_path / "2_mlp_seed0"
    config = compose("model=mlp", "trainer.max_epochs=4")
    with pytest.raises(Pruned, match=r"^val \d+\.\d\d % in epoch 2, .*litcifar-train resume="):
        training.train(
            config, run_dir, callbacks=[Pruning(f"litcifar-train resume={run_dir}", run_dir.parent, settings(), number)]
        )
    found = open_study(tmp_path).trials[number]
    assert found.state == TrialState.PRUNED
    seen = rows(run_dir)
    assert found.intermediate_values == {epoch: float(row["val/acc"]) for epoch, row in enumerate(seen)}
    assert len(seen) == 2
    assert training.train(compose("model=mlp", "trainer.max_epochs=4"), run_dir)["epochs"] == 4  # without the study


def test_the_last_epoch_is_never_pruned_and_one_without_validation_is_not_told(
    compose: Compose, tmp_path: Path
) -> None:
    study = open_study(tmp_path)
    for _ in range(2):
        study.add_trial(trial(0, TrialState.COMPLETE, 1.0, dict.fromkeys(range(4), 1.0)))
    number = study.ask().number
    config = compose("model=mlp", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2")
    training.train(config, tmp_path / "run", callbacks=[Pruning("litcifar-train", tmp_path, settings(), number)])
    assert open_study(tmp_path).trials[number].intermediate_values.keys() == {1}


def test_the_shipped_search_takes_the_keys_of_its_schema() -> None:
    file = yaml.safe_load((conf_dir() / "hydra" / "sweeper" / "optuna.yaml").read_text())
    assert check({key: file[key] for key in SearchConfig.model_fields}, SearchConfig)
    assert set(file) == {*SearchConfig.model_fields, "_target_", "params"}
    for experiment in ("simple_cnn", "numpy_mlp"):
        assert composed("train", "sweep=optuna", f"experiment={experiment}", "length=short")["name"] == experiment


@pytest.mark.slow
def test_trials_side_by_side(run: Run, tiny: list[str], tmp_path: Path) -> None:
    side_by_side = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=4"]
    outcome = run(TRAIN, *SEARCH, *tiny, *side_by_side, "hydra.sweeper.startup_trials=1", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    found = drawn(tmp_path / "sweep")
    assert len({str(values) for values, _, _ in found}) == len(found) == 4
    assert {state for _, state, _ in found} <= {"COMPLETE", "PRUNED"}
    assert len(list(tmp_path.glob("sweep/*/last.ckpt"))) == 4
    assert all(of.intermediate_values for of in open_study(tmp_path / "sweep").trials)
