"""What may stand in the configuration of a search, and of each program but `litcifar-train` itself."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from litcifar.config.run import AugmentConfig, Data
from litcifar.config.values import TTA, Accelerator, Count, Expanded, Folder, Node, TableFile, Text, Trust, like


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

    folders: Annotated[list[Expanded], Field(min_length=1)]
    csv: Annotated[Expanded, like(r"(?s).*\.csv", "its name has to end in .csv")] | None
    data: Where
    trust: Trust
