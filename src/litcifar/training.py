"""One training run, from a configuration to a folder with its checkpoints, metrics and figures."""

import copy
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from rich.console import Console
from rich.text import Text
from torch.optim import LBFGS, SparseAdam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from litcifar import checkpoints, commands, resuming, run_report
from litcifar.config import LookConfig, TrainConfig, plain, shapes_like
from litcifar.console import console as make_console
from litcifar.console import quiet, short
from litcifar.data import CIFAR10DataModule, ImageDataModule
from litcifar.data.turns import limited
from litcifar.errors import ONE_VALUE, ConfigError, DataError, MachineError, require
from litcifar.evaluation import Evaluation, evaluate_model
from litcifar.loop import loggers
from litcifar.loop.averaging import EMA, Lookahead
from litcifar.loop.history import History, duration
from litcifar.loop.steps import Steps
from litcifar.machine import device, memory, processes, ranks
from litcifar.models import ImageClassifier, build_model
from litcifar.models.layers import layer_table, layers
from litcifar.models.synced_norm import synchronise
from litcifar.run_folder import BEST, HISTORY, LAST, REPORT, write_metrics

PACKAGES = ("litcifar", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")
OPTIMIZATION = {"accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"}  # what the model does itself


def train(
    config: TrainConfig, run_dir: Path, changed: tuple[str, ...] = (), callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Trains, keeps the epoch with the best validation accuracy, tests it once, and returns what metrics.json holds.

    Where `run_dir` or `config.resume` has an interrupted run, it goes on; a finished one is returned as it is.
    changed: the keys of `config` that were asked for, which a resumed run may differ in.
    callbacks: stand behind those that write the checkpoints.

    Raises ConfigError, DataError, CheckpointError, DivergedError, MachineError, and Interrupted on a signal.
    """
    console = make_console()
    quiet()
    checkpoint_path, config, substituted = resuming.continued(config, run_dir, changed)
    finished = resuming.finished(run_dir, config)
    if finished:
        more = "; raise trainer.max_epochs to train on" if config.may_train_on() else ""
        what = f"already finished after epoch {finished['epochs']}, val/acc {finished['val/acc']:.4f}{more}"
        console.print(f"{short(run_dir)}: {what}")
        return finished

    if config.logger and config.logger.target == loggers.WANDB:
        require("logger=wandb", "wandb", extra="wandb")
    count = device.process_count(config)
    if callbacks and count > 1:
        raise ConfigError("a trial of a search is one process - leave out trainer=ddp")
    check_trainable(new_model(config, checkpoints.data_of(config)), config)  # before anything is downloaded
    _, config, reason_for_shapes = prepare(config, console, may_fall_back=checkpoint_path is None)
    job = (config, run_dir, checkpoint_path, reason_for_shapes or substituted, callbacks)
    return processes.run(_train, count, *job) if count > 1 and not ranks.launched() else _train(*job)


def _train(
    config: TrainConfig,
    run_dir: Path,
    checkpoint_path: Path | None,
    substituted: str | None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """The run, or one process's part of it: rank 0 writes all files, evaluates, and returns what metrics.json holds.

    The others return the best epoch's row.
    """
    console = make_console()
    quiet()
    kind = device.chosen(config.trainer.accelerator)
    data = checkpoints.data_of(config)
    model = new_model(config, data)
    precision, reason = device.precision_of(config, kind)
    if precision == "64-true":  # Lightning would do it only after the weights of a checkpoint
        model.double()
    data.setup()
    memory.keep_freed()
    _check_limits(config, data, model)
    counts = data.class_counts()
    model.provenance = {
        "format_version": checkpoints.FORMAT_VERSION,
        "config": plain(config),
        "data": data.name,
        "substituted": substituted,
        "fingerprint": data.fingerprint,
        "precision": precision,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    if ranks.world_size() > 1:
        synchronise(model.net)
    machine, rows_of_layers = device.description(kind), layers(model)
    what = f" seed {config.seed} on {machine}; {precision} ({reason}); {short(run_dir)}"
    console.print(Text.assemble((config.name, "bold"), what))
    for split, of_class in counts.items():
        numbers = ", ".join(f"{name} {count:,}" for name, count in of_class.items())
        console.print(f"{data.name} {split}: {sum(of_class.values()):,} images ({numbers})")
    console.print(layer_table(rows_of_layers))

    if config.compile:
        device.compile_network(model, None if config.compile is True else config.compile, kind)
    history = History(run_dir / HISTORY, console, config.trainer.enable_progress_bar)
    with loggers.opened(config, run_dir) as logger:
        trainer = _trainer(config, run_dir, kind, precision, history, logger, callbacks)
        start = time.perf_counter()
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint_path, weights_only=True)
        if history.best is None:
            raise ConfigError("the run ended before its first validation - give it more steps or time")
        if ranks.world_size() > 1:  # what follows is one process's
            torch.distributed.destroy_process_group()
            if ranks.rank() > 0:
                return history.best
        best = checkpoints.load(run_dir / BEST, config.trust).model
        reported = "test" if config.test else "val"
        # Whether test-time augmentation helps is judged on the validation images, so these are then evaluated as well.
        splits = {reported} if config.tta == "none" else {"val", reported}
        evaluations = {split: evaluate_model(best, data, split, config, precision, kind) for split in splits}
        metrics = {
            **_measured(config, history, evaluations),
            "params": sum(p.numel() for p in model.parameters()),
            "flops": rows_of_layers[-1].flops,
            "device": machine,
            **{key: value for key, value in model.provenance.items() if key != "format_version"},
            "class_counts": counts,
        }
        write_metrics(run_dir, metrics)
        report: dict[str, str] = {}
        if config.figures:
            try:
                pictures = run_report.write(
                    run_dir, config, metrics, rows_of_layers, history.rows, data, best, evaluations[reported]
                )
                loggers.add_pictures(trainer.logger, run_dir, pictures, trainer.global_step)
                report = {"report": f"{short(run_dir)}/{REPORT}"}
            except Exception as error:  # the run is trained and saved: whatever is wrong with a picture may not fail it
                what = f"{type(error).__name__}: {' '.join(str(error).split())}"
                why = f"No figures and no report: {what} - the run itself is whole"
                console.print(why, style="yellow", soft_wrap=True)
        _say_end(console, metrics, report | commands.after(config, run_dir), time.perf_counter() - start)
        return metrics


def _check_limits(config: TrainConfig, data: ImageDataModule, model: ImageClassifier) -> None:
    """Refuses limits that leave no batch of a split, too few images in one, or end the run before its validation."""
    trainer = config.trainer
    limits = {split: getattr(trainer, f"limit_{split}_batches") for split in ("train", "val", "test")}
    limits["train"] = trainer.overfit_batches or limits["train"]
    batches = {
        "train": data.train_batches,
        "val": len(data.val_dataloader()),
        "test": len(data.test_dataloader()),
    }
    world = ranks.world_size()
    for key, split, size in (
        ("batch_size", "train", data.batch_size),
        ("eval_batch_size", "val", data.eval_batch_size),
    ):
        dropped = split == "train" and data.drop_last
        last = (0 if dropped else len(data.indices(split)) % size) or size
        if last < world:
            raise ConfigError(
                f"data.{key}={size} leaves {last} images in the last batch for {world} processes - choose another size"
                f"{', or set data.drop_last=true' if split == 'train' and not dropped else ''}"
            )
    for split, limit in limits.items():
        batches[split] = limited(batches[split], limit, trainer.accumulate_grad_batches if split == "train" else 1)
        if not batches[split]:
            key = "overfit_batches" if split == "train" and trainer.overfit_batches else f"limit_{split}_batches"
            raise ConfigError(f"trainer.{key}={limit} leaves no batch - make it larger")
    is_one = len(data.indices("train")) % data.batch_size == 1 and not data.drop_last
    if is_one and world == 1 and batches["train"] == data.train_batches:
        try:
            with torch.no_grad():
                copy.deepcopy(model).train()(model.example_input_array)
        except Exception as error:  # of another kind training will tell
            if ONE_VALUE in str(error):
                raise ConfigError(
                    f"data.batch_size={data.batch_size} leaves one image in an epoch's last batch, which batch norm "
                    "cannot take - choose another size, or set data.drop_last=true"
                ) from error
    steps = -(-batches["train"] // trainer.accumulate_grad_batches) * trainer.check_val_every_n_epoch
    if 0 < trainer.max_steps < steps:
        raise ConfigError(
            f"trainer.max_steps={trainer.max_steps} ends the run before its first validation, after {steps} steps - "
            f"give it {steps} or more, or set trainer.limit_train_batches"
        )


def _measured(config: TrainConfig, history: History, evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """The part of metrics.json that was measured; the validation figures are those of best.ckpt."""
    best, rows, test = history.best or {}, history.rows, evaluations.get("test")
    seconds = sum(row["seconds"] for row in rows)
    timed = [row for row in rows if "step_seconds" in row]  # earlier versions did not time the steps
    return {
        "name": config.name,
        "seed": config.seed,
        "val/acc": best["val/acc"],
        "val/loss": best["val/loss"],
        "test/acc": test.acc if test else None,
        "test/loss": test.loss if test else None,
        "tta": config.tta,
        "val/tta_acc": evaluations["val"].tta_acc if "val" in evaluations else None,
        "test/tta_acc": test.tta_acc if test else None,
        "best_epoch": int(best["epoch"]),
        "epochs": len(rows),
        "train_seconds": seconds,
        "images_per_second": sum(row["images_per_second"] * row["seconds"] for row in rows) / seconds,
        "overhead": (
            1 - sum(row["step_seconds"] for row in timed) / sum(row["seconds"] for row in timed) if timed else None
        ),
    }


class EarlyStopping(L.callbacks.EarlyStopping):
    """Lightning's own, on val/acc, after a validation: an epoch that `max_steps` cuts has none.

    A run that it has ended stays ended where it is resumed, for another figure or test. Before `trainer.min_epochs` it
    only counts; Lightning's would end the run there, whatever has become of the accuracy since.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/acc", mode="max", patience=patience, check_on_train_epoch_end=False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ended = self.wait_count >= self.patience and self.stopped_epoch + 1 >= (trainer.min_epochs or 0)
        trainer.should_stop = trainer.should_stop or ended

    def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
        before = trainer.should_stop
        super()._run_early_stopping_check(trainer)
        if trainer.current_epoch + 1 < (trainer.min_epochs or 0):
            trainer.should_stop = before


def _trainer(
    config: TrainConfig,
    run_dir: Path,
    kind: str,
    precision: str,
    history: History,
    logger: Logger | None,
    more_callbacks: Sequence[Callback],
) -> L.Trainer:
    options = config.trainer.model_dump(exclude=OPTIMIZATION)
    options |= {"accelerator": kind, "benchmark": device.autotuned(config, kind)}
    options |= {"precision": precision, "enable_progress_bar": False}  # `History` has one
    several = ranks.world_size() > 1  # one process is one, whatever SLURM_NTASKS says
    options |= {"devices": ranks.local_world_size(), "strategy": "ddp" if several else "auto"}
    environment = TorchElasticEnvironment() if several else LightningEnvironment()
    callbacks: list[Callback] = [history]
    if config.ema:
        callbacks.append(EMA(config.ema))
    if config.lookahead:
        callbacks.append(Lookahead(config.lookahead))
    if config.early_stopping:
        callbacks.append(EarlyStopping(config.early_stopping))
    same_file: dict[str, Any] = {"dirpath": run_dir, "enable_version_counter": False, "auto_insert_metric_name": False}
    callbacks += [
        ModelCheckpoint(
            filename=Path(BEST).stem, monitor="val/acc", mode="max", save_on_train_epoch_end=False, **same_file
        ),
        ModelCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, **same_file),
        *more_callbacks,
        Steps(run_dir),
    ]
    trainer = L.Trainer(
        **options,
        logger=logger or False,
        callbacks=callbacks,
        plugins=[checkpoints.WholeCheckpoints(), environment],
        default_root_dir=run_dir,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if config.trainer.overfit_batches:  # by which Lightning limits the validation too
        limit = config.trainer.limit_val_batches
        trainer.limit_val_batches = 1.0 if limit is None else limit
    # Else, with max_steps, Lightning takes an epoch that has ended for one that was stopped, and ends it again.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    return trainer


Config = TypeVar("Config", TrainConfig, LookConfig)


def prepare(config: Config, console: Console, may_fall_back: bool = True) -> tuple[ImageDataModule, Config, str | None]:
    """The data set, downloaded if need be; where `data.fallback` allows it, another one, with the reason.

    may_fall_back: not where a run goes on, whose images stay the same.
    """
    data = checkpoints.data_of(config)
    try:
        data.prepare_data()
    except (DataError, MachineError) as error:
        can_fall_back = (
            isinstance(data, CIFAR10DataModule)
            and getattr(config.data, "fallback", None) == "shapes"
            and config.data.classes is None  # the shapes have others
        )
        if not (may_fall_back and can_fall_back):
            raise
        reason = str(error)
    else:
        return data, config, None
    config = config.model_copy(update={"data": shapes_like(config.data)})
    console.print("CIFAR-10 could not be had: taking the built-in shapes instead.", style="bold yellow")
    console.print(reason)
    return checkpoints.data_of(config), config, reason


def new_model(config: TrainConfig, data: ImageDataModule) -> ImageClassifier:
    torch.manual_seed(config.seed)
    return build_model(
        config.model.model_dump(by_alias=True),
        config.trust,
        classes=data.classes,
        image_size=data.image_size,
        optim=config.optim.model_dump(by_alias=True),
        scheduler=config.scheduler and config.scheduler.model_dump(by_alias=True),
        seed=config.seed,
        **config.trainer.model_dump(include=OPTIMIZATION),
    )


def check_trainable(model: ImageClassifier, config: TrainConfig) -> None:
    """Refuses an optimizer, a scheduler and image sizes that the network cannot be trained with."""
    recipe = model.recipe(total_steps=10)
    (optimizer,), schedulers = recipe if isinstance(recipe, tuple) else ([recipe], [])
    if isinstance(optimizer, LBFGS | SparseAdam):
        what = "several passes a step" if isinstance(optimizer, LBFGS) else "sparse gradients"
        raise ConfigError(f"optim._target_={config.optim.target}: it takes {what} - choose another optimizer")
    for scheduler in schedulers:
        optimizer.step()
        scheduler.step(*([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
    for pixels in config.augment.resolution or {}:
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, pixels, pixels, 3, dtype=torch.uint8))
        except Exception as error:  # a network of the user's own raises what it likes
            raise ConfigError(
                f"augment.resolution: {pixels} pixels do not fit this network - a ConvPool takes any size with "
                "model.global_pool=max"
            ) from error


def _say_end(console: Console, metrics: dict[str, Any], next_commands: dict[str, str], seconds: float) -> None:
    say = console.print
    accuracy = ", ".join(_accuracy(metrics, split) for split in ("val", "test") if metrics[f"{split}/acc"] is not None)
    overhead = metrics["overhead"]
    beside = "" if overhead is None else f", {100 * overhead:.1f} % of it outside forward, backward and step"
    took = (
        f" in {duration(seconds)} ({duration(metrics['train_seconds'])} of training at "
        f"{metrics['images_per_second']:,.0f} images/s{beside})"
    )
    best = f"best epoch {metrics['best_epoch']} of {metrics['epochs']}: {accuracy}"
    say(Text.assemble((best, "bold"), took))
    if metrics["substituted"]:
        say("These figures are on the built-in shapes, not on CIFAR-10.", style="bold yellow")
    for what, command in next_commands.items():
        say(f"{what:9} {command}", soft_wrap=True)  # to be copied in one piece


def _accuracy(metrics: dict[str, Any], split: str) -> str:
    acc, tta_acc = metrics[f"{split}/acc"], metrics[f"{split}/tta_acc"]
    with_tta = "" if tta_acc is None else f" ({100 * tta_acc:.2f} % with {metrics['tta']})"
    return f"{split} {100 * acc:.2f} %{with_tta}"
