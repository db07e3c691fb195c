"""Whole runs and sweeps under what happens to them: full disks, kills, hundreds of jobs and of epochs."""

import contextlib
import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as L
import pytest

from litcifar import training
from litcifar.checkpoints import read
from litcifar.errors import DivergedError, MachineError
from litcifar.loop.history import History
from litcifar.models import MLP
from litcifar.run_folder import BEST, HISTORY, LAST, METRICS, read_metrics, read_rows
from tests import slurm
from tests.conftest import Compose, Run
from tests.test_run_folder import full_disk, sha256
from tests.test_training import same, weights

TRAIN = str(Path(sys.executable).parent / "litcifar-train")
SCRIPT = {**os.environ, "OMP_NUM_THREADS": "1"}
NETWORK = [
    "model=mlp",
    "model.hidden=[8]",
    "logger=none",
    "figures=false",
    "trainer.precision=32-true",
    "data.val_size=50",
]


@pytest.fixture
def tiny(tiny_cifar10: Path) -> list[str]:
    return [f"data.root={tiny_cifar10}", "data.verify=false", *NETWORK]


def test_a_run_whose_disk_is_full_ends_and_goes_on_when_there_is_room(compose: Compose, tmp_path: Path) -> None:
    """The kernel refuses all that is longer than 50 kB: each checkpoint, and no metrics."""
    longer = compose(*NETWORK, "trainer.max_epochs=3")
    training.train(longer, tmp_path / "never_full")
    run_dir = tmp_path / "run"
    training.train(compose(*NETWORK, "trainer.max_epochs=1"), run_dir)
    before = {name: sha256(run_dir / name) for name in (BEST, LAST)}
    with full_disk(50_000), pytest.raises(MachineError, match=r"\.ckpt' cannot be written"):
        training.train(longer, run_dir)
    assert before == {name: sha256(run_dir / name) for name in before}
    assert not list(run_dir.glob(".*.tmp"))
    metrics = training.train(longer, run_dir)
    assert metrics["epochs"] == 3
    assert same(weights(run_dir)["state_dict"], weights(tmp_path / "never_full")["state_dict"])


@pytest.mark.parametrize("rate", ["1e-3", "1e36"])
def test_a_run_leaves_no_trainer_behind(compose: Compose, tmp_path: Path, rate: str) -> None:
    """A signal's handler that stays would hold it, and take the signals of the next job of a sweep."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with contextlib.suppress(DivergedError):
        training.train(compose(*NETWORK, f"optim.lr={rate}"), tmp_path)
    gc.collect()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert not [thing for thing in gc.get_objects() if type(thing) in (L.Trainer, MLP)]


def test_a_failed_job_leaves_its_memory_to_the_next(run: Run, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    train = training.train

    def measured(*arguments: object) -> dict[str, object]:
        gc.collect()
        left.append(sum(type(thing) is MLP for thing in gc.get_objects()))
        return train(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train", measured)
    run("train", "-m", "optim.lr=1e36,1e-3", "trainer.max_epochs=1", *tiny)
    assert left == [0, 0]


def mounts_are_allowed() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "epochs"),
    [("size=4k", 0), ("size=40k", 0), ("size=600k", 0), ("size=800k", 0), ("size=1400k", 2), ("ro", 0)],
)
def test_a_real_full_disk(tiny: list[str], tmp_path: Path, options: str, epochs: int) -> None:
    """Of a network whose checkpoint has 300 kB: two files and a temporary one need 900 kB, the figures 150 kB."""
    if not mounts_are_allowed():
        pytest.skip("needs a kernel that lets users mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    train = f"{TRAIN} {' '.join(tiny)} trainer.max_epochs=2 hydra.run.dir={disk}/run > {tmp_path}/out 2> {tmp_path}/err"
    keep = f"cp -r {disk}/run {tmp_path}/kept 2> /dev/null"
    steps = (
        f"mount -t tmpfs -o {options} none {disk} && cd {disk} && ({train}; echo $? > {tmp_path}/code; {keep}; true)"
    )
    subprocess.run(["unshare", "-rm", "bash", "-c", steps], env=SCRIPT, check=True, timeout=120)
    code, error = int((tmp_path / "code").read_text()), (tmp_path / "err").read_text()
    for checkpoint in (tmp_path / "kept").glob("*.ckpt"):
        read(checkpoint)
    if epochs:
        assert code == 0, error
        assert (read_metrics(tmp_path / "kept") or {})["epochs"] == epochs
    else:
        assert code == 6
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "kept" / METRICS).exists()


@dataclass(frozen=True)
class Usage:
    """What this process holds. memory: resident, in megabytes."""

    memory: float
    threads: int
    files: int
    children: int

    @classmethod
    def now(cls) -> "Usage":
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        threads, files = os.listdir("/proc/self/task"), os.listdir("/proc/self/fd")
        return cls(resident / 1e6, len(threads), len(files), len(multiprocessing.active_children()))


def assert_flat(early: Usage, late: Usage, megabytes: float) -> None:
    print(early, late)
    assert late.memory - early.memory < megabytes
    assert (late.threads, late.files, late.children) == (early.threads, early.files, early.children)


@pytest.mark.slow
def test_two_hundred_jobs_in_one_process_do_not_leak(
    run: Run, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[int] = []
    usages: list[Usage] = []
    train = training.train

    def measured(*arguments: object) -> dict[str, object]:
        metrics = train(*arguments)  # type: ignore[arg-type]
        jobs.append(metrics["seed"])
        if len(jobs) % 20 == 0:
            usages.append(Usage.now())
        return metrics

    monkeypatch.setattr(training, "train", measured)
    assert run("train", "-m", "seed=range(200)", "trainer.max_epochs=1", "hydra.sweep.dir=sweep", *tiny).code == 0
    assert jobs == list(range(200))
    assert len(list(Path("sweep").glob(f"*/{METRICS}"))) == 200
    assert_flat(usages[0], usages[-1], megabytes=50)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_three_hundred_epochs_do_not_leak(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    usages: list[Usage] = []
    write = History.write

    def measured(self: History) -> None:
        write(self)
        if len(self.rows) % 20 == 0:
            usages.append(Usage.now())

    monkeypatch.setattr(History, "write", measured)
    metrics = training.train(compose(*NETWORK, "trainer.max_epochs=300", f"data.num_workers={workers}"), tmp_path)
    assert metrics["epochs"] == 300
    assert usages[0].children == workers
    assert_flat(usages[0], usages[-1], megabytes=5)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_runs_that_start_at_once_have_folders_of_their_own(tiny: list[str], tmp_path: Path) -> None:
    command = [TRAIN, *tiny, "trainer.max_epochs=1"]
    runs = [subprocess.Popen(command, cwd=tmp_path, env=SCRIPT, stdout=subprocess.DEVNULL) for _ in range(6)]
    assert [run.wait(timeout=300) for run in runs] == [0] * 6
    assert len(list(tmp_path.glob(f"outputs/mlp/*/{METRICS}"))) == 6


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_job_that_was_killed(tiny: list[str], tmp_path: Path) -> None:
    command = [TRAIN, "-m", "seed=range(4)", "trainer.max_epochs=3", "hydra.sweep.dir=sweep", *tiny]
    sweep = subprocess.Popen(command, cwd=tmp_path, env=SCRIPT, stdout=subprocess.DEVNULL)
    while not (tmp_path / "sweep" / "2_mlp_seed2" / LAST).exists():
        assert sweep.poll() is None
        time.sleep(0.01)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    finished = {path: path.read_bytes() for path in tmp_path.glob(f"sweep/*/{METRICS}")}
    assert len(finished) in (2, 3)
    result = subprocess.run(command, cwd=tmp_path, env=SCRIPT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("already finished") == len(finished)
    assert finished == {path: path.read_bytes() for path in finished}
    for seed in range(4):
        metrics = json.loads((tmp_path / "sweep" / f"{seed}_mlp_seed{seed}" / METRICS).read_text())
        assert metrics["epochs"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "slurm"])
def test_a_job_that_is_queued_again_goes_on_in_its_folder(tiny: list[str], tmp_path: Path, launcher: str) -> None:
    """Both jobs of a sweep get submitit's signal amid an epoch, twice; the queue of SLURM has a stand-in."""
    queue, commands, sweep = tmp_path / "queue", tmp_path / "bin", tmp_path / "sweep"
    queue.mkdir()
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{slurm.__file__}" {name} "$@"\n')
        (commands / name).chmod(0o755)
    environment = {**SCRIPT, "QUEUE": str(queue), "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    options = [*tiny, "data.batch_size=2", "trainer.max_epochs=150", f"hydra.sweep.dir={sweep}"]
    script = [TRAIN, "-m", *options, "seed=0,1", f"hydra/launcher={launcher}"]
    process = subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folders = [sweep / f"{seed}_mlp_seed{seed}" for seed in (0, 1)]
    end = time.monotonic() + 300
    before = [0, 0]
    for _ in range(2):
        while not all(len(rows(folder)) >= epochs + 5 for folder, epochs in zip(folders, before, strict=True)):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.1)
        pids = subprocess.run(["pgrep", "-f", f"submitit.core._submit.*{sweep}"], capture_output=True, text=True).stdout
        for pid in pids.split():
            os.kill(int(pid), signal.SIGUSR2)
        time.sleep(3)  # the epoch in hand is not finished, but one that was just ending is
        before = [len(rows(folder)) for folder in folders]
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"queued    each job writes below {sweep}/.submitit" in output
    assert "error" not in output
    logs = "".join(file.read_text() for file in (sweep / ".submitit").rglob("*_log.out"))
    assert logs.count("Requeued job") == 4
    for folder in folders:
        assert [int(row["epoch"]) for row in rows(folder)] == list(range(1, 151))
        assert read_metrics(folder) is not None


def rows(folder: Path) -> list[dict[str, float]]:
    file = folder / HISTORY
    return read_rows(file) if file.is_file() else []
