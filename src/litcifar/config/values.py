"""The types of the configuration's values, and what every part of it keeps to."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _table_file(path: str) -> str:
    if not path.endswith((".csv", ".json")):
        raise ValueError("its name has to end in .csv or .json")
    return path


def like(pattern: str, otherwise: str) -> AfterValidator:
    """Text that matches; `otherwise` is what is said of other text."""

    def matching(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(otherwise)
        return text

    return AfterValidator(matching)


def class_in(*packages: str) -> AfterValidator:
    """The name of a class of one of these packages."""
    return like(rf"({'|'.join(map(re.escape, packages))})\.\w+", f"choose a class of {' or '.join(packages)}")


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
BatchLimit = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Expanded = Annotated[Text, AfterValidator(os.path.expanduser)]
Folder = Annotated[Text, AfterValidator(lambda path: str(Path(os.path.expanduser(path)).absolute()))]
Duration = Annotated[str, like(r"\d+:\d\d:\d\d:\d\d", "write days:hours:minutes:seconds, such as 00:12:00:00")]
# As a part of a path it stays where it is put.
WORD = r"\w[\w.+-]*"
Word = Annotated[str, like(WORD, "use letters, digits, _ and, but for the first, . + -")]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
# Packages whose code may run beside litcifar's.
Trust = list[Annotated[str, like(r"\w+(\.\w+)*", "give the name of a package, such as my_net")]]
Target = Annotated[str, like(r"\w+(\.\w+)+", "give module and class, such as my_net.TinyNet")]
TableFile = Annotated[Text, AfterValidator(_table_file)]
TTA = Literal["none", "mirror", "mirror_translate"]
ParameterKind = Literal["stem", "norm", "head", "hidden", "bias"]


class Node(BaseModel):
    """A part of the configuration: unknown keys, other types, infinities and NaN are refused.

    A key that is added gets a default here: checkpoints that are older than it have none (`checkpoints.config_of`).
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)
