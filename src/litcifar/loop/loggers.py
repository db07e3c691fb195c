"""Where a run's figures are logged, beside metrics.csv."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from litcifar import report
from litcifar.config import TrainConfig, build
from litcifar.machine import ranks, signals
from litcifar.run_folder import FIGURES

WANDB = "lightning.pytorch.loggers.WandbLogger"


@contextlib.contextmanager
def opened(config: TrainConfig, run_dir: Path) -> Iterator[Logger | None]:
    """The logger, whose files lie in the run's folder; W&B's process, if any, has all when it is left."""
    if config.logger is None or ranks.rank() > 0:
        yield None
        return
    target = config.logger.target
    place: dict[str, Any] = {"save_dir": run_dir}
    if target == WANDB:  # a resumed run has the same id, so it goes on there too
        place["id"] = place["name"] = re.sub(r"[^\w.-]", "-", f"{run_dir.absolute().parent.name}-{run_dir.name}")
        run_dir.mkdir(parents=True, exist_ok=True)  # else W&B takes a temporary folder
        os.environ.setdefault("WANDB_SILENT", "true")  # it speaks amid the progress lines
    else:
        place |= {"name": "", "version": target.rpartition(".")[2].removesuffix("Logger").lower()}
    logger = build(config.logger.model_dump(by_alias=True), Logger, **place)  # type: ignore[type-abstract]
    if not isinstance(logger, WandbLogger):
        yield logger
        return
    logger._wandb_init.pop("anonymous", None)  # Lightning's own, of which W&B says that it has no effect
    with signals.blocked():
        run = logger.experiment
    try:
        yield logger
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def add_pictures(logger: Logger | None, run_dir: Path, pictures: Mapping[str, bytes], step: int) -> None:
    """Shows the run's figures, PNG files by name, in TensorBoard or W&B."""
    if isinstance(logger, TensorBoardLogger):
        report.to_tensorboard(Path(logger.log_dir), pictures, step)
    if isinstance(logger, WandbLogger):
        for name in pictures:
            logger.log_image(f"figures/{name}", [str(run_dir / FIGURES / f"{name}.png")], step)
