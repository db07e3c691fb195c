"""The optimizer, its groups of parameters, and the schedule: which they are, and what of them is refused."""

from typing import Any

import pytest
import torch

from litcifar.errors import ConfigError
from litcifar.models import MLP, ConvPool, ImageClassifier
from tests.models.conftest import SGD, SIZE, TRIANGULAR, mlp


def test_optimizer_is_the_one_asked_for() -> None:
    optimizer = mlp(optim={"_target_": "torch.optim.SGD", "lr": 0.5, "momentum": 0.9}).recipe(1)
    assert type(optimizer) is torch.optim.SGD
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.5, 0.9)


def test_optimizer_gets_what_is_not_frozen() -> None:
    model = ConvPool(widths=(4,), stem="whitened", norm="conv", norm_scale=False)
    (group,) = model.recipe(1).param_groups
    frozen = {name for name, p in model.named_parameters() if not any(p is other for other in group["params"])}
    assert frozen == {"net.1.conv.weight", "net.3.1.weight"}


def record(**options: Any) -> ConvPool:
    """A small network with the record networks' layers, and a hidden linear layer."""
    layers: dict[str, Any] = {"widths": (4, 6), "stem": "whitened", "norm": "conv", "norm_scale": False, "head": (5,)}
    return ConvPool(**layers, image_size=8, **options)


def groups(model: ImageClassifier) -> list[tuple[set[str], float]]:
    """The parameters' names in each of the optimizer's groups, and the group's learning rate."""
    recipe = model.recipe(1)
    optimizer = recipe if isinstance(recipe, torch.optim.Optimizer) else recipe[0][0]
    names = {parameter: name.removeprefix("net.") for name, parameter in model.named_parameters()}
    return [({names[p] for p in group["params"]}, group["lr"]) for group in optimizer.param_groups]


KINDS = {
    "stem": {"1.conv.bias"},  # its weight is frozen
    "norm": {"3.1.bias", "4.1.bias"},
    "head": {"8.weight", "8.bias"},
    "hidden": {"3.0.weight", "4.0.weight", "6.weight"},
    "bias": {"3.0.bias", "4.0.bias", "6.bias"},
}


def test_each_kind_of_parameters_may_have_a_group_of_its_own() -> None:
    rates = {"bias": 5.0, "hidden": 4.0, "head": 3.0, "norm": 2.0, "stem": 1.0}
    own = {kind: {"lr": lr} for kind, lr in rates.items()}
    assert groups(record(optim={**SGD, "groups": own})) == [(KINDS[kind], rates[kind]) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_all_other_parameters_are_a_group_before_it(kind: str) -> None:
    others = set().union(*KINDS.values()) - KINDS[kind]
    own = {kind: {"lr": 2.0}}
    assert groups(record(optim={**SGD, "groups": own})) == [(others, 0.1), (KINDS[kind], 2.0)]


def test_the_last_linear_layer_is_the_head_and_norm_scales_are_norm() -> None:
    model = mlp(batch_norm=True, optim={**SGD, "groups": {kind: {} for kind in KINDS}})
    names = [names for names, _ in groups(model)]
    assert names == [{"2.weight", "2.bias"}, {"4.weight", "4.bias"}, {"1.weight"}, {"1.bias"}]


def test_a_group_without_parameters_is_left_out() -> None:
    own = {"stem": {"lr": 1.0, "until": 0.3}, "norm": {"lr": 2.0}, "hidden": {"lr": 3.0}}
    logistic_regression = MLP(hidden=(), image_size=SIZE, optim={**SGD, "groups": own})
    assert groups(logistic_regression) == [({"1.weight", "1.bias"}, 0.1)]


def test_a_groups_options_take_precedence_over_the_optimizers() -> None:
    own = {"head": {"momentum": 0.5, "weight_decay": 0.25}}
    others, head = mlp(optim={**SGD, "weight_decay": 0.125, "groups": own}).recipe(1).param_groups
    assert (others["lr"], others["momentum"], others["weight_decay"]) == (0.1, 0.9, 0.125)
    assert (head["lr"], head["momentum"], head["weight_decay"]) == (0.1, 0.5, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentun": 0.9}, r"optim\.groups\.head: torch\.optim\.SGD: .*momentun"),
        ({"lr": -1.0}, r"optim\.groups\.head: torch\.optim\.SGD: Invalid learning rate: -1\.0"),
        ({"orthogonal": True}, r"optim\.groups\.head: torch\.optim\.SGD: .*orthogonal"),
        ({"until": 0.5}, r"optim\.groups\.head\.until: .* - set scheduler=triangular"),
    ],
)
@pytest.mark.parametrize("scheduler", [None, {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 3}])
def test_groups_that_cannot_be_built_are_refused_in_one_line(
    options: dict[str, Any], message: str, scheduler: dict[str, Any] | None
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        mlp(optim={**SGD, "groups": {"head": options}}, scheduler=scheduler).recipe(1)
    assert "\n" not in str(error.value)


def test_an_optimizers_own_mistake_is_not_a_groups() -> None:
    with pytest.raises(ConfigError, match=r"^torch\.optim\.SGD: .*momentun"):
        mlp(optim={**SGD, "momentun": 0.9, "groups": {"head": {"lr": 1.0}}}).recipe(1)


def test_vectors_cannot_be_orthogonalised() -> None:
    optim = {"_target_": "litcifar.optim.Muon", "lr": 0.1, "groups": {"head": {"orthogonal": True}}}
    with pytest.raises(ConfigError, match=r"optim\.groups\.head: litcifar\.optim\.Muon: .*two dimensions"):
        mlp(optim=optim).recipe(1)


def test_a_group_may_end_before_the_run() -> None:
    model = mlp(optim={**SGD, "groups": {"head": {"lr": 1.0, "until": 0.5}}}, scheduler=TRIANGULAR)
    (optimizer,), (scheduler,) = model.recipe(total_steps=100)
    rates = []
    for _ in range(100):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert rates[0] == [pytest.approx(0.02), 0.2]
    assert rates[23][0] == 0.1
    assert [step for step, (_, head) in enumerate(rates) if head > 0] == list(range(51))


@pytest.mark.parametrize(
    ("optim", "fused"),
    [
        ({"_target_": "torch.optim.Adam"}, True),
        ({"_target_": "torch.optim.AdamW"}, True),
        ({"_target_": "torch.optim.SGD"}, True),
        ({"_target_": "torch.optim.SGD", "fused": False}, False),
        ({"_target_": "torch.optim.SGD", "foreach": True}, None),
        ({"_target_": "torch.optim.RMSprop", "alpha": 0.9}, None),
    ],
)
def test_optimizers_are_fused_where_they_can(optim: dict[str, Any], fused: bool | None) -> None:
    assert mlp(optim={"lr": 0.1, **optim}).recipe(1).defaults.get("fused") is fused


@pytest.mark.parametrize(
    "optim",
    [
        {"_target_": "torch.optim.SGD", "lr": 0.1, "momentun": 0.9},
        {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": -1.0},
        {"_target_": "torch.optim.SDG", "lr": 0.1},
        {"_target_": "torch.optim.lr_scheduler.StepLR", "lr": 0.1},
    ],
    ids=["unknown_keyword", "value", "unknown_name", "no_optimizer"],
)
def test_optimizer_that_cannot_be_built_is_refused_in_one_line(optim: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=optim["_target_"]) as error:
        mlp(optim=optim).recipe(1)
    assert "\n" not in str(error.value)


def test_unknown_keyword_of_an_optimizer_is_named() -> None:
    with pytest.raises(ConfigError, match="momentun"):
        mlp(optim={"_target_": "torch.optim.SGD", "lr": 0.1, "momentun": 0.9}).recipe(1)


def test_unknown_keyword_of_a_scheduler_is_named() -> None:
    scheduler = {"_target_": "torch.optim.lr_scheduler.StepLR", "interval": "epoch", "step_size": 3, "gama": 0.1}
    with pytest.raises(ConfigError, match="gama"):
        mlp(scheduler=scheduler).recipe(1)


@pytest.mark.parametrize(
    ("scheduler", "mode"),
    [
        ({"monitor": "val/acc"}, "max"),
        ({"monitor": "train/loss"}, "min"),
        ({"monitor": "val/acc", "mode": "min"}, "min"),  # as it was asked for
    ],
)
def test_a_plateau_of_accuracy_is_where_it_no_longer_rises(scheduler: dict[str, str], mode: str) -> None:
    target = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "interval": "epoch"}
    _, (plateau,) = mlp(scheduler=target | scheduler).recipe(total_steps=10)
    assert plateau.mode == mode


def test_a_plateau_schedule_needs_a_metric_to_watch() -> None:
    scheduler = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "interval": "epoch", "monitor": None}
    with pytest.raises(ConfigError, match=r"scheduler\.monitor"):
        MLP(hidden=[], scheduler=scheduler).recipe(total_steps=10)
