"""The console scripts. Hydra only: torch is imported inside, once the configuration is known to be right."""

import contextlib
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from litcifar.config import CompareConfig, EvaluateConfig, TrainConfig, check, conf_dir, flat, suggestion
from litcifar.errors import CheckpointError, ConfigError, Interrupted, UserError
from litcifar.run_folder import BEST, LAST, find_checkpoint

FAILURES: list[UserError] = []  # of this process's jobs: Hydra hands no job's result or error to its caller
FAILURE_FILE = "error.txt"


def train() -> None:
    """litcifar-train"""
    _run("train", train_job, resume_in_place(sys.argv[1:]))


def evaluate() -> None:
    """litcifar-evaluate"""
    _run("evaluate", evaluate_job, sys.argv[1:])


def compare() -> None:
    """litcifar-compare"""
    arguments = sys.argv[1:]
    folders = [a for a in arguments if "=" not in a and not a.startswith("-")]
    if folders:
        arguments = [a for a in arguments if a not in folders] + [f"folders=[{','.join(map(_quoted, folders))}]"]
    _run("compare", compare_job, arguments)


def train_job(cfg: DictConfig) -> float:
    """One training run; its value is the best validation accuracy, NaN where it failed."""
    return _guarded(_train, cfg)


def evaluate_job(cfg: DictConfig) -> float:
    return _guarded(_evaluate, cfg)


def compare_job(cfg: DictConfig) -> float:
    return _guarded(_compare, cfg)


def _train(cfg: DictConfig) -> float:
    hydra_config = HydraConfig.get()
    asked = [override.split("=")[0].lstrip("+~") for override in hydra_config.overrides.task]
    if hydra_config.mode == RunMode.MULTIRUN and "test" not in asked:
        cfg.test = False
    config = check(_container(cfg), TrainConfig)
    if config.resume:
        find_checkpoint(config.resume, LAST)
    changed = tuple(key for key in flat(config.model_dump(by_alias=True)) if _asked_for(key, asked))

    from litcifar.training import train

    return train(config, Path(hydra_config.runtime.output_dir), changed)["val/acc"]


def _evaluate(cfg: DictConfig) -> float:
    config = check(_container(cfg), EvaluateConfig)
    find_checkpoint(config.ckpt, BEST)

    from litcifar.evaluation import evaluate

    return evaluate(config)[-1].acc


def _compare(cfg: DictConfig) -> float:
    config = check(_container(cfg), CompareConfig)

    from litcifar.comparison import compare

    compare([Path(folder) for folder in config.folders], Path(config.csv) if config.csv else None)
    return 0.0


class SweepSummary(Callback):
    """After a sweep: the leaderboard of its jobs, and each failure with its folder."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from litcifar.comparison import compare

        folder = Path(config.hydra.sweep.dir)
        try:
            compare([folder], None)
        except CheckpointError as error:
            print(error)
        FAILURES.clear()  # those of this process; with the joblib launcher they are in others
        for file in sorted(folder.glob(f"*/{FAILURE_FILE}")):
            FAILURES.append(UserError(f"{file.parent}: {file.read_text().splitlines()[0]}"))
        print(f"results   {folder}")
        if FAILURES:
            overrides = shlex.join(config.hydra.overrides.task)
            print(f"go on     litcifar-train -m {overrides} hydra.sweep.dir={folder}")


def _run(name: str, job: Callable[[DictConfig], Any], arguments: list[str]) -> None:
    """Runs a Hydra program, and ends the process with the exit code of `litcifar.errors`."""
    # Hydra prints errors in its own way and exits with 1, unless it is asked for tracebacks: then it raises them.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = arguments
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)()
    except UserError as error:
        FAILURES.append(error)
    except (HydraException, OmegaConfBaseException) as error:
        FAILURES.append(ConfigError(_composition_error(error, name)).with_traceback(error.__traceback__))
    except KeyboardInterrupt:
        if not FAILURES:
            FAILURES.append(Interrupted("stopped by SIGINT - what was saved is kept", signal.SIGINT))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
        return job(cfg)
    except Interrupted as error:
        FAILURES.append(error)
        raise KeyboardInterrupt from error  # which Hydra does not catch: the whole sweep stops
    except UserError as error:
        failure = error
    except (Exception, SystemExit) as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # which Lightning turns into sys.exit(1)
            raise KeyboardInterrupt from error
        failure = UserError(
            f"{type(error).__name__}: {' '.join(str(error).split())} - this is a bug in litcifar; "
            "HYDRA_FULL_ERROR=1 shows where"
        )
        failure.__cause__ = error
    FAILURES.append(failure)
    if multirun:
        report = "".join(traceback.format_exception(failure))
        (run_dir / FAILURE_FILE).write_text(f"{failure}\n\n{report}")
        print(f"failed    {run_dir}: {failure}")
    elif settings.output_subdir and {p.name for p in run_dir.iterdir()} == {settings.output_subdir}:
        shutil.rmtree(run_dir)  # nothing was begun: no empty folder stays behind
        with contextlib.suppress(OSError):
            run_dir.parent.rmdir()
    return float("nan")


def resume_in_place(arguments: list[str]) -> list[str]:
    """With `resume=...`, the run goes on in the folder of its checkpoint, whose `.hydra` stays as it was."""
    for argument in arguments:
        if argument.startswith("resume=") and argument not in ("resume=", "resume=null"):
            path = Path(argument.removeprefix("resume=").strip("'\"")).expanduser()
            folder = path if path.is_dir() else path.parent
            others = [a for a in arguments if a != argument]
            return [
                *others,
                f"resume={_quoted(str(path))}",
                f"hydra.run.dir={_quoted(str(folder))}",
                "hydra.output_subdir=null",
            ]
    return arguments


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _asked_for(key: str, asked: list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in asked)


def _container(cfg: DictConfig) -> dict[str, Any]:
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ConfigError(f"'{sorted(missing)[0]}' is missing - give it: {sorted(missing)[0]}=...")
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def _composition_error(error: Exception, name: str) -> str:
    """Hydra's and OmegaConf's complaints in one line, an unknown key with the nearest known one."""
    text = " ".join(str(error).split("Config search path")[0].split())
    if "Could not override '" in text:
        key = text.split("'")[1]
        groups = [a for a in sys.argv[1:] if (conf_dir() / a.split("=")[0]).is_dir()]
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            default = hydra.compose(name, groups)
        known = flat(OmegaConf.to_container(default))  # type: ignore[arg-type]
        return f"unknown key '{key}' - {suggestion(key, known)}"
    return text
