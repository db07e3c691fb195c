"""What both sweepers of litcifar share: how Hydra finds them, launches their jobs and is asked for a configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from litcifar.config import TrainConfig


class OwnSweeper(Sweeper):
    """A sweeper of litcifar's."""

    @classmethod
    def target(cls) -> str:
        """Its `hydra.sweeper._target_`: Hydra takes plug-ins from this namespace alone."""
        return f"hydra_plugins.litcifar.{cls.__name__}"

    @classmethod
    def register(cls) -> None:
        """Makes it known to Hydra."""
        Plugins.instance().class_name_to_class[cls.target()] = cls

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = hydra_context.config_loader
        self.master: DictConfig = config  # of the whole sweep
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def composed(self, job: Sequence[str]) -> DictConfig:
        """The configuration of a job; HydraException."""
        return self.loader.load_sweep_config(self.master, [*job])


def checked(composed: DictConfig, complete: bool = True) -> "TrainConfig":
    """The run's part of a composed configuration; see `config.check`. Raises OmegaConfBaseException too."""
    from litcifar.config import TrainConfig, check

    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    return check(OmegaConf.to_container(own, resolve=True), TrainConfig, complete)  # type: ignore[arg-type]
