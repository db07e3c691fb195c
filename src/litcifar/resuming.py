"""How a run goes on: from which checkpoint, what may be changed then, and whether anything is left to do."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from litcifar import checkpoints
from litcifar.config import TrainConfig, check, plain
from litcifar.errors import ConfigError
from litcifar.keys import flat
from litcifar.run_folder import LAST, find_checkpoint, read_metrics

STEPS = {f"trainer.{key}" for key in ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches")}
# What may differ in a resumed run, beside trainer.*
FREE_ON_RESUME = ("resume", "test", "tta", "figures", "trust", "data.root", "data.num_workers")


def continued(
    config: TrainConfig, run_dir: Path, changed: tuple[str, ...]
) -> tuple[Path | None, TrainConfig, str | None]:
    """The checkpoint to go on from, if any, the configuration to go on with, and why its data are the shapes."""
    if config.resume:
        path = find_checkpoint(config.resume, LAST)
    elif (run_dir / LAST).is_file():
        path = run_dir / LAST
        changed = tuple(flat(plain(config)))
    else:
        return None, config, None
    checkpoint = checkpoints.read(path)
    saved = checkpoints.config_of(checkpoint, config.trust)
    old, new = flat(plain(saved)), flat(plain(config))
    different = [key for key in changed if key in new and old.get(key, new[key]) != new[key]]
    refused = [
        key for key in different if not key.startswith(("trainer.", "data.mirrors")) and key not in FREE_ON_RESUME
    ]
    if refused:
        asked = ", ".join(f"{key}={new[key]} (was {old[key]})" for key in refused)
        raise ConfigError(f"{asked}: a resumed run keeps its configuration - only trainer.*, test and tta may change")
    if planned(saved) and not STEPS.isdisjoint(different):
        raise ConfigError(
            f"the scheduler of this run was planned for {saved.trainer.max_epochs} epochs and has no more steps than "
            "these - train anew with more"
        )
    merged = OmegaConf.create(plain(saved))
    for key in different:
        OmegaConf.update(merged, key, new[key])
    resumed = check(OmegaConf.to_container(merged), TrainConfig)  # type: ignore[arg-type]
    if checkpoint["epoch"] >= resumed.trainer.max_epochs:
        raise ConfigError(
            f"trainer.max_epochs={resumed.trainer.max_epochs}: '{path}' is of epoch {checkpoint['epoch'] + 1} - "
            "give it as many or more"
        )
    return path, resumed, checkpoint["litcifar"]["substituted"]


def planned(config: TrainConfig) -> bool:
    """Whether the scheduler depends on the run's number of steps."""
    return config.scheduler is not None and "total_steps" in config.scheduler.model_dump().values()


def finished(run_dir: Path, config: TrainConfig) -> dict[str, Any] | None:
    """What metrics.json holds, if the run has ended and neither more epochs nor other figures are asked for."""
    metrics = read_metrics(run_dir)
    if metrics is None:
        return None
    same_length = metrics["config"]["trainer"]["max_epochs"] >= config.trainer.max_epochs
    tested = metrics["test/acc"] is not None or not config.test
    augmented = config.tta in ("none", metrics.get("tta"))
    return metrics if same_length and tested and augmented else None
