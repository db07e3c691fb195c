"""A tiny CIFAR-10 on disk, and configurations composed and console scripts run in this process."""

import contextlib
import functools
import io
import os
import pickle
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are of a CPU, also where there is a GPU; before torch is imported

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from litcifar import cli, running
from litcifar.config import TrainConfig, train_config
from litcifar.data.cifar10_files import CLASSES, FOLDER, META_FILE, TEST_FILE, TRAIN_FILES

IMAGES_PER_FILE = 40
Compose = Callable[..., TrainConfig]
TRAIN, EVALUATE, COMPARE, LOOK = "train", "evaluate", "compare", "look"
PREDICT, EXPORT, DEMO = "predict", "export", "demo"
QUICK = ["logger=none", "figures=false"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 + 40 images in CIFAR-10's files: noise about a colour that the class decides."""
    root = tmp_path_factory.mktemp("cifar10")
    (root / FOLDER).mkdir()
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (10, 3, 1))
    for name in (*TRAIN_FILES, TEST_FILE):
        labels = rng.permutation(np.arange(IMAGES_PER_FILE) % 10)
        noise = rng.normal(0, 60, (IMAGES_PER_FILE, 3, 1024))
        pixels = (colours[labels] + noise).clip(0, 255).astype(np.uint8)
        content = {"labels": labels.tolist(), "data": pixels.reshape(IMAGES_PER_FILE, 3072)}
        (root / FOLDER / name).write_bytes(pickle.dumps(content, protocol=2))
    (root / FOLDER / META_FILE).write_bytes(pickle.dumps({"label_names": list(CLASSES)}, protocol=2))
    return root


@pytest.fixture(scope="session")
def tiny_image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of PNGs of 40 x 36 pixels: 40 for training and 5 for the test, each."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 5)):
        for name, colour in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (36, 40, 3), np.uint8)
                pixels[..., colour] += 100
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def compose(tiny_cifar10: Path) -> Compose:
    """Composes conf/train.yaml with overrides, on the tiny CIFAR-10, in float32, without figures unless they say so."""
    base = [
        f"data.root={tiny_cifar10}",
        "data.verify=false",
        "data.val_size=50",
        "data.batch_size=16",
        "trainer.max_epochs=2",
        "trainer.precision=32-true",
        "logger=none",
        "figures=false",
    ]

    def compose(*overrides: str, tiny: bool = True) -> TrainConfig:
        return train_config(*(base if tiny else []), *overrides)

    return compose


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a console script in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(command: str, *arguments: str, full_error: bool = False) -> Outcome:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"litcifar-{command}", *arguments])
        monkeypatch.setattr(running, "FAILURES", [])
        monkeypatch.setenv("HYDRA_FULL_ERROR", str(int(full_error)))
        with pytest.raises(SystemExit) as end:
            getattr(cli, command)()
        captured = capsys.readouterr()
        return Outcome(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def tiny(tiny_cifar10: Path) -> list[str]:
    return [f"data.root={tiny_cifar10}", "data.verify=false", "data.val_size=50", "trainer.max_epochs=1", *QUICK]


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).parent / arguments[0]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0", "TERM": "dumb"}
    environment.pop("HOME", None)  # as in a container
    return subprocess.run([path, *arguments[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def run_forked(command: str, arguments: Sequence[str], output: str) -> None:
    """Runs a console script in a process forked from this one; what it prints is in the files `output` + out, err."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w"), line_buffering=True) for n in (1, 2))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("HYDRA_FULL_ERROR", None)
    GlobalHydra.instance().clear()
    running.FAILURES.clear()
    sys.argv = [f"litcifar-{command}", *arguments]
    getattr(cli, command)()


def in_a_child(test: Callable[..., None]) -> Callable[..., None]:
    """Has a test run in a process forked from this one, which torch's fake tensors would leave unable to be forked."""

    @functools.wraps(test)
    def forked(**fixtures: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not need
            child = os.fork()
        if child == 0:
            try:
                test(**fixtures)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "see what it wrote"

    return forked


def bare_trainer(epochs: int = 1, **options: Any) -> L.Trainer:
    """Lightning's trainer on the CPU, without files, bars and sanity checks."""
    return L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


@contextlib.contextmanager
def fake_gpu() -> Iterator[torch.device]:
    """A GPU that computes nothing: its tensors have a shape, a type and a place, and no values.

    What a GPU would have to be waited for, and an operation on tensors of two devices, are errors here. Backward and
    fused optimizers need a real one. To be used `in_a_child`.
    """
    with (
        patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        patch("torch.cuda.is_bf16_supported", return_value=True),
        torch.backends.cudnn.flags(enabled=False),  # of its operations some have no shapes
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield torch.device("cuda", 0)


def trainer_on(gpu: torch.device) -> L.Trainer:
    """A trainer that takes a GPU of `fake_gpu` for its own."""
    trainer = bare_trainer()
    trainer.strategy._root_device = gpu  # type: ignore[attr-defined]
    return trainer


def header(file: Path) -> str:
    """The comments of a file of `conf/`, which open with Hydra's own."""
    lines = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert lines[0] == "# @package _global_"
    return "\n".join(lines)
