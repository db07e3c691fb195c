"""The questions of conf/sweep: each job's network is built, the words and the order are right, one sweep runs whole."""

import functools
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.console import Console

from litcifar import checkpoints, training
from litcifar.comparison import compare
from litcifar.config import TrainConfig, check, plain
from litcifar.keys import compose, conf_dir
from litcifar.results.leaderboard import find_runs, rank
from litcifar.results.sweeps import Answer, Question, answer, question_of
from litcifar.run_folder import MULTIRUN
from tests.conftest import TRAIN, Run, header
from tests.results.test_leaderboard import write_run

FILES = sorted(
    set((conf_dir() / "sweep").glob("*.yaml")) - {conf_dir() / "sweep" / "optuna.yaml"}
)  # which is no question
ASKED = {
    "network_size",
    "pool_size",
    "pool_kind",
    "conv_per_block",
    "kernel_size",
    "linear_layers",
    "hidden_size",
    "activation",
    "dropout",
    "optimizer",
    "augmentation",
    "regularisation",
    "learning_rate_schedule",
    "class_subset",
}


@functools.cache
def settings(name: str) -> Any:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("train", [f"sweep={name}"], return_hydra_config=True).hydra


def jobs(name: str, *more: str) -> list[list[str]]:
    """The overrides of each job, as Hydra makes them."""
    params = [f"{key}={value}" for key, value in settings(name).sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides([*params, f"sweep={name}", *more])
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    return [list(job) for job in batch]


def test_every_question_of_the_published_systems_is_asked() -> None:
    assert {file.stem for file in FILES} == ASKED


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_job_of_a_sweep_is_checked_and_its_network_built(file: Path) -> None:
    """In the short mode, which is in force in each."""
    combined = jobs(file.stem, "length=short")
    assert {job[1] for job in combined} == {"seed=0", "seed=1", "seed=2"}
    summary = settings(file.stem).callbacks.summary
    assert summary.question.endswith("?")
    recipes = set()
    for job in combined[::3]:
        axis, _, value = job[0].partition("=")
        assert axis == summary.axis
        assert not summary.get("labels") or value in map(str, summary.labels)
        config = check(compose("train", *job), TrainConfig)
        short = {"litcifar.models.ConvPool": (4, 64), "litcifar.models.MLP": (10, 128)}
        assert (config.trainer.max_epochs, config.data.batch_size) == short[config.model.target]
        assert config.scheduler or file.stem == "learning_rate_schedule"
        recipes.add(json.dumps(config.model_dump(), sort_keys=True))
        training.check_trainable(training.new_model(config, checkpoints.data_of(config)), config)
    assert len(recipes) == len(combined) / 3 >= 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_job_of_a_sweep_gives_its_value(file: Path, tmp_path: Path) -> None:
    """Of a run's configuration as metrics.json has it; the group of a constant learning rate is null there."""
    question = Question.model_validate({"name": file.stem, **settings(file.stem).callbacks.summary})
    for number, job in enumerate(jobs(file.stem, "length=short")[::3]):
        run = write_run(tmp_path / str(number))
        (run / ".hydra").mkdir()
        (run / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(job))
        (found,), _ = find_runs([run])
        config = plain(check(compose("train", *job), TrainConfig))
        assert question.value_of(found.model_copy(update={"config": config})) == job[0].partition("=")[2]


def test_what_is_given_beside_a_short_sweep_holds() -> None:
    longer = compose("train", "sweep=pool_size", "length=short", "trainer.max_epochs=7", "optim.lr=0.5")
    assert (longer["trainer"]["max_epochs"], longer["optim"]["lr"]) == (7, 0.5)
    full = compose("train", "sweep=kernel_size")
    assert (full["trainer"]["max_epochs"], full["data"]["batch_size"], full["scheduler"]) == (20, 32, None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep_opens_with_its_command_and_answer(file: Path) -> None:
    text = header(file)
    assert f"litcifar-train -m sweep={file.stem} length=short\n" in text
    figures = rf"# Answer: {file.stem}: .*\d\d\.\d.*%.*n=\d.*JPEG copy.* AMD EPYC"
    assert re.search(rf"{figures}|# Answer: not measured yet\.", text, re.DOTALL)


def test_values_given_beside_a_sweep_take_the_place_of_its_own() -> None:
    given = jobs("pool_size", "model.pool_size=2,3", "seed=7", "optim.lr=0.1")
    assert [job[:2] for job in given] == [["model.pool_size=2", "seed=7"], ["model.pool_size=3", "seed=7"]]
    assert all("optim.lr=0.1" in job for job in given)


# What finished runs answer


def answered(
    folder: Path,
    accs: Mapping[str, Sequence[float | None]],
    axis: str = "model.pool_size",
    labels: dict[str, str] | None = None,
) -> Answer:
    """The answer of a sweep with these accuracies for each value."""
    for value, of_value in accs.items():
        for seed, acc in enumerate(of_value):
            run = write_run(
                folder / f"{value.strip('[]')}_{seed}", seed, acc, {axis.split(".")[0]: {"x": value}}, "net"
            )
            (run / ".hydra").mkdir()
            (run / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml([f"{axis}={value}", f"seed={seed}"]))
    question = Question(name="pool_size", question="How?", axis=axis, labels=labels or {})
    found = answer(question, rank(find_runs([folder])[0]))
    assert found is not None
    return found


def test_the_best_value_is_told_with_the_interval_of_its_lead(tmp_path: Path) -> None:
    """Deviations of 1 point each: margin 2.776 * sqrt(2 / 3) = 2.27 points."""
    found = answered(tmp_path, {"2": [0.72, 0.73, 0.74], "3": [0.68, 0.69, 0.70], "4": [0.5, 0.51, 0.52]})
    assert found.words() == (
        "pool_size: 2 is highest, 73.0 ± 1.0 % against 69.0 ± 1.0 % of 3 "
        "(difference 4.0 points, 95 % interval 1.7 to 6.3; n=3)"
    )
    assert found.numbers == [2, 3, 4]


def test_values_that_three_seeds_cannot_tell_apart_are_called_equal(tmp_path: Path) -> None:
    found = answered(tmp_path, {"2": [0.72, 0.73, 0.74], "3": [0.71, 0.72, 0.73], "4": [0.5, 0.51, 0.52]})
    assert found.words() == (
        "pool_size: 2 is highest, 73.0 ± 1.0 %; 3, 72.0 ± 1.0 %, cannot be told from it with 3 seeds "
        "(difference 1.0 points, 95 % interval -1.3 to 3.3; n=3); 4 is lower, 51.0 ± 1.0 %"
    )


def test_no_more_is_said_than_the_comparisons_with_the_best_value_tell(tmp_path: Path) -> None:
    """b and c differ by far; a's deviation is large: 2.000 degrees of freedom against b, t = 4.30."""
    accs = {"a": [0.4, 0.5, 0.6], "b": [0.489, 0.49, 0.491], "c": [0.399, 0.4, 0.401]}
    assert answered(tmp_path, accs).words() == (
        "pool_size: a is highest, 50.0 ± 10.0 %; b and c, 49.0 ± 0.1 % at best, cannot be told from it with 3 seeds "
        "(difference 1.0 points, 95 % interval -23.8 to 25.8; n=3)"
    )


def test_failed_jobs_leave_the_others_their_answer(tmp_path: Path) -> None:
    """Variances 1 / 2 and 1 / 3: (5/6)^2 / (0.25 / 1 + (1/9) / 2) = 2.273 degrees of freedom, t = 3.85."""
    accs: dict[str, list[float | None]] = {
        "2": [0.72, 0.73 + 0.01 * (2**0.5 - 1)],
        "3": [0.2, 0.21, 0.22],
        "4": [None, 0.5],
        "5": [0.9],
    }
    found = answered(tmp_path, accs)
    assert found.words() == (
        "pool_size: 2 is highest, 72.7 ± 1.0 % against 21.0 ± 1.0 % of 3 (difference 51.7 points, 95 % interval 48.2 "
        "to 55.2; n=2 to 3); without 4 and 5, of which less than two seeds finished"
    )
    assert [value.label for value in found.values] == ["2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("accs", "found"),
    [
        ({"2": [0.7], "3": [0.6]}, "2 70.0 %, 3 60.0 %"),
        ({"2": [0.7, 0.7], "3": [None]}, "2 70.0 ± 0.0 %"),
        ({"2": [None]}, "no run has an accuracy"),
    ],
)
def test_an_answer_takes_two_seeds_of_two_values(
    tmp_path: Path, accs: dict[str, list[float | None]], found: str
) -> None:
    words = answered(tmp_path, accs).words()
    assert words == f"pool_size: no answer, which takes two seeds each of two values ({found})"


def test_values_stand_by_number_by_label_or_best_first(tmp_path: Path) -> None:
    numbers = answered(tmp_path / "a", {"10": [0.3], "9": [0.9], "0.5": [0.4]})
    assert [value.label for value in numbers.values] == ["0.5", "9", "10"]
    labels = {"[8]": "I", "[16]": "II", "[32]": "III"}
    labelled = answered(tmp_path / "b", {"[32]": [0.3], "[8]": [0.4], "[16]": [0.9]}, "model.widths", labels)
    assert [value.label for value in labelled.values] == ["I", "II", "III"]
    assert labelled.numbers is None
    words = answered(tmp_path / "c", {"max": [0.3], "sum": [0.9], "average": [0.4]}, "model.pool")
    assert [value.label for value in words.values] == ["sum", "average", "max"]


def test_the_table_has_a_line_for_each_value(tmp_path: Path) -> None:
    found = answered(tmp_path, {"2": [0.72, 0.74], "3": [0.5, None]})
    console = Console(file=io.StringIO(), width=100)
    console.print(found.table())
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines[0] == ["model.pool_size", "n", "val", "acc", "%", "params", "time"]
    assert lines[2] == ["2", "2", "73.00", "±", "1.41", "1,578,506", "30.5", "s"]
    assert lines[3][:3] == ["3", "2", "-"]


def test_a_sweep_that_varies_something_else_too_is_a_leaderboard(tmp_path: Path) -> None:
    answered(tmp_path, {"2": [0.7], "3": [0.6]})
    run = write_run(tmp_path / "more", 0, 0.8, {"optim.lr": 0.5, "model": {"x": "2"}}, "net")
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text("- model.pool_size=2\n- optim.lr=0.5\n")
    question = Question(name="pool_size", question="How?", axis="model.pool_size")
    assert answer(question, rank(find_runs([tmp_path])[0])) is None


def test_the_overrides_of_a_job_that_was_refused_are_not_taken_for_the_runs(tmp_path: Path) -> None:
    question = Question(name="pool_size", question="How?", axis="model.pool_size")
    values = {}
    for noted in ("2", "2.0", "3"):
        folder = write_run(tmp_path / noted, 0, 0.8, {"model": {"pool_size": 2}}, "net")
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(f"- model.pool_size={noted}\n")
        (run,), _ = find_runs([folder])
        values[noted] = question.value_of(run)
    assert values == {"2": "2", "2.0": "2.0", "3": None}


def test_a_groups_value_that_did_not_make_the_runs_configuration_is_none(tmp_path: Path) -> None:
    """As where a refused job has left its overrides in the run's folder."""
    question = Question(name="schedule", question="Which?", axis="scheduler")
    config = plain(check(compose("train", "model=mlp", "scheduler=linear"), TrainConfig))
    values = {}
    for noted in ("linear", "cosine", "nowhere"):
        folder = write_run(tmp_path / noted)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(f"- model=mlp\n- scheduler={noted}\n")
        (run,), _ = find_runs([folder])
        values[noted] = question.value_of(run.model_copy(update={"config": config}))
    assert values == {"linear": "linear", "cosine": None, "nowhere": "nowhere"}


def test_a_users_own_sweep_has_no_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    assert question_of(tmp_path) is None
    for content in ("", "- a", "hydra: {callbacks: {summary: {}}}", "hydra: [", "hydra: {runtime: null}"):
        (tmp_path / MULTIRUN).write_text(content)
        assert question_of(tmp_path) is None
    compare([tmp_path])
    assert (tmp_path / "leaderboard.html").exists()
    assert not (tmp_path / "answer.png").exists()
    assert "val acc %" in capsys.readouterr().out


# From the command line


def test_a_sweep_ends_with_its_answer(run: Run, tmp_path: Path, tiny: list[str]) -> None:
    sweep = ["-m", "sweep=hidden_size", "length=short", "model.hidden=[8,8],[128,128],[0]", "seed=0,1"]
    outcome = run(TRAIN, *sweep, "hydra.sweep.dir=sweep", *tiny)
    assert outcome.code == 1  # [0] is refused
    assert outcome.err.count("error: ") == 2
    ending = outcome.out[outcome.out.index("val acc %") :]
    assert re.search(r"^x1 +2 +\d+\.\d\d ± \d+\.\d\d +411,146 ", ending, re.MULTILINE)
    assert re.search(r"^\[8,8\] +2 ", ending, re.MULTILINE)
    assert re.search(r"^hidden_size: .*; n=2\)", ending, re.MULTILINE)
    assert "written to sweep/leaderboard.csv, sweep/leaderboard.html, sweep/answer.png\n" in ending
    page = (tmp_path / "sweep" / "leaderboard.html").read_text()
    assert "<title>How does accuracy change with the hidden size?</title>" in page
    assert (tmp_path / "sweep" / "answer.png").read_bytes()[:4] == b"\x89PNG"
    metrics = json.loads((tmp_path / "sweep" / "2_sigmoid_mlp_seed0" / "metrics.json").read_text())
    assert metrics["flops"] == 2 * (3072 * 128 + 128 * 128 + 128 * 10)


def test_a_sweep_without_m_is_refused_with_the_way_out(run: Run, tmp_path: Path) -> None:
    alone = run(TRAIN, "sweep=pool_size")
    assert alone.code == 2
    assert alone.err == "error: sweep=pool_size is several runs - write litcifar-train -m sweep=pool_size\n"
    assert not list(tmp_path.rglob("*seed*"))
    several = run(TRAIN, "-m", "sweep=pool_size,pool_kind")
    assert several.code == 1
    assert "a sweep answers one question - give each a command of its own" in several.err
    misspelt = run(TRAIN, "-m", "sweep=pool_sise")
    assert misspelt.code == 2
    assert "did you mean 'pool_size'?" in misspelt.err
