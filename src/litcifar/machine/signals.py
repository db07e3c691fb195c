"""SIGINT (Ctrl-C) and SIGTERM (schedulers, systemd, docker stop): what they stop, and when."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from litcifar.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)
REQUEUE = getattr(signal, "SIGUSR2", None)  # submitit's: it puts the job into the queue again, and ends the process
TWICE_SECONDS = 1.0


class Handler:
    """Calls `stop` with the number of the first signal; one that comes a second later ends the process at once.

    Nothing is done about one that comes sooner: `timeout` sends each to the process and to its group.
    """

    def __init__(self, stop: Callable[[int], None]) -> None:
        self.stop = stop
        self.number = 0
        self._time = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._time = number, time.monotonic()
            self.stop(number)
        elif time.monotonic() - self._time > TWICE_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def install(handler: Handler) -> dict[int, object]:
    """What handled the signals before; Python lets the main thread alone handle them."""
    is_main = threading.current_thread() is threading.main_thread()
    return {number: signal.signal(number, handler) for number in STOPPING} if is_main else {}


@contextlib.contextmanager
def handled(stop: Callable[[int], None]) -> Iterator[Handler]:
    """Inside, a signal calls `stop`."""
    handler = Handler(stop)
    before = install(handler)
    try:
        yield handler
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)  # type: ignore[arg-type]


def raise_interrupted(number: int) -> NoReturn:
    raise Interrupted(f"stopped by {signal.Signals(number).name} - run the command again", number)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, nothing is stopped: Interrupted comes at the end. For imports, which may swallow an exception."""
    with handled(lambda number: None) as handler:
        yield
    if handler.number:
        raise_interrupted(handler.number)


@contextlib.contextmanager
def requeued_later() -> Iterator[Callable[[], bool]]:
    """Inside, submitit's signal is only noted, which the function tells; if it came, its handler is called at the end.

    submitit alone handles it; Python lets the main thread alone handle signals.
    """
    own = signal.getsignal(REQUEUE) if REQUEUE else None
    if not REQUEUE or not callable(own) or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    noted: list[int] = []
    signal.signal(REQUEUE, lambda number, frame: noted.append(number))
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(REQUEUE, own)
        if noted:
            own(REQUEUE, None)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Processes that are started inside never see the signals: those are for their parent, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, signal.SIGUSR2))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock(handler: Handler) -> None:
    """In a process that was started in `blocked`: from here on it sees the signals, also those that came before.

    submitit's stops it too, unless another has: its parent puts the job into the queue again.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if not handler.number:
            handler(number, frame)

    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGUSR2, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPPING, signal.SIGUSR2))
