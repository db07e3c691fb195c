"""A checkpoint's network as one file: uint8 images [B, H, W, 3] in, probabilities float32 [B, K] out, B of any size.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from litcifar import checkpoints, run_folder
from litcifar.config import ExportConfig, TrainConfig
from litcifar.console import quiet, short
from litcifar.data import shapes
from litcifar.errors import DataError, UserError, require
from litcifar.models import ImageClassifier
from litcifar.run_folder import BEST, find_checkpoint, output_file

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}
METADATA = "metadata.json"  # in a .pt2: the name of its extra file
CHECKED = 500  # images
TOLERANCE = 1e-4  # of a probability

Program = Callable[[Tensor], Tensor]


def export(config: ExportConfig) -> Path:
    """Writes the file, once it answers as the network does; its path.

    Raises CheckpointError, ConfigError for an output that may not be written, MachineError where a package is missing,
    and UserError where an answer differs by more than TOLERANCE.
    """
    quiet()
    require(f"format={config.format}", *NEEDS[config.format], extra="export")
    path = find_checkpoint(config.ckpt, BEST)
    output = output_file(config.output or str(path.with_suffix(f".{config.format}")), config.overwrite)
    checkpoint = checkpoints.load(path, config.trust)
    trained, model = checkpoint.config, checkpoint.model
    example = torch.zeros(2, model.image_size, model.image_size, 3, dtype=torch.uint8)  # 1 would be a fixed size
    images, what = _images(trained, model.image_size)
    metadata = {
        "name": trained.name,
        "classes": model.classes,
        "image_size": model.image_size,
        "mean": list(trained.model.mean),  # as (pixel / 255 - mean) / std; it is done inside
        "std": list(trained.model.std),
        "litcifar": version("litcifar"),
    }
    content, program = {"onnx": _onnx, "pt2": _pt2}[config.format](deployed(model), example, metadata)
    difference = largest_difference(lambda images_BHWC: model(images_BHWC).softmax(1), program, images)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the {config.format} file's probabilities differ from PyTorch's by up to {difference:.1e} on {what} - "
            "nothing was written; try the other format"
        )
    run_folder.write(output, content)
    print(f"{short(path)}: {trained.name}, {len(model.classes)} classes")
    print(f"largest difference from PyTorch on {len(images)} {what}: {difference:.1e}")
    print(f"written to {short(output)} ({len(content):,} bytes)")
    return output


def deployed(model: ImageClassifier) -> nn.Module:
    """The network as it is exported."""
    return nn.Sequential(model.normalize, model.net, nn.Softmax(1)).eval()


def largest_difference(network: Program, program: Program, images_BHWC: Tensor) -> float:
    """Of any probability, in batches of 1, of 2 and of the rest."""
    with torch.inference_mode():
        parts = images_BHWC.split([1, 2, len(images_BHWC) - 3])
        return max((network(part) - program(part)).abs().max().item() for part in parts)


def _images(trained: TrainConfig, size: int) -> tuple[Tensor, str]:
    """Test images, uint8 [B, H, W, 3], where the set is on this machine, else drawn ones; and which these are."""
    data = checkpoints.data_of(trained)
    try:
        if data.name == "shapes":
            raise DataError("drawing 60,000 of them takes seconds - draw some")
        data.setup()
        if len(data.indices("test")) < 4:
            raise DataError("too few to be batches of 1, of 2 and of more - draw some")
    except (UserError, OSError):
        drawn, _ = shapes.draw(CHECKED, seed=1)
        nearest = np.arange(size) * drawn.shape[1] // size
        return torch.from_numpy(drawn[:, nearest][:, :, nearest].copy()), "drawn shapes"
    return data.images("test", CHECKED), f"test images of {data.name}"


def _onnx(network: nn.Module, example: Tensor, metadata: dict[str, Any]) -> tuple[bytes, Program]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it writes a device's id into the home folder
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own workings
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["probabilities"],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _pt2(network: nn.Module, example: Tensor, metadata: dict[str, Any]) -> tuple[bytes, Program]:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own workings
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
        file.seek(0)
        return file.getvalue(), torch.export.load(file).module()
