"""Starts several processes on this machine, with the environment that torchrun would give them, and minds them."""

import math
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

import torch
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessContext, ProcessException

from litcifar.errors import Interrupted, MachineError, UserError, explained
from litcifar.machine import signals

LOOK_SECONDS = 0.1  # between two looks at the processes
GRACE_SECONDS = 5.0  # for those that are left when one has ended before its time

Result = TypeVar("Result")


def run(function: Callable[..., Result], count: int, *arguments: Any) -> Result:
    """Calls the function in `count` processes on this machine; the result of rank 0.

    What goes wrong in any of them is raised here. A signal is handed on to all of them, so that they stop in order;
    where it is submitit's, the job is put into the queue again then.
    """
    with signals.requeued_later() as is_to_stop:
        return _run(function, count, arguments, is_to_stop)


def _run(
    function: Callable[..., Result], count: int, arguments: tuple[Any, ...], is_to_stop: Callable[[], bool]
) -> Result:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with signals.blocked():  # until they can handle them; a helper of the queue's never sees submitit's
        answers = mp.get_context("spawn").SimpleQueue()
        work = (function, arguments, count, port, answers)
        processes = mp.start_processes(_process, work, count, join=False, start_method="spawn")
    assert isinstance(processes, ProcessContext)
    found: dict[int, Any] = {}
    try:
        _wait(processes, answers, found, is_to_stop)
    except Interrupted as error:
        _send(error.signal_number, processes)
        _wait(processes, answers, found)  # a second signal ends it at once
        raise
    except ProcessException as error:
        _collect(answers, found)
        causes = [e for e in _errors(found) if isinstance(e, UserError) and e.exit_code != UserError.exit_code]
        if not causes:  # of the others there are only those that it caused
            raise MachineError(
                f"{str(error).strip().splitlines()[-1]}, one of {count} - it may have been killed for want of memory: "
                "go on with resume=..., and with fewer processes, trainer.devices=..."
            ) from error
    finally:
        for process in processes.processes:
            process.kill()
    if errors := _errors(found):
        raise errors[0]
    return found[0]


def _send(number: int, processes: ProcessContext) -> None:
    for process in processes.processes:
        if process.is_alive():
            os.kill(process.pid, number)


def _wait(
    processes: ProcessContext,
    answers: SimpleQueue,
    found: dict[int, Any],
    is_to_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Until all processes have ended, or one has failed and the others, who may wait for it, have had their time.

    is_to_stop: once it says so, they get submitit's signal.

    ProcessException where one of them has ended without an answer.
    """
    last, sent = math.inf, False
    while not processes.join(LOOK_SECONDS, GRACE_SECONDS) and time.monotonic() < last:
        if not sent and is_to_stop():
            _send(signal.SIGUSR2, processes)
            sent = True
        _collect(answers, found)
        if not all(isinstance(error, Interrupted) for error in _errors(found)):
            last = min(last, time.monotonic() + GRACE_SECONDS)
    _collect(answers, found)


def _collect(answers: SimpleQueue, found: dict[int, Any]) -> None:
    while not answers.empty():
        number, answer = answers.get()
        found[number] = answer


def _errors(found: dict[int, Any]) -> list[BaseException]:
    """What went wrong. What one process says of itself first: others then fail, and know only that it is gone."""
    errors = [answer for answer in found.values() if isinstance(answer, BaseException)]
    return sorted(errors, key=lambda error: getattr(error, "exit_code", 1) == UserError.exit_code)


def _process(number: int, function: Any, arguments: Any, count: int, port: int, answers: SimpleQueue) -> None:
    numbers = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ |= {"TORCHELASTIC_RUN_ID": "litcifar", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    answer: Any
    try:
        with signals.handled(signals.raise_interrupted) as handler:
            signals.unblock(handler)
            answer = function(*arguments)
    except (Exception, Interrupted) as error:
        answer = error if isinstance(error, Interrupted) else explained(error)
        answer.add_note(f"In process {number}:\n{traceback.format_exc()}")  # a traceback cannot be sent
    answers.put((number, answer))
