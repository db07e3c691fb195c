"""The layers of a network."""

from dataclasses import dataclass

from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from rich.table import Table

from litcifar.models.classifier import ImageClassifier


@dataclass(frozen=True)
class Layer:
    """shape: of its output for one image, such as 32x16x16. FLOPs: forward, for one image; a multiply-add is two."""

    name: str
    kind: str
    shape: str
    parameters: int
    flops: int


def layers(model: ImageClassifier) -> list[Layer]:
    """The layers that have none inside them, in their order; last, a row called `total`."""
    summary = ModelSummary(model, max_depth=-1)
    leaves = {name for name, module in model.net.named_modules(prefix="net") if not list(module.children())}
    flops = {name: sum(of_kind.values()) for name, of_kind in summary.flop_counts.items()}
    rows = zip(summary.layer_names, summary.layer_types, summary.out_sizes, summary.param_nums, strict=True)
    found = [
        Layer(name, kind, "x".join(map(str, shape[1:])), params, flops.get(name, 0))
        for name, kind, shape, params in rows
        if name in leaves
    ]
    return [*found, Layer("total", "", "", summary.total_parameters, summary.total_flops)]


def layer_table(rows: list[Layer]) -> Table:
    """What `layers` found, as a table for the screen."""
    table = Table("layer", "type", box=None, pad_edge=False)
    for column in ("output shape", "parameters", "FLOPs"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (f"{row.parameters:,}", f"{row.flops:,}")
        table.add_row(row.name, row.kind, row.shape, *numbers, style="bold" if row is rows[-1] else None)
    return table
