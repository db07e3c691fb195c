"""A checkpoint is enough by itself, and nothing but a checkpoint of litcifar's is read."""

import os
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from litcifar import checkpoints, training
from litcifar.checkpoints import config_of, load, model_of, read
from litcifar.config import train_config
from litcifar.data import CIFAR10DataModule
from litcifar.errors import CheckpointError
from litcifar.models import MLP, ConvPool, ImageClassifier
from litcifar.run_folder import find_checkpoint
from tests.test_run_folder import content
from tests.test_training import same


@pytest.fixture(scope="module")
def run(tiny_cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch, with a learning rate at which none is better than the first."""
    overrides = ["model.widths=[4,8]", "trainer.max_epochs=1", "optim.lr=1e-12"]
    overrides += ["data.val_size=50", "data.verify=false", "logger=none", "figures=false"]
    folder = tmp_path_factory.mktemp("run")
    config = train_config(f"data.root={tiny_cifar10}", "trainer.precision=32-true", *overrides)
    training.train(config, folder)
    return folder


def altered(run: Path, tmp_path: Path, **parts: Any) -> Path:
    content = torch.load(run / "best.ckpt", weights_only=True)
    torch.save(content | parts, tmp_path / "altered.ckpt")
    return tmp_path / "altered.ckpt"


def test_the_model_reloads_from_the_file_alone(run: Path) -> None:
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    lightning = ConvPool.load_from_checkpoint(run / "best.ckpt", weights_only=True).eval()
    ours = load(run).model
    assert torch.equal(lightning(images), ours(images))
    assert ours.classes[3] == "cat"


def test_the_configuration_travels_in_the_checkpoint(run: Path) -> None:
    config = config_of(read(run / "best.ckpt"))
    assert config.name == "conv_pool"
    assert config.trainer.max_epochs == 1


def test_a_checkpoint_of_a_gpu_loads_on_a_cpu(run: Path, tmp_path: Path) -> None:
    """The device is a word in the file; torch knows none of this name."""
    with zipfile.ZipFile(run / "best.ckpt") as stored, zipfile.ZipFile(tmp_path / "gpu.ckpt", "w") as archive:
        for name in stored.namelist():
            part = stored.read(name)
            archive.writestr(name, part.replace(b"cpu", b"xyz") if name.endswith("data.pkl") else part)
    with pytest.raises(RuntimeError, match="xyz"):
        torch.load(tmp_path / "gpu.ckpt", weights_only=True)
    tensors = read(tmp_path / "gpu.ckpt")["state_dict"].values()
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


def code_among_the_weights(file: Path, marker: Path) -> None:
    torch.save({"state_dict": Hostile(marker)}, file)


def code_of_an_older_torch(file: Path, marker: Path) -> None:
    torch.save({"state_dict": Hostile(marker)}, file, _use_new_zipfile_serialization=False)


def a_bare_pickle(file: Path, marker: Path) -> None:
    file.write_bytes(pickle.dumps(Hostile(marker)))


class Scripted(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torchscript(file: Path, marker: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        torch.jit.save(torch.jit.script(Scripted()), file)


def a_zip_bomb(file: Path, marker: Path) -> None:
    torch.save(content(1, megabytes=40), marker)
    with zipfile.ZipFile(marker) as stored, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    marker.unlink()


def a_zip_that_climbs_out(file: Path, marker: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"../{marker.name}", b"")
        archive.writestr(str(marker), b"")


def safetensors(file: Path, marker: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def hdf5(file: Path, marker: Path) -> None:
    file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))


KINDS = (
    code_among_the_weights, code_of_an_older_torch, a_bare_pickle, torchscript, a_zip_bomb, a_zip_that_climbs_out,
    safetensors, hdf5,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_strangers_file_is_run(tmp_path: Path, kind: Callable[[Path, Path], None]) -> None:
    folder, marker = tmp_path / "folder", tmp_path / "ran"
    folder.mkdir()
    kind(folder / "x.ckpt", marker)
    with pytest.raises(CheckpointError, match=r"x\.ckpt") as error:
        read(folder / "x.ckpt")
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's message says how to run the code after all
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "x.ckpt"]


@pytest.mark.parametrize("target", ["os.system", "torch.load", "litcifar.arguments.os.system", "torch.optim.SGD"])
def test_a_target_in_a_file_is_not_run(run: Path, tmp_path: Path, target: str) -> None:
    known = read(run / "best.ckpt")["litcifar"]
    known["config"]["model"]["_target_"] = target
    file = altered(run, tmp_path, litcifar=known)
    with pytest.raises(CheckpointError):
        config_of(read(file))
    with pytest.raises(CheckpointError):
        model_of(read(file))


def test_a_reference_in_a_file_is_not_looked_up(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_cifar10: Path
) -> None:
    """OmegaConf would put the environment's secrets in, or whatever else a resolver finds."""
    monkeypatch.setenv("LITCIFAR_SECRET", "hunter2")
    known = read(run / "last.ckpt")["litcifar"]
    for reference in ("${oc.env:LITCIFAR_SECRET}", "${oc.create:{a:1}}", "${"):
        known["config"]["data"]["root"] = f"/{reference}"
        file = altered(run, tmp_path, litcifar=known)
        with pytest.raises(CheckpointError, match=r"\$\{\.\.\.\}") as error:
            config_of(read(file))
        assert "hunter2" not in str(error.value)
        asked = train_config(f"data.root={tiny_cifar10}", f"resume={file}")
        with pytest.raises(CheckpointError):
            training.train(asked, tmp_path)


def test_a_resumed_file_cannot_have_anything_deleted(run: Path, tmp_path: Path) -> None:
    """Lightning removes what a checkpoint calls the best one so far, after the next is saved."""
    (tmp_path / "precious").mkdir()
    shutil.copytree(run, tmp_path / "run")
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    (state,) = [state for state in content["callbacks"].values() if state.get("monitor", "") is None]
    state["best_model_path"] = f"local://{tmp_path / 'precious'}"
    torch.save(content, tmp_path / "run" / "last.ckpt")
    asked = config_of(content).model_copy(update={"resume": str(tmp_path / "run")})
    asked = asked.model_copy(update={"trainer": asked.trainer.model_copy(update={"max_epochs": 2})})
    assert training.train(asked, tmp_path / "run", ("trainer.max_epochs",))["epochs"] == 2
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize("key", ["_instantiator", "_class_path"])
def test_plain_lightning_runs_nothing_either(run: Path, tmp_path: Path, key: str) -> None:
    """The hole that Lightning 2.6.6 closed."""
    named = {"_instantiator": "os.mkdir", key: "os.mkdir"}
    file = altered(run, tmp_path, hyper_parameters=named)
    with pytest.raises(ValueError, match="blocked to prevent arbitrary code execution"):
        ConvPool.load_from_checkpoint(file, weights_only=True)


JUNK: tuple[Any, ...] = (None, 7, "x", [], {}, [1, "a"], torch.zeros(2))
PARTS = (
    "litcifar", "litcifar.format_version", "litcifar.config", "litcifar.config.model", "litcifar.config.model._target_",
    "litcifar.data", "litcifar.precision", "litcifar.fingerprint", "litcifar.versions", "hyper_parameters",
    "hyper_parameters.widths", "hyper_parameters.activation", "hyper_parameters.classes", "hyper_parameters.image_size",
    "state_dict", "callbacks", "epoch",
)  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_something_else_is_refused(run: Path, tmp_path: Path, part: str) -> None:
    *path, last = part.split(".")
    original = torch.load(run / "best.ckpt", weights_only=True)
    parent = original
    for key in path:
        parent = parent[key]
    as_it_was = parent[last]
    for junk in JUNK:
        if type(junk) is type(as_it_was) and last not in ("activation", "precision", "_target_"):
            continue
        parent[last] = junk
        torch.save(original, tmp_path / "junk.ckpt")
        with pytest.raises(CheckpointError) as error:
            model_of(read(tmp_path / "junk.ckpt"))
        assert "\n" not in str(error.value), junk


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
    state = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    weights = state["net.1.0.weight"].permute(0, 2, 3, 1).contiguous().numpy().tobytes()  # channels last, as they lie
    content[content.index(weights) + 100] ^= 1
    (tmp_path / "flipped.ckpt").write_bytes(content)
    torch.load(tmp_path / "flipped.ckpt", weights_only=True)  # does not
    with pytest.raises(CheckpointError, match="damaged"):
        read(tmp_path / "flipped.ckpt")


def test_every_flipped_bit_is_noticed_or_changes_nothing(run: Path, tmp_path: Path) -> None:
    """Between the parts of the file there is padding that nobody reads."""
    whole = (run / "best.ckpt").read_bytes()
    expected = read(run / "best.ckpt")
    places = random.Random(0)
    noticed = 0
    for _ in range(100):
        content = bytearray(whole)
        content[places.randrange(len(content))] ^= 1 << places.randrange(8)
        (tmp_path / "flipped.ckpt").write_bytes(content)
        try:
            assert same(read(tmp_path / "flipped.ckpt"), expected)
        except CheckpointError:
            noticed += 1
    assert noticed > 80


def test_weights_that_are_not_finite_are_refused(run: Path, tmp_path: Path) -> None:
    weights = read(run / "best.ckpt")["state_dict"]
    weights["net.1.0.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"net\.1\.0\.weight is not finite"):
        model_of(read(altered(run, tmp_path, state_dict=weights)))


def test_a_moved_run_still_knows_its_best_epoch(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved")
    best = (tmp_path / "moved" / "best.ckpt").read_bytes()
    frozen = config_of(read(run / "last.ckpt"))
    longer = frozen.trainer.model_copy(update={"max_epochs": 2})
    asked = frozen.model_copy(update={"resume": str(tmp_path / "moved"), "trainer": longer})
    metrics = training.train(asked, tmp_path / "moved", ("trainer.max_epochs",))
    assert metrics["epochs"] == 2
    assert metrics["best_epoch"] == 1
    assert (tmp_path / "moved" / "best.ckpt").read_bytes() == best


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
