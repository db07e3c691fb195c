"""Each notebook runs from top to bottom on tiny data, and is committed with the outputs of a real run."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SMALL = 700_000  # bytes


def cells(name: str, kind: str = "code") -> list[dict[str, Any]]:
    content = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def test_there_are_three() -> None:
    assert NAMES == ["01_first_run", "02_compare_models", "03_sweep_and_leaderboard"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str, tiny_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    overrides = [f"data.root={tiny_cifar10}", "data.verify=false", "data.val_size=50", "data.batch_size=16"]
    overrides += ["trainer.max_epochs=1", "trainer.precision=32-true", "logger=none"]
    given = f"OVERRIDES = {overrides}\nFOLDER = {str(tmp_path / 'runs')!r}"
    variables: dict[str, Any] = {}
    for cell in cells(name):
        lines = "".join(cell["source"]).splitlines()
        plain = "\n".join(line for line in lines if not line.startswith("%"))  # Jupyter's own commands
        exec(given if "parameters" in cell["metadata"].get("tags", ()) else plain, variables)
    assert list((tmp_path / "runs").rglob("metrics.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_what_it_printed_and_drew(name: str) -> None:
    size = (FOLDER / f"{name}.ipynb").stat().st_size
    assert size < SMALL
    outputs = [output for cell in cells(name) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "/tmp" not in (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    counts = [cell["execution_count"] for cell in cells(name)]
    assert counts == list(range(1, len(counts) + 1))  # from top to bottom, once
