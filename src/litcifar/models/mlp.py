"""The multilayer perceptron, from logistic regression up."""

from collections.abc import Sequence
from typing import Literal, Unpack

from torch import nn

from litcifar.models.classifier import ACTIVATIONS, ClassifierOptions, ImageClassifier, initialise
from litcifar.models.dropout import Dropout


class MLP(ImageClassifier):
    """Linear layers on the flattened pixels.

    hidden: the sizes of the hidden layers; none of them is logistic regression.
    batch_norm: between a hidden linear layer and its activation.
    dropout: probability, after each activation.
    init: of the weights, `default` (PyTorch's), `fan_in`, `he` or `glorot`: see `initialise`.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
        init: Literal["default", "fan_in", "he", "glorot"] = "default",
        **options: Unpack[ClassifierOptions],
    ) -> None:
        super().__init__(**options)
        self.save_hyperparameters()
        # Flattened as they lie, row by row, pixel by pixel: no copy.
        layers: list[nn.Module] = [nn.Flatten()]
        features = self.image_size * self.image_size * 3
        for size in hidden:
            layers.append(nn.Linear(features, size))
            if batch_norm:
                layers.append(nn.BatchNorm1d(size))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(Dropout(dropout))
            features = size
        layers.append(nn.Linear(features, len(self.classes)))
        self.net = nn.Sequential(*layers)
        initialise(self.net, init)
