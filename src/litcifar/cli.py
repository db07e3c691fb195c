"""The console scripts. Hydra only: torch is imported inside, once the configuration is known to be right."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from litcifar.arguments import one_line
from litcifar.errors import ConfigError
from litcifar.keys import OPEN, assignment, compose, flat
from litcifar.machine import ranks, signals
from litcifar.run_folder import BEST, LAST, claimed, find_checkpoint, output_file
from litcifar.running import SweepSummary as SweepSummary  # by this name in conf/ and in files of users
from litcifar.running import run
from litcifar.search import tuning
from litcifar.search.grid import GridSweeper
from litcifar.search.tuning import OptunaSweeper

# Groups of which nobody expects an experiment's keys beside another choice, as of its data and its length.
RECIPE = ("model", "optim", "scheduler", "augment")


def train() -> None:
    """litcifar-train"""
    OptunaSweeper.register()
    GridSweeper.register()
    run("train", _train, sys.argv[1:])


def evaluate() -> None:
    """litcifar-evaluate"""
    run("evaluate", _job("EvaluateConfig", "evaluation.evaluate"), sys.argv[1:])


def look() -> None:
    """litcifar-look"""
    run("look", _job("LookConfig", "look.look"), sys.argv[1:])


def compare() -> None:
    """litcifar-compare"""
    run("compare", _compare, sys.argv[1:], bare="folders")


def predict() -> None:
    """litcifar-predict"""
    run("predict", _job("PredictConfig", "prediction.predict"), sys.argv[1:], bare="images")


def export() -> None:
    """litcifar-export"""
    run("export", _job("ExportConfig", "export.export"), sys.argv[1:])


def demo() -> None:
    """litcifar-demo"""
    run("demo", _job("DemoConfig", "demo.demo"), sys.argv[1:])


def _train(cfg: DictConfig) -> float:
    """One training run; its value, which a sweeper may seek to raise, is the best validation accuracy."""
    hydra_config = HydraConfig.get()
    asked = [override.split("=")[0].lstrip("+~") for override in _overrides(hydra_config)]
    _check_sweep(hydra_config, asked, cfg)
    _check_beside_experiment(hydra_config, asked, cfg)
    if hydra_config.mode == RunMode.MULTIRUN and "test" not in asked:
        cfg.test = False
    from litcifar.config import TrainConfig, check

    config = check(_container(cfg), TrainConfig)
    if config.resume:
        find_checkpoint(config.resume, LAST)
    if ranks.launched() and not any(o.startswith("hydra.run.dir=") for o in hydra_config.overrides.hydra):
        raise ConfigError("the processes that torchrun starts need one folder - give hydra.run.dir=...")
    changed = _changed(config, asked)
    run_dir = Path(hydra_config.runtime.output_dir)
    if config.tune and hydra_config.mode == RunMode.MULTIRUN:
        raise ConfigError(f"tune={config.tune} is one short run - leave out -m")
    with claimed(run_dir) if ranks.rank() == 0 else contextlib.nullcontext():
        with signals.deferred():
            from litcifar.search.range_test import find_learning_rate
            from litcifar.training import train

        if config.tune:
            return find_learning_rate(config, run_dir)
        return train(config, run_dir, changed, _callbacks(hydra_config, run_dir, config.trust))["val/acc"]


def _callbacks(settings: Any, run_dir: Path, trust: Sequence[str]) -> list[Any]:
    """What a trial of a search has besides a run's own callbacks."""
    if not tuning.is_trial(settings):
        return []
    with signals.deferred():
        from litcifar.commands import resume
        from litcifar.search.pruning import Pruning

    return [Pruning(resume(run_dir, trust), Path(settings.sweep.dir), settings.sweeper, settings.job.num)]


def _job(schema: str, function: str) -> Callable[[DictConfig], float]:
    """A job that checks its configuration, checkpoint and output, and only then imports what does the work.

    schema: a class of `litcifar.config`. function: of a module of litcifar; takes the configuration.
    """

    def job(cfg: DictConfig) -> float:
        from litcifar import config as schemas

        config = schemas.check(_container(cfg), getattr(schemas, schema))
        if ckpt := getattr(config, "ckpt", None):
            find_checkpoint(ckpt, BEST)
        if output := getattr(config, "output", None):
            output_file(output, config.overwrite)
        module, _, name = function.rpartition(".")
        with signals.deferred():
            work = getattr(importlib.import_module(f"litcifar.{module}"), name)
        work(config)
        return 0.0

    return job


def _compare(cfg: DictConfig) -> float:
    from litcifar.config import CompareConfig, check

    config = check(_container(cfg), CompareConfig)
    with signals.deferred():
        from litcifar.comparison import compare

    csv_path = Path(config.csv) if config.csv else None
    compare([Path(folder) for folder in config.folders], csv_path, config.data.root, config.trust)
    return 0.0


def _check_sweep(settings: Any, asked: list[str], cfg: DictConfig) -> None:
    """Refuses a job that says `sweep=...` without the values that the question asks about."""
    question = settings.runtime.choices.get("sweep")
    if question and settings.mode != RunMode.MULTIRUN:
        raise ConfigError(f"sweep={question} is several runs - write litcifar-train -m sweep={question}")
    params = (settings.sweeper.params if question else None) or {}
    if not {key.lstrip("+~") for key in params} <= {*asked, *tuning.lacking(params, cfg)}:
        raise ConfigError("a sweep answers one question - give each a command of its own")


def _check_beside_experiment(settings: Any, asked: list[str], cfg: DictConfig) -> None:
    """Says which of an experiment's own keys hold beside a group's choice; refuses those that the choice has not."""
    experiment, choices = settings.runtime.choices.get("experiment"), settings.runtime.choices
    groups = [o for o in _overrides(settings) if o.partition("=")[0] in choices.keys() - {"experiment", "sweep"}]
    chosen = [choice for choice in groups if choice.partition("=")[0] in RECIPE]
    if not experiment or not chosen:
        return
    alone = flat(compose("train", *groups))
    values = flat(_container(cfg))
    for choice in chosen:
        group = choice.partition("=")[0]
        given = tuple(f"{key}." for key in asked if key != group)
        own = {k: v for k, v in values.items() if k.startswith(f"{group}.") and not f"{k}.".startswith(given)}
        foreign = [key for key in own if key not in alone and not key.startswith(OPEN)]
        if foreign:
            without = " ".join(f"'~{key}'" for key in foreign)
            raise ConfigError(
                f"{choice}: experiment={experiment} gives {', '.join(foreign)}, which that has not - leave one of the "
                f"two out, or add {without}"
            )
        kept = [assignment(key, value) for key, value in own.items() if alone.get(key) != value]
        if kept:
            print(f"note      experiment={experiment} keeps {', '.join(kept)} beside {choice}")


def _overrides(settings: Any) -> list[str]:
    """What was given on the command line, as it was written: a `${...}` in it is not looked up."""
    return OmegaConf.to_container(settings.overrides.task, resolve=False)  # type: ignore[return-value]


def _changed(config: Any, asked: list[str]) -> tuple[str, ...]:
    """The keys of a TrainConfig that were asked for; by trainer=..., which stands for one process or several, those.

    Of a resumed run also those that differ from the usual by a choice such as experiment=..., which has no keys of its
    own.
    """
    keys = flat(config.model_dump(by_alias=True))
    of_name = {name: [key for key in keys if key == name or key.startswith(f"{name}.")] for name in asked}
    if "trainer" in of_name:
        of_name["trainer"] = ["trainer.strategy", "trainer.devices"]
    changed = {key for of in of_name.values() for key in of}
    if config.resume and not all(of_name.values()):
        from litcifar.config import plain, train_config

        usual = flat(plain(train_config()))
        changed |= {key for key, value in keys.items() if key not in usual or usual[key] != value}
    return tuple(key for key in keys if key in changed)


def _container(cfg: DictConfig) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{one_line(error)} - correct the reference") from error
