"""Which of several processes this is, that train one network together: torchrun's variables say so, and no torch."""

import os


def launched() -> bool:
    """Whether this process is one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def world_size() -> int:
    """The number of the processes, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_world_size() -> int:
    """The number of the processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """The number of this one; 0 prints and writes."""
    return int(os.environ["RANK"]) if launched() else 0
