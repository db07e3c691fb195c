"""The console scripts. Hydra only: torch is imported inside, once the configuration is known to be right."""

import contextlib
import importlib
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from litcifar.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    InUseError,
    MachineError,
    Pruned,
    UserError,
    explained,
    is_of_storage,
)
from litcifar.keys import assignment, closest, compose, conf_dir, flat, opened, quoted, suggestion
from litcifar.machine import ranks, signals
from litcifar.run_folder import BEST, LAST, LOCK, METRICS, claimed, find_checkpoint, output_file
from litcifar.search import tuning

FAILURES: list[UserError | Interrupted] = []  # of this process: Hydra hands no job's result or error to its caller
FAILURE_FILE = "error.txt"


def train() -> None:
    """litcifar-train"""
    tuning.register()
    _run("train", _train, sys.argv[1:])


def evaluate() -> None:
    """litcifar-evaluate"""
    _run("evaluate", _job("EvaluateConfig", "evaluation.evaluate"), sys.argv[1:])


def look() -> None:
    """litcifar-look"""
    _run("look", _job("LookConfig", "look.look"), sys.argv[1:])


def compare() -> None:
    """litcifar-compare"""
    _run("compare", _compare, sys.argv[1:], bare="folders")


def predict() -> None:
    """litcifar-predict"""
    _run("predict", _job("PredictConfig", "prediction.predict"), sys.argv[1:], bare="images")


def export() -> None:
    """litcifar-export"""
    _run("export", _job("ExportConfig", "export.export"), sys.argv[1:])


def demo() -> None:
    """litcifar-demo"""
    _run("demo", _job("DemoConfig", "demo.demo"), sys.argv[1:])


def _train(cfg: DictConfig) -> float:
    """One training run; its value, which a sweeper may seek to raise, is the best validation accuracy."""
    hydra_config = HydraConfig.get()
    asked = [override.split("=")[0].lstrip("+~") for override in _overrides(hydra_config)]
    _check_sweep(hydra_config, asked, cfg)
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
    if not _is_trial(settings):
        return []
    with signals.deferred():
        from litcifar.commands import resume
        from litcifar.search.pruning import Pruning

    return [Pruning(resume(run_dir, trust), Path(settings.sweep.dir), settings.sweeper, settings.job.num)]


def _is_trial(settings: Any) -> bool:
    return settings.mode == RunMode.MULTIRUN and settings.sweeper.get("_target_") == tuning.SWEEPER


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


class SweepSummary(Callback):
    """After a sweep: the answer to its question or the leaderboard of its jobs, and each failure with its folder.

    question, axis, labels: see `sweeps.Question`, which reads them from the sweep's multirun.yaml.
    """

    folder: ClassVar[str] = ""  # of this process's sweep

    def __init__(self, question: str | None = None, axis: str | None = None, labels: Any = None) -> None:
        pass

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepSummary.folder = config.hydra.sweep.dir
        if "submitit_folder" in config.hydra.launcher:
            print(f"queued    each job writes below {SweepSummary.folder}/.submitit", flush=True)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        job_return.cfg = job_return.hydra_cfg = None  # a quarter of a megabyte of each job, which Hydra would keep

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from litcifar.comparison import compare

        folder = Path(config.hydra.sweep.dir)
        FAILURES[:] = [failure for failure in FAILURES if isinstance(failure, InUseError)]  # the others have a file
        for file in sorted(folder.rglob(FAILURE_FILE)):  # of jobs in other processes too
            message, _, where = file.read_text().partition("\n")
            FAILURES.append(UserError(f"{file.parent}: {message}"))
            FAILURES[-1].add_note(where.strip())
        told = " ".join(map(str, FAILURES))
        for lock in sorted(folder.glob(f"*/{LOCK}")):
            if str(lock.parent) not in told and not (lock.parent / METRICS).is_file():
                try:
                    with claimed(lock.parent, seconds=0.0):
                        pass
                except InUseError as error:
                    FAILURES.append(error)
        try:
            compare([folder], None)
        except CheckpointError as error:  # no run has finished
            print(error)
        except Exception as error:  # of which Hydra would make a warning
            FAILURES.append(explained(error))
        if not any(path.is_dir() for path in folder.iterdir()):
            FAILURES.append(ConfigError("the sweep has no jobs - give each key at least one value"))
        print(f"results   {folder}")
        if FAILURES and not (folder / tuning.STUDY).is_file():  # a search takes a failed trial for an answer
            print(f"go on     {_again(folder)}")


def _run(name: str, job: Callable[[DictConfig], Any], arguments: list[str], bare: str | None = None) -> None:
    """Runs a Hydra program, and ends the process with the exit code of `litcifar.errors`.

    bare: the key of the arguments that have none.
    """

    def task(cfg: DictConfig) -> float:
        return _guarded(job, cfg)

    # Hydra prints errors in its own way and exits with 1, unless it is asked for tracebacks: then it raises them.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    SweepSummary.folder = ""
    try:
        with signals.handled(signals.raise_interrupted):
            given = resume_in_place(arguments) if name == "train" else arguments
            sys.argv[1:] = opened(_options_first(given, name, bare))
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(task)()
    except UserError as error:
        FAILURES.append(error)
        if isinstance(error, DataError | MachineError) and SweepSummary.folder:  # of a search
            print(f"go on     {_again(SweepSummary.folder)}")
    except Interrupted as error:
        signals.install(signals.Handler(lambda number: None))  # for the rest of the process
        if SweepSummary.folder:
            what = str(error).partition(" - ")[0]
            error = Interrupted(f"{what} - go on with: {_again(SweepSummary.folder)}", error.signal_number)
        FAILURES.append(error)
    except BrokenPipeError:
        _end_quietly()
    except Exception as error:  # of a job none gets here: this is of Hydra's own work before it
        if is_of_storage(error) or (isinstance(error, OSError) and not isinstance(error, HydraException)):
            FAILURES.append(explained(error))
        else:
            FAILURES.append(ConfigError(_composition_error(error, name)).with_traceback(error.__traceback__))
    for failure in FAILURES:
        if wants_traceback:
            traceback.print_exception(failure)
        print(f"error: {failure}", file=sys.stderr)
    sys.exit(FAILURES[-1].exit_code if FAILURES else 0)


def _guarded(job: Callable[[DictConfig], float], cfg: DictConfig) -> float:
    """Runs a job, keeps what went wrong in FAILURES and in the sweep's folder: the jobs after it go on."""
    settings = HydraConfig.get()
    multirun = settings.mode == RunMode.MULTIRUN
    run_dir = Path(settings.runtime.output_dir)
    if multirun:
        (run_dir / FAILURE_FILE).unlink(missing_ok=True)
    try:
        with signals.handled(signals.raise_interrupted) as handler:
            try:
                return job(cfg)
            finally:
                if handler.number:  # whatever has become of the exception on its way
                    signals.raise_interrupted(handler.number)
    except Interrupted as error:  # which Hydra does not catch: the whole sweep stops
        what, _, advice = str(error).partition(" - ")
        if job is _train and (run_dir / LAST).is_file():
            from litcifar import commands

            advice = f"go on with: {commands.resume(run_dir, cfg.trust)}"
        elif not multirun:
            _remove_if_empty(run_dir, settings)
        raise Interrupted(f"{what} - {advice}", error.signal_number) from error
    except Pruned as end:
        print(f"pruned    {run_dir}: {end}")
        return float("nan")
    except UserError as error:
        if isinstance(error, DataError | MachineError) and _is_trial(settings):
            raise  # the search ends: its other trials would end like this one
        failure = error
    except (Exception, SystemExit) as error:
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            _end_quietly()  # rich has turned it into sys.exit(1)
        if isinstance(error, SystemExit):  # of submitit, which has put the job into the queue again
            raise
        failure = explained(error)
    if multirun:
        report = "".join(traceback.format_exception(failure))
        if not isinstance(failure, InUseError):  # the folder is another's
            (run_dir / FAILURE_FILE).write_text(f"{failure}\n\n{report}")
        print(f"failed    {run_dir}: {failure}")
        kind = InUseError if isinstance(failure, InUseError) else UserError
        FAILURES.append(kind(f"{run_dir}: {failure}"))  # without a traceback, which would hold on to the network
        return float("nan")
    FAILURES.append(failure)
    if not isinstance(failure, InUseError):
        _remove_if_empty(run_dir, settings)
    return float("nan")


def _remove_if_empty(run_dir: Path, settings: Any) -> None:
    """Removes the folder of a run that has not begun."""
    is_first = ranks.rank() == 0  # of the processes that torchrun started
    if is_first and settings.output_subdir and {p.name for p in run_dir.iterdir()} <= {settings.output_subdir, LOCK}:
        with contextlib.suppress(OSError):  # as of a folder that is mounted; what went wrong before is what counts
            shutil.rmtree(run_dir / settings.output_subdir)
            (run_dir / LOCK).unlink(missing_ok=True)
            for folder in (run_dir, run_dir.parent):
                if not Path.cwd().is_relative_to(folder):
                    folder.rmdir()


def _end_quietly() -> NoReturn:
    """Who reads the output has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + 13)  # SIGPIPE


def resume_in_place(arguments: list[str]) -> list[str]:
    """With `resume=...`, the run goes on in the folder of its checkpoint, whose `.hydra` stays as it was.

    Raises ConfigError where another folder was asked for, or a sweep.
    """
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "resume" and not {"-m", "--multirun"}.isdisjoint(arguments):
            raise ConfigError(f"{argument}: a resumed run goes on in its own folder - leave out -m")
        path = os.path.expanduser(value.strip("'\""))
        if key == "resume" and os.path.exists(path):  # which, unlike Path's, is False for what no file can be called
            folder = path if os.path.isdir(path) else os.path.dirname(path)
            if any(a.startswith("hydra.run.dir=") for a in arguments):
                raise ConfigError("hydra.run.dir: a resumed run goes on in its own folder - leave it out")
            others = [a for a in arguments if a != argument]
            return [
                *others,
                f"resume={quoted(path)}",
                f"hydra.run.dir={quoted(folder or '.')}",
                "hydra.output_subdir=null",
            ]
    return arguments


def _again(sweep_dir: str | Path) -> str:
    """The command with which a sweep goes on."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("hydra.sweep.dir=")]
    return shlex.join(["litcifar-train", *arguments, assignment("hydra.sweep.dir", sweep_dir)])


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
        raise ConfigError(f"{_one_line(error)} - correct the reference") from error


def _options_first(arguments: list[str], name: str, bare: str | None) -> list[str]:
    """The arguments in an order that argparse understands; ConfigError for an option that Hydra does not have."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message} - litcifar-{name} --help shows how it is written")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    known, unknown = parser.parse_known_intermixed_args(arguments)
    for option in unknown:
        if option.startswith("-"):
            word, _, value = option.lstrip("-").replace("-", "_").partition("=")
            key = closest(word, _known(name))
            after = arguments[arguments.index(option) + 1 :]
            value = value or (after[0] if after and "=" not in after[0] and not after[0].startswith("-") else "...")
            advice = f"write {key}={value}" if key else "keys are written without dashes: key=value"
            raise ConfigError(f"unknown option '{option}' - {advice}")
    for argument in arguments:
        if argument.startswith("="):
            raise ConfigError(f"'{argument}' has no key - write key=value")
    values = [argument for argument in known.overrides if "=" not in argument]
    if bare and values:
        if any(argument.startswith(f"{bare}=") for argument in arguments):
            raise ConfigError(f"{bare}=... beside '{values[0]}': the one would be lost - write all of them in one way")
        arguments = [argument for argument in arguments if argument not in values]
        arguments.append(f"{bare}=[{','.join(map(quoted, values))}]")
    return sorted(arguments, key=lambda argument: "=" in argument and not argument.startswith("-"))


def _known(name: str, choices: Sequence[str] = ()) -> set[str]:
    """The keys and the groups of a program's configuration, after some groups' choices."""
    defaults = OmegaConf.load(conf_dir() / f"{name}.yaml").defaults
    groups = {str(key) for item in defaults if isinstance(item, DictConfig) for key in item} & set(
        os.listdir(conf_dir())
    )
    return groups | flat(compose(name, *(choice for choice in choices if choice.split("=")[0] in groups))).keys()


def _composition_error(error: Exception, name: str) -> str:
    """Hydra's and OmegaConf's complaints in one line, and what to write instead."""
    text = _one_line(error)
    if isinstance(error, OverrideParseException):
        key, is_pair, value = error.override.partition("=")
        quotes = f"quote the value: \"{key}='{value}'\""
        advice = ("close the bracket" if value[:1] in ("[", "{") else quotes) if is_pair else "write key=value"
        return f"'{error.override}' cannot be read - {advice}"
    if found := re.search(r"Could not find '(\S+)/(\S+)' Available options in '\S+': (.*)", text):
        return f"unknown {found[1]}={found[2]} - {suggestion(found[2], found[3].split())}"
    if found := re.search(r"Could not load 'hydra/launcher/submitit_(\w+)'", text):
        return f"hydra/launcher={found[1]} needs submitit - pip install 'litcifar[slurm]'"
    if "Could not override '" in text:
        key = text.split("'")[1]
        files = {str(file.relative_to(conf_dir()).with_suffix("")) for file in conf_dir().rglob("*.yaml")}
        choices = [a for a in sys.argv[1:] if a.replace("=", "/") in files]
        known = _known(name, choices)
        if closest(key, known) is None:  # then not all of them: those beside it
            parent = key.rpartition(".")[0]
            known = {k for k in known if k.rpartition(".")[0] == parent} or {k for k in known if "." not in k}
        return f"unknown key '{key}' - {suggestion(key, known)}"
    return f"{text} - litcifar-{name} --help lists what there is"


def _one_line(error: Exception) -> str:
    """The message without the places that Hydra searched, and without the object that OmegaConf was looking at."""
    return " ".join(re.split(r"Config search path|full_key: ", str(error))[0].split())
