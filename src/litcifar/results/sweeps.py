"""The questions that `conf/sweep` asks, and what the finished runs of a sweep answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from yaml import YAMLError

from litcifar.config import TrainConfig, check, plain
from litcifar.errors import ConfigError
from litcifar.keys import compose, conf_dir, flat
from litcifar.results.leaderboard import Row, Run, duration, percent
from litcifar.results.significance import LEVEL, difference
from litcifar.run_folder import MULTIRUN

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
        """The value that the run's overrides give to the axis; None where they don't, or the run has another one.

        In sweeps of earlier versions Hydra has noted those of refused jobs in the folders of other runs.
        """
        content = _read(run.folder / OVERRIDES)
        pairs = [str(line).lstrip("+").partition("=") for line in content] if isinstance(content, list) else []
        text = next((value for key, _, value in reversed(pairs) if key == self.axis), None)
        values = flat(run.config)
        if text is None:
            return None
        if (conf_dir() / self.axis).is_dir():  # a group, whose name is no value
            return text if _may_be_of(content, run) else None
        if self.axis not in values:
            return text
        asked = OverridesParser.create().parse_override(f"{self.axis}={text}").value()
        return text if asked == values[self.axis] else None


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
        return f"{percent(self.row.val_acc, self.row.val_acc_sd, digits=1)} %"


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
        ranked = sorted(known, key=lambda value: value.row.val_acc or 0, reverse=True)
        several = [value for value in ranked if len(value.accs) > 1]
        left_out = [value for value in self.values if value not in several]
        if len(several) > 1:
            rest = f"; without {_list(left_out)}, of which less than two seeds finished" if left_out else ""
            return f"{self.question.name}: {_verdict(several)}{rest}"
        found = ", ".join(f"{value.label} {value.text}" for value in ranked) or "no run has an accuracy"
        return f"{self.question.name}: no answer, which takes two seeds each of two values ({found})"

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
    config = _read(folder / MULTIRUN)
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


def _may_be_of(overrides: Sequence[str], run: Run) -> bool:
    """Whether they make the run's configuration, but for what may change later; True where they make none here."""
    try:
        config = plain(check(compose("train", *overrides), TrainConfig))
    except (ConfigError, HydraException, OmegaConfBaseException):  # of another version, or with files of a user's own
        return True
    made, was = run.model_copy(update={"config": config}).recipe(), run.recipe()
    lasting = [key for key in made.keys() & was.keys() if not key.startswith(("data.", "trainer."))]
    return all(made[key] == was[key] for key in lasting)


def _read(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))  # a `${...}` in it is not looked up
    except (OSError, ValueError, YAMLError):
        return None


def _verdict(ranked: Sequence[Value]) -> str:
    """Of two values or more of two seeds or more each, best first."""
    best, *others = ranked
    leads = {other.label: difference(best.accs, other.accs) for other in others}
    tied = [other for other in others if not leads[other.label].is_real]
    worse = [other for other in others if other not in tied]
    rival = (tied or worse)[0]
    lead = leads[rival.label]
    interval = (
        f"difference {100 * lead.mean:.1f} points, {100 * LEVEL:.0f} % interval {100 * lead.low:.1f} to "
        f"{100 * lead.high:.1f}; n={_seeds([best, rival])}"
    )
    if not tied:
        return f"{best.label} is highest, {best.text} against {rival.text} of {rival.label} ({interval})"
    found = (
        f"{best.label} is highest, {best.text}; {_list(tied)}, {_at_best(tied)}, cannot be told from it with "
        f"{_seeds([best, *tied])} seeds ({interval})"
    )
    return f"{found}; {_list(worse)} {'is' if len(worse) == 1 else 'are'} lower, {_at_best(worse)}" if worse else found


def _at_best(ranked: Sequence[Value]) -> str:
    return f"{ranked[0].text}{' at best' if len(ranked) > 1 else ''}"


def _list(values: Sequence[Value]) -> str:
    *first, last = [value.label for value in values]
    return f"{', '.join(first)} and {last}" if first else last


def _seeds(values: Sequence[Value]) -> str:
    counts = sorted({len(value.accs) for value in values})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
