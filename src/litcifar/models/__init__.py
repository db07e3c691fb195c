"""The two families of networks, both `LightningModule`s over one base."""

from litcifar.models.classifier import ImageClassifier
from litcifar.models.conv_pool import ConvPool
from litcifar.models.mlp import MLP

__all__ = ["MLP", "ConvPool", "ImageClassifier"]
