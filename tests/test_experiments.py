"""Each shipped configuration file is composed, built and run, and holds what its header says."""

import itertools
import re
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from litcifar import checkpoints, training
from litcifar.data import ShapesDataModule
from litcifar.keys import conf_dir
from tests.conftest import Compose, fake_gpu, header, in_a_child, trainer_on

GROUPS = ("data", "model", "optim", "scheduler", "augment", "trainer", "logger", "experiment")
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((conf_dir() / group).glob("[a-z]*.yaml"))]
CHOICES = [(group, name) for group, name in CHOICES if name != "own"]  # test_readme.py runs a user's own

PARAMETERS = {
    "conv_pool_best": 323_640,
    "deep_cnn": 642_538,
    "fast_75": 146_744,
    "fast_85": 569_656,
    "fast_90": 1_972_792,
    "keras_cnn": 356_810,
    "logistic_regression": 30_730,
    "numpy_mlp": 394_634,
    "sigmoid_mlp": 411_146,
    "simple_cnn": 42_442,
    "speed_93": 569_656,
    "speed_94": 1_972_792,
    "speed_94_muon": 1_972_792,
    "speed_95": 4_606_520,
    "speed_96": 9_918_776,
    "three_class_mlp": 401_795,
    "torch_cnn": 113_738,
    "torch_cnn_double": 106_538,
}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_file_runs(
    compose: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_image_folder: Path,
    tiny_cifar10: Path,
    group: str,
    choice: str,
) -> None:
    monkeypatch.setattr(ShapesDataModule, "sizes", (300, 100))
    small = ["trainer.max_epochs=1", "trainer.precision=32-true", "trainer.limit_train_batches=2", "data.batch_size=16"]
    small += [
        "data.val_size=50",
        "data.eval_batch_size=10",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
    ]
    root = tiny_image_folder if choice == "image_folder" else tiny_cifar10
    if choice != "shapes":
        small.append(f"data.root={root}")
        small += [] if choice == "image_folder" else ["data.verify=false"]
    small += ["figures=true"] if group == "logger" else ["logger=none", "figures=false"]
    metrics = training.train(compose(f"{group}={choice}", *small, tiny=False), tmp_path)
    assert 0 <= metrics["val/acc"] <= 1
    if group == "experiment":
        assert metrics["name"] == choice


@pytest.mark.parametrize("name", PARAMETERS)
def test_experiments_have_their_exact_parameter_counts(compose: Compose, name: str) -> None:
    config = compose(f"experiment={name}", tiny=False)
    model = training.new_model(config, checkpoints.data_of(config))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    classes = 3 if name == "three_class_mlp" else 10
    assert model(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, classes)


@pytest.mark.parametrize("name", PARAMETERS)
@in_a_child
def test_a_gpu_is_not_waited_for_in_a_step(compose: Compose, name: str) -> None:
    config = compose(f"experiment={name}", "++optim.fused=false")
    data = checkpoints.data_of(config)
    data.setup()
    model = training.new_model(config, data)
    turns = list(itertools.islice(data.train_dataloader().batch_sampler, 2))  # type: ignore[arg-type]
    with fake_gpu() as gpu, patch("torch.cuda.mem_get_info", return_value=(2**30, 2**30)):
        data.trainer = trainer_on(gpu)
        for module in model.modules():
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.to(gpu)
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(parameter.detach().to(gpu), parameter.requires_grad)
        made = model.recipe(total_steps=10)
        optimizer = made[0][0] if isinstance(made, tuple) else made
        fetch = data.train_dataloader().dataset.__getitems__  # type: ignore[attr-defined]
        for turn in turns:
            for images_BHWC, labels in data.on_after_batch_transfer(fetch(turn), 0):
                with torch.autocast("cuda", torch.bfloat16):
                    loss = model.loss(images_BHWC, labels)
                assert (loss.device, loss.dtype) == (gpu, torch.float32)
                for parameter in model.parameters():
                    parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
                optimizer.step()
        with pytest.raises(DataDependentOutputException):
            loss.item()


@pytest.mark.parametrize("file", sorted((conf_dir() / "experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_experiment_opens_with_its_command_result_and_time(file: Path) -> None:
    text = header(file)
    assert f"litcifar-train experiment={file.stem}" in text
    accuracy = r"\d\d\.\d\d %( ± \d\.\d\d)?"
    result = rf"# Result: val {accuracy}, test {accuracy} \(n=\d, JPEG copy of CIFAR-10\);.*\n# .* on two cores of .*\."
    assert re.search(result, text), f"{file.name} does not tell its result"
