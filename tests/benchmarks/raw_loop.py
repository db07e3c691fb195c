"""Training seconds of one epoch: litcifar as users run it against a plain loop of the same step, interleaved.

    python tests/benchmarks/raw_loop.py keras_cnn 5 data.root=DIR data.verify=false

The plain loop has the same network, optimizer, batches and precision, the images in memory, and nothing else. Prints
each pair and the median ratio. Where anything else runs, a step's two threads wait for each other: use an idle machine.
"""

import contextlib
import csv
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import hydra
import torch
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

from litcifar import checkpoints, training
from litcifar.config import TrainConfig, check, conf_dir
from litcifar.data import ImageDataModule


def raw_seconds(config: TrainConfig, data: ImageDataModule, bf16: bool) -> float:
    model = training._model(config, data).train()
    optimizer = model.recipe(total_steps=1000)
    images, labels, indices = data._sets["train"]
    rows = images.view(len(images), -1)
    start = time.perf_counter()
    for batch in indices[torch.randperm(len(indices))].split(config.data.batch_size):
        images_BHWC = rows.index_select(0, batch).view(-1, *images.shape[1:])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = cross_entropy(model(images_BHWC), labels.index_select(0, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def litcifar_seconds(config: TrainConfig) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        training.train(config, Path(folder))
        with (Path(folder) / "metrics.csv").open() as file:
            return float(next(csv.DictReader(file))["seconds"])


def main(experiment: str, rounds: int, overrides: list[str]) -> None:
    overrides = [f"experiment={experiment}", "test=false", "trainer.max_epochs=1", "logger=none", *overrides]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = OmegaConf.to_container(hydra.compose("train", overrides), resolve=True)
    config = check(composed, TrainConfig)  # type: ignore[arg-type]
    data = checkpoints.data_of(config)
    data.setup()
    bf16 = training._precision(config, training._model(config, data), cuda=False)[0] == "bf16-mixed"
    ratios = []
    for _ in range(rounds):
        raw, ours = raw_seconds(config, data, bf16), litcifar_seconds(config)
        ratios.append(ours / raw)
        print(f"raw loop {raw:.2f} s  litcifar {ours:.2f} s  ratio {ratios[-1]:.3f}", flush=True)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}, n={rounds}"
    print(f"{experiment}, {torch.get_num_threads()} threads: median ratio {statistics.median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
