"""The device of a run: which it is, in what precision it computes, and how many processes share the work."""

import functools
import os
import shutil

import torch

from litcifar.config import TrainConfig
from litcifar.errors import ConfigError, MachineError
from litcifar.machine import ranks
from litcifar.models import ImageClassifier

CPU_PROCESSES = 2  # of `trainer.devices=auto` without a GPU


def chosen(accelerator: str) -> str:
    """cpu, cuda or mps. `auto` is CUDA where there is a GPU, else the CPU; `gpu` is CUDA or MPS.

    MachineError where the machine lacks the one that is asked for.
    """
    ask_cuda_itself()
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if accelerator in ("auto", "cpu"):
        return "cuda" if accelerator == "auto" and gpu == "cuda" else "cpu"
    if gpu is None or accelerator not in ("gpu", gpu):
        raise MachineError(f"accelerator={accelerator}: none was found - use auto")
    return gpu


def description(kind: str) -> str:
    """The name of a `chosen` device; with several processes, of all that share the work."""
    name = f"CPU, {torch.get_num_threads()} threads"
    if kind != "cpu":
        name = torch.cuda.get_device_name() if kind == "cuda" else "Apple GPU (MPS)"
    return f"{ranks.world_size()} x {name}" if ranks.world_size() > 1 else name


def precision_of(config: TrainConfig, kind: str) -> tuple[str, str]:
    """Lightning's name of the precision on a `chosen` device, and why it was chosen."""
    if config.trainer.precision == "16-mixed" and kind == "cpu":
        raise ConfigError("trainer.precision=16-mixed is for a GPU - use auto, or bf16-mixed")
    if config.trainer.precision != "auto":
        return config.trainer.precision, "as asked for"
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "native on this GPU") if native else ("32-true", "bf16 is not native on this GPU")
    if kind == "mps":
        return "32-true", "the usual on MPS"
    if _multiplies_bf16_faster():
        return "bf16-mixed", "native on this CPU"
    return "32-true", "faster than bf16 on this CPU"


def _multiplies_bf16_faster() -> bool:
    """Whether the CPU has fast instructions for bf16; where it has to emulate them it is up to ten times as slow.

    Intel's AVX-512 ones are slow too: an Emerald Rapids whose virtual machine hides AMX trained convolutional networks
    1.25 to 1.6 times as fast in float32 (README, Speed). AMX has not been measured.
    """
    can = torch.cpu.get_capabilities()
    avx512 = can.get("avx512_bf16", False) and not can.get("cpu_name", "").startswith("Intel")
    return avx512 or can.get("amx_bf16", False)


def ask_cuda_itself() -> None:
    """Has torch ask CUDA's own library whether there is a GPU, and not NVML, in this process from now on.

    Importing Lightning makes it NVML, which knows of GPUs whose driver is too old for this CUDA. Most of torch's
    optimizers, though not SGD, ask in each step, and without NVIDIA's driver look for NVML's file each time: a quarter
    of a small network's step.
    """
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def autotuned(config: TrainConfig, kind: str) -> bool | None:
    """Whether cuDNN tries out which of its convolutions is fastest; None leaves it as it is."""
    asked = config.trainer.benchmark
    return True if asked is None and kind == "cuda" and not config.trainer.deterministic else asked


def process_count(config: TrainConfig) -> int:
    """The processes on this machine; ConfigError and MachineError where there cannot be so many."""
    asked, nodes = config.trainer.devices, config.trainer.num_nodes
    gpus = torch.cuda.device_count() if chosen(config.trainer.accelerator) == "cuda" else 0
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


def compile_network(model: ImageClassifier, mode: str | None, kind: str) -> None:
    """Compiles at the first step, in place: the checkpoint's keys stay as they are. MachineError without a compiler.

    mode: of torch.compile; those without "no-cudagraphs" in their name, but for None, use CUDA graphs on a GPU.
    """
    language, variable, compilers = "C++", "CXX", ("g++", "clang++")
    if kind == "cuda":
        language, variable, compilers = "C", "CC", ("gcc", "clang")
    if not any(map(shutil.which, (os.environ.get(variable, compilers[0]), *compilers))):
        raise MachineError(
            f"compile={mode or 'true'} needs a {language} compiler, and there is none - install {compilers[0]} or "
            "leave it out"
        )
    # Each shape is compiled: of whole and last batches, of the image sizes of a run, of the batch sizes of a sweep.
    # Beyond the limit, torch's is 8, all that follows would not be, with a line in a log.
    torch._dynamo.config.recompile_limit = 256
    _forget_others(repr(model.net), mode)
    model.net.compile(dynamic=False, mode=mode)


@functools.lru_cache(maxsize=1)
def _forget_others(network: str, mode: str | None) -> None:
    """Where another one was compiled before: all of a process, as a sweep's, share one limit to what torch keeps."""
    torch.compiler.reset()
