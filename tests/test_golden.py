"""Checkpoints of earlier versions load, and answer as they did: tests/golden holds some of each version.

Each `<network>-<version>.ckpt` is the last.ckpt of a run that was stopped after the first of its two epochs; beside it
are its answers to `inputs`.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from litcifar import checkpoints, training
from litcifar.checkpoints import config_of, model_of, read
from litcifar.config import TrainConfig, train_config
from litcifar.data import ShapesDataModule
from litcifar.errors import CheckpointError
from litcifar.run_folder import LAST

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.ckpt"))
RUNS = {  # the overrides of each run; the images are three colours with noise, 1,000 shapes
    "mlp-0.1.0": [
        *(
            "data=image_folder",
            "data.root=/tmp/golden/images",
            "data.image_size=8",
            "data.val_size=20",
            "data.batch_size=5",
        ),
        *("model=mlp", "model.hidden=[8]", "model.batch_norm=true", "model.dropout=0.1", "ema=0.9"),
        *(
            "trainer.max_epochs=2",
            "trainer.precision=32-true",
            *("logger=none", "figures=false"),
            "optim=adamw",
            "optim.lr=0.01",
            "scheduler=plateau",
        ),
    ],
    "conv_pool-0.1.0": [
        *("data=shapes", "data.val_size=50", "experiment=conv_pool_best", "model.widths=[4,6]", "data.batch_size=25"),
        *("trainer.max_epochs=2", "trainer.precision=32-true", "logger=none", "figures=false"),
    ],
}


def inputs(size: int) -> Tensor:
    """100 images of four by four random coloured squares, uint8 [100, size, size, 3]: the same with every library."""
    squares = torch.tensor(list(random.Random(0).randbytes(100 * 4 * 4 * 3)), dtype=torch.uint8).view(100, 4, 4, 3)
    return squares.repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_earlier_versions_network_answers_as_it_did(file: Path) -> None:
    expected = json.loads(file.with_suffix(".json").read_text())
    model = model_of(read(file))
    with torch.no_grad():
        logits_NK = model(inputs(model.image_size))
    assert logits_NK.argmax(1).tolist() == expected["predictions"]
    assert torch.allclose(logits_NK[:3], torch.tensor(expected["logits"]), atol=1e-4)
    assert len(set(expected["predictions"])) > 2


def test_each_version_has_both_networks() -> None:
    assert {file.stem for file in FILES} == set(RUNS)
    assert {config_of(read(file)).model.target for file in FILES} == {"litcifar.models.MLP", "litcifar.models.ConvPool"}
    assert config_of(read(GOLDEN / "conv_pool-0.1.0.ckpt")).model.stem == "whitened"  # type: ignore[union-attr]


def test_a_key_that_is_younger_than_the_checkpoint_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(TrainConfig):
        lookahead: int = 0

    class Forgotten(TrainConfig):
        lookahead: int

    monkeypatch.setattr(checkpoints, "TrainConfig", Later)
    assert config_of(read(FILES[0])).lookahead == 0
    monkeypatch.setattr(checkpoints, "TrainConfig", Forgotten)
    with pytest.raises(CheckpointError, match="'lookahead' is missing"):
        config_of(read(FILES[0]))


def test_an_earlier_versions_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShapesDataModule, "sizes", (1000, 100))
    shutil.copy(GOLDEN / "conv_pool-0.1.0.ckpt", tmp_path / LAST)
    asked = train_config(*RUNS["conv_pool-0.1.0"], f"resume={tmp_path}")
    metrics = training.train(asked, tmp_path)
    assert metrics["epochs"] == 2
    assert metrics["config"]["model"]["widths"] == [4, 6]
