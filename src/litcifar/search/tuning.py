"""A search for the best values of some keys: Hydra's sweeper over Optuna's samplers.

Whenever it was interrupted, it goes on from its study. Neither optuna nor torch is imported with this module, which
each start of litcifar-train reads.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from litcifar.errors import ConfigError, require
from litcifar.keys import flat
from litcifar.run_folder import MULTIRUN, claimed
from litcifar.search.study import keep, leave_out, open_study, overrides, trials_of
from litcifar.search.sweeper import OwnSweeper, checked

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

TRIES = 100  # for values that no trial has had


def is_trial(settings: Any) -> bool:
    """Whether a job with these settings of Hydra's is one of a search."""
    return settings.mode == RunMode.MULTIRUN and settings.sweeper.get("_target_") == OptunaSweeper.target()


class OptunaSweeper(OwnSweeper):
    """Each job is a trial of a study, whose values are drawn by TPE (Bergstra et al. 2011) from what was found so far.

    params: the search space in Hydra's override syntax, as it may stand on the command line too, which comes first.
    settings: see `config.SearchConfig`. A trial's number is its job's.
    """

    def __init__(self, params: Mapping[str, Any], **settings: Any) -> None:
        self.params = params
        self.settings = settings

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Runs the trials that are missing, those first that were interrupted; what Hydra returned for each.

        Raises ConfigError for a space that cannot be searched, or is not that of the folder's study, DataError where
        there are no data, MachineError without what the trials need: none is to blame, and each is run when that is
        there.
        """
        require("sweep=optuna", "optuna", extra="optuna")
        from optuna.trial import TrialState

        from litcifar.config import SearchConfig, check

        settings = check(self.settings, SearchConfig)
        space, fixed = self._space(arguments)
        self._check(space, fixed)
        self.folder.mkdir(parents=True, exist_ok=True)
        returns: list[Any] = []
        with claimed(self.folder):
            OmegaConf.save(self.master, self.folder / MULTIRUN)
            study = open_study(self.folder, settings.startup_trials, settings.warmup_epochs)
            keep(study, space, fixed, self.folder)
            for trials in self._batches(study, settings, space):
                jobs = [[*fixed, *overrides(trial.params, space)] for trial in trials]
                for trial in trials:
                    print(f"trial {trial.number:<4}{' '.join(overrides(trial.params, space))}", flush=True)
                results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
                for trial, result in zip(trials, results, strict=True):
                    if result.status == JobStatus.FAILED:
                        raise result._return_value  # `return_value` would print words of Hydra's too
                    value = result.return_value
                    failed = value is None or math.isnan(value)
                    state = TrialState.FAIL if failed else TrialState.COMPLETE
                    study.tell(trial.number, None if failed else value, state, skip_if_finished=True)  # if pruned
                returns.extend(results)
        return returns

    def _space(self, arguments: Sequence[str]) -> tuple[dict[str, "BaseDistribution"], list[str]]:
        """What is searched, by key, and the overrides that all trials share; of a key that is given twice, the last."""
        parser = OverridesParser.create(config_loader=self.loader)
        asked = [override for override in parser.parse_overrides([*arguments]) if not override.is_sweep_override()]
        config = self.composed([str(override.input_line) for override in asked])
        left_out = lacking(self.params, config)
        for key in left_out:
            print(f"not searched: {key}, which this configuration does not have")
        given = [*(f"{key}={value}" for key, value in self.params.items() if key not in left_out), *arguments]
        by_key: dict[str, Override] = {}
        for override in parser.parse_overrides(given):
            by_key.pop(override.get_key_element(), None)  # so that it stands where it was given last
            by_key[override.get_key_element()] = override
        space = {key: distribution(override) for key, override in by_key.items() if override.is_sweep_override()}
        if not space:
            raise ConfigError(
                "nothing is searched - give a key values, such as 'optim.lr=tag(log,interval(1e-4,1e-1))'"
            )
        fixed = [str(override.input_line) for key, override in by_key.items() if key not in space]
        return space, fixed

    def _check(self, space: Mapping[str, "BaseDistribution"], fixed: Sequence[str]) -> None:
        """Refuses a space with a key or a value that no run can have: each end and each choice of every key."""

        ends = {key: _ends(of_key) for key, of_key in space.items()}
        first = {key: values[0] for key, values in ends.items()}
        tried = {tuple((first | {key: value}).items()) for key, values in ends.items() for value in values}
        for values in sorted(tried, key=str):
            job = [*fixed, *overrides(dict(values), space)]
            config = checked(self.composed(job))
            if config.tune:
                raise ConfigError(f"tune={config.tune} is one short run - leave out -m")
            if config.trainer.strategy == "ddp":
                raise ConfigError("a trial of a search is one process - leave out trainer=ddp")

    def _batches(
        self, study: "Study", settings: Any, space: Mapping[str, "BaseDistribution"]
    ) -> Iterator[list["FrozenTrial"]]:
        """Trials of successive numbers to be run at once: those that an interruption has left, then new ones."""
        from optuna.trial import TrialState

        while True:
            trials = study.get_trials(states=(TrialState.RUNNING,))
            for trial in trials:
                if trial.params.keys() != space.keys():  # killed while it was drawn
                    leave_out(study, trial, "not drawn to the end")
            trials = [trial for trial in trials if trial.params.keys() == space.keys()]
            left = int(min(settings.n_trials, _size(space))) - len(
                [trial for trial in trials_of(study) if trial.state.is_finished()]
            )
            while len(trials) < min(self._at_once(), left):
                drawn = _draw(study, settings, space)
                if drawn is None:
                    print(f"nothing new in {TRIES} draws: the search ends")
                    break
                trials.append(drawn)
            if not trials:
                return
            for _, successive in itertools.groupby(enumerate(trials), lambda pair: pair[1].number - pair[0]):
                yield [trial for _, trial in successive]

    def _at_once(self) -> int:
        """How many jobs the launcher runs side by side."""
        count = OmegaConf.select(self.master, "hydra.launcher.n_jobs")
        if count is None:
            return 1
        from joblib import effective_n_jobs

        return effective_n_jobs(count)


def lacking(keys: Iterable[str], config: DictConfig) -> list[str]:
    """The dotted keys that are none of a configuration's, as a user's own network has no `model.dropout`."""
    known = flat(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
    return [key for key in keys if "." in key and not key.startswith("+") and key not in known]


def distribution(override: Override) -> "BaseDistribution":
    """What Optuna draws from: a,b,c or choice(...) the words themselves, range and interval numbers; ConfigError.

    Of `tag(log, interval(low, high))` the logarithm is drawn; of `int(interval(low, high))` whole numbers.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    tags: set[str] = getattr(sweep, "tags", set())
    if tags - {"log"}:
        raise ConfigError(f"{override.input_line}: unknown tag {', '.join(tags - {'log'})} - the only one is log")
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if low is None or high is None or not (low < high and math.isfinite(high - low)):
            raise ConfigError(f"{override.input_line}: {low} is not below {high} - write interval(low,high)")
        if tags and low <= 0:
            raise ConfigError(f"{override.input_line}: {low} has no logarithm - begin above 0")
        whole = isinstance(low, int) and isinstance(high, int)
        return (IntDistribution if whole else FloatDistribution)(low, high, log=bool(tags))  # type: ignore[arg-type]
    if tags:
        raise ConfigError(f"{override.input_line}: only an interval can be logarithmic - leave out the tag")
    words = list(dict.fromkeys(override.sweep_string_iterator()))
    if not words:
        raise ConfigError(f"{override.input_line}: no values - give at least one")
    if isinstance(sweep, RangeSweep) and all(isinstance(part, int) for part in (sweep.start, sweep.stop, sweep.step)):
        numbers = sorted(map(int, words))
        return IntDistribution(numbers[0], numbers[-1], step=abs(int(sweep.step)))
    return CategoricalDistribution(words)


def _draw(study: "Study", settings: Any, space: Mapping[str, "BaseDistribution"]) -> "FrozenTrial | None":
    """A new trial, whose values none before has had; None if there seem to be no others."""
    import optuna

    for attempt in range(TRIES):
        before = study.trials
        # A function of the trials before it: the search that was interrupted draws what the other one does.
        seed = (settings.seed * 1_000_003 + len(before)) % 2**32
        tpe = optuna.samplers.TPESampler(n_startup_trials=settings.startup_trials, seed=seed)
        study.sampler = optuna.samplers.RandomSampler(seed) if attempt else tpe
        drawn = study.ask(dict(space))
        trial = study.trials[drawn.number]
        values = overrides(trial.params, space)
        if not any(overrides(other.params, space) == values for other in before if other.params.keys() == space.keys()):
            return trial
        leave_out(study, trial, "repeats another")
    return None


def _ends(of_key: "BaseDistribution") -> Sequence[Any]:
    """The choices, or the lowest and the highest number."""
    found: Any = of_key
    return found.choices if hasattr(found, "choices") else (found.low, found.high)


def _size(space: Mapping[str, "BaseDistribution"]) -> float:
    """How many different trials there can be."""
    size = 1.0
    for of_key in space.values():
        found: Any = of_key
        if hasattr(found, "choices"):
            size *= len(found.choices)
        else:
            size *= len(range(found.low, found.high + 1, found.step)) if isinstance(found.low, int) else math.inf
    return size
