"""A sweep over all combinations of values, whose jobs go on in the folders of their runs."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from litcifar.errors import ConfigError
from litcifar.keys import assignment, flat
from litcifar.run_folder import MULTIRUN, has_begun
from litcifar.search.sweeper import OwnSweeper, checked


class GridSweeper(OwnSweeper):
    """A job whose run lies in the sweep's folder goes on there, whatever its number is this time.

    So a sweep may be started again with values put in between; Hydra's own sweeper goes by the numbers alone. A new job
    takes the first folder from its number on that no run is in.

    params: values in Hydra's override syntax, which may stand on the command line too.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    @classmethod
    def register(cls) -> None:
        """Has Hydra take it where it would take its own, which it calls `basic`."""
        super().register()
        node = {"_target_": cls.target(), "params": {}}
        ConfigStore.instance().store("basic", node, "hydra/sweeper", provider="litcifar")

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the jobs; what Hydra returned for each.

        Before the first it raises ConfigError where there are none, HydraException where one cannot be composed.
        """
        # Here because Hydra loads the modules of its own plug-ins anew.
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = OverridesParser.create(config_loader=self.loader).parse_overrides(given)
        (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
        if not jobs:
            raise ConfigError("the sweep has no jobs - give each key at least one value")
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.master, self.folder / MULTIRUN)
        results = self.launcher.launch(self._placed(jobs), initial_job_idx=0)
        for result in results:
            _ = result.return_value  # raises what has ended a job
        return results

    def _placed(self, jobs: Sequence[Sequence[str]]) -> list[list[str]]:
        """The jobs, each with the overrides that give it its folder."""
        folders = sorted(self.folder.iterdir(), key=lambda path: (len(path.name), path.name))  # 2 before 10
        begun = [path for path in folders if has_begun(path)]
        varied = _varied(jobs)
        runs = {path: _identity(_noted(path), varied) for path in begun}
        placed = []
        for number, job in enumerate(jobs):
            config = self.composed(job)
            known = _identity(config, varied) if begun else {}
            place = next((path for path, of_run in runs.items() if of_run and of_run == known), None)
            place = place or _free(config, self.folder, number, taken=runs)
            runs[place] = {}  # which no other job is to go on with
            kept = ["hydra.output_subdir=null"] if place in begun else []  # what is noted of its first command
            placed.append([*job, assignment("hydra.sweep.subdir", place.relative_to(self.folder)), *kept])
        return placed


def _varied(jobs: Sequence[Sequence[str]]) -> set[str]:
    """The keys and groups of which not all jobs have the same value."""
    of_some = set[str]().union(*jobs) - set(jobs[0]).intersection(*jobs)
    return {text.lstrip("+~").partition("=")[0] for text in of_some}


def _identity(composed: DictConfig, varied: Collection[str]) -> dict[str, Any]:
    """What makes a run this one: what it keeps when it goes on, and what its sweep varies; empty if that is wrong."""
    from litcifar.config import may_change, plain

    try:
        values = flat(plain(checked(composed, complete=False))).items()  # an older version's may have fewer keys
    except (ConfigError, OmegaConfBaseException):  # the job will tell
        return {}
    return {k: v for k, v in values if not may_change(k) or any(f"{k}.".startswith(f"{of}.") for of in varied)}


def _noted(run: Path) -> DictConfig:
    """The configuration that a run began with; empty where that is not noted."""
    try:
        noted = OmegaConf.load(run / ".hydra" / "config.yaml")
    except (OSError, YAMLError):
        noted = None
    return noted if isinstance(noted, DictConfig) else OmegaConf.create()


def _free(config: DictConfig, folder: Path, number: int, taken: Collection[Path]) -> Path:
    """The first of the folders that a job has with this number, and with the next ones, that is not taken."""
    for found in range(number, number + len(taken) + 1):
        with open_dict(config):
            config.hydra.job.num = found
        place = folder / config.hydra.sweep.subdir
        if place not in taken:
            break
    return place
