"""A sweep that is started again: each job goes on in the folder of its own run, whatever was asked for in between."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from litcifar.run_folder import read_metrics
from tests.conftest import COMPARE, TRAIN, Run


def noted(sweep: Path) -> dict[str, bytes]:
    """What lies in the runs' `.hydra`, and their checkpoints and metrics."""
    files: Iterable[Path] = (path for path in sweep.glob("*seed*/**/*") if path.suffix in (".yaml", ".ckpt", ".json"))
    return {str(path.relative_to(sweep)): path.read_bytes() for path in files}


def values(sweep: Path, key: str = "hidden", group: str = "model") -> dict[str, object]:
    """The value of each finished run, by its folder."""
    runs = {folder.name: read_metrics(folder) for folder in sweep.glob("*seed*")}
    return {name: metrics["config"][group][key] for name, metrics in runs.items() if metrics}


@pytest.mark.parametrize(
    ("first", "then", "added"),
    [
        (["model.hidden=[4],[8]"], ["model.hidden=[4],[16],[8],[2]"], {"2_mlp_seed0": [16], "3_mlp_seed0": [2]}),
        (["model.hidden=[4],[8]"], ["model.hidden=[4],[8]", "seed=0,1"], {"1_mlp_seed1": [4], "3_mlp_seed1": [8]}),
    ],
)
def test_values_and_seeds_may_be_put_in_between(
    run: Run, tiny: list[str], tmp_path: Path, first: list[str], then: list[str], added: dict[str, object]
) -> None:
    sweep = ["-m", "model=mlp", "hydra.sweep.dir=sweep", *tiny]
    assert run(TRAIN, *sweep, *first).code == 0
    before = noted(tmp_path / "sweep")
    outcome = run(TRAIN, *sweep, *then)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("already finished") == 2
    assert values(tmp_path / "sweep") == {"0_mlp_seed0": [4], "1_mlp_seed0": [8]} | added
    assert before.items() <= noted(tmp_path / "sweep").items()


def test_a_job_is_told_from_others_by_the_trainers_keys_that_its_sweep_varies(
    run: Run, tiny: list[str], tmp_path: Path
) -> None:
    sweep = ["-m", "model=mlp", "model.hidden=[4]", "hydra.sweep.dir=sweep", *tiny]
    assert run(TRAIN, *sweep, "trainer.max_epochs=1,3").code == 0
    assert run(TRAIN, *sweep, "trainer.max_epochs=1,2,3").code == 0
    expected = {"0_mlp_seed0": 1, "1_mlp_seed0": 3, "2_mlp_seed0": 2}
    assert values(tmp_path / "sweep", "max_epochs", "trainer") == expected


def test_all_jobs_go_on_for_more_epochs(run: Run, tiny: list[str], tmp_path: Path) -> None:
    sweep = ["-m", "model=mlp", "model.hidden=[4],[8]", "hydra.sweep.dir=sweep", *tiny]
    assert run(TRAIN, *sweep).code == 0
    assert run(TRAIN, *sweep, "trainer.max_epochs=2").code == 0
    assert values(tmp_path / "sweep", "max_epochs", "trainer") == {"0_mlp_seed0": 2, "1_mlp_seed0": 2}
    assert len((tmp_path / "sweep" / "1_mlp_seed0" / "metrics.csv").read_text().splitlines()) == 3


def test_what_a_run_began_with_stays_noted_where_a_job_is_refused(run: Run, tiny: list[str], tmp_path: Path) -> None:
    sweep = ["-m", "sweep=hidden_size", "length=short", "model.hidden=[8],[4]", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert run(TRAIN, *sweep, *tiny).code == 0
    before, answer = noted(tmp_path / "sweep"), run(COMPARE, "sweep").out
    assert "hidden_size: " in answer
    outcome = run(TRAIN, *sweep, *tiny, "trainer.max_epochs=2")
    assert outcome.err.count("planned by its scheduler for 1 epochs") == 4
    assert before == noted(tmp_path / "sweep")
    assert run(COMPARE, "sweep").out == answer


@pytest.mark.parametrize("damage", ["", "- a", "model: ["])
def test_a_run_whose_command_is_not_noted_keeps_its_folder(
    run: Run, tiny: list[str], tmp_path: Path, damage: str
) -> None:
    sweep = ["-m", "model=mlp", "model.hidden=[4]", "hydra.sweep.dir=sweep", *tiny]
    assert run(TRAIN, *sweep).code == 0
    file = tmp_path / "sweep" / "0_mlp_seed0" / ".hydra" / "config.yaml"
    if damage:
        file.write_text(damage)
    else:
        file.unlink()
    assert run(TRAIN, *sweep).code == 0
    assert values(tmp_path / "sweep") == {"0_mlp_seed0": [4], "1_mlp_seed0": [4]}


def test_a_folder_that_does_not_depend_on_the_number_is_refused_to_another_run(
    run: Run, tiny: list[str], tmp_path: Path
) -> None:
    sweep = ["-m", "model=mlp", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=seed${seed}", *tiny]
    assert run(TRAIN, *sweep, "model.hidden=[4]").code == 0
    before = noted(tmp_path / "sweep")
    outcome = run(TRAIN, *sweep, "model.hidden=[8]")
    assert "a resumed run keeps its configuration" in outcome.err
    assert before == noted(tmp_path / "sweep")
