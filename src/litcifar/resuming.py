"""How a run goes on: from which checkpoint, what may be changed then, and whether anything is left to do."""

from pathlib import Path
from typing import Any

from litcifar import checkpoints
from litcifar.config import WITHOUT_EFFECT, TrainConfig, check, may_change, plain, shapes_like
from litcifar.errors import ConfigError
from litcifar.keys import flat
from litcifar.run_folder import BEST, LAST, REPORT, find_checkpoint, read_metrics

LENGTHS = {f"trainer.{key}" for key in ("limit_train_batches", "overfit_batches", "accumulate_grad_batches")}
STEPS = {"trainer.max_epochs", "trainer.max_steps", *LENGTHS}


def continued(
    config: TrainConfig, run_dir: Path, changed: tuple[str, ...]
) -> tuple[Path | None, TrainConfig, str | None]:
    """The checkpoint to go on from, if any, the configuration to go on with, and why its data are the shapes.

    Raises ConfigError for a change that the run cannot go on with; also where only its metrics.json is left.
    """
    path = find_checkpoint(config.resume, LAST) if config.resume else run_dir / LAST
    metrics = None if path.is_file() else read_metrics(run_dir)
    if not path.is_file() and metrics is None:
        return None, config, None
    if path.name == BEST:
        raise ConfigError(f"resume={path}: the epochs after it would be lost - a run goes on from its folder")
    if path.parent.resolve() != run_dir.resolve():
        raise ConfigError(f"a resumed run goes on in its own folder, '{path.parent}', not in '{run_dir}' - give that")
    checkpoint: dict[str, Any] = checkpoints.read(path) if metrics is None else {"litcifar": metrics}
    saved = checkpoints.config_of(checkpoint, config.trust)
    substituted: str | None = checkpoint["litcifar"]["substituted"]
    if substituted and getattr(config.data, "fallback", None) == "shapes":  # as when the run began
        config = config.model_copy(update={"data": shapes_like(config.data)})
    old, new = flat(plain(saved)), flat(plain(config))
    asked = changed if config.resume else (*new, *old)
    different = [key for key in dict.fromkeys(asked) if not (key in old and key in new and old[key] == new[key])]
    refused = [key for key in different if not may_change(key)]
    if refused:
        raise ConfigError(
            f"{', '.join(_difference(key, old, new) for key in refused)}: a resumed run keeps its configuration - "
            f"only trainer.*, {', '.join(WITHOUT_EFFECT)} may change"
        )
    if metrics is not None:
        return None, config, substituted
    if _is_amid_an_epoch(checkpoint) and not LENGTHS.isdisjoint(different):
        keys = ", ".join(sorted(LENGTHS.intersection(different)))
        raise ConfigError(f"{keys}: '{path}' was saved amid an epoch - go on without a change until that ends")
    if not STEPS.isdisjoint(different):
        if saved.planned():
            raise ConfigError(f"this run was {saved.planned()} and has no more steps than these - train anew with more")
        for name, state in checkpoint["callbacks"].items():
            ended = name.startswith("EarlyStopping") and state["wait_count"] >= state["patience"]
            if ended and state["stopped_epoch"] + 1 >= (saved.trainer.min_epochs or 0):
                raise ConfigError("early stopping has ended this run - train anew with a larger early_stopping")
    merged, wanted = plain(saved), plain(config)
    for key in different:
        group, *names = key.split(".")
        if names:
            merged[group][names[0]] = wanted[group][names[0]]
        else:
            merged[group] = wanted[group]
    resumed = check({**merged, "resume": None}, TrainConfig)  # as a whole, which a run that is to go on need not be
    resumed = resumed.model_copy(update={"resume": merged["resume"]})
    if checkpoint["epoch"] >= resumed.trainer.max_epochs:
        raise ConfigError(
            f"trainer.max_epochs={resumed.trainer.max_epochs}: '{path}' is of epoch {checkpoint['epoch'] + 1} - "
            "give it as many or more"
        )
    return path, resumed, substituted


def _is_amid_an_epoch(checkpoint: dict[str, Any]) -> bool:
    loop = checkpoint["loops"]["fit_loop"]
    epochs, turns = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    return epochs["processed"] < epochs["ready"] and not turns["is_last_batch"]


def _difference(key: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    now = f"{key}={new[key]}" if key in new else f"no {key}"
    return f"{now} (was {old[key]})" if key in old else now


def finished(run_dir: Path, config: TrainConfig) -> dict[str, Any] | None:
    """What metrics.json holds, if the run has ended and neither more epochs nor other figures are asked for."""
    metrics = read_metrics(run_dir)
    if metrics is None:
        return None
    before, now = metrics["config"]["trainer"], plain(config.trainer)
    limits = ("max_steps", "max_time")  # beside the epochs: whether they or these have ended the run, it may go on
    same_length = before["max_epochs"] >= now["max_epochs"] and all(
        before.get(key, now[key]) == now[key] for key in limits
    )
    tested = metrics["test/acc"] is not None or not config.test
    augmented = config.tta in ("none", metrics.get("tta"))
    drawn = not config.figures or (run_dir / REPORT).is_file()
    return metrics if same_length and tested and augmented and drawn else None
