"""The layers of a network as a table."""

from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from rich.table import Table

from litcifar.models import ImageClassifier


def layer_table(model: ImageClassifier) -> Table:
    """Each layer with its output shape, parameters, and forward FLOPs for one image (a multiply-add counts as two)."""
    summary = ModelSummary(model, max_depth=-1)
    table = Table("layer", "type", box=None, pad_edge=False)
    for column in ("output shape", "parameters", "FLOPs"):
        table.add_column(column, justify="right")
    leaves = {name for name, module in model.net.named_modules(prefix="net") if not list(module.children())}
    flops = {name: sum(of_kind.values()) for name, of_kind in summary.flop_counts.items()}
    rows = zip(summary.layer_names, summary.layer_types, summary.out_sizes, summary.param_nums, strict=True)
    for name, kind, shape, params in rows:
        if name in leaves:
            table.add_row(name, kind, "x".join(map(str, shape[1:])), f"{params:,}", f"{flops.get(name, 0):,}")
    table.add_row("total", "", "", f"{summary.total_parameters:,}", f"{summary.total_flops:,}", style="bold")
    return table


def flops(model: ImageClassifier) -> int:
    """Forward FLOPs for one image: twice the multiply-adds of its convolutions and linear layers."""
    return int(ModelSummary(model, max_depth=-1).total_flops)
