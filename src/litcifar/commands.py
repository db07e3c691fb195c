"""The commands that a run tells its user: what can be done with it, and how it is made again."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from litcifar.config import TrainConfig, plain
from litcifar.console import short
from litcifar.keys import PLAIN, assignment, flat, quoted
from litcifar.run_folder import BEST

PYTHON = """\
from pathlib import Path

from litcifar.config import TrainConfig, check
from litcifar.run_folder import read_metrics
from litcifar.training import train

config = read_metrics(Path({!r}))["config"]
train(check(config, TrainConfig), Path("again"))"""


def after(config: TrainConfig, run_dir: Path) -> dict[str, str]:
    """What can be done with a finished run."""
    folder = short(run_dir)
    evaluate = ["litcifar-evaluate", assignment("ckpt", f"{folder}/{BEST}"), *trusting(config.trust)]
    commands = {"results": folder, "evaluate": shlex.join(evaluate)}
    if config.may_train_on():
        more = [f"trainer.max_epochs={2 * config.trainer.max_epochs}"]
        more += ["trainer.max_steps=-1"] if config.trainer.max_steps != -1 else []
        more += ["trainer.max_time=null"] if config.trainer.max_time else []
        commands["train on"] = resume(run_dir, config.trust, *more)
    return commands | {"compare": compare(run_dir)}


def how_to(config: TrainConfig, run_dir: Path) -> dict[str, str]:
    """The commands of a report, and what each of them does."""
    known = after(config, run_dir)
    reason = config.planned()
    where = f"where it was stopped{f' ({reason})' if reason else ''}"
    return {
        "Reproduce": reproduce(config, run_dir),
        f"Resume, {'with more epochs' if 'train on' in known else where}": known.get(
            "train on", resume(run_dir, config.trust)
        ),
        "Evaluate": known["evaluate"],
        "Compare with other runs": known["compare"],
    }


def reproduce(config: TrainConfig, run_dir: Path) -> str:
    """The command of the run, as Hydra noted it, with what was changed since; in Python where there was no command."""
    overrides = _overrides(run_dir)
    if overrides is None:
        return PYTHON.format(str(run_dir))
    begun = flat(_noted(run_dir, "config"))
    later = {key: value for key, value in flat(plain(config)).items() if key.startswith("trainer.")}
    changed = [f"{key}={'null' if v is None else v}" for key, v in later.items() if begun.get(key, v) != v]
    overrides = [override for override in overrides if override != "sweep=optuna"]  # a trial is a run like others
    question = ["-m"] if any(override.startswith("sweep=") for override in overrides) else []
    if not question and not config.test and not any(override.startswith("test=") for override in overrides):
        changed.append("test=false")  # as in any sweep
    return shlex.join(["litcifar-train", *question, *overrides, *changed])


def with_learning_rate(config: TrainConfig, run_dir: Path, factor: float) -> str:
    """The command that trains with the configured learning rates times `factor`."""
    rates = {"optim.lr": config.optim.lr}
    for kind, group in config.optim.groups.items():
        if rate := (group.model_extra or {}).get("lr"):
            rates[f"optim.groups.{kind}.lr"] = rate
    kept = [
        override
        for override in _overrides(run_dir) or ()
        if override.lstrip("+").partition("=")[0] not in ("tune", *rates)
    ]
    return shlex.join(["litcifar-train", *kept, *(f"{key}={rate * factor:.2g}" for key, rate in rates.items())])


def trusting(trust: Sequence[str]) -> list[str]:
    """The argument, if any, that names the packages of a user's own."""
    return [f"trust=[{','.join(trust)}]"] if trust else []


def resume(run_dir: Path, trust: Sequence[str], *more: str) -> str:
    """The command with which a run goes on."""
    return shlex.join(["litcifar-train", f"resume={short(run_dir)}", *trusting(trust), *more])


def compare(run_dir: Path) -> str:
    """The command that lists a run with those beside it: all of `outputs` where it lies below that."""
    below_outputs = run_dir.absolute().is_relative_to(Path.cwd() / "outputs")
    folder = "outputs" if below_outputs else short(run_dir.parent)
    return shlex.join(["litcifar-compare", folder if PLAIN.fullmatch(folder) else f"folders=[{quoted(folder)}]"])


def _overrides(run_dir: Path) -> list[str] | None:
    """Those of the run's command; None where there was no command."""
    return _noted(run_dir, "overrides") if (run_dir / ".hydra" / "overrides.yaml").is_file() else None


def _noted(run_dir: Path, name: str) -> Any:
    """What Hydra noted of the run's command."""
    return OmegaConf.to_container(OmegaConf.load(run_dir / ".hydra" / f"{name}.yaml"), resolve=False)
