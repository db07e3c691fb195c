"""A network that knows nothing of litcifar, as one of its classifiers."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from litcifar.config import build, class_of
from litcifar.errors import ConfigError
from litcifar.models.classifier import ChannelsFirst, ClassifierOptions, ImageClassifier


class Wrapped(ImageClassifier):
    """Any network of normalised images [B, 3, H, W] to logits [B, K].

    arguments: those that it was made from, for the checkpoint, which holds no classes.
    """

    def __init__(self, net: nn.Module, arguments: dict[str, Any], **options: Unpack[ClassifierOptions]) -> None:
        super().__init__(**options)
        self.save_hyperparameters({**options, **arguments})
        self.net = nn.Sequential(ChannelsFirst(), net)


def build_model(spec: Mapping[str, Any], trust: Sequence[str] = (), **options: Any) -> ImageClassifier:
    """The network of `spec["_target_"]`: an `ImageClassifier`, or another `nn.Module`, which is `Wrapped`.

    The latter gets those items of `spec` that are no ClassifierOptions, `num_classes` where it takes that, and
    `image_size` where it needs that.

    Raises ConfigError where the class is no such one, is not trusted, or does not fit its arguments or the images, or
    where its checkpoints could not be loaded.
    """
    if twice := sorted(spec.keys() & ({*options, "num_classes"} if options else set())):
        raise ConfigError(f"model.{twice[0]}={spec[twice[0]]}: the run gives a network its {twice[0]} - leave it out")
    spec = {**spec, **options}
    target = spec["_target_"]
    kind = class_of(target, nn.Module, trust)
    if issubclass(kind, ImageClassifier):
        classifier = build(spec, ImageClassifier, trust=trust)
        if not classifier.hparams:
            raise ConfigError(
                f"{target} keeps no arguments for its checkpoints - call self.save_hyperparameters() in it"
            )
        return classifier
    shared = {key: value for key, value in spec.items() if key in ClassifierOptions.__annotations__}
    own = {key: value for key, value in spec.items() if key not in {*shared, "_target_"}}
    parameters = inspect.signature(kind).parameters
    if "num_classes" in parameters:
        own["num_classes"] = len(shared["classes"])
    if "image_size" in parameters and parameters["image_size"].default is inspect.Parameter.empty:
        own["image_size"] = shared.get("image_size", 32)
    model = Wrapped(build({"_target_": target, **own}, nn.Module, trust=trust), own, **shared)
    try:
        with torch.no_grad():
            logits = model.eval()(model.example_input_array)
    except Exception as error:  # whatever the user's code raises
        text = " ".join(f"{type(error).__name__}: {error}".split())
        size = f"[B, 3, {model.image_size}, {model.image_size}]"
        raise ConfigError(f"{target} cannot take images {size} ({text}) - correct it") from error
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != [1, len(model.classes)]:
        raise ConfigError(f"{target} gives {shape} for one image - logits [1, {len(model.classes)}] are needed")
    model.net.to(memory_format=torch.channels_last)  # as the images lie
    return model.train()
