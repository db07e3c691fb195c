"""A network's optimizer, with groups of parameters, and the schedule of its learning rates, from a configuration."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from litcifar.config import ParameterKind, build
from litcifar.errors import ConfigError

Spec = Mapping[str, Any]  # `_target_` and keyword arguments: see `ClassifierOptions`

FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")  # one kernel for the whole step, on CPU and GPU


def build_optimizer(
    spec: Spec,
    scheduler: Spec | None,
    parameters: Iterable[nn.Parameter],
    kinds: Mapping[nn.Parameter, ParameterKind],
) -> Optimizer:
    """A group for all parameters, but for the kinds in `spec["groups"]`: these follow, in ParameterKind's order.

    Raises ConfigError where its arguments, or a group's, do not fit, or a group ends in another than `Triangular`.
    """
    own_options: dict[str, dict[str, Any]] = spec.get("groups", {})
    spec = {key: value for key, value in spec.items() if key != "groups"}
    if spec["_target_"] in FUSED and spec.keys().isdisjoint({"foreach", "differentiable"}):
        spec = {"fused": True, **spec}
    members: dict[str, list[nn.Parameter]] = {kind: [] for kind in ("other", *get_args(ParameterKind))}
    for parameter in parameters:
        if parameter.requires_grad:
            kind = kinds.get(parameter, "other")
            members[kind if kind in own_options else "other"].append(parameter)
    groups = [
        _group(kind, spec, own_options.get(kind, {}), of_kind, scheduler)
        for kind, of_kind in members.items()
        if of_kind
    ]
    return build(spec, Optimizer, groups)


def _group(
    kind: str, spec: Spec, own_options: dict[str, Any], parameters: list[nn.Parameter], scheduler: Spec | None
) -> dict[str, Any]:
    until = {key: value for key, value in own_options.items() if key == "until" and value != 1}
    if until and (scheduler or {}).get("_target_") != "litcifar.optim.Triangular":
        raise ConfigError(f"optim.groups.{kind}.until: no other schedule ends early - set scheduler=triangular")
    options = {key: value for key, value in own_options.items() if key != "until"}
    try:
        # An optimizer refuses what torch lets pass in a group: unknown options and values out of range.
        (group,) = build({**spec, **options}, Optimizer, parameters).param_groups
    except ConfigError as error:
        raise ConfigError(f"optim.groups.{kind}: {error}" if options else str(error)) from error
    return group | until


def build_scheduler(spec: Spec, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The schedule of the optimizer's rates; ConfigError where its arguments do not fit.

    total_steps: the number of its steps in the whole run.
    """
    arguments = {
        key: total_steps if value == "total_steps" else value
        for key, value in spec.items()
        if key not in ("interval", "monitor")
    }
    monitor = spec.get("monitor") or ""
    if spec["_target_"] == "torch.optim.lr_scheduler.ReduceLROnPlateau":
        arguments = {"mode": "max" if monitor.endswith("/acc") else "min", **arguments}
    scheduler = build(arguments, LRScheduler, optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        if not monitor:
            raise ConfigError("scheduler: ReduceLROnPlateau watches a metric - set scheduler.monitor=val/loss")
        if spec.get("interval") == "step":
            raise ConfigError("scheduler: ReduceLROnPlateau is stepped once an epoch - set scheduler.interval=epoch")
    return scheduler
