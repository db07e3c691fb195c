"""The leaderboard of finished runs, or a sweep's answer: on the screen, as CSV and as one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from litcifar import run_folder, style
from litcifar.errors import CheckpointError, explained
from litcifar.results import sweeps
from litcifar.results.leaderboard import Row, count, find_runs, rank, table, write_csv
from litcifar.results.page import ANSWER, SEARCH_CHARTS, answer_chart, search_charts, write_page
from litcifar.run_folder import METRICS
from litcifar.search.study import search_of


def compare(
    folders: Sequence[Path],
    csv_path: Path | None = None,
    data_root: str | None = None,
    trust: Sequence[str] = (),
) -> list[Row]:
    """Prints the leaderboard of all runs below `folders`; of one sweep's folder its answer, or what its search found.

    Two runs' own folders are also compared image by image (`pairing.paired`); data_root: where these images are.
    trust: the user's own packages that may run.
    The leaderboard is written to `csv_path` (default: leaderboard.csv in the first folder) and, beside it, as an HTML
    page, an answer's chart too.

    Raises CheckpointError if a folder or any finished run is missing, MachineError if a file cannot be written.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if not (console.is_terminal or console.is_jupyter):
        console.width = 10_000  # a pipe or a file has no width: nothing is wrapped
    runs, notes = find_runs(folders)
    rows = rank(runs)
    question = sweeps.question_of(folders[0]) if len(folders) == 1 else None
    answer = sweeps.answer(question, rows) if question and rows else None
    if rows:
        console.print(answer.table() if answer else table(rows, console.width))
    repeats = len(runs) - sum(len(row.seeds) for row in rows)
    if repeats:
        notes.append(f"{count(repeats)} left out: a later one repeats config and seed")
    if question and rows and not answer:
        notes.append(f"{question.name} is not answered: the runs differ in more than {question.axis} and seed")
    for note in notes:
        console.print(note, soft_wrap=True)
    search = search_of(folders[0]) if len(folders) == 1 else None
    if not rows:
        if search:
            console.print(search.words(), soft_wrap=True)
        below = ", ".join(f"'{folder}'" for folder in folders)
        raise CheckpointError(f"no finished run below {below} - train one with litcifar-train experiment=quickstart")
    csv_path = csv_path or folders[0] / "leaderboard.csv"
    write_csv(rows, csv_path)
    written = [csv_path, csv_path.with_suffix(".html")]
    chart = answer_chart(answer) if answer else None
    pictures = {ANSWER: style.png(chart)} if chart else {}
    found = search_charts(search) if search else {}
    pictures |= {SEARCH_CHARTS[title]: style.png(figure) for title, figure in found.items()}
    for name, content in pictures.items():
        written.append(csv_path.with_name(name))
        run_folder.write(written[-1], content)
    found_out = search or answer
    words = found_out.words() if found_out else None
    if _are_two_runs(folders):
        words = _paired_words(folders, data_root, trust)
    write_page(written[1], rows, notes, answer, words, pictures)
    console.print(f"written to {', '.join(map(str, written))}", soft_wrap=True)
    if words:
        console.print(words, soft_wrap=True)
    if search and search.command():
        console.print(f"train it  {search.command()}", soft_wrap=True)
    return rows


def _are_two_runs(folders: Sequence[Path]) -> bool:
    return len(folders) == 2 and all((folder / METRICS).is_file() for folder in folders)


def _paired_words(folders: Sequence[Path], data_root: str | None, trust: Sequence[str]) -> str:
    from litcifar.results.pairing import paired  # torch, which the leaderboard does without

    names = ", ".join(f"{letter} = {folder}" for letter, folder in zip("AB", folders, strict=True))
    try:
        return f"{names}: {paired(folders, data_root, trust).words()}"
    except Exception as error:  # of a user's own data set or network too: the leaderboard is still to be written
        return f"no paired test: {explained(error)}"
