"""The leaderboard as one HTML page that needs no other file and no network."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure

from litcifar import run_folder, style
from litcifar.results import charts
from litcifar.results.leaderboard import Row, Run, duration, percent, untested
from litcifar.results.sweeps import Answer
from litcifar.run_folder import HISTORY, read_rows
from litcifar.search.study import Search
from litcifar.templates import template

ANSWER = "answer.png"
SEARCH_CHARTS = {"Search history": "search_history.png", "Importance of the keys searched": "importance.png"}
MOST_NAMES = 14  # points of a scatter plot that are named; of more the rank is written
LONGEST_NAME = 32  # letters
SAME = 1.05  # ratio up to which costs count as equal
SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def write_page(
    path: Path,
    rows: Sequence[Row],
    notes: Sequence[str],
    answer: Answer | None = None,
    words: str | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> None:
    """Writes `words` on top, the answer, if there is one, the leaderboard and its charts; links are relative to `path`.

    pictures: PNG files by name, ANSWER and those of SEARCH_CHARTS; they stand before the leaderboard's own charts.

    Raises MachineError where the file cannot be written.
    """
    labels = {value.row.rank: value.label for value in answer.values} if answer else {}
    names = [labels[row.rank] for row in rows] if answer else names_of(rows)
    curves, pictures = curves_of(rows, names), pictures or {}
    found = {title: pictures[name] for title, name in SEARCH_CHARTS.items() if name in pictures}
    costs = {title: style.png(figure) for title, figure in cost_charts(rows, names).items()}
    page = template("leaderboard.html", percent=percent, duration=duration, si=si, untested=untested)
    text = page.render(
        title=answer.question.question if answer else "Leaderboard",
        answer=answer,
        words=words,
        answer_chart=pictures.get(ANSWER),
        rows=rows,
        names=names,
        notes=notes,
        charts=found | costs,
        curves=style.png(charts.curves(curves)) if curves else None,
        most_curves=charts.CURVES,
        link=lambda folder: quote(Path(os.path.relpath(folder, path.parent)).as_posix()),
        has_tta=any(row.val_tta_acc is not None for row in rows),
    )
    run_folder.write(path, text.encode())


def answer_chart(answer: Answer) -> Figure | None:
    """The accuracies of each value and seed; None where no value has any."""
    known = Answer(answer.question, [value for value in answer.values if value.row.val_acc is not None])
    if not known.values:
        return None
    spreads = [charts.Spread(value.label, value.accs) for value in known.values]
    return charts.answer(answer.question.question, answer.question.axis, spreads, known.numbers)


def search_charts(search: Search) -> dict[str, Figure]:
    """What a search has found, by title; one that has no figures is left out."""
    seen = {trial.number: trial.intermediate_values for trial in search.of_state("PRUNED")}
    complete = {trial.number: trial.value or 0.0 for trial in search.of_state("COMPLETE")}
    pruned = {number: values[max(values)] for number, values in seen.items() if values}
    history, importance = SEARCH_CHARTS
    failed = [trial.number for trial in search.of_state("FAIL")]
    figures = {history: charts.search_history(complete, pruned, failed)}
    if search.importance:
        figures[importance] = charts.importance(search.importance, search.top, len(complete))
    return figures


def cost_charts(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Figure]:
    """Accuracy against parameters, training time and FLOPs: a chart of each cost in which rows differ."""
    costs: dict[str, tuple[str, Callable[[Row], float | None], Callable[[float], str]]] = {
        "parameters": ("parameters", lambda row: row.params, si),
        "training time": ("training time (each device's own)", lambda row: row.train_seconds, duration),
        "FLOPs": ("forward FLOPs of one image (a multiply-add counts as two)", lambda row: row.flops, si),
    }
    figures = {}
    for title, (label, cost, as_text) in costs.items():
        points = [
            charts.Point(
                name,
                float(cost(row) or 0),
                row.val_acc,
                row.train_seconds_sd if title == "training time" else None,
                row.val_acc_sd,
            )
            for row, name in zip(rows, names, strict=True)
            if row.val_acc is not None and cost(row) is not None
        ]
        costs_of_points = [point.x for point in points]
        if points and max(costs_of_points) > SAME * min(costs_of_points):
            figures[f"Accuracy against {title}"] = charts.scatter(points, label, as_text)
    return figures


def curves_of(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[dict[int, float]]]:
    """Validation accuracy by epoch of the best rows' runs, from their metrics.csv; runs that lack it are left out."""
    best = zip(names[: charts.CURVES], rows[: charts.CURVES], strict=True)
    curves = {name: [curve for run in row.runs if (curve := _curve(run))] for name, row in best}
    return {name: of_row for name, of_row in curves.items() if of_row}


def names_of(rows: Sequence[Row]) -> list[str]:
    """A name for each row, short enough for a chart: the rank in front tells equal ones apart."""
    if len(rows) > MOST_NAMES:
        return [f"#{row.rank}" for row in rows]
    several = {row.name for row in rows if row.differs}
    alone = len({row.name for row in rows}) == 1
    names = []
    for row in rows:
        parts = [part.partition("=") for part in row.differs] if row.name in several else []
        short = [value if key.endswith("_target_") else f"{key.rpartition('.')[2]}={value}" for key, _, value in parts]
        differs = " ".join(short)
        name = differs if alone and differs else f"{row.name} {differs}".strip()
        name = name if len(name) <= LONGEST_NAME else row.name  # the rank leads to the rest, in the table
        names.append(f"{row.rank} {name if len(name) <= LONGEST_NAME else f'{name[: LONGEST_NAME - 1]}…'}")
    return names


def si(number: float | None) -> str:
    """Three digits and a unit's prefix: 11,173,962 is 11.2 M."""
    if number is None:
        return ""
    factor, prefix = next(((factor, prefix) for factor, prefix in SI if abs(number) >= factor), (1, ""))
    return f"{number / factor:.3g} {prefix}".strip()


def _curve(run: Run) -> dict[int, float]:
    try:
        rows = read_rows(run.folder / HISTORY)
        return {int(row["epoch"]): row["val/acc"] for row in rows if "val/acc" in row}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
