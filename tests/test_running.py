"""However a program ends, it is in order: a line for each failure, an exit code, and nothing left behind."""

import contextlib
import errno
import gc
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from litcifar import run_folder, running
from litcifar.data import CIFAR10DataModule
from litcifar.errors import Interrupted
from litcifar.models import ImageClassifier
from tests.conftest import EVALUATE, TRAIN, Run


def test_a_network_that_memory_cannot_hold_is_exit_code_6(run: Run, tiny: list[str]) -> None:
    outcome = run(TRAIN, *tiny, "model=mlp", "model.hidden=[1000000000000]")
    assert outcome.code == 6
    assert "choose a smaller network" in outcome.err


def test_no_gpu_is_exit_code_6(run: Run, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = run(TRAIN, *tiny, "trainer.accelerator=gpu")
    assert outcome.code == 6
    assert outcome.err == "error: accelerator=gpu: none was found - use auto\n"


@pytest.mark.parametrize("place", ["hydra.run.dir=file/run", "hydra.sweep.dir=file/sweep"])
def test_a_place_that_cannot_be_written_is_exit_code_6(run: Run, tiny: list[str], tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    outcome = run(TRAIN, *tiny, place, *(["-m"] if "sweep" in place else []))
    assert outcome.code == 6
    assert "file/" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_second_process_in_a_runs_folder_is_refused(
    run: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of the same microsecond, or one that is resumed twice at once."""
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    (tmp_path / "run").mkdir()
    with run_folder.claimed(tmp_path / "run"):
        outcome = run(TRAIN, *tiny, "model=mlp", "hydra.run.dir=run")
    assert outcome.code == 2
    assert "another process trains in" in outcome.err
    assert not list(tmp_path.rglob("*.ckpt"))
    assert (tmp_path / "run" / run_folder.LOCK).is_file()  # of the first, which goes on in it


def test_a_sweeps_job_holds_no_images_of_the_one_before_it(
    run: Run, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, alive, others = CIFAR10DataModule.setup, weakref.WeakSet[CIFAR10DataModule](), []

    def setup(data: CIFAR10DataModule, stage: str | None = None) -> None:
        others.append(len(alive - {data}))
        alive.add(data)
        read(data, stage)

    monkeypatch.setattr(CIFAR10DataModule, "setup", setup)
    gc.disable()  # which happens when it will
    try:
        assert run(TRAIN, *tiny, "-m", "model=mlp", "seed=0,1").code == 0
    finally:
        gc.enable()
    assert set(others) == {0}


def test_a_job_that_another_process_is_at_is_not_told_to_have_failed(
    run: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    sweep = [*tiny, "-m", "model=mlp", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert run(TRAIN, *sweep).code == 0
    first = next((tmp_path / "sweep").glob("*seed0"))
    with run_folder.claimed(first):
        outcome = run(TRAIN, *sweep)
    assert outcome.code == 2
    assert outcome.err.count("another process trains in") == 1
    assert not list((tmp_path / "sweep").rglob("error.txt"))


def test_a_job_of_another_process_in_a_parallel_sweep_is_told(
    run: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of a launcher keep what they cannot do to themselves."""
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(running, "_guarded", lambda name, job, cfg: float("nan"))
    (tmp_path / "sweep" / "0_mlp_seed0").mkdir(parents=True)
    with run_folder.claimed(tmp_path / "sweep" / "0_mlp_seed0"):
        outcome = run(TRAIN, *tiny, "-m", "model=mlp", "hydra.sweep.dir=sweep")
    assert outcome.code == 2
    assert "another process trains in 'sweep/0_mlp_seed0'" in outcome.err
    assert "\ngo on     litcifar-train" in outcome.out


def test_the_traceback_of_a_failed_job_is_told_where_it_is_asked_for(
    run: Run, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Any, *arguments: Any) -> Any:
        raise LookupError("no such thing")

    monkeypatch.setattr(ImageClassifier, "training_step", broken)
    sweep = [*tiny, "-m", "model=mlp", "seed=0,1"]
    assert "in broken" not in run(TRAIN, *sweep, "hydra.sweep.dir=a").err
    assert run(TRAIN, *sweep, "hydra.sweep.dir=b", full_error=True).err.count("in broken") == 2


def test_a_sweep_whose_leaderboard_cannot_be_written_tells_its_failures(
    run: Run, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep" / "leaderboard.csv").mkdir(parents=True)
    outcome = run(TRAIN, *tiny, "-m", "model=mlp", "optim.lr=1e-3,1e30", "hydra.sweep.dir=sweep")
    assert outcome.code == 6
    assert outcome.err.count("error: ") == 2
    assert "1_mlp_seed0: the loss became infinite or NaN" in outcome.err
    assert "'sweep/leaderboard.csv' cannot be written" in outcome.err


def test_a_sweep_without_jobs_is_refused(run: Run) -> None:
    outcome = run(TRAIN, "-m", "seed=range(3,3)")
    assert outcome.code == 2
    assert outcome.err == "error: the sweep has no jobs - give each key at least one value\n"


def test_missing_data_is_exit_code_3_and_says_what_to_do(run: Run, tmp_path: Path) -> None:
    outcome = run(TRAIN, "data.root=nowhere", "data.mirrors=[]")
    assert outcome.code == 3
    assert "data=shapes" in outcome.err.splitlines()[-1]
    assert not list(tmp_path.glob("outputs/*"))


def test_a_run_that_did_not_begin_leaves_a_folder_that_cannot_be_removed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(folder: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(folder))

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    nowhere = [f"data.root={tmp_path}/nowhere", "data.mirrors=[]"]
    assert run(TRAIN, "hydra.run.dir=.", *nowhere).code == 3
    assert not list((tmp_path / "here").iterdir())  # and it is still there, as the working folder
    monkeypatch.setattr(Path, "rmdir", busy)  # as of a volume that is mounted
    outcome = run(TRAIN, "hydra.run.dir=volume", *nowhere)
    assert (outcome.code, outcome.err.count("error: ")) == (3, 1)
    assert not list((tmp_path / "here" / "volume").iterdir())


def test_a_sweep_goes_on_after_a_failure_and_lists_it(run: Run, tiny: list[str], tmp_path: Path) -> None:
    sweep = ["-m", "model=mlp", "model.hidden=[8]", "optim.lr=1e-3,1e36,1e-2", "hydra.sweep.dir=sweep", *tiny]
    outcome = run(TRAIN, *sweep)
    assert outcome.code == 1
    assert "sweep/1_mlp_seed0" in outcome.err
    assert outcome.err.count("error: ") == 1
    assert outcome.out.index("failed    ") < outcome.out.index("mlp seed 0", outcome.out.index("failed    "))
    finished = sorted(p.parent.name for p in tmp_path.glob("sweep/*/metrics.json"))
    assert finished == ["0_mlp_seed0", "2_mlp_seed0"]
    assert '"test/acc": null' in (tmp_path / "sweep" / "0_mlp_seed0" / "metrics.json").read_text()
    assert "hydra.sweep.dir=sweep" in outcome.out
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("sweep/*/best.ckpt")}
    again = run(TRAIN, *sweep)
    assert again.out.count("already finished") == 2
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("sweep/*/best.ckpt")}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_in_an_evaluation_ends_it_in_order(
    run: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, swallowed: bool
) -> None:
    run(TRAIN, "model=mlp", *tiny, "hydra.run.dir=run")
    evaluated = ImageClassifier._evaluate

    def interrupted(*arguments: Any) -> Any:
        with contextlib.suppress(*([Interrupted] if swallowed else [])):  # as in a callback that Python calls by itself
            signal.raise_signal(number)
        return evaluated(*arguments)

    monkeypatch.setattr(ImageClassifier, "_evaluate", interrupted)
    before = signal.getsignal(number)
    outcome = run(EVALUATE, "ckpt=run")
    signal.signal(number, before)
    assert outcome.code == code
    assert outcome.err == f"error: stopped by {signal.Signals(number).name} - run the command again\n"


def test_a_signal_in_the_test_leaves_a_run_that_goes_on(
    run: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "test_step", lambda *_: signal.raise_signal(signal.SIGTERM))
        before = signal.getsignal(signal.SIGTERM)
        outcome = run(TRAIN, "model=mlp", *tiny, "hydra.run.dir=run")
        signal.signal(signal.SIGTERM, before)
    assert outcome.code == 143
    assert outcome.err == "error: stopped by SIGTERM - go on with: litcifar-train resume=run\n"
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert run(TRAIN, "resume=run").code == 0
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_reader_that_has_seen_enough_ends_the_run_quietly(tiny: list[str], tmp_path: Path) -> None:
    """litcifar-train ... | head -1"""
    command = [str(Path(sys.executable).parent / "litcifar-train"), "model=mlp", "hydra.run.dir=run", *tiny]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 128 + 13
