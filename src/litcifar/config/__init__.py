"""What may stand in the configuration, and how a `_target_` becomes an object.

Nothing here imports torch: a mistake on the command line is answered before seconds of imports.
"""

from litcifar.config.building import build, class_of
from litcifar.config.checking import check, plain
from litcifar.config.programs import (
    CompareConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    LookConfig,
    PredictConfig,
    SearchConfig,
    WhereConfig,
)
from litcifar.config.run import WITHOUT_EFFECT, TrainConfig, may_change, shapes_like, train_config
from litcifar.config.values import TTA, WORD, ParameterKind, Precision, Word
from litcifar.keys import compose

__all__ = [
    "TTA",
    "WITHOUT_EFFECT",
    "WORD",
    "CompareConfig",
    "DemoConfig",
    "EvaluateConfig",
    "ExportConfig",
    "LookConfig",
    "ParameterKind",
    "Precision",
    "PredictConfig",
    "SearchConfig",
    "TrainConfig",
    "WhereConfig",
    "Word",
    "build",
    "check",
    "class_of",
    "compose",
    "may_change",
    "plain",
    "shapes_like",
    "train_config",
]
