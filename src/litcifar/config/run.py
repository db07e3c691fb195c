"""What may stand in the configuration of a run, `conf/train.yaml` with its groups."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from litcifar.config.building import trusting, within
from litcifar.config.checking import check
from litcifar.config.values import (
    TTA,
    Accelerator,
    Activation,
    BatchLimit,
    Count,
    Duration,
    Folder,
    Node,
    NonNegative,
    ParameterKind,
    Positive,
    Precision,
    Share,
    Target,
    Text,
    Trust,
    Word,
    class_in,
)
from litcifar.errors import ConfigError
from litcifar.keys import compose

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


def may_change(key: str) -> bool:
    """Whether a run that goes on may have another value of this key."""
    return key.startswith("trainer.") or key in ("resume", *WITHOUT_EFFECT)


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

    target: Annotated[str, class_in("torch.optim", "litcifar.optim")] = Field(alias="_target_")
    lr: Positive
    groups: dict[ParameterKind, GroupConfig] = Field(default_factory=dict)


class SchedulerConfig(Node):
    """Any scheduler of torch.optim.lr_scheduler, or ours; the rest is checked against its signature."""

    model_config = ConfigDict(extra="allow")

    target: Annotated[str, class_in("torch.optim.lr_scheduler", "litcifar.optim")] = Field(alias="_target_")
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

    target: Annotated[str, class_in("lightning.pytorch.loggers")] = Field(alias="_target_")


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

    trust: Trust = Field(default_factory=list)
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
        for key in ("min_epochs", "check_val_every_n_epoch"):
            # The epochs of a run that goes on stand in its checkpoint: `resuming.continued` sees to it.
            if not self.resume and (getattr(self.trainer, key) or 1) > self.trainer.max_epochs:
                raise ValueError(f"trainer.{key} is larger than trainer.max_epochs - make it smaller")
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
                    f"package - {trusting(target)}"
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


def shapes_like(data: DataConfig) -> ShapesConfig:
    """The built-in shapes, in batches and splits of another data set."""
    common = {key: value for key, value in data.model_dump().items() if key in ShapesConfig.model_fields}
    return check(common | {"target": "litcifar.data.ShapesDataModule"}, ShapesConfig)


def train_config(*overrides: str) -> TrainConfig:
    """What `litcifar-train` would run: train_config("experiment=quickstart", "seed=1").

    Raises ConfigError and HydraException.
    """
    return check(compose("train", *overrides), TrainConfig)
