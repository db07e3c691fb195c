"""A run's files are whole or absent, whatever happens while they are written, and one process alone writes them."""

import contextlib
import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from litcifar import run_folder
from litcifar.checkpoints import WholeCheckpoints, read
from litcifar.console import console
from litcifar.errors import CheckpointError, ConfigError, MachineError
from litcifar.loop.history import History
from litcifar.run_folder import LAST, LOCK, METRICS, claimed, find_checkpoint, read_metrics, write, write_metrics


@contextlib.contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: the kernel refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(epoch: int, megabytes: int = 1) -> dict[str, object]:
    """A checkpoint all of whose weights are `epoch`."""
    known = {"format_version": 1, "config": {}, "data": "x", "substituted": None, "fingerprint": "x"}
    return {
        "litcifar": known | {"precision": "32-true", "versions": {}},
        "state_dict": {"weight": torch.full((megabytes * 250_000,), float(epoch))},
        "hyper_parameters": {},
        "callbacks": {},
        "epoch": epoch,
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


SAVE_AND_KILL = """
import json, os, random, signal, sys, time
from pathlib import Path
from litcifar.checkpoints import WholeCheckpoints, read
from tests.test_run_folder import content

kills, folder = int(sys.argv[1]), Path(sys.argv[2])
random.seed(0)
whole = interrupted = 0
for kill in range(kills):
    parent_end, child_end = os.pipe()
    child = os.fork()
    if not child:
        for epoch in range(1000):
            WholeCheckpoints().save_checkpoint(content(epoch, megabytes=10), folder / "last.ckpt")
            os.write(child_end, b".")
    os.read(parent_end, 1)  # the first is there
    while not (folder / ".last.ckpt.tmp").exists():
        pass
    time.sleep(random.uniform(0, 0.01))  # the writing takes as long, and then the disk
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    checkpoint = read(folder / "last.ckpt")
    whole += bool((checkpoint["state_dict"]["weight"] == checkpoint["epoch"]).all())
    interrupted += (folder / ".last.ckpt.tmp").exists()
    os.close(parent_end), os.close(child_end)
WholeCheckpoints().save_checkpoint(content(0), folder / "last.ckpt")
print(json.dumps([whole, interrupted, sorted(os.listdir(folder))]))
"""


@pytest.mark.parametrize("kills", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path: Path, kills: int) -> None:
    """With the temporary files' folder on another file system, where Lightning's own way tore 13 of 40."""
    elsewhere = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    environment = os.environ | {"TMPDIR": elsewhere, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SAVE_AND_KILL, str(kills), str(tmp_path)]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    whole, interrupted, files = json.loads(result.stdout)
    assert whole == kills
    assert interrupted > kills / 4  # the kills did hit
    assert files == [LAST]  # what they left is gone with the next save


@pytest.mark.parametrize("share", [number / 20 for number in range(20)])
def test_a_full_disk_is_one_line_and_keeps_the_previous_checkpoint(tmp_path: Path, share: float) -> None:
    WholeCheckpoints().save_checkpoint(content(1), tmp_path / LAST)
    before = sha256(tmp_path / LAST)
    with full_disk(int(share * 1_000_000)), pytest.raises(MachineError, match="free disk space") as error:
        WholeCheckpoints().save_checkpoint(content(2), tmp_path / LAST)
    assert error.value.exit_code == 6
    assert "\n" not in str(error.value)
    assert str(tmp_path / LAST) in str(error.value)
    assert sha256(tmp_path / LAST) == before
    assert read(tmp_path / LAST)["epoch"] == 1
    assert os.listdir(tmp_path) == [LAST]
    WholeCheckpoints().save_checkpoint(content(2), tmp_path / LAST)
    assert read(tmp_path / LAST)["epoch"] == 2


def test_metrics_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.csv", console())
    history.rows = [{"epoch": 1, "step": 10}]
    history.write()
    write_metrics(tmp_path, {"val/acc": 0.5})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before["metrics.csv"].splitlines()[1] == b"1,10,,,,,,,,"
    history.rows *= 100
    with full_disk(20):
        with pytest.raises(MachineError, match=r"metrics\.csv"):
            history.write()
        with pytest.raises(MachineError, match=r"metrics\.json"):
            write_metrics(tmp_path, {"val/acc": 0.75, "val/loss": 1.0})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert read_metrics(tmp_path) == {"val/acc": 0.5}


def test_a_file_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut can leave the new name with nothing behind it."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "file")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        calls.append("replace")
        assert Path(source).parent == Path(target).parent
        assert Path(source).read_bytes() == b"content"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write(tmp_path / "new" / METRICS, b"content")
    assert calls == ["file", "replace", "folder"]


def test_a_file_system_that_cannot_write_out_a_folder_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    write(tmp_path / METRICS, b"content")
    assert (tmp_path / METRICS).read_bytes() == b"content"


def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    folder = Path("/sys") if os.geteuid() == 0 else tmp_path  # root may write everywhere else
    with pytest.raises(MachineError, match="cannot be written") as error:
        write(folder / METRICS, b"{}")
    assert "\n" not in str(error.value)
    tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(MachineError, match="cannot be written") as error:
        write(tmp_path / "run" / METRICS, b"{}")
    assert "\n" not in str(error.value)


def test_a_folder_has_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    with claimed(tmp_path), pytest.raises(ConfigError, match="another process trains in"), claimed(tmp_path):
        pass
    with claimed(tmp_path):  # free again
        pass


def test_the_workers_of_a_killed_run_are_waited_for(tmp_path: Path) -> None:
    """A lock belongs to all processes that were forked with it, until the last of them has gone."""
    holds = "import filelock, sys, time\nwith filelock.FileLock(sys.argv[1]): print(flush=True); time.sleep(0.5)"
    with subprocess.Popen([sys.executable, "-c", holds, tmp_path / LOCK], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        with pytest.raises(TimeoutError):
            FileLock(tmp_path / LOCK).acquire(timeout=0)
        with claimed(tmp_path):
            pass


@pytest.mark.parametrize("address", ["https://example.org/best.ckpt", "s3://bucket/run", "file:///etc/passwd"])
def test_nothing_is_loaded_from_the_network(address: str) -> None:
    with pytest.raises(CheckpointError, match="is an address"):
        find_checkpoint(address, LAST)
