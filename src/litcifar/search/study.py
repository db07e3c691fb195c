"""The study of a search, an SQLite file in its sweep's folder: what is searched, its trials, and what they have found.

optuna is not imported with this module, which each start of litcifar-train reads.
"""

import math
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException

from litcifar.errors import ConfigError, require
from litcifar.keys import compose

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY = "study.db"
NAME = "litcifar"  # of the one study in the file
LEFT_OUT = "left_out"  # marks a trial that was never run, and why
EPOCHS = "trainer.max_epochs"
LOCKED_SECONDS = 60.0  # how long a job waits while another one writes the file


def open_study(folder: Path, startup_trials: int = 0, warmup_epochs: int = 0) -> "Study":
    """The study of a sweep's folder, which is made where there is none; its pruner is the median rule.

    startup_trials, warmup_epochs: see `config.SearchConfig`.
    """
    import optuna
    from sqlalchemy.pool import NullPool

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{(folder / STUDY).absolute()}",
        engine_kwargs={"poolclass": NullPool, "connect_args": {"timeout": LOCKED_SECONDS}},  # nothing is left open
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_epochs)
    return optuna.create_study(
        storage=storage, study_name=NAME, direction="maximize", load_if_exists=True, pruner=pruner
    )


def keep(study: "Study", space: Mapping[str, "BaseDistribution"], fixed: list[str], folder: Path) -> None:
    """Writes down what is searched; ConfigError where the folder's study is another one."""
    from optuna.distributions import distribution_to_json

    from litcifar.config import WITHOUT_EFFECT

    # As in a run that goes on, also on another machine.
    may_differ = {*WITHOUT_EFFECT, "trainer.accelerator", "trainer.enable_progress_bar", "trainer.profiler", "logger"}
    new = {key: distribution_to_json(of_key) for key, of_key in space.items()}
    old = study.user_attrs
    before, now = (
        {*(f"{key}={text}" for key, text in of.items()), *(f for f in shared if f.partition("=")[0] not in may_differ)}
        for of, shared in ((old.get("space", new), old.get("fixed", fixed)), (new, fixed))
    )
    if different := sorted({text.partition("=")[0] for text in before ^ now}):
        raise ConfigError(
            f"'{folder}' holds a search that differs in {', '.join(different)} - give the same keys and values, or "
            "another hydra.sweep.dir"
        )
    study.set_user_attr("space", new)
    study.set_user_attr("fixed", fixed)  # with what may differ, as it was given last


def trials_of(study: "Study") -> list["FrozenTrial"]:
    """All trials but those that were never run."""
    return [trial for trial in study.trials if LEFT_OUT not in trial.user_attrs]


def leave_out(study: "Study", trial: "FrozenTrial", why: str) -> None:
    from optuna.trial import Trial, TrialState

    Trial(study, trial._trial_id).set_user_attr(LEFT_OUT, why)
    study.tell(trial.number, state=TrialState.FAIL)


def overrides(values: Mapping[str, Any], space: Mapping[str, "BaseDistribution"]) -> list[str]:
    """The values as overrides, in the space's order; floating-point numbers are rounded to four digits."""
    return [f"{key}={_word(values[key])}" for key in space if key in values]


@dataclass(frozen=True)
class Search:
    """What a study has found. trials: those that were begun, by number. fixed: the overrides that all of them share.

    importance: the share of each key in what tells the `top` trials from all, by PED-ANOVA (Watanabe et al. 2023,
    arXiv 2304.10255); empty where too few trials finished for that.
    """

    trials: list["FrozenTrial"]
    space: dict[str, "BaseDistribution"]
    fixed: list[str]
    importance: dict[str, float]

    def of_state(self, name: str) -> list["FrozenTrial"]:
        """Those that are COMPLETE, PRUNED, FAIL or RUNNING."""
        return [trial for trial in self.trials if trial.state.name == name]

    @property
    def best(self) -> "FrozenTrial | None":
        """The first complete trial with the highest value."""
        return max(self.of_state("COMPLETE"), key=lambda trial: trial.value or 0.0, default=None)

    @property
    def top(self) -> int:
        """How many of the complete trials count as the best: a tenth, but five where there are ten."""
        complete = len(self.of_state("COMPLETE"))
        return min(max(5, math.ceil(complete / 10)), complete // 2)

    def words(self) -> str:
        """What the search has found, in a line."""
        states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "interrupted"}
        counts = {word: len(self.of_state(state)) for state, word in states.items()}
        told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        if not self.best:
            return f"optuna: no trial has finished ({told or 'none was begun'})"
        found = " ".join(overrides(self.best.params, self.space))
        return (
            f"optuna: best is trial {self.best.number} with val {100 * (self.best.value or 0):.2f} %, {found} ({told})"
        )

    def command(self) -> str | None:
        """What trains the best trial's recipe in its full length; None where that cannot be told."""
        if not self.best:
            return None
        shared = [override for override in self.fixed if not override.startswith("sweep=")]
        found = overrides(self.best.params, self.space)
        if "length=short" in shared and not any(override.startswith(f"{EPOCHS}=") for override in [*shared, *found]):
            try:
                full = compose("train", *(override for override in [*shared, *found] if override != "length=short"))
            except HydraException:  # as of an experiment in a folder of the user's own (--config-dir)
                return None
            shared.append(f"{EPOCHS}={full['trainer']['max_epochs']}")
        return shlex.join(["litcifar-train", *shared, *found])


def search_of(folder: Path) -> Search | None:
    """The search of a sweep's folder; None where there is none, MachineError without optuna."""
    if not (folder / STUDY).is_file():
        return None
    require(f"'{folder / STUDY}'", "optuna", extra="optuna")
    from optuna.distributions import json_to_distribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    study = open_study(folder)
    kept = study.user_attrs
    space = {key: json_to_distribution(text) for key, text in kept.get("space", {}).items()}
    found = Search(trials_of(study), space, kept.get("fixed", []), {})
    complete = found.of_state("COMPLETE")
    if len({trial.value for trial in complete}) > 2 and found.top > 1:
        evaluator = PedAnovaImportanceEvaluator(target_quantile=(found.top - 0.5) / len(complete))  # it rounds up
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of optuna's, that there are few trials
            shares = get_param_importances(study, evaluator=evaluator)
        found.importance.update(shares)
    return found


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
