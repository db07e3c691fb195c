"""Checkpoints: reading them without running code, and making the network and its data from them alone."""

import io
import os
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from pydantic import BaseModel, ConfigDict, ValidationError

from litcifar import run_folder
from litcifar.config import LookConfig, Precision, TrainConfig, Word, build, check
from litcifar.data import ImageDataModule
from litcifar.errors import CheckpointError, ConfigError, DivergedError
from litcifar.models import ImageClassifier, build_model
from litcifar.run_folder import BEST, find_checkpoint

FORMAT_VERSION = 1


class WholeCheckpoints(CheckpointIO):
    """How Lightning reads and writes checkpoints: each file is whole or absent, and nothing but local files is touched.

    Lightning's own way writes through $TMPDIR, from where it copies if that is another file system, and a copy can be
    cut short. And it deletes any address, local or remote, that a resumed checkpoint names as the best one so far.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Nothing takes the place of an earlier checkpoint once the weights have diverged; DivergedError."""
        for weights in ("state_dict", "current_model_state"):  # the second where the first is an average
            for name, weight in checkpoint.get(weights, {}).items():
                if not torch.isfinite(weight).all():
                    raise DivergedError(
                        f"{name} is no longer finite after step {checkpoint.get('global_step')} - "
                        "lower optim.lr or set trainer.gradient_clip_val; earlier epochs' checkpoints are kept"
                    )
        content = io.BytesIO()
        torch.save(checkpoint, content)
        run_folder.write(Path(path), content.getbuffer())

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """What `read` gives; the paths in it are those of the folder where it lies now, which may have been moved."""
        checkpoint = read(Path(path))
        here = os.path.realpath(Path(path).parent)
        for state in checkpoint["callbacks"].values():
            if isinstance(there := state.get("dirpath"), str):  # a ModelCheckpoint's, which else forgets its best score
                state.update(_moved(state, there, here))
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _moved(value: Any, there: str, here: str) -> Any:
    if isinstance(value, dict):
        return {_moved(key, there, here): _moved(part, there, here) for key, part in value.items()}
    inside = isinstance(value, str) and (value == there or value.startswith(os.path.join(there, "")))
    return here + value[len(there) :] if inside else value


class Provenance(BaseModel):
    """What litcifar-train adds to Lightning's checkpoint.

    data: the set really used. substituted: why, where it is not the one asked for.
    """

    format_version: int
    config: dict[str, Any]
    data: Word
    substituted: str | None
    fingerprint: Word
    precision: Precision
    versions: dict[str, Word]


class Content(BaseModel):
    """What of a checkpoint is used here; Lightning, which takes the rest, looks at that itself."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    litcifar: Provenance
    hyper_parameters: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    epoch: int
    callbacks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """What is made of a file. epoch: after which it was saved, from 1. model: on the CPU, in evaluation mode."""

    path: Path
    epoch: int
    provenance: Provenance
    config: TrainConfig
    model: ImageClassifier


def load(path: str | Path, trust: Sequence[str] = ()) -> Checkpoint:
    """A file's checkpoint, or best.ckpt's of a run's folder; CheckpointError as of `read`, `config_of`, `model_of`."""
    found = find_checkpoint(str(path), BEST)
    content = read(found)
    config, model = config_of(content, trust), model_of(content, trust)
    return Checkpoint(found, content["epoch"] + 1, Provenance.model_validate(content["litcifar"]), config, model)


def read(path: Path) -> dict[str, Any]:
    """The checkpoint's content; CheckpointError if it is damaged, holds code, or is not one of litcifar's."""
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"'{path}' is no checkpoint, or only the beginning of one - use another file")
    try:
        with zipfile.ZipFile(path) as archive:
            # A zip bomb holds more than its size. torch.load compares no checksums: it reads flipped bits as weights.
            if sum(entry.file_size for entry in archive.infolist()) > size or archive.testzip():
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"'{path}' holds code, which is not run - use a file of litcifar-train") from error
    except Exception as error:  # zipfile and torch raise whatever they stumble over
        raise CheckpointError(f"'{path}' ({size:,} bytes) is damaged - use another file") from error
    known = checkpoint.get("litcifar") if isinstance(checkpoint, dict) else None
    known = known if isinstance(known, dict) else {}
    if isinstance(version := known.get("format_version"), int) and version > FORMAT_VERSION:
        needed = " ".join(str(known.get("versions", {}).get("litcifar")).split())
        raise CheckpointError(f"'{path}' is from a newer litcifar - install version {needed} or later")
    try:
        Content.model_validate(checkpoint)
    except ValidationError as error:
        raise CheckpointError(f"'{path}' was not written by litcifar-train - use one that was") from error
    return checkpoint


def config_of(checkpoint: dict[str, Any], trust: Sequence[str] = ()) -> TrainConfig:
    """The configuration that a checkpoint was trained with; CheckpointError if this version cannot run it.

    trust: the packages whose classes the user lets it name; what it itself trusted does not count.

    A key that the checkpoint is older than has its schema's default: whoever adds a key gives it there the value with
    which everything stays as it was. `tests/golden` holds checkpoints of each version.
    """
    config = checkpoint["litcifar"]["config"]
    if "${" in repr(config):  # OmegaConf would look it up, in the environment too
        raise CheckpointError("the checkpoint's configuration holds a reference, ${...} - use a file of litcifar-train")
    try:
        return check(config | {"trust": list(trust)}, TrainConfig, complete=False)
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's configuration: {error}") from error


def model_of(checkpoint: dict[str, Any], trust: Sequence[str] = ()) -> ImageClassifier:
    """The trained network, on the CPU, in evaluation mode; CheckpointError where its weights do not fit or are NaN."""
    spec = checkpoint["hyper_parameters"] | {"_target_": config_of(checkpoint, trust).model.target}
    try:
        model = build_model(spec, trust)
        model.load_state_dict(checkpoint["state_dict"])
        model.on_load_checkpoint(checkpoint)
    except (ConfigError, RuntimeError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit its own network: {' '.join(str(error).split())[:200]} - use another file"
        ) from error
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise CheckpointError(f"the checkpoint's {name} is not finite: it diverged - use one of an earlier epoch")
    return model.eval()


def data_of(config: TrainConfig | LookConfig) -> ImageDataModule:
    """The data set of a configuration; nothing is read yet."""
    spec = config.data.model_dump(by_alias=True, exclude={"fallback"})
    return build(spec, ImageDataModule, trust=config.trust, augment=config.augment.model_dump(), seed=config.seed)
