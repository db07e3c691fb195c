"""The questions that `conf/sweep` asks, and what the finished runs of a sweep answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from yaml import YAMLError

from litcifar.leaderboard import Row, Run, duration, percent
from litcifar.significance import LEVEL, Difference, difference

CONFIG = "multirun.yaml"  # Hydra's name of the configuration in a sweep's folder
OVERRIDES = Path(".hydra") / "overrides.yaml"


class Question(BaseModel):
    """What a file of `conf/sweep` says in `hydra.callbacks.summary`.

    name: the file's. axis: the key or the group whose values are compared. labels: of values, as they are written in
    the overrides; these have an order.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str
    question: str
    axis: str
    labels: dict[str, str] = {}

    def value_of(self, run: Run) -> str | None:
        """The value that the run's overrides give to the axis; None where they don't."""
        content = _read(run.folder / OVERRIDES)
        pairs = [str(line).lstrip("+").partition("=") for line in content] if isinstance(content, list) else []
        return next((value for key, _, value in reversed(pairs) if key == self.axis), None)


@dataclass(frozen=True)
class Value:
    """One value of the axis with its row. accs: best validation accuracy of each seed, 0 to 1."""

    label: str
    row: Row

    @property
    def accs(self) -> list[float]:
        return [run.val_acc for run in self.row.runs if run.val_acc is not None]

    @property
    def text(self) -> str:
        """`73.1 ± 0.4 %`"""
        sd = "" if self.row.val_acc_sd is None else f" ± {100 * self.row.val_acc_sd:.1f}"
        return f"{100 * (self.row.val_acc or 0):.1f}{sd} %"


@dataclass(frozen=True)
class Answer:
    """The values of a question's axis. In order: rising numbers, labels as they stand there, else best first."""

    question: Question
    values: list[Value]

    @property
    def numbers(self) -> list[float] | None:
        """The values as numbers, if all are."""
        try:
            return [float(value.label) for value in self.values]
        except ValueError:
            return None

    def words(self) -> str:
        """What the sweep tells, in a line. The best value is compared with each other one by Welch's interval."""
        known = [value for value in self.values if value.row.val_acc is not None]
        name, ranked = self.question.name, sorted(known, key=lambda value: value.row.val_acc or 0, reverse=True)
        if len(ranked) < 2:
            only = "".join(f", {value.label}: {value.text}" for value in ranked)
            return f"{name}: no answer yet, {len(ranked)} of its values has an accuracy{only}"
        best, *others = ranked
        differences = [difference(best.accs, other.accs) for other in others]
        if None in differences:
            one = f"{best.label} {best.text}, {others[0].label} {others[0].text}"
            return f"{name}: one seed tells no difference from chance ({one}); run it with seed=0,1,2"
        tied = [o for o, d in zip(others, differences, strict=True) if d and not d.is_real]
        worse = [o for o in others if o not in tied]
        rival = (tied or others)[0]
        shown = differences[others.index(rival)]
        assert shown is not None
        interval = (
            f"difference {_points(shown)}, {100 * LEVEL:.0f} % interval {_range(shown)}; n={_seeds([best, rival])}"
        )
        if not tied:
            return f"{name}: {best.label} is best, {best.text} against {rival.text} of {rival.label} ({interval})"
        if not worse:
            first = f"no difference can be told with {_seeds(ranked)} seeds"
            return f"{name}: {first}, best are {best.label}, {best.text}, and {rival.label}, {rival.text} ({interval})"
        equal = f"{_list([best, *tied])} cannot be told apart with {_seeds([best, *tied])} seeds"
        verb = "is" if len(worse) == 1 else "are"
        below = f"{_list(worse)} {verb} worse, {worse[0].text}" + (" at best" if len(worse) > 1 else "")
        return f"{name}: {equal}, {best.text} and {rival.text} ({interval}); {below}"

    def table(self) -> Table:
        """The values in order: seeds, validation accuracy, parameters and training time."""
        result = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        for column in (self.question.axis, "n", "val acc %", "params", "time"):
            result.add_column(column, justify="left" if column == self.question.axis else "right")
        for value in self.values:
            row = value.row
            accuracy = percent(row.val_acc, row.val_acc_sd)
            cells = [value.label, str(len(row.seeds)), accuracy, f"{row.params:,}", duration(row.train_seconds)]
            result.add_row(*map(Text, cells))
        return result


def question_of(folder: Path) -> Question | None:
    """The question that a sweep's folder answers; None where it has none, as a user's own sweep."""
    config = _read(folder / CONFIG)
    try:
        hydra = config["hydra"]
        return Question.model_validate({**hydra["callbacks"]["summary"], "name": hydra["runtime"]["choices"]["sweep"]})
    except (KeyError, TypeError, ValidationError):
        return None


def answer(question: Question, rows: Iterable[Row]) -> Answer | None:
    """The rows by the value of the axis; None where another key was varied too, so that a value has several rows."""
    by_value: dict[str, Row] = {}
    for row in rows:
        value = question.value_of(row.runs[0])
        if value is None or value in by_value:
            return None
        by_value[value] = row
    places = list(question.labels)
    names = sorted(by_value, key=lambda value: places.index(value) if value in places else len(places))
    found = Answer(question, [Value(question.labels.get(name, name), by_value[name]) for name in names])
    if found.numbers:
        return Answer(question, sorted(found.values, key=lambda value: float(value.label)))
    return found  # rows come best first, and sorting keeps that where there are no labels


def _read(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))  # a `${...}` in it is not looked up
    except (OSError, ValueError, YAMLError):
        return None


def _list(values: Sequence[Value]) -> str:
    *first, last = [value.label for value in values]
    return f"{', '.join(first)} and {last}" if first else last


def _seeds(values: Sequence[Value]) -> str:
    counts = sorted({len(value.accs) for value in values})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _points(shown: Difference) -> str:
    return f"{100 * shown.mean:.1f} points"


def _range(shown: Difference) -> str:
    return f"{100 * shown.low:.1f} to {100 * shown.high:.1f}"
