"""SIGINT and SIGTERM, and kills, at random moments of whole runs.

A run here is a process forked from this one, which has imported everything; it says into a file what it begins to do.
"""

import contextlib
import functools
import os
import pickle
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from litcifar import run_folder, running
from litcifar.data import CIFAR10DataModule, cifar10_archive
from litcifar.data.cifar10_archive import fetch
from litcifar.data.cifar10_files import FOLDER
from litcifar.errors import Interrupted
from litcifar.machine import signals
from litcifar.models import ImageClassifier
from litcifar.run_folder import LAST
from tests.conftest import TRAIN, run_forked
from tests.data.test_cifar10_archive import ARCHIVE, BYTES, PROBE_BYTES, Server
from tests.data.test_cifar10_archive import server as server
from tests.test_training import result, same

SCRIPT = {**os.environ, "OMP_NUM_THREADS": "1"}
TERM, INT = signal.SIGTERM, signal.SIGINT
STEPS = {  # what a run is made of: each begins with a line in the file, and a pause, in which most signals come
    "read": (CIFAR10DataModule, "read"),
    "train": (ImageClassifier, "loss"),
    "validate or test": (ImageClassifier, "_evaluate"),
    "save": (run_folder, "write"),
}
PAUSE = 0.01  # seconds
RECIPE = (
    *("model=conv_pool", "model.widths=[4,8]", "model.norm=conv", "model.dropout=0.2", "augment=standard"),
    *("scheduler=triangular", "optim=muon", "ema=0.9", "logger=none", "figures=false", "trainer.precision=32-true"),
    *("data.verify=false", "data.val_size=50", "data.batch_size=16", "data.eval_batch_size=25"),
)


@dataclass(frozen=True)
class Ended:
    """How a process ended. code: negative where a signal killed it."""

    code: int
    out: str
    err: str


class Run:
    """`litcifar-train` with these arguments, in a process and a process group of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}.steps")
        self.log.write_text("")
        self.process = get_context("fork").Process(target=self._main, args=(arguments,))
        self.process.start()

    def _main(self, arguments: tuple[str, ...]) -> None:
        os.setsid()
        os.chdir(self.folder.parent)
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        for name, (owner, attribute) in STEPS.items():
            setattr(owner, attribute, self._told(log, name, getattr(owner, attribute)))
        run_forked(TRAIN, arguments, output=f"{self.folder}.")

    @staticmethod
    def _told(log: int, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def told(*arguments: Any, **options: Any) -> Any:
            os.write(log, f"{name}\n".encode())
            time.sleep(PAUSE)
            return function(*arguments, **options)

        return told

    def steps(self) -> list[str]:
        """What it has begun."""
        return self.log.read_text().splitlines()

    def wait_for(self, steps: int) -> None:
        """Until it has begun so many, or has ended."""
        while len(self.steps()) < steps and self.process.is_alive():
            time.sleep(0.001)

    def send(self, number: int, group: bool) -> None:
        assert self.process.pid
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> Ended:
        self.process.join(60)
        assert self.process.exitcode is not None, "it does not end"
        return Ended(self.process.exitcode, *(Path(f"{self.folder}.{name}").read_text() for name in ("out", "err")))

    def orphans(self) -> bool:
        """Whether its process group still has a member, ten seconds after its end."""
        assert self.process.pid
        for _ in range(100):
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.1)
        return True


@pytest.fixture
def arguments(tiny_cifar10: Path) -> Callable[..., tuple[str, ...]]:
    def arguments(folder: Path, *more: str) -> tuple[str, ...]:
        return (*RECIPE, f"data.root={tiny_cifar10}", f"hydra.run.dir={folder}", *more)

    return arguments


def advised(error: str, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments with which to go on, as the message says."""
    assert re.fullmatch(r"error: stopped by SIG(TERM|INT).* - [^\n]+\n", error), error
    if found := re.search(r" - go on with: litcifar-train (resume=.+)\n", error):
        return tuple(shlex.split(found[1]))
    assert error.endswith(" - run the command again\n"), error
    return otherwise


SIGNALS = [(TERM, False), (INT, False), (TERM, True), (INT, True)]


@pytest.mark.parametrize(
    ("workers", "moments"),
    [(2, 4), pytest.param(0, 30, marks=pytest.mark.slow), pytest.param(2, 30, marks=pytest.mark.slow)],
)
def test_a_signal_at_any_moment_loses_nothing(
    arguments: Callable[..., tuple[str, ...]], tmp_path: Path, workers: int, moments: int
) -> None:
    """To the process, and to its group with the workers of the loader."""
    options = ("trainer.max_epochs=2", f"data.num_workers={workers}")
    whole = Run(tmp_path / "whole", *arguments(tmp_path / "whole", *options))
    ended = whole.end()
    assert (ended.code, ended.err) == (0, "")
    expected, steps = result(whole.folder), whole.steps()
    places = random.Random(workers)
    hit: dict[str, int] = {}
    for moment in range(moments):
        number, group = SIGNALS[moment % len(SIGNALS)]
        # One in each share of the run; after its last step it might be over before the signal comes.
        step = (places.randrange(len(steps) - 1) + moment * (len(steps) - 1)) // moments + 1
        command = arguments(tmp_path / str(moment), *options)
        run = Run(tmp_path / str(moment), *command)
        run.wait_for(step)
        time.sleep(places.uniform(0, PAUSE))
        run.send(number, group)
        ended = run.end()
        where = f"moment {moment}: {signal.Signals(number).name} {'to the group' if group else ''} at step {step}"
        assert ended.code == 128 + number, (where, ended)
        hit[run.steps()[step - 1]] = hit.get(run.steps()[step - 1], 0) + 1
        assert not run.orphans(), where
        assert not list(run.folder.rglob(".*.tmp")), where
        assert Run(run.folder, *advised(ended.err, command)).end().code == 0, where
        assert same(result(run.folder), expected), where
    print(f"{moments} of {moments} signals with {workers} workers; in {hit}")
    assert moments < 30 or hit.keys() == STEPS.keys()


@pytest.mark.slow
def test_fifty_kills_of_one_run_lose_an_epoch_each_at_most(
    arguments: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    options = ("trainer.max_epochs=30", "data.eval_batch_size=50")
    whole = Run(tmp_path / "whole", *arguments(tmp_path / "whole", *options))
    assert whole.end().code == 0
    expected = result(whole.folder)
    epoch_steps = len(whole.steps()) // 30
    places = random.Random(0)
    folder, kills, lost, saved = tmp_path / "killed", 0, [], 0
    command = arguments(folder, *options)
    while kills < 50:
        run = Run(folder, *command)
        run.wait_for(1 + places.randrange(epoch_steps * 8 // 5))  # three of eight end an epoch: 19 of 50
        time.sleep(places.uniform(0, PAUSE))
        run.send(signal.SIGKILL, group=True)
        run.process.join()
        if run.process.exitcode == 0:
            break
        kills += 1
        known = torch.load(folder / LAST, weights_only=True)["global_step"] if (folder / LAST).exists() else 0
        trained = run.steps().count("train")
        assert known >= saved
        lost.append((saved + trained - known) / 10)
        saved = known
    assert Run(folder, *command).end().code == 0
    assert same(result(folder), expected)
    assert not list(folder.rglob(".*.tmp"))
    assert max(lost) <= 1
    print(f"{kills} kills: {max(lost):.1f} epochs lost at most, {sum(lost) / len(lost):.1f} on average")
    assert kills == 50


def test_a_signal_during_a_download_keeps_what_has_come(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10_archive, "PROBE_BYTES", PROBE_BYTES)
    monkeypatch.setattr(cifar10_archive, "fetch", functools.partial(fetch, archive=ARCHIVE))
    for number in (TERM, INT):
        root = tmp_path / f"data_{number}"
        mirrors = f"data.mirrors=[{server.url('drip')}]"
        run = Run(tmp_path / f"run_{number}", *RECIPE, f"data.root={root}", f"hydra.run.dir=run_{number}", mirrors)
        part = root / f"{ARCHIVE.name}.part"
        while run.process.is_alive() and not (part.exists() and part.stat().st_size):
            time.sleep(0.01)
        run.send(number, group=False)
        ended = run.end()
        assert ended.code == 128 + number
        assert ended.err.splitlines()[1:] == [f"error: stopped by {number.name} - run the command again"]
        assert not run.folder.exists()  # nothing was begun
        assert BYTES.startswith(part.read_bytes())
        fetch(root, [server.url("good")], 60, ARCHIVE)
        first = server.downloads("good")[-1]
        assert first
        assert (root / FOLDER).is_dir()


@pytest.mark.parametrize("place", ["in a job", "between two jobs"])
def test_a_sweep_that_is_stopped_says_how_it_goes_on(
    arguments: Callable[..., tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    sweep = ("-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep", "trainer.max_epochs=1")
    places = {"in a job": (CIFAR10DataModule, "read"), "between two jobs": (running.SweepSummary, "on_job_end")}
    owner, attribute = places[place]
    function = getattr(owner, attribute)

    def stopped(*arguments: Any, **options: Any) -> Any:
        if list(tmp_path.glob("sweep/0_*/metrics.json")):
            signal.raise_signal(TERM)
        return function(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, stopped)
        run = Run(tmp_path / "run", *arguments(tmp_path / "run", *sweep))
    ended = run.end()
    assert ended.code == 143
    assert "SIGTERM" in ended.err
    command = shlex.split(ended.err.partition("go on with: litcifar-train ")[2])
    again = Run(tmp_path / "run", *command).end()
    assert again.code == 0
    assert "already finished" in again.out
    assert len(list(tmp_path.glob("sweep/*/metrics.json"))) == 2


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends it to the process and to its group."""
    now, seen = [0.0], list[int]()
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.handled(seen.append):
        signal.raise_signal(TERM)
        now[0] = 0.9
        signal.raise_signal(TERM)
        signal.raise_signal(INT)
    assert seen == [TERM]


def test_a_second_signal_ends_the_process_at_once() -> None:
    def never_ends() -> None:
        with signals.handled(lambda number: None):
            while True:
                time.sleep(0.01)

    process = get_context("fork").Process(target=never_ends)
    process.start()
    assert process.pid
    time.sleep(0.2)
    os.kill(process.pid, TERM)
    time.sleep(signals.TWICE_SECONDS + 0.2)
    assert process.is_alive()
    os.kill(process.pid, TERM)
    process.join(5)
    assert process.exitcode == -TERM


def test_what_is_deferred_ends_before_the_process_does() -> None:
    done, before = False, signal.getsignal(INT)
    with pytest.raises(Interrupted, match="stopped by SIGINT") as stop:  # noqa: PT012, SIM117
        with signals.deferred():
            signal.raise_signal(INT)
            done = True
    assert done
    assert stop.value.exit_code == 130
    assert signal.getsignal(INT) is before


def test_a_blocked_signal_comes_afterwards_and_not_to_a_child() -> None:
    seen: list[int] = []
    with signals.handled(seen.append):
        with signals.blocked():
            command = [sys.executable, "-c", "print(input())"]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            signal.raise_signal(TERM)
            assert seen == []
        child.send_signal(TERM)
        assert child.communicate("alive")[0] == "alive\n"
    assert seen == [TERM]


def test_interruptions_travel_between_processes() -> None:
    again = pickle.loads(pickle.dumps(Interrupted("stopped - run again", 15)))
    assert (str(again), again.exit_code) == ("stopped - run again", 143)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "number", "group"),
    [(start + moment, *of) for start in (0.0, 5.0) for moment, of in zip((0, 1.3, 2.6, 3.9), SIGNALS, strict=True)],
)
def test_the_installed_script_at_any_second(
    arguments: Callable[..., tuple[str, ...]], tmp_path: Path, seconds: float, number: int, group: bool
) -> None:
    """From the moment on that it catches signals, before its imports, which take most of the first seconds."""
    script = Path(sys.executable).parent / "litcifar-train"
    command = [str(script), *arguments(tmp_path / "run", "trainer.max_epochs=500", "data.num_workers=2")]
    with subprocess.Popen(
        command, cwd=tmp_path, env=SCRIPT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        while not _catches(process.pid, TERM):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        (os.killpg if group else os.kill)(process.pid, number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    advised(error, ())
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of a signal, by Linux's word; not before it has started."""
    found = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return bool(int(found[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
def test_timeout_stops_a_run_in_order(arguments: Callable[..., tuple[str, ...]], tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "litcifar-train"
    command = [
        "timeout",
        "--preserve-status",
        "12",
        str(script),
        *arguments(tmp_path / "run", "trainer.max_epochs=5000"),
    ]
    ended = subprocess.run(command, cwd=tmp_path, env=SCRIPT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 143
    advised(ended.stderr, ())
