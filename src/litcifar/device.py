"""The device of a run: which it is, in what precision it computes, and how many processes share the work."""

import os
import shutil

import torch

from litcifar import ranks
from litcifar.config import TrainConfig
from litcifar.errors import ConfigError, MachineError
from litcifar.models import ImageClassifier

CPU_PROCESSES = 2  # of `trainer.devices=auto` without a GPU


def uses_cuda(config: TrainConfig) -> bool:
    """Whether the run uses a GPU; MachineError where it should and there is none."""
    cuda = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    if config.trainer.accelerator in ("gpu", "cuda") and not cuda:
        raise MachineError(f"trainer.accelerator={config.trainer.accelerator}: no GPU was found - use auto")
    return cuda


def description(cuda: bool) -> str:
    """The device's name; with several processes, of all that share the work."""
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    return f"{ranks.world_size()} x {name}" if ranks.world_size() > 1 else name


def precision_of(config: TrainConfig, cuda: bool) -> tuple[str, str]:
    """Lightning's name of the precision, and why it was chosen."""
    if config.trainer.precision != "auto":
        return config.trainer.precision, "as asked for"
    if cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "native on this GPU") if native else ("32-true", "bf16 is not native on this GPU")
    # Where the CPU has to emulate bf16 it is up to ten times as slow as float32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return ("bf16-mixed", "native on this CPU") if native else ("32-true", "bf16 is not native on this CPU")


def process_count(config: TrainConfig) -> int:
    """The processes on this machine; ConfigError and MachineError where there cannot be so many."""
    asked, gpus = config.trainer.devices, torch.cuda.device_count() if uses_cuda(config) else 0
    nodes = config.trainer.num_nodes
    if ranks.launched():
        count = ranks.local_world_size()
        if config.trainer.strategy != "ddp" or asked not in (count, "auto") or ranks.world_size() != count * nodes:
            raise ConfigError(
                f"torchrun started {ranks.world_size()} processes, {count} on this machine, for "
                f"trainer.devices={asked} and trainer.num_nodes={nodes} - give trainer=ddp and the same numbers"
            )
        return count
    if nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}: on each of the machines torchrun starts litcifar-train - see README"
        )
    if config.trainer.strategy != "ddp":
        return 1
    count = (gpus or CPU_PROCESSES) if asked == "auto" else asked
    if gpus and count > gpus:
        raise MachineError(f"trainer.devices={count}: there are {gpus} GPUs - use as many or fewer")
    return count


def compile_network(model: ImageClassifier, cuda: bool) -> None:
    """Compiles at the first step, in place: the checkpoint's keys stay as they are. MachineError without a compiler."""
    if not cuda and shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise MachineError(
            "compile=true needs a C++ compiler on a CPU, and there is none - install g++ or leave it out"
        )
    model.net.compile(dynamic=False)
