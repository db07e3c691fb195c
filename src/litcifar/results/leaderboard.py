"""The leaderboard of finished runs: seeds of one config become one row, the best mean val/acc comes first."""

import contextlib
import dataclasses
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from litcifar.config import WITHOUT_EFFECT, TrainConfig, check, plain
from litcifar.errors import CheckpointError, ConfigError
from litcifar.keys import flat
from litcifar.run_folder import FIGURES, FINDER, LAST, METRICS, write_rows

# Two configs that differ in these alone train the same network: which random numbers are drawn, whether it was
# interrupted, what else is measured or shown, where the files came from (`data` and `fingerprint` tell what was read).
NOT_COMPARED = (
    *WITHOUT_EFFECT,
    "seed",
    "resume",
    "tune",
    "logger",
    "trainer.enable_progress_bar",
    "trainer.profiler",
    "data.fallback",
)


class Run(BaseModel):
    """What the leaderboard takes from a metrics.json; accuracies are fractions, NaN or None where there are none."""

    name: str
    seed: int
    data: str
    val_acc: float | None = Field(alias="val/acc")
    test_acc: float | None = Field(alias="test/acc")
    tta: str = "none"  # this and the next two are not in the files of earlier versions
    val_tta_acc: float | None = Field(alias="val/tta_acc", default=None)
    test_tta_acc: float | None = Field(alias="test/tta_acc", default=None)
    params: int
    flops: int | None = None
    train_seconds: float
    device: str
    precision: str = ""  # that auto chose
    config: dict[str, Any]
    fingerprint: str = ""
    folder: Path = Path()

    def recipe(self) -> dict[str, Any]:
        """Return what tells a row from another: data and precision used, config without NOT_COMPARED, by dotted key."""
        config = self.config
        with contextlib.suppress(ConfigError):  # keys that are younger than the run have the values it had without them
            config = plain(check(config, TrainConfig, complete=False))
        keys = {"fingerprint": self.fingerprint[:8], **flat(config)}
        if self.precision:
            keys["trainer.precision"] = self.precision
        left_out = tuple(f"{key}." for key in NOT_COMPARED)
        return {
            "name": self.name,
            "data": self.data,
            **{key: value for key, value in keys.items() if not f"{key}.".startswith(left_out)},
        }


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone. Means over seeds, sample standard deviations; None where there is none."""

    rank: int
    name: str
    differs: tuple[str, ...]  # the keys in which rows of this name differ, as `key=value`
    data: str  # the set, and how many of its classes where those were chosen
    seeds: tuple[int, ...]
    val_acc: float | None
    val_acc_sd: float | None
    test_acc: float | None  # over the `test_runs` runs that were tested
    test_acc_sd: float | None
    test_runs: int
    tta: str | None  # None, and no accuracy with it, where the runs had different ones
    val_tta_acc: float | None
    val_tta_acc_sd: float | None
    test_tta_acc: float | None
    test_tta_acc_sd: float | None
    params: int
    flops: int | None  # forward, of one image; a multiply-add counts as two
    train_seconds: float
    train_seconds_sd: float | None
    device: str
    best_run: Path
    runs: tuple[Run, ...] = dataclasses.field(repr=False)  # by seed


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the finished runs at any depth, the older first, and a line on each that is damaged or unfinished."""
    runs: dict[Path, Run] = {}
    damaged: dict[Path, str] = {}
    unfinished: set[Path] = set()
    for top in folders:
        if not top.is_dir():
            raise CheckpointError(f"'{top}' is not a folder - give one that holds runs, such as outputs")
        for name, subfolders, files in os.walk(top):
            folder = Path(name)
            if METRICS in files:
                try:
                    run = Run.model_validate_json((folder / METRICS).read_bytes())
                    runs.setdefault(folder.resolve(), run.model_copy(update={"folder": folder}))
                except (OSError, ValidationError) as error:
                    damaged[folder.resolve()] = f"{folder / 'metrics.json'} is left out: {_reason(error)}"
            elif LAST in files or (".hydra" in subfolders and not (folder / FIGURES / FINDER).is_file()):
                unfinished.add(folder.resolve())
    notes = list(damaged.values())
    if unfinished:
        notes.append(f"{count(len(unfinished))} not listed: unfinished, without metrics.json")
    return sorted(runs.values(), key=lambda run: (run.folder / METRICS).stat().st_mtime), notes


def rank(runs: Iterable[Run]) -> list[Row]:
    """Return the rows, best first. Of runs that repeat recipe and seed, which add no evidence, the last one counts."""
    groups: dict[str, dict[int, Run]] = {}
    namesakes: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        recipe = run.recipe()
        group = groups.setdefault(json.dumps({key: _given(recipe, key) for key in sorted(recipe)}), {})
        if not group:
            namesakes.setdefault(run.name, []).append(recipe)
        group[run.seed] = run
    differing = {name: _differing(recipes) for name, recipes in namesakes.items()}
    rows = [_row(list(group.values()), differing) for group in groups.values()]
    rows.sort(key=lambda row: _or_last(row.val_acc), reverse=True)
    return [dataclasses.replace(row, rank=place) for place, row in enumerate(rows, 1)]


def table(rows: Sequence[Row], width: int) -> Table:
    """Return the rows as a table for so many columns of text; what has no room, or no content, is left to the CSV."""
    cells = {
        "#": [str(row.rank) for row in rows],
        "name": [row.name for row in rows],
        "differs in": ["\n".join(row.differs) for row in rows],
        "data": [row.data for row in rows],
        "n": [str(len(row.seeds)) for row in rows],
        "val acc %": [percent(row.val_acc, row.val_acc_sd) for row in rows],
        "test acc %": [percent(row.test_acc, row.test_acc_sd) + untested(row) for row in rows],
        "val tta %": [percent(row.val_tta_acc, row.val_tta_acc_sd) for row in rows],
        "test tta %": [percent(row.test_tta_acc, row.test_tta_acc_sd) for row in rows],
        "params": [f"{row.params:,}" for row in rows],
        "time": [duration(row.train_seconds) for row in rows],
        "device": [row.device for row in rows],
    }
    least_widths = {"differs in": 0, "val tta %": 120, "test tta %": 120, "params": 90, "device": 90}
    for title, least_width in least_widths.items():
        if width < least_width or set(cells[title]) <= {"", "-"}:
            del cells[title]
    widths = {
        title: max(len(line) for cell in [title, *column] for line in cell.split("\n"))
        for title, column in cells.items()
    }
    for title in ("device", "differs in", "name"):  # fold in this order, which rich would not, and never a number
        if title in widths:
            excess = max(0, sum(widths.values()) + len(widths) - 1 - width)
            widths[title] = max(min(widths[title], 10), widths[title] - excess)
    result = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for title in cells:
        is_text = title in ("name", "differs in", "data", "device")
        result.add_column(title, justify="left" if is_text else "right", overflow="fold", width=widths[title])
    for row in zip(*cells.values(), strict=True):
        result.add_row(*map(Text, row))  # Text: a name is not markup
    return result


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """Write the fields of the rows, unrounded; `seeds` and `differs` are joined by spaces and None is left empty."""
    columns = [field.name for field in dataclasses.fields(Row) if field.name != "runs"]
    cells = ({name: getattr(row, name) for name in columns} for row in rows)
    write_rows(path, columns, (of | {key: " ".join(map(str, of[key])) for key in ("seeds", "differs")} for of in cells))


def _row(runs: list[Run], differing: dict[str, list[str]]) -> Row:
    recipe = runs[0].recipe()
    classes = recipe.get("data.classes")
    tested = [run for run in runs if run.test_acc is not None]
    same_tta = runs if len({run.tta for run in runs}) == 1 else []
    averaged = {"val_acc": runs, "train_seconds": runs, "test_acc": tested}
    averaged |= {"val_tta_acc": same_tta, "test_tta_acc": same_tta}
    means: dict[str, Any] = {}
    for name, of in averaged.items():
        means[name], means[f"{name}_sd"] = _mean_and_sd([getattr(run, name) for run in of])
    return Row(
        rank=0,
        name=runs[0].name,
        differs=tuple(f"{key}={_short(recipe[key])}" for key in differing[runs[0].name] if key in recipe),
        data=runs[0].data + (f", {len(classes)} classes" if classes else ""),
        seeds=tuple(sorted(run.seed for run in runs)),
        test_runs=len(tested),
        tta=runs[0].tta if same_tta else None,
        params=runs[0].params,
        flops=runs[0].flops,
        device=", ".join(sorted({run.device for run in runs})),
        best_run=max(runs, key=lambda run: _or_last(run.val_acc)).folder,
        runs=tuple(sorted(runs, key=lambda run: run.seed)),
        **means,
    )


def _differing(recipes: list[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key != "data")  # data has its own column
    return [key for key in keys if len({_given(recipe, key) for recipe in recipes}) > 1]


def _given(recipe: dict[str, Any], key: str) -> str:
    """The key's value; an absent key counts as null, but for a group of keys, which is none."""
    is_group = key not in recipe and any(other.startswith(f"{key}.") for other in recipe)
    value = recipe.get(key)
    return "" if is_group else json.dumps(float(value) if type(value) is int else value)  # 0 and 0.0 are one


def _short(value: object) -> str:
    """Return a value as it is given on the command line; of a `_target_` its last name."""
    if isinstance(value, str):
        return value.rpartition(".")[2] if "." in value and value.replace(".", "").isidentifier() else value
    return json.dumps(value, separators=(",", ":"))


def _or_last(accuracy: float | None) -> float:
    return -math.inf if accuracy is None or math.isnan(accuracy) else accuracy


def _mean_and_sd(values: list[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def untested(row: Row) -> str:
    return f" (n={row.test_runs})" if 0 < row.test_runs < len(row.seeds) else ""


def percent(mean: float | None, sd: float | None, digits: int = 2) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:.{digits}f}" + ("" if sd is None else f" ± {100 * sd:.{digits}f}")


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(runs: int) -> str:
    return "1 run is" if runs == 1 else f"{runs} runs are"


def _reason(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    first = error.errors(include_url=False)[0]
    return ": ".join([*map(str, first["loc"]), first["msg"].lower()])
