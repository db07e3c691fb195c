"""A checkpoint is enough by itself, and nothing but a checkpoint of litcifar's is read."""

import os
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from litcifar import checkpoints, training
from litcifar.checkpoints import config_of, model_of, read
from litcifar.config import TrainConfig, check
from litcifar.data import CIFAR10DataModule
from litcifar.errors import CheckpointError
from litcifar.models import MLP, ConvPool, ImageClassifier
from litcifar.run_folder import find_checkpoint
from tests.conftest import as_dict


@pytest.fixture(scope="module")
def run(tiny_cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = ("model.widths=[4,8]", "trainer.max_epochs=1", "data.val_size=50", "data.verify=false", "logger=none")
    folder = tmp_path_factory.mktemp("run")
    config = check(as_dict("train", f"data.root={tiny_cifar10}", "trainer.precision=32-true", *overrides), TrainConfig)
    training.train(config, folder)
    return folder


def altered(run: Path, tmp_path: Path, **parts: Any) -> Path:
    content = torch.load(run / "best.ckpt", weights_only=True)
    torch.save(content | parts, tmp_path / "altered.ckpt")
    return tmp_path / "altered.ckpt"


def test_the_model_reloads_from_the_file_alone(run: Path) -> None:
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    lightning = ConvPool.load_from_checkpoint(run / "best.ckpt", weights_only=True).eval()
    ours = model_of(read(run / "best.ckpt"))
    assert torch.equal(lightning(images), ours(images))
    assert ours.classes[3] == "cat"


def test_the_configuration_travels_in_the_checkpoint(run: Path) -> None:
    config = config_of(read(run / "best.ckpt"))
    assert config.name == "conv_pool"
    assert config.trainer.max_epochs == 1


def test_a_checkpoint_of_cuda_loads_on_a_cpu(run: Path) -> None:
    """`read` maps whatever device is in the file to the CPU."""
    tensors = read(run / "best.ckpt")["state_dict"].values()
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def test_a_missing_checkpoint_names_those_that_are_there(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.ckpt"):
        find_checkpoint(str(run / "epoch3.ckpt"), "best.ckpt")
    assert find_checkpoint(str(run), "last.ckpt") == run / "last.ckpt"


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Hostile(tmp_path / "ran")}, tmp_path / "hostile.ckpt")
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    for name in ("hostile.ckpt", "hostile.pkl"):
        with pytest.raises(CheckpointError) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)
        assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("target", ["os.system", "torch.load", "litcifar.cli.os.system", "torch.optim.SGD"])
def test_a_target_in_a_file_is_not_run(run: Path, tmp_path: Path, target: str) -> None:
    known = read(run / "best.ckpt")["litcifar"]
    known["config"]["model"]["_target_"] = target
    file = altered(run, tmp_path, litcifar=known)
    with pytest.raises(CheckpointError):
        config_of(read(file))
    with pytest.raises(CheckpointError):
        model_of(read(file))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 but no zip", b"\x80\x04N."])
def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.ckpt") as error:
        read(tmp_path / "x.ckpt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_damaged(run: Path, tmp_path: Path, share: float) -> None:
    content = (run / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
        read(tmp_path / "cut.ckpt")


def test_a_flipped_bit_is_noticed(run: Path, tmp_path: Path) -> None:
    content = bytearray((run / "best.ckpt").read_bytes())
    weights = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]["net.1.0.weight"].numpy().tobytes()
    content[content.index(weights) + 100] ^= 1
    (tmp_path / "flipped.ckpt").write_bytes(content)
    torch.load(tmp_path / "flipped.ckpt", weights_only=True)  # does not
    with pytest.raises(CheckpointError, match="damaged"):
        read(tmp_path / "flipped.ckpt")


def test_another_projects_checkpoint_is_foreign(tmp_path: Path) -> None:
    torch.save(MLP().state_dict(), tmp_path / "weights.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("weights.pth", "list.pth"):
        with pytest.raises(CheckpointError, match="not written by litcifar-train"):
            read(tmp_path / name)


def test_weights_that_do_not_fit_are_refused(run: Path, tmp_path: Path) -> None:
    hyper_parameters = read(run / "best.ckpt")["hyper_parameters"] | {"widths": [4, 9]}
    with pytest.raises(CheckpointError, match="does not fit"):
        model_of(read(altered(run, tmp_path, hyper_parameters=hyper_parameters)))


def test_a_newer_format_is_refused_with_the_version_it_needs(run: Path, tmp_path: Path) -> None:
    known = read(run / "best.ckpt")["litcifar"] | {"format_version": checkpoints.FORMAT_VERSION + 1}
    known["versions"]["litcifar"] = "9.9"
    with pytest.raises(CheckpointError, match=r"9\.9"):
        read(altered(run, tmp_path, litcifar=known))


@pytest.mark.parametrize("family", [MLP, ConvPool])
def test_plain_lightning_works_without_hydra(tmp_path: Path, family: type[ImageClassifier], tiny_cifar10: Path) -> None:
    data = CIFAR10DataModule(str(tiny_cifar10), verify=False, val_size=50)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    model = family()
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    again = family.load_from_checkpoint(tmp_path / "plain.ckpt", weights_only=True)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(again.parameters(), model.parameters(), strict=True))
