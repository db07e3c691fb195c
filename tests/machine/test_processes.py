"""Processes that are started together: what they are told, and what becomes of their answers, errors and signals."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from litcifar.errors import ConfigError, Interrupted, MachineError
from litcifar.machine import processes, ranks, signals


def environment() -> tuple[int, int, dict[str, str]]:
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    return ranks.rank(), ranks.world_size(), {name: os.environ[name] for name in names}


def one_is_wrong() -> None:
    if ranks.rank() == 1:
        raise ConfigError("a value - another one")
    raise RuntimeError("the other process is gone")


def one_is_wrong_and_one_waits_for_it() -> None:
    if ranks.rank() == 1:
        raise ConfigError("a value - another one")
    time.sleep(60)


def one_is_killed() -> None:
    if ranks.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def wait_in(folder: Path) -> None:
    try:
        (folder / f"begun {ranks.rank()}").touch()
        time.sleep(60)
    except Interrupted as error:
        (folder / f"{error.exit_code} {ranks.rank()}").touch()
        raise


def test_each_process_has_its_rank_and_the_first_answers() -> None:
    rank, world, local = processes.run(environment, 2)
    assert (rank, world) == (0, 2)
    assert local == {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert (ranks.rank(), ranks.world_size(), ranks.launched()) == (0, 1, False)


def test_the_error_that_says_most_is_raised() -> None:
    with pytest.raises(ConfigError, match="a value - another one") as error:
        processes.run(one_is_wrong, 2)
    assert "In process 1:" in error.value.__notes__[0]


def test_an_error_ends_the_processes_that_wait_for_the_one_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="a value - another one"):
        processes.run(one_is_wrong_and_one_waits_for_it, 2)
    assert time.monotonic() - begun < 60


def test_a_killed_process_ends_the_others_and_is_a_matter_of_the_machine() -> None:
    with pytest.raises(MachineError, match="process 1 terminated with signal SIGKILL, one of 2 - "):
        processes.run(one_is_killed, 2)


@pytest.mark.parametrize("with_sigterm", [False, True])
def test_a_job_that_is_to_be_queued_again_stops_its_processes_first(tmp_path: Path, with_sigterm: bool) -> None:
    """submitit's handler of SIGUSR2 ends the process; SLURM sends the signal to all of a job, and SIGTERM beside it."""
    stopped: list[set[str]] = []

    def queue_again(number: int, frame: object) -> None:
        stopped.append({p.name.split()[1] for p in tmp_path.iterdir() if not p.name.startswith("begun")})
        raise SystemExit(77)

    def send() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        children = [process.pid or 0 for process in multiprocessing.active_children()]
        for number in (signal.SIGTERM, signal.SIGUSR2)[not with_sigterm :]:
            for process in (*children, os.getpid()):
                os.kill(process, number)

    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        with signals.handled(signals.raise_interrupted):
            threading.Thread(target=send).start()
            with pytest.raises(SystemExit, match="77"):
                processes.run(wait_in, 2, tmp_path)
        assert signal.getsignal(signal.SIGUSR2) is queue_again
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert stopped == [{"0", "1"}]  # in order, and once


def test_a_signal_reaches_all(tmp_path: Path) -> None:
    def send() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    with signals.handled(signals.raise_interrupted):
        threading.Thread(target=send).start()
        with pytest.raises(Interrupted, match="SIGTERM"):
            processes.run(wait_in, 2, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"begun 0", "begun 1", "143 0", "143 1"}
