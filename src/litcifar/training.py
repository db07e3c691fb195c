"""One training run, from a configuration to a folder with its checkpoints, metrics and figures."""

import contextlib
import math
import os
import platform
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from torch.optim.lr_scheduler import ReduceLROnPlateau

from litcifar import checkpoints, figures, memory, processes, ranks, report, run_folder, signals, style
from litcifar.averaging import EMA, Lookahead
from litcifar.config import LookConfig, ShapesConfig, TrainConfig, build, check, plain
from litcifar.console import console as make_console
from litcifar.console import quiet, short
from litcifar.data import CIFAR10DataModule, ImageDataModule
from litcifar.data.datamodule import limited
from litcifar.errors import ConfigError, DataError, MachineError, UserError, require
from litcifar.evaluation import Evaluation, evaluate_model, headline
from litcifar.history import History, duration
from litcifar.keys import flat
from litcifar.layers import Layer, layer_table, layers
from litcifar.models import ImageClassifier, build_model
from litcifar.models.synced_norm import synchronise
from litcifar.range_test import DECADES, RangeTest, smoothed, suggested
from litcifar.range_test import STEPS as RANGE_STEPS
from litcifar.report import Report
from litcifar.run_folder import BEST, FIGURES, HISTORY, LAST, REPORT, find_checkpoint, read_metrics, write_metrics
from litcifar.steps import Steps

PACKAGES = ("litcifar", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")
WANDB = "lightning.pytorch.loggers.WandbLogger"
STEPS = {f"trainer.{key}" for key in ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches")}
OPTIMIZATION = {"accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"}  # what the model does itself
PYTHON = """\
from pathlib import Path

from litcifar.config import TrainConfig, check
from litcifar.run_folder import read_metrics
from litcifar.training import train

config = read_metrics(Path({!r}))["config"]
train(check(config, TrainConfig), Path("again"))"""
CPU_PROCESSES = 2  # of `trainer.devices=auto` without a GPU
# What may differ in a resumed run, beside trainer.*
FREE_ON_RESUME = ("resume", "test", "tta", "figures", "trust", "data.root", "data.num_workers")


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
    checkpoint_path, config, substituted = _continued(config, run_dir, changed)
    finished = _finished(run_dir, config)
    if finished:
        console.print(
            f"{short(run_dir)}: already finished after epoch {finished['epochs']}, val/acc {finished['val/acc']:.4f}; "
            "raise trainer.max_epochs to train on"
        )
        return finished

    if config.logger and config.logger.target == WANDB:
        require("logger=wandb", "wandb", extra="wandb")
    count = _processes(config)
    if callbacks and count > 1:
        raise ConfigError("a trial of a search is one process - leave out trainer=ddp")
    _try(_model(config, checkpoints.data_of(config)), config)  # before anything is downloaded
    _, config, reason_for_shapes = prepare(config, console)
    job = (config, run_dir, checkpoint_path, reason_for_shapes or substituted, callbacks)
    return processes.run(_train, count, *job) if count > 1 and not ranks.launched() else _train(*job)


def _train(
    config: TrainConfig,
    run_dir: Path,
    checkpoint_path: Path | None,
    substituted: str | None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """The run, or one process's part of it: rank 0 writes all files, evaluates, and returns what metrics.json holds."""
    console = make_console()
    quiet()
    cuda = _cuda(config)
    data = checkpoints.data_of(config)
    model = _model(config, data)
    precision, reason = _precision(config, cuda)
    data.setup()
    memory.keep_freed()
    _check_limits(config, data)
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
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    if ranks.world_size() > 1:
        device = f"{ranks.world_size()} x {device}"
        synchronise(model.net)
    console.print(f"[bold]{config.name}[/] seed {config.seed} on {device}; {precision} ({reason}); {short(run_dir)}")
    for split, of_class in counts.items():
        numbers = ", ".join(f"{name} {count:,}" for name, count in of_class.items())
        console.print(f"{data.name} {split}: {sum(of_class.values()):,} images ({numbers})")

    rows_of_layers = layers(model)
    console.print(layer_table(rows_of_layers))
    if config.compile:
        _compile(model, cuda)
    history = History(run_dir / HISTORY, console, config.trainer.enable_progress_bar)
    with _logger(config, run_dir) as logger:
        trainer = _trainer(config, run_dir, precision, history, logger, callbacks)
        start = time.perf_counter()
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint_path, weights_only=True)
        if history.best is None:
            raise ConfigError("the run ended before its first validation - give it more steps or time")
        if ranks.world_size() > 1:  # what follows is one process's
            torch.distributed.destroy_process_group()
            if ranks.rank() > 0:
                return history.best
        trained = checkpoints.model_of(checkpoints.read(run_dir / BEST), config.trust)
        reported = "test" if config.test else "val"
        # Whether test-time augmentation helps is judged on the validation images, so these are then evaluated as well.
        splits = {reported} if config.tta == "none" else {"val", reported}
        accelerator = config.trainer.accelerator
        answers = {split: evaluate_model(trained, data, split, config, precision, accelerator) for split in splits}
        metrics = {
            **_figures(config, history, answers),
            "params": sum(p.numel() for p in model.parameters()),
            "flops": rows_of_layers[-1].flops,
            "device": device,
            **{key: value for key, value in model.provenance.items() if key != "format_version"},
            "class_counts": counts,
        }
        write_metrics(run_dir, metrics)
        commands = _commands(config, run_dir)
        if config.figures:
            try:
                page = _report(config, metrics, commands, rows_of_layers, answers[reported], run_dir)
                drawn = {
                    "curves": figures.curves(history.rows),
                    "learning_rate": figures.learning_rate(history.rows),
                    **figures.of_answers(answers[reported], data.images(reported), trained),
                    "training_images": figures.training_images(*data.first_batch(), data.classes),
                }
                pictures = page.write(run_dir, drawn)
                if isinstance(trainer.logger, TensorBoardLogger):
                    report.to_tensorboard(Path(trainer.logger.log_dir), pictures, trainer.global_step)
                if isinstance(trainer.logger, WandbLogger):
                    for name in pictures:
                        file = str(run_dir / FIGURES / f"{name}.png")
                        trainer.logger.log_image(f"figures/{name}", [file], trainer.global_step)
                commands = {"report": f"{short(run_dir)}/{REPORT}", **commands}
            except Exception as error:  # the run is trained and saved: whatever is wrong with a picture may not fail it
                what = escape(f"{type(error).__name__}: {' '.join(str(error).split())}")
                console.print(f"[yellow]No figures and no report: {what} - the run itself is whole", soft_wrap=True)
        _say_end(console, metrics, commands, time.perf_counter() - start)
        return metrics


def _processes(config: TrainConfig) -> int:
    """The processes on this machine; ConfigError and MachineError where there cannot be so many."""
    asked, gpus = config.trainer.devices, torch.cuda.device_count() if _cuda(config) else 0
    nodes = config.trainer.num_nodes
    if ranks.launched():
        count = ranks.local_world_size()
        if config.trainer.strategy != "ddp" or asked not in (count, "auto") or ranks.world_size() != count * nodes:
            raise ConfigError(
                f"torchrun started {ranks.world_size()} processes, {count} on this machine, for "
                f"trainer.devices={asked} and trainer.num_nodes={nodes} - give trainer=ddp and the same numbers"
            )
        return count
    if nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}: on each of the machines torchrun starts litcifar-train - see README"
        )
    if config.trainer.strategy != "ddp":
        return 1
    count = (gpus or CPU_PROCESSES) if asked == "auto" else asked
    if gpus and count > gpus:
        raise MachineError(f"trainer.devices={count}: there are {gpus} GPUs - use as many or fewer")
    return count


def find_learning_rate(config: TrainConfig, run_dir: Path) -> float:
    """The learning rate that a range test suggests; it draws the loss against it, and keeps no network.

    Raises ConfigError, DataError, MachineError, UserError where the loss falls nowhere, and Interrupted on a signal.
    """
    console = make_console()
    quiet()
    cuda = _cuda(config)
    data, config, _ = prepare(config, console)
    data.setup()
    memory.keep_freed()
    # Without a schedule, which would be another one than the test's.
    groups = {kind: options.model_copy(update={"until": 1.0}) for kind, options in config.optim.groups.items()}
    optim = config.optim.model_copy(update={"groups": groups})
    model = _model(config.model_copy(update={"optim": optim, "scheduler": None}), data)
    precision, reason = _precision(config, cuda)
    console.print(f"[bold]{config.name}[/] seed {config.seed}: learning-rate range test in {precision} ({reason})")
    test = RangeTest(console, config.trainer.enable_progress_bar)
    options = config.trainer.model_dump(include={"accelerator", "deterministic", "benchmark"})
    L.Trainer(
        **options,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=RANGE_STEPS,
        max_epochs=RANGE_STEPS,
        limit_train_batches=0.999,  # a share: then a turn is one step
        limit_val_batches=0,
        logger=False,
        callbacks=[test],
        plugins=[LightningEnvironment()],
        default_root_dir=run_dir,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    ).fit(model, datamodule=data)
    losses = [loss for loss in test.losses if math.isfinite(loss)]
    rates = [config.optim.lr * factor for factor in test.factors[: len(losses)]]
    place = suggested(losses)
    if place is None:
        raise UserError(
            f"the loss falls at no learning rate from {config.optim.lr * 10 ** DECADES[0]:.1e} on - change optim.lr"
        )
    picture = run_dir / FIGURES / "learning_rate_finder.png"
    run_folder.write(picture, style.png(figures.learning_rate_finder(rates, losses, smoothed(losses), place)))
    factor = float(f"{test.factors[place] * config.optim.lr:.1e}") / config.optim.lr
    console.print(
        f"loss {losses[0]:.3f} at {rates[0]:.1e}, lowest {min(losses):.3f} at {rates[losses.index(min(losses))]:.1e}, "
        f"steepest at [bold]optim.lr={config.optim.lr * factor:.2g}[/]"
    )
    console.print(f"figure    {short(picture)}", soft_wrap=True)
    console.print(f"train     {_with_rate(config, run_dir, factor)}", soft_wrap=True)
    return config.optim.lr * factor


def _with_rate(config: TrainConfig, run_dir: Path, factor: float) -> str:
    """The command that trains with the configured learning rates times `factor`."""
    rates = {"optim.lr": config.optim.lr}
    for kind, group in config.optim.groups.items():
        rates |= {f"optim.groups.{kind}.{key}": rate for key, rate in (group.model_extra or {}).items() if key == "lr"}
    file = run_dir / ".hydra" / "overrides.yaml"
    given: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False) if file.is_file() else []
    kept = [override for override in given if override.lstrip("+").partition("=")[0] not in ("tune", *rates)]
    return shlex.join(["litcifar-train", *kept, *(f"{key}={rate * factor:.2g}" for key, rate in rates.items())])


def _report(
    config: TrainConfig,
    metrics: dict[str, Any],
    commands: dict[str, str],
    rows_of_layers: list[Layer],
    evaluation: Evaluation,
    run_dir: Path,
) -> Report:
    """The run's page; `evaluation` is that of best.ckpt on the test set, or on the validation set where test=false."""
    numbers = headline(evaluation, config.tta)
    if evaluation.split == "test":
        numbers["validation accuracy"] = f"{100 * metrics['val/acc']:.2f} %"
    numbers |= {
        "parameters": f"{metrics['params']:,}",
        "FLOPs an image": f"{rows_of_layers[-1].flops / 1e6:,.1f} M",
        "best epoch": f"{metrics['best_epoch']} of {metrics['epochs']}",
        "training time": duration(metrics["train_seconds"]),
        "images a second": f"{metrics['images_per_second']:,.0f}",
    }
    facts = {"data": metrics["data"], "SHA-256 of the images": metrics["fingerprint"]}
    facts |= {key: metrics[key] for key in ("device", "precision")}
    facts["versions"] = ", ".join(f"{name} {number}" for name, number in metrics["versions"].items())
    why = metrics["substituted"]
    return Report(
        title=f"{config.name}: {100 * evaluation.acc:.2f} % on the {report.SPLITS[evaluation.split]} set",
        subtitle=f"seed {config.seed}, data {metrics['data']}, best.ckpt of epoch {metrics['best_epoch']}",
        headline=numbers,
        evaluation=evaluation,
        layers=rows_of_layers,
        config=plain(config),
        commands=_how_to(config, commands, run_dir),
        facts=facts,
        notes=[f"Trained on the built-in shapes, not on CIFAR-10: {why}"] if why else [],
        class_counts=metrics["class_counts"],
    )


def _check_limits(config: TrainConfig, data: ImageDataModule) -> None:
    """Refuses limits that leave no batch of a split, or end the run before its first validation."""
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
        last = len(data.indices(split)) % size or size
        if last < world and not (split == "train" and data.drop_last):
            raise ConfigError(
                f"data.{key}={size} leaves {last} images in the last batch for {world} processes - choose another size"
                f"{', or set data.drop_last=true' if split == 'train' else ''}"
            )
    for split, limit in limits.items():
        batches[split] = limited(batches[split], limit, trainer.accumulate_grad_batches if split == "train" else 1)
        if not batches[split]:
            raise ConfigError(f"trainer.limit_{split}_batches={limit} leaves no batch - make it larger")
    steps = -(-batches["train"] // trainer.accumulate_grad_batches) * trainer.check_val_every_n_epoch
    if 0 < trainer.max_steps < steps:
        raise ConfigError(
            f"trainer.max_steps={trainer.max_steps} ends the run before its first validation, after {steps} steps - "
            f"give it {steps} or more, or set trainer.limit_train_batches"
        )


def _figures(config: TrainConfig, history: History, answers: dict[str, Evaluation]) -> dict[str, Any]:
    """The part of metrics.json that was measured; the validation figures are those of best.ckpt."""
    best, rows, test = history.best or {}, history.rows, answers.get("test")
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
        **{f"{split}/tta_acc": answers[split].tta_acc if split in answers else None for split in ("val", "test")},
        "best_epoch": int(best["epoch"]),
        "epochs": len(rows),
        "train_seconds": seconds,
        "images_per_second": sum(row["images_per_second"] * row["seconds"] for row in rows) / seconds,
        "overhead": 1 - sum(row["step_seconds"] for row in timed) / sum(row["seconds"] for row in timed),
    }


@contextlib.contextmanager
def _logger(config: TrainConfig, run_dir: Path) -> Iterator[Logger | None]:
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


def _trainer(
    config: TrainConfig,
    run_dir: Path,
    precision: str,
    history: History,
    logger: Logger | None,
    more_callbacks: Sequence[Callback],
) -> L.Trainer:
    options = config.trainer.model_dump(exclude=OPTIMIZATION)
    options |= {"precision": precision, "enable_progress_bar": False}  # `History` has one
    several = ranks.world_size() > 1  # one process is one, whatever SLURM_NTASKS says
    options |= {"devices": ranks.local_world_size(), "strategy": "ddp" if several else "auto"}
    environment = TorchElasticEnvironment() if several else LightningEnvironment()
    callbacks: list[Callback] = [history]
    if config.ema:
        callbacks.append(EMA(decay=config.ema))
    if config.lookahead:
        callbacks.append(Lookahead(config.lookahead))
    if config.early_stopping:
        callbacks.append(EarlyStopping("val/acc", mode="max", patience=config.early_stopping))
    same_file: dict[str, Any] = {"dirpath": run_dir, "enable_version_counter": False, "auto_insert_metric_name": False}
    callbacks += [
        ModelCheckpoint(
            filename=Path(BEST).stem, monitor="val/acc", mode="max", save_on_train_epoch_end=False, **same_file
        ),
        ModelCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, **same_file),
        *more_callbacks,
        Steps(run_dir),
    ]
    return L.Trainer(
        **options,
        logger=logger or False,
        callbacks=callbacks,
        plugins=[checkpoints.WholeCheckpoints(), environment],
        default_root_dir=run_dir,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


Config = TypeVar("Config", TrainConfig, LookConfig)


def prepare(config: Config, console: Console) -> tuple[ImageDataModule, Config, str | None]:
    """The data set, downloaded if need be; where `data.fallback` allows it, another one, with the reason."""
    data = checkpoints.data_of(config)
    try:
        data.prepare_data()
    except DataError as error:
        if not (isinstance(data, CIFAR10DataModule) and getattr(config.data, "fallback", None) == "shapes"):
            raise
        reason = str(error)
    else:
        return data, config, None
    common = {key: value for key, value in config.data.model_dump().items() if key in ShapesConfig.model_fields}
    spec = common | {"target": "litcifar.data.ShapesDataModule"}
    config = config.model_copy(update={"data": check(spec, ShapesConfig)})
    console.print(f"[bold yellow]CIFAR-10 could not be had: taking the built-in shapes instead.[/]\n{reason}")
    return checkpoints.data_of(config), config, reason


def _model(config: TrainConfig, data: ImageDataModule) -> ImageClassifier:
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


def _cuda(config: TrainConfig) -> bool:
    """Whether the run uses a GPU; MachineError where it should and there is none."""
    cuda = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    if config.trainer.accelerator in ("gpu", "cuda") and not cuda:
        raise MachineError(f"trainer.accelerator={config.trainer.accelerator}: no GPU was found - use auto")
    return cuda


def _precision(config: TrainConfig, cuda: bool) -> tuple[str, str]:
    """Lightning's name of the precision, and why it was chosen."""
    if config.trainer.precision != "auto":
        return config.trainer.precision, "as asked for"
    if cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "native on this GPU") if native else ("32-true", "bf16 is not native on this GPU")
    # Where the CPU has to emulate bf16 it is up to ten times as slow as float32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return ("bf16-mixed", "native on this CPU") if native else ("32-true", "bf16 is not native on this CPU")


def _try(model: ImageClassifier, config: TrainConfig) -> None:
    """Refuses an optimizer, a scheduler and image sizes that the network cannot be trained with."""
    recipe = model.recipe(total_steps=10)
    if isinstance(recipe, tuple):
        (optimizer,), (scheduler,) = recipe
        optimizer.step()
        scheduler.step(*([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
    for pixels in config.augment.resolution or {}:
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, pixels, pixels, 3, dtype=torch.uint8))
        except RuntimeError as error:
            raise ConfigError(
                f"augment.resolution: {pixels} pixels do not fit this network - a ConvPool takes any size with "
                "model.global_pool=max"
            ) from error


def _compile(model: ImageClassifier, cuda: bool) -> None:
    if not cuda and shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise MachineError(
            "compile=true needs a C++ compiler on a CPU, and there is none - install g++ or leave it out"
        )
    model.net.compile(dynamic=False)  # in place: the checkpoint's keys stay as they are


def _continued(
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
    if _planned(saved) and not STEPS.isdisjoint(different):
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


def _planned(config: TrainConfig) -> bool:
    """Whether the scheduler depends on the run's number of steps."""
    return config.scheduler is not None and "total_steps" in config.scheduler.model_dump().values()


def _finished(run_dir: Path, config: TrainConfig) -> dict[str, Any] | None:
    """What metrics.json holds, if the run has ended and neither more epochs nor other figures are asked for."""
    metrics = read_metrics(run_dir)
    if metrics is None:
        return None
    same_length = metrics["config"]["trainer"]["max_epochs"] >= config.trainer.max_epochs
    tested = metrics["test/acc"] is not None or not config.test
    augmented = config.tta in ("none", metrics.get("tta"))
    return metrics if same_length and tested and augmented else None


def _commands(config: TrainConfig, run_dir: Path) -> dict[str, str]:
    """What can be done with a finished run."""
    folder = short(run_dir)
    commands = {"results": folder, "evaluate": f"litcifar-evaluate ckpt={folder}/{BEST}"}
    if not _planned(config):
        commands["train on"] = f"litcifar-train resume={folder} trainer.max_epochs={2 * config.trainer.max_epochs}"
    return commands | {"compare": "litcifar-compare outputs"}


def _how_to(config: TrainConfig, commands: dict[str, str], run_dir: Path) -> dict[str, str]:
    """The commands of a report, and what each of them does."""
    resume = commands.get("train on", f"litcifar-train resume={short(run_dir)}")
    planned = f"Resume, where it was stopped (its scheduler was planned for {config.trainer.max_epochs} epochs)"
    return {
        "Reproduce": _reproduce(config, run_dir),
        planned if _planned(config) else "Resume, with more epochs": resume,
        "Evaluate": commands["evaluate"],
        "Compare with other runs": commands["compare"],
    }


def _reproduce(config: TrainConfig, run_dir: Path) -> str:
    """The command of the run, as Hydra noted it, with what was changed since; in Python where there was no command."""
    hydra = run_dir / ".hydra"
    if not (hydra / "overrides.yaml").is_file():
        return PYTHON.format(str(run_dir))
    overrides = OmegaConf.to_container(OmegaConf.load(hydra / "overrides.yaml"), resolve=False)
    begun = flat(OmegaConf.to_container(OmegaConf.load(hydra / "config.yaml"), resolve=False))  # type: ignore[arg-type]
    later = {key: value for key, value in flat(plain(config)).items() if key.startswith("trainer.")}
    changed = [f"{key}={'null' if v is None else v}" for key, v in later.items() if begun.get(key, v) != v]
    return shlex.join(["litcifar-train", *overrides, *changed])  # type: ignore[misc]


def _say_end(console: Console, metrics: dict[str, Any], commands: dict[str, str], seconds: float) -> None:
    say = console.print
    accuracy = ", ".join(_accuracy(metrics, split) for split in ("val", "test") if metrics[f"{split}/acc"] is not None)
    say(
        f"[bold]best epoch {metrics['best_epoch']} of {metrics['epochs']}: {accuracy}[/] "
        f"in {duration(seconds)} ({duration(metrics['train_seconds'])} of training at "
        f"{metrics['images_per_second']:,.0f} images/s, "
        f"{100 * metrics['overhead']:.1f} % of it outside forward, backward and step)",
    )
    if metrics["substituted"]:
        say("[bold yellow]These figures are on the built-in shapes, not on CIFAR-10.")
    for what, command in commands.items():
        say(f"{what:9} {command}", soft_wrap=True)  # to be copied in one piece


def _accuracy(metrics: dict[str, Any], split: str) -> str:
    acc, tta_acc = metrics[f"{split}/acc"], metrics[f"{split}/tta_acc"]
    with_tta = "" if tta_acc is None else f" ({100 * tta_acc:.2f} % with {metrics['tta']})"
    return f"{split} {100 * acc:.2f} %{with_tta}"
