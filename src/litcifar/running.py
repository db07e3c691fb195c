"""A Hydra program and its end: what went wrong in its jobs, in one line each, and the exit code."""

import contextlib
import gc
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from litcifar.arguments import composition_error, options_first, resume_in_place
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
from litcifar.keys import assignment, conf_dir, opened
from litcifar.machine import ranks, signals
from litcifar.run_folder import LAST, LOCK, METRICS, claimed
from litcifar.search import study, tuning

FAILURES: list[UserError | Interrupted] = []  # of this process: Hydra hands no job's result or error to its caller
FAILURE_FILE = "error.txt"


def run(name: str, job: Callable[[DictConfig], Any], arguments: list[str], bare: str | None = None) -> None:
    """Runs a Hydra program, and ends the process with the exit code of `litcifar.errors`.

    bare: the key of the arguments that have none.
    """

    def task(cfg: DictConfig) -> float:
        return _guarded(name, job, cfg)

    task.__module__ = job.__module__  # after which Hydra names its jobs, and SLURM's

    # Hydra prints errors in its own way and exits with 1, unless it is asked for tracebacks: then it raises them.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    SweepSummary.folder = ""
    try:
        with signals.handled(signals.raise_interrupted):
            given = resume_in_place(arguments) if name == "train" else arguments
            sys.argv[1:] = opened(options_first(given, name, bare))
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
            FAILURES.append(ConfigError(composition_error(error, name)).with_traceback(error.__traceback__))
    for failure in FAILURES:
        if wants_traceback:
            traceback.print_exception(failure)
        print(f"error: {failure}", file=sys.stderr)
    sys.exit(FAILURES[-1].exit_code if FAILURES else 0)


def _guarded(name: str, job: Callable[[DictConfig], float], cfg: DictConfig) -> float:
    """Runs a job, keeps what went wrong in FAILURES and in the sweep's folder: the jobs after it go on."""
    settings = HydraConfig.get()
    multirun = settings.mode == RunMode.MULTIRUN
    run_dir = Path(settings.runtime.output_dir)
    if multirun:
        (run_dir / FAILURE_FILE).unlink(missing_ok=True)
        gc.collect()  # what the job before it has left in cycles: its images and weights, on the GPU too
    try:
        with signals.handled(signals.raise_interrupted) as handler:
            try:
                return job(cfg)
            finally:
                # Whatever has become of the exception on its way, but for submitit's end of a job that is queued again.
                if handler.number and not isinstance(sys.exception(), SystemExit):
                    signals.raise_interrupted(handler.number)
    except Interrupted as error:  # which Hydra does not catch: the whole sweep stops
        what, _, advice = str(error).partition(" - ")
        if name == "train" and (run_dir / LAST).is_file():
            from litcifar import commands

            advice = f"go on with: {commands.resume(run_dir, cfg.trust)}"
        elif not multirun:
            _remove_if_empty(run_dir, settings)
        raise Interrupted(f"{what} - {advice}", error.signal_number) from error
    except Pruned as end:
        print(f"pruned    {run_dir}: {end}")
        return float("nan")
    except UserError as error:
        if isinstance(error, DataError | MachineError) and tuning.is_trial(settings):
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


def _end_quietly() -> NoReturn:
    """Who reads the output has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + 13)  # SIGPIPE


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
        print(f"results   {folder}")
        if FAILURES and not (folder / study.STUDY).is_file():  # a search takes a failed trial for an answer
            print(f"go on     {_again(folder)}")


def _again(sweep_dir: str | Path) -> str:
    """The command with which a sweep goes on."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("hydra.sweep.dir=")]
    return shlex.join(["litcifar-train", *arguments, assignment("hydra.sweep.dir", sweep_dir)])
