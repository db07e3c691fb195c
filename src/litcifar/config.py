"""What may stand in the configuration, and how a `_target_` becomes an object.

Nothing here imports torch: a mistake on the command line is answered before seconds of imports.
"""

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from litcifar.errors import ConfigError
from litcifar.keys import compose, suggestion

TRUSTED = ("litcifar", "torch.optim", "lightning.pytorch.loggers")
WITHOUT_EFFECT = (  # on the training: a resumed run may differ in these keys, and they make no row of the leaderboard
    "test",
    "tta",
    "figures",
    "trust",
    "compile",
    "data.root",
    "data.verify",
    "data.mirrors",
    "data.download_seconds",
    "data.num_workers",
)


def _table_file(path: str) -> str:
    if not path.endswith((".csv", ".json")):
        raise ValueError("its name has to end in .csv or .json")
    return path


def _like(pattern: str, otherwise: str) -> AfterValidator:
    """Text that matches; `otherwise` is what is said of other text."""

    def matching(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(otherwise)
        return text

    return AfterValidator(matching)


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
BatchLimit = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Folder = Annotated[Text, AfterValidator(lambda path: str(Path(os.path.expanduser(path)).absolute()))]
Duration = Annotated[str, _like(r"\d+:\d\d:\d\d:\d\d", "write days:hours:minutes:seconds, such as 00:12:00:00")]
# As a part of a path it stays where it is put.
WORD = r"\w[\w.+-]*"
Word = Annotated[str, _like(WORD, "use letters, digits, _ and, but for the first, . + -")]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
# Packages whose code may run beside litcifar's.
Trust = list[Annotated[str, _like(r"\w+(\.\w+)*", "give the name of a package, such as my_net")]]
Target = Annotated[str, _like(r"\w+(\.\w+)+", "give module and class, such as my_net.TinyNet")]
TableFile = Annotated[Text, AfterValidator(_table_file)]
TTA = Literal["none", "mirror", "mirror_translate"]
ParameterKind = Literal["stem", "norm", "head", "hidden", "bias"]


class Node(BaseModel):
    """A part of the configuration: unknown keys, other types, infinities and NaN are refused.

    A key that is added gets a default here: checkpoints that are older than it have none (`checkpoints.config_of`).
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class DataConfig(Node):
    batch_size: Count
    eval_batch_size: Count
    val_size: Count | Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0)] | None
    classes: Annotated[list[str], Field(min_length=2)] | None
    shuffle: bool
    drop_last: bool
    num_workers: Annotated[int, Field(ge=0)]


class CIFAR10Config(DataConfig):
    target: Literal["litcifar.data.CIFAR10DataModule"] = Field(alias="_target_")
    root: Folder
    verify: bool
    mirrors: list[str]
    download_seconds: Positive
    fallback: Literal["shapes"] | None


class ShapesConfig(DataConfig):
    target: Literal["litcifar.data.ShapesDataModule"] = Field(alias="_target_")


class ImageFolderConfig(DataConfig):
    target: Literal["litcifar.data.ImageFolderDataModule"] = Field(alias="_target_")
    root: Folder
    image_size: Annotated[int, Field(ge=4)]


class OwnDataConfig(DataConfig):
    """A user's own `ImageDataModule`; the rest is checked against its signature."""

    model_config = ConfigDict(extra="allow")

    target: Target = Field(alias="_target_")


class ModelConfig(Node):
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    label_smoothing: Share
    l1: NonNegative
    loss_reduction: Literal["mean", "sum"]


class MLPConfig(ModelConfig):
    target: Literal["litcifar.models.MLP"] = Field(alias="_target_")
    init: Literal["default", "fan_in", "he", "glorot"]
    activation: Activation
    hidden: list[Count]
    batch_norm: bool
    dropout: Share


class ConvPoolConfig(ModelConfig):
    target: Literal["litcifar.models.ConvPool"] = Field(alias="_target_")
    init: Literal["default", "fan_in", "he", "glorot", "dirac"]
    activation: Activation
    widths: Annotated[list[Count], Field(min_length=1)]
    convs: Count | list[Count]
    kernel_size: Count | list[Count]
    padding: Literal["same", "valid"]
    conv_bias: bool
    norm: Literal["none", "conv", "activation", "pool"]
    norm_scale: bool
    norm_momentum: Share
    norm_eps: Positive
    pool: Literal["max", "average", "sum", "none"]
    pool_size: Count
    pool_position: Literal["block", "first_conv"]
    dropout: Share | list[Share]
    residual: bool
    stem: Literal["none", "whitened"]
    stem_stride: Count = 1
    stem_activation: Activation
    global_pool: Literal["none", "max", "average"]
    head: list[Count]
    head_dropout: Share
    head_bias: bool
    logit_scale: Positive


class OwnModelConfig(ModelConfig):
    """A user's own network; the rest is checked against its signature."""

    model_config = ConfigDict(extra="allow")

    target: Target = Field(alias="_target_")


def _kind(spec: Any) -> str:
    """Which schema a group has: that of the `_target_`, or that of a user's own."""
    target = str(
        spec.get("_target_", spec.get("target")) if isinstance(spec, Mapping) else getattr(spec, "target", None)
    )
    return target if target.startswith("litcifar.") else "own"


class GroupConfig(Node):
    """What differs for parameters of one kind; the rest is checked against the optimizer's signature."""

    model_config = ConfigDict(extra="allow")

    until: Annotated[float, Field(gt=0, le=1)] = 1.0


class OptimConfig(Node):
    """Any optimizer of torch.optim, or ours; keyword arguments beyond these are checked against its signature."""

    model_config = ConfigDict(extra="allow")

    target: Annotated[
        str, _like(r"(torch|litcifar)\.optim\.\w+", "choose a class of torch.optim or litcifar.optim")
    ] = Field(alias="_target_")
    lr: Positive
    groups: dict[ParameterKind, GroupConfig] = {}


class SchedulerConfig(Node):
    """Any scheduler of torch.optim.lr_scheduler, or ours; the rest is checked against its signature."""

    model_config = ConfigDict(extra="allow")

    target: Annotated[
        str,
        _like(
            r"(torch\.optim\.lr_scheduler|litcifar\.optim)\.\w+",
            "choose a class of torch.optim.lr_scheduler or litcifar.optim",
        ),
    ] = Field(alias="_target_")
    interval: Literal["step", "epoch"]
    monitor: Literal["train/acc", "train/loss", "val/acc", "val/loss"] | None = None


class AugmentConfig(Node):
    flip: Literal["none", "random", "alternating"]
    translate: Annotated[int, Field(ge=0)]
    padding: Literal["reflect", "zero"]
    rotation: Annotated[float, Field(ge=0, le=180)]
    cutout: Annotated[int, Field(ge=0)]
    mixup: NonNegative
    cutmix: NonNegative
    resolution: dict[Annotated[int, Field(ge=4, strict=False)], Annotated[float, Field(gt=0, le=1)]] | None = None


class LoggerConfig(Node):
    model_config = ConfigDict(extra="allow")

    target: Annotated[
        str, _like(r"lightning\.pytorch\.loggers\.\w+", "choose a class of lightning.pytorch.loggers")
    ] = Field(alias="_target_")


class TrainerConfig(Node):
    """Keyword arguments of `lightning.Trainer`, but for those that litcifar itself fills in."""

    accelerator: Accelerator
    devices: Count | Literal["auto"]
    num_nodes: Count = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Precision
    max_epochs: Count
    min_epochs: Count | None
    max_steps: Literal[-1] | Count
    max_time: Duration | dict[Literal["weeks", "days", "hours", "minutes", "seconds"], Count] | None
    limit_train_batches: BatchLimit | None
    limit_val_batches: BatchLimit | None
    limit_test_batches: BatchLimit | None
    overfit_batches: Annotated[int, Field(ge=0)] | Share
    check_val_every_n_epoch: Count
    num_sanity_val_steps: Annotated[int, Field(ge=-1)]
    accumulate_grad_batches: Count
    gradient_clip_val: Positive | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    deterministic: bool | Literal["warn"]
    benchmark: bool | None
    detect_anomaly: bool
    profiler: Literal["simple", "advanced", "pytorch"] | None
    enable_progress_bar: bool


Data = Annotated[
    Annotated[CIFAR10Config, Tag("litcifar.data.CIFAR10DataModule")]
    | Annotated[ShapesConfig, Tag("litcifar.data.ShapesDataModule")]
    | Annotated[ImageFolderConfig, Tag("litcifar.data.ImageFolderDataModule")]
    | Annotated[OwnDataConfig, Tag("own")],
    Discriminator(_kind),
]


class TrainConfig(Node):
    """The whole of `conf/train.yaml` with its groups."""

    trust: Trust = []
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    name: Word
    test: bool
    tta: TTA = "none"  # checkpoints of earlier versions have none
    resume: Text | None
    tune: Literal["lr"] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    lookahead: Count | None = None
    compile: bool | Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = False
    early_stopping: Count | None
    figures: bool = True
    data: Data
    model: Annotated[
        Annotated[MLPConfig, Tag("litcifar.models.MLP")]
        | Annotated[ConvPoolConfig, Tag("litcifar.models.ConvPool")]
        | Annotated[OwnModelConfig, Tag("own")],
        Discriminator(_kind),
    ]
    optim: OptimConfig
    scheduler: SchedulerConfig | None
    augment: AugmentConfig
    trainer: TrainerConfig
    logger: LoggerConfig | None

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.trainer.min_epochs and self.trainer.min_epochs > self.trainer.max_epochs:
            raise ValueError("trainer.min_epochs is larger than trainer.max_epochs - make it smaller")
        if self.trainer.check_val_every_n_epoch > self.trainer.max_epochs:
            raise ValueError("trainer.check_val_every_n_epoch is larger than trainer.max_epochs - make it smaller")
        if self.trainer.strategy != "ddp" and (self.trainer.devices != 1 or self.trainer.num_nodes != 1):
            key = "devices" if self.trainer.devices != 1 else "num_nodes"
            value = getattr(self.trainer, key)
            raise ValueError(f"trainer.{key}={value} is several processes - set trainer=ddp beside it, or leave it out")
        accumulated = self.trainer.accumulate_grad_batches
        if accumulated > 1 and self.compile in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"compile={self.compile} is of CUDA graphs, in which gradients are not added up - set "
                f"compile=max-autotune-no-cudagraphs, or leave out trainer.accumulate_grad_batches={accumulated}"
            )
        if self.tune and self.resume:
            raise ValueError(f"tune={self.tune} begins with new weights - leave out resume")
        for group, target in (("data", self.data.target), ("model", self.model.target)):
            if not within(target, ["litcifar", *self.trust]):
                raise ValueError(
                    f"{group}._target_={target} is code from outside litcifar, which runs only where you name its "
                    f"package - {_trusting(target)}"
                )
        return self

    def planned(self) -> str | None:
        """In words, that learning rates, image sizes or averages depend on the run's number of steps, if so."""
        plans = {
            "scheduler": self.scheduler is not None and "total_steps" in self.scheduler.model_dump().values(),
            "augment.resolution": bool(self.augment.resolution),
            "lookahead": self.lookahead is not None,
        }
        what = next((key for key, is_one in plans.items() if is_one), None)
        return f"planned by its {what} for {self.trainer.max_epochs} epochs" if what else None

    def may_train_on(self) -> bool:
        """Whether a finished run takes more epochs; early stopping may have ended one for good."""
        return not self.planned() and not self.early_stopping

    def with_data(self, where: Node) -> "TrainConfig":
        """The same, with those keys of the data set that `where` gives: what is None in it stays.

        ConfigError for a key that the data set does not have.
        """
        given = {key: value for key, value in where.model_dump().items() if value is not None}
        for key, value in given.items():
            if not hasattr(self.data, key):
                name = self.data.target.rpartition(".")[2].removesuffix("DataModule")
                raise ConfigError(f"data.{key}={value}: the run's data set, {name}, has no such key - leave it out")
        return self.model_copy(update={"data": self.data.model_copy(update=given)})


class SearchConfig(Node):
    """The keys of `conf/hydra/sweeper/optuna.yaml`, but for the space itself.

    n_trials: in all, failed and pruned ones too. seed: of the sampler. startup_trials: are drawn at random, and as
    many are complete before one is pruned. warmup_epochs: of a run, in which it is not pruned.
    """

    n_trials: Count
    seed: Annotated[int, Field(ge=0)]
    startup_trials: Annotated[int, Field(ge=0)]
    warmup_epochs: Annotated[int, Field(ge=0)]


class WhereConfig(Node):
    """Where a checkpoint's images are now; None as in training."""

    root: Folder | None
    verify: bool | None


class EvaluateConfig(Node):
    """The whole of `conf/evaluate.yaml`."""

    ckpt: Text
    split: Literal["val", "test", "both"]
    tta: TTA | None
    folder: Folder | None
    figures: bool
    accelerator: Accelerator
    data: WhereConfig
    trust: Trust


class PredictConfig(Node):
    """The whole of `conf/predict.yaml`."""

    ckpt: Text
    images: Text | Annotated[list[Text], Field(min_length=1)]
    top: Count
    tta: TTA
    output: TableFile | None
    overwrite: bool
    accelerator: Accelerator
    trust: Trust


class DemoConfig(Node):
    """The whole of `conf/demo.yaml`."""

    ckpt: Text
    host: Text
    port: Annotated[int, Field(ge=0, le=65535)]
    tta: TTA
    accelerator: Accelerator
    trust: Trust
    data: WhereConfig


class ExportConfig(Node):
    """The whole of `conf/export.yaml`."""

    ckpt: Text
    format: Literal["onnx", "pt2"]
    output: Text | None
    overwrite: bool
    trust: Trust

    @model_validator(mode="after")
    def _is_named_by_its_format(self) -> "ExportConfig":
        if self.output and not self.output.endswith(f".{self.format}"):
            raise ValueError(
                f"output={self.output} is no name for format={self.format} - let it end in .{self.format}, or give "
                "another format"
            )
        return self


class LookConfig(Node):
    """The whole of `conf/look.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    folder: Folder
    columns: Annotated[int, Field(ge=2)]
    data: Data
    augment: AugmentConfig
    trust: Trust


class CompareConfig(Node):
    """The whole of `conf/compare.yaml`."""

    class Where(Node):
        root: Folder | None

    folders: Annotated[list[Text], Field(min_length=1)]
    csv: Annotated[Text, _like(r"(?s).*\.csv", "its name has to end in .csv")] | None
    data: Where
    trust: Trust


Config = TypeVar("Config", bound=Node)


def shapes_like(data: DataConfig) -> ShapesConfig:
    """The built-in shapes, in batches and splits of another data set."""
    common = {key: value for key, value in data.model_dump().items() if key in ShapesConfig.model_fields}
    return check(common | {"target": "litcifar.data.ShapesDataModule"}, ShapesConfig)


def train_config(*overrides: str) -> TrainConfig:
    """What `litcifar-train` would run: train_config("experiment=quickstart", "seed=1").

    Raises ConfigError and HydraException.
    """
    return check(compose("train", *overrides), TrainConfig)


def check(config: Mapping[str, Any], schema: type[Config], complete: bool = True) -> Config:
    """The checked configuration; ConfigError names each key that is unknown, missing, of a wrong type or out of range.

    complete: False where keys that have a default may be missing, as in a checkpoint that is older than they are.
    """
    try:
        checked = schema.model_validate(config)
        problems = [f"'{key}' is missing - give it a value" for key in _left_out(checked)] if complete else []
    except ValidationError as error:
        problems = [_problem(dict(detail), config) for detail in error.errors(include_url=False)]
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))
    return checked


def _left_out(node: Node, prefix: str = "") -> list[str]:
    """The keys that took their default, but for those of a node that takes any key."""
    if node.model_config["extra"] == "allow":
        return []
    given = node.model_fields_set
    missing = [f"{prefix}{name}" for name in type(node).model_fields if name not in given]
    inside = [_left_out(value, f"{prefix}{name}.") for name, value in node if isinstance(value, Node)]
    return [*missing, *(key for keys in inside for key in keys)]


def plain(config: Node) -> dict[str, Any]:
    """The configuration as dicts, lists, strings and numbers, which a checkpoint may hold."""
    return config.model_dump(by_alias=True)


Built = TypeVar("Built")


def _trusting(target: str) -> str:
    return f"trust=[{target.partition('.')[0]}] if you know what is in it"


def within(target: str, packages: Sequence[str]) -> bool:
    """Whether a class is one of these packages'."""
    return target.startswith(tuple(f"{package}." for package in packages))


def class_of(target: str, base: type[Built], trust: Sequence[str] = ()) -> type[Built]:
    """The class of that name, which must be a `base` and within TRUSTED or `trust`, the user's own; ConfigError.

    A `_target_` may come from a stranger's checkpoint, where it is code to run: hence the short list of trusted
    packages, and the check that it names a subclass of what belongs there. A user's own lie in the working folder too.
    """
    module, _, name = target.rpartition(".")
    found = None
    if within(target, TRUSTED):
        with contextlib.suppress(ImportError, AttributeError):
            found = getattr(importlib.import_module(module), name)
    elif within(target, trust):
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever a user's file raises when it is imported
            text = " ".join(str(error).split())
            raise ConfigError(f"{target} cannot be imported ({type(error).__name__}: {text}) - correct it") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        packages = (*TRUSTED, *trust)
        advice = (
            "correct its name"
            if within(target, packages)
            else f"correct its name, or name its package: {_trusting(target)}"
        )
        known = ", ".join(f"{package}.*" for package in packages)
        raise ConfigError(f"_target_={target} is no {base.__name__} of {known} - {advice}")
    return found


def build(spec: Mapping[str, Any], base: type[Built], *args: Any, trust: Sequence[str] = (), **extra: Any) -> Built:
    """An object of the class that `spec["_target_"]` names (see `class_of`), from the other items of `spec`."""
    options = dict(spec)
    path = str(options.pop("_target_"))
    target = class_of(path, base, trust)
    try:
        parameters = inspect.signature(target).bind(*args, **options, **extra).signature.parameters
        numbers = [name for name, of in parameters.items() if of.annotation in ("int", "float", int, float)]
        for key in numbers:
            if isinstance(options.get(key), str):  # which may be noticed only epochs later
                raise ValueError(f"{key}={options[key]} should be a number")
        return target(*args, **options, **extra)
    except (TypeError, ValueError, ArithmeticError, LookupError, ImportError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{path}: {text}{'' if ' - ' in text else ' - correct it'}") from error


def _problem(detail: dict[str, Any], config: Mapping[str, Any]) -> str:
    """One of pydantic's complaints, in the words of the command line."""
    # A union's or a discriminator's own tags stand in `loc` too; what is no key of the configuration is left out.
    keys: list[str] = []
    here: Any = config
    parent: Any = config
    for step in detail["loc"]:
        if isinstance(here, Mapping) and step in here:
            parent, here = here, here[step]
        elif isinstance(here, list) and isinstance(step, int):
            here = here[step]
        elif detail["type"] != "missing" or step != detail["loc"][-1]:
            continue
        keys.append(str(step))
    name = ".".join(keys)
    if detail["type"] == "missing":
        return f"'{name}' is missing - give it a value"
    if detail["type"] == "extra_forbidden":
        siblings = [".".join([*keys[:-1], key]) for key in parent if key != keys[-1]]
        return f"unknown key '{name}' - {suggestion(name, siblings)}"
    if detail["type"] == "union_tag_invalid":
        expected = str(detail.get("ctx", {}).get("expected_tags", ""))
        return f"{name}._target_={detail['ctx']['tag']} is not one of {expected} - choose one of them"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{name}={here} - {message[0].lower()}{message[1:]}" if name else message
