"""Checkpoints: reading them without running code, and making the network and its data from them alone."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from litcifar.config import TrainConfig, build, check
from litcifar.data import ImageDataModule
from litcifar.errors import CheckpointError, ConfigError
from litcifar.models import ImageClassifier

FORMAT_VERSION = 1


def read(path: Path) -> dict[str, Any]:
    """The checkpoint's content; CheckpointError if it is damaged, holds code, or is not one of litcifar's."""
    damaged = CheckpointError(f"'{path}' ({path.stat().st_size:,} bytes) is damaged - use another file")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"'{path}' is no checkpoint, or only the beginning of one - use another file")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch.load does not compare checksums: it would read flipped bits as weights
                raise damaged
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"'{path}' holds code, which is not run - use a file of litcifar-train") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError) as error:
        raise damaged from error
    known = checkpoint.get("litcifar") if isinstance(checkpoint, dict) else None
    if not isinstance(known, dict) or "config" not in known:
        raise CheckpointError(f"'{path}' was not written by litcifar-train - use one that was")
    if known["format_version"] > FORMAT_VERSION:
        needed = known["versions"]["litcifar"]
        raise CheckpointError(f"'{path}' is from a newer litcifar - install version {needed} or later")
    return checkpoint


def config_of(checkpoint: dict[str, Any]) -> TrainConfig:
    """The configuration that a checkpoint was trained with; CheckpointError if this version cannot run it."""
    try:
        return check(checkpoint["litcifar"]["config"], TrainConfig)
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's configuration: {error}") from error


def model_of(checkpoint: dict[str, Any]) -> ImageClassifier:
    """The trained network, on the CPU, in evaluation mode."""
    spec = {"_target_": checkpoint["litcifar"]["config"]["model"]["_target_"], **checkpoint["hyper_parameters"]}
    try:
        model = build(spec, ImageClassifier)
        model.load_state_dict(checkpoint["state_dict"])
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint does not fit its own network: {str(error).splitlines()[0]}") from error
    model.on_load_checkpoint(checkpoint)
    return model.eval()


def data_of(config: TrainConfig) -> ImageDataModule:
    """The data set of a configuration; nothing is read yet."""
    spec = config.data.model_dump(by_alias=True, exclude={"fallback"})
    return build(spec, ImageDataModule, augment=config.augment.model_dump(), seed=config.seed)
