"""Only trusted classes of the right kind are built, of arguments that fit."""

from typing import Any

import pytest
import torch

from litcifar.config import build
from litcifar.errors import ConfigError
from litcifar.models import ImageClassifier


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "torch.optim.adam.torch.load",
        "litcifar.arguments.os.system",
        "litcifar.checkpoints.torch.load",
        "litcifar.models.Nothing",
        "torch.optim",
        "",
    ],
)
def test_nothing_but_a_trusted_class_of_the_right_kind_is_built(target: str) -> None:
    for base in (ImageClassifier, torch.optim.Optimizer):
        with pytest.raises(ConfigError, match="_target_"):
            build({"_target_": target}, base)


def test_a_trusted_class_of_another_kind_is_not_built() -> None:
    with pytest.raises(ConfigError, match="no Optimizer"):
        build({"_target_": "litcifar.models.MLP"}, torch.optim.Optimizer)


@pytest.mark.parametrize(
    "spec",
    [{"_target_": "litcifar.models.MLP", "hiden": [1]}, {"_target_": "litcifar.models.MLP", "hidden": 3}],
)
def test_arguments_that_do_not_fit_are_a_configuration_error(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"litcifar\.models\.MLP"):
        build(spec, ImageClassifier)
