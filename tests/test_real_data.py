"""On real images, where the JPEG copy of CIFAR-10 lies beside the project, and on the built-in shapes in full size."""

import subprocess
import sys
from pathlib import Path

import pytest

from litcifar import training
from litcifar.config import train_config
from litcifar.data import CIFAR10DataModule, ShapesDataModule

COPY = Path(__file__).parents[2] / "shared" / "cifar10"


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not COPY.is_dir():
        pytest.skip("no copy of CIFAR-10 beside the project")
    root = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, COPY / "unpack.py", root], check=True, stdout=subprocess.DEVNULL)
    return root


def test_the_split_is_the_same_on_every_machine(cifar10: Path) -> None:
    data = CIFAR10DataModule(str(cifar10), verify=False)
    data.setup()
    counts = data.class_counts()
    assert list(counts["train"].values()) == [4512, 4488, 4468, 4529, 4529, 4486, 4493, 4500, 4496, 4499]
    assert list(counts["val"].values()) == [488, 512, 532, 471, 471, 514, 507, 500, 504, 501]
    assert list(counts["test"].values()) == [1000] * 10


def test_the_readme_names_the_copys_fingerprint(cifar10: Path) -> None:
    data = CIFAR10DataModule(str(cifar10), verify=False)
    data.setup()
    assert f"`{data.fingerprint[:8]}...`" in (Path(__file__).parents[1] / "README.md").read_text()


def val_acc(run_dir: Path, *overrides: str) -> float:
    short = [
        "trainer.max_epochs=1",
        "data.batch_size=64",
        "trainer.limit_train_batches=250",
        "logger=none",
        "figures=false",
    ]
    short += ["trainer.precision=32-true", "test=false"]
    return training.train(train_config(*overrides, *short), run_dir)["val/acc"]


def test_convolution_beats_logistic_regression_on_real_images(cifar10: Path, tmp_path: Path) -> None:
    data = (f"data.root={cifar10}", "data.verify=false")
    linear = val_acc(tmp_path / "linear", "experiment=logistic_regression", *data)
    conv = val_acc(tmp_path / "conv", "experiment=simple_cnn", *data)
    assert 0.25 < linear < 0.40
    assert linear + 0.05 < conv < 0.60


@pytest.mark.slow
def test_so_it_does_on_the_shapes(tmp_path: Path) -> None:
    assert ShapesDataModule.sizes == (50_000, 10_000)
    linear = val_acc(tmp_path / "linear", "experiment=logistic_regression", "data=shapes")
    conv = val_acc(tmp_path / "conv", "experiment=simple_cnn", "data=shapes")
    assert 0.2 < linear < 0.5
    assert conv > linear + 0.1
