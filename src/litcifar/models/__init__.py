"""The two families of networks, both `LightningModule`s over one base, and the wrapper of any other."""

from litcifar.models.classifier import ImageClassifier
from litcifar.models.conv_pool import ConvPool
from litcifar.models.mlp import MLP
from litcifar.models.wrapped import Wrapped, build_model

__all__ = ["MLP", "ConvPool", "ImageClassifier", "Wrapped", "build_model"]
