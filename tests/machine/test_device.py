"""The device: how many processes there can be, and what compiling needs."""

import platform
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from litcifar import training
from litcifar.errors import ConfigError, MachineError
from litcifar.machine import device
from litcifar.models import MLP
from tests.conftest import Compose, in_a_child
from tests.test_training import CNN, weights


@pytest.mark.parametrize(("compile", "mode"), [("true", None), ("max-autotune", "max-autotune")])
def test_a_compiled_network_trains_and_keeps_its_checkpoints_keys(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compile: str, mode: str | None
) -> None:
    compiled: list[dict[str, Any]] = []

    def compiler(function: Any, **options: Any) -> Any:
        compiled.append(options)
        return function

    monkeypatch.setattr(shutil, "which", {"g++": "g++"}.get)
    monkeypatch.setattr(torch, "compile", compiler)
    for name, options in (("plain", ()), ("compiled", (f"compile={compile}", "ema=0.9"))):
        training.train(compose(*CNN, *options, "trainer.max_epochs=1"), tmp_path / name)
    assert compiled == [{"dynamic": False, "mode": mode}]
    assert list(weights(tmp_path / "plain")["state_dict"]) == list(weights(tmp_path / "compiled")["state_dict"])


class LooksForGPUs(L.Callback):
    """Counts how often torch counts the GPUs in the steps of training."""

    def __init__(self) -> None:
        self.count = 0
        self.patch = pytest.MonkeyPatch()

    def on_train_batch_start(self, *_: Any) -> None:
        self.patch.setattr(torch.cuda, "device_count", self.look)

    def on_train_batch_end(self, *_: Any) -> None:
        self.patch.undo()

    def look(self) -> int:
        self.count += 1
        return 0


def test_no_step_on_a_cpu_looks_for_nvml(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(name: str) -> int:
        monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning's import does
        training.train(compose("model=mlp", "optim=adam"), tmp_path / name, callbacks=[callback := LooksForGPUs()])
        return callback.count

    assert looks("ours") == 0
    monkeypatch.setattr(device, "ask_cuda_itself", lambda: None)
    assert looks("without") > 0


def test_compiling_needs_a_compiler(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", {"gcc": "gcc"}.get)
    with pytest.raises(MachineError, match=r"compile=true needs a C\+\+ compiler, .+ - install g\+\+ or leave it out"):
        training.train(compose("model=mlp", "compile=true"), tmp_path)
    device.compile_network(MLP(), None, "cuda")
    monkeypatch.setattr(shutil, "which", {"g++": "g++"}.get)
    device.compile_network(MLP(), None, "cpu")
    with pytest.raises(MachineError, match=r"compile=true needs a C compiler, .+ - install gcc or leave it out"):
        device.compile_network(MLP(), None, "cuda")


@in_a_child
def test_each_batch_size_of_a_sweep_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.extend(len(tensor) for tensor in inputs if tensor.ndim == 4)
        return graph.forward

    compile_of_torch = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, *, dynamic, mode: compile_of_torch(f, dynamic=dynamic, backend=backend)
    )
    monkeypatch.setattr(shutil, "which", {"g++": "g++"}.get)
    sizes = list(range(2, 14))
    for size in sizes:
        model = MLP(hidden=[8], image_size=4)
        device.compile_network(model, None, "cpu")
        model(torch.zeros(size, 4, 4, 3, dtype=torch.uint8))
    assert compiled == sizes


def test_another_network_is_compiled_afresh_and_the_same_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[None] = []
    monkeypatch.setattr(shutil, "which", {"g++": "g++"}.get)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(None))
    device._forget_others.cache_clear()
    for hidden, mode, expected in (([8], None, 1), ([8], None, 1), ([9], None, 2), ([9], "max-autotune", 3)):
        device.compile_network(MLP(hidden=hidden), mode, "cpu")
        assert len(resets) == expected
    device._forget_others.cache_clear()


def test_the_device_is_cuda_or_the_cpu_unless_another_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict[str, bool]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found.get("cuda", False))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: found.get("mps", False))
    for there, chosen, missing in (
        ({}, {"auto": "cpu", "cpu": "cpu"}, ("gpu", "cuda", "mps")),
        ({"mps": True}, {"auto": "cpu", "cpu": "cpu", "gpu": "mps", "mps": "mps"}, ("cuda",)),
        ({"cuda": True}, {"auto": "cuda", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}, ("mps",)),
    ):
        found.clear()
        found.update(there)
        assert {name: device.chosen(name) for name in chosen} == chosen
        for name in missing:
            with pytest.raises(MachineError, match=f"accelerator={name}: none was found - use auto"):
                device.chosen(name)


def test_cuda_itself_is_asked_whether_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: 1)  # one whose driver is too old
    assert torch.cuda.is_available()
    assert device.chosen("auto") == "cpu"


def test_an_apple_gpu_is_told_as_one(compose: Compose) -> None:
    assert device.description("mps") == "Apple GPU (MPS)"
    assert device.precision_of(compose("trainer.precision=auto"), "mps") == ("32-true", "the usual on MPS")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other capabilities")
def test_torch_tells_what_the_choice_of_precision_asks() -> None:
    assert torch.cpu.get_capabilities().keys() >= {"cpu_name", "avx512_bf16", "amx_bf16"}


@pytest.mark.parametrize(
    ("cpu", "precision"),
    [
        ({"cpu_name": "AMD EPYC 9B14", "avx512_bf16": True, "amx_bf16": False}, "bf16-mixed"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16-mixed"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "32-true"),
        ({"cpu_name": "AMD EPYC 7763", "avx512_bf16": False, "amx_bf16": False}, "32-true"),
        ({"architecture": "aarch64", "neon": True}, "32-true"),
    ],
)
def test_a_cpu_takes_bf16_where_that_is_faster_than_float32(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, cpu: dict[str, Any], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert device.precision_of(compose("trainer.precision=auto"), "cpu")[0] == precision


def test_float16_is_refused_on_a_cpu_where_lightning_would_take_bfloat16(compose: Compose, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.precision=16-mixed is for a GPU - use auto, or bf16-mixed"):
        training.train(compose("model=mlp", "trainer.precision=16-mixed"), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "kind", "autotuned"),
    [
        ([], "cpu", None),
        ([], "cuda", True),
        (["trainer.deterministic=true"], "cuda", None),
        (["trainer.deterministic=warn"], "cuda", None),
        (["trainer.benchmark=false"], "cuda", False),
        (["trainer.benchmark=true"], "cpu", True),
    ],
)
def test_cudnn_tries_out_its_convolutions_on_a_gpu(
    compose: Compose, overrides: list[str], kind: str, autotuned: bool | None
) -> None:
    assert device.autotuned(compose(*overrides), kind) is autotuned


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["trainer.num_nodes=2"], ConfigError, "torchrun starts"),
        (["trainer.accelerator=gpu"], MachineError, "accelerator=gpu: none was found"),
    ],
)
def test_what_cannot_be_started_is_refused(
    compose: Compose, tmp_path: Path, overrides: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        training.train(compose("model=mlp", "trainer=ddp", *overrides), tmp_path)


@pytest.mark.parametrize(
    ("variables", "overrides", "message"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, ["trainer=default"], "give trainer=ddp"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, ["trainer=ddp"], "started 4 processes, 2 on this machine"),
        ({"WORLD_SIZE": "9", "LOCAL_WORLD_SIZE": "9"}, ["trainer=ddp"], "leaves 6 images in the last batch for 9"),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            ["trainer=ddp", "data.batch_size=1", "data.drop_last=true"],
            r"data\.batch_size=1 leaves 1 images in the last batch for 2 processes - choose another size$",
        ),
    ],
)
def test_processes_and_configuration_have_to_agree(
    compose: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    overrides: list[str],
    message: str,
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        training.train(compose("model=mlp", *overrides), tmp_path)
