"""What a user sees: one way to print, and silence about what no user can change."""

import logging
import os
import sys
import warnings
from pathlib import Path

from rich.console import Console

from litcifar.machine import ranks


def console() -> Console:
    """Standard output; lines are not cut to 80 columns where it is a file or a pipe. One process of several prints.

    Text is printed as it is: in rich's own markup `trust=[my_net]` would be a style.
    """
    terminal = sys.stdout.isatty()
    others = ranks.rank() > 0
    width = None if terminal else 160
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=not terminal, quiet=others)


def short(path: Path) -> str:
    """The path as one would type it: relative where it lies below the working folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def quiet() -> None:
    """Silences Lightning's tips and notes, and warnings that ask a litcifar user for nothing."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    for message in (
        ".*LeafSpec.*is deprecated",  # torch's pytree, at every fit
        "Precision .* is not supported by the model summary",  # which says sizes in MB; litcifar's does not
        ".*does not have many workers",  # the images are in memory
        "GPU available but not used",  # with trainer.accelerator=cpu
        ".*your dataloader is not resumable",  # its order is a function of seed and epoch: it goes on where it stopped
        "Checkpoint directory .* exists and is not empty",  # of a resumed run
        "Be aware that when using `ckpt_path`, callbacks",  # of a run that goes on without its trainer.max_time
        "The number of training batches",  # log_every_n_steps: litcifar logs once an epoch
    ):
        warnings.filterwarnings("ignore", message)
