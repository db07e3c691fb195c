"""The Conv-Pool family: blocks of convolutions, each with a pool, and a linear head."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from litcifar.config import ParameterKind
from litcifar.models.classifier import ACTIVATIONS, ChannelsFirst, ClassifierOptions, ImageClassifier, initialise
from litcifar.models.dropout import Dropout

WHITENING_IMAGES = 5_000  # and the epsilon: airbench, Keller Jordan 2024, arXiv 2404.00498, section 3.2
WHITENING_EPSILON = 5e-4
WHITENING_PIXELS = 5_000 * 32 * 32  # at once, of which the patches take 1.4 GB


class ConvPool(ImageClassifier):
    """Conv-Pool networks, from two convolutions to the record networks of CIFAR-10 speed training.

    widths: output channels of each block; its length is the number of blocks.
    convs: convolutions in a block, one number for all blocks or one for each.
    kernel_size: odd if `same`; one number, or one for each convolution of a block.
    padding: `same` keeps height and width, `valid` loses kernel_size - 1.
    conv_bias: whether the convolutions have a bias.
    activation: after each convolution, and after each hidden layer of the head.
    norm: batch norm after each convolution (`conv`), each activation (`activation`), each pool (`pool`), or `none`.
    norm_scale: whether batch norm's scale is learnt; False freezes it at 1.
    norm_momentum: weight of the newest batch in the running statistics, 0 to 1.
    pool: `max`, `average`, `sum` (average times its area) or `none`, of `pool_size` x `pool_size` pixels.
    pool_position: at the end of a block, or after its first convolution (before norm and activation). Where a max pool
        follows a ReLU the two change places: the same numbers from a quarter of the pixels.
    dropout: probability at the end of a block, one number or one for each block.
    residual: adds a block's first activation to its last convolution's output; needs two convolutions or more.
    stem: `whitened` puts a 2x2 convolution to 24 channels first, whose frozen weights whiten patches of the training
        images (Page 2019; Jordan 2024, arXiv 2404.00498), then `stem_activation`. With `stem_stride` 2 it halves height
        and width, and what follows has a quarter of the multiply-adds.
    global_pool: over all positions before the head.
    head: sizes of the hidden linear layers; head_dropout: probability after each; head_bias: of the last layer.
    logit_scale: factor of the logits.
    init: of the weights, `default` (PyTorch's), `fan_in`, `he`, `glorot` or `dirac`: see `initialise`.

    Raises ValueError where an image of `image_size` pixels does not survive the pools.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        convs: int | Sequence[int] = 1,
        kernel_size: int | Sequence[int] = 3,
        padding: Literal["same", "valid"] = "same",
        conv_bias: bool = True,
        activation: str = "relu",
        norm: Literal["none", "conv", "activation", "pool"] = "none",
        norm_scale: bool = True,
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        pool: Literal["max", "average", "sum", "none"] = "max",
        pool_size: int = 2,
        pool_position: Literal["block", "first_conv"] = "block",
        dropout: float | Sequence[float] = 0.0,
        residual: bool = False,
        stem: Literal["none", "whitened"] = "none",
        stem_stride: int = 1,
        stem_activation: str = "gelu",
        global_pool: Literal["none", "max", "average"] = "none",
        head: Sequence[int] = (),
        head_dropout: float = 0.0,
        head_bias: bool = True,
        logit_scale: float = 1.0,
        init: Literal["default", "fan_in", "he", "glorot", "dirac"] = "default",
        **options: Unpack[ClassifierOptions],
    ) -> None:
        super().__init__(**options)
        self.save_hyperparameters()
        layers: list[nn.Module] = [ChannelsFirst()]
        size, channels = self.image_size, 3
        if stem == "whitened":
            layers += [WhitenedStem(stem_stride), ACTIVATIONS[stem_activation]()]
            size, channels = (size - 2) // stem_stride + 1, 24
        convs_of_block = _one_each("convs", convs, len(widths))
        dropout_of_block = _one_each("dropout", dropout, len(widths))
        for number, width in enumerate(widths):
            block = ConvPoolBlock(
                channels,
                width,
                kernel_sizes=_one_each("kernel_size", kernel_size, convs_of_block[number]),
                padding=padding,
                conv_bias=conv_bias,
                activation=activation,
                norm=norm,
                norm_options={"eps": norm_eps, "momentum": norm_momentum},
                pool=pool,
                pool_size=pool_size,
                pool_position=pool_position,
                dropout=dropout_of_block[number],
                residual=residual,
            )
            layers.append(block)
            size, channels = block.output_size(size, f"block {number + 1} of {len(widths)}"), width
        if global_pool != "none":
            layers.append(GlobalMaxPool2d() if global_pool == "max" else GlobalAvgPool2d())
            size = 1
        layers.append(nn.Flatten())
        features = channels * size * size
        for hidden in head:
            layers += [nn.Linear(features, hidden), ACTIVATIONS[activation]()]
            if head_dropout:
                layers.append(Dropout(head_dropout))
            features = hidden
        layers.append(nn.Linear(features, len(self.classes), bias=head_bias))
        if logit_scale != 1:
            layers.append(Scale(logit_scale))
        self.net = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # as the images are
        initialise(self.net, init)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d) and not norm_scale:
                module.weight.requires_grad = False

    def parameter_kinds(self) -> dict[nn.Parameter, ParameterKind]:
        stems = [module for module in self.net.modules() if isinstance(module, WhitenedStem)]
        return super().parameter_kinds() | {parameter: "stem" for stem in stems for parameter in stem.parameters()}

    def on_fit_start(self) -> None:
        """Whitens the stem by the training images; a resumed run's checkpoint has already brought its weights."""
        stem = self.net[1] if isinstance(self.net, nn.Sequential) else None
        if isinstance(stem, WhitenedStem) and self.trainer.ckpt_path is None:
            images_NHWC = self.trainer.datamodule.images("train", WHITENING_IMAGES)  # type: ignore[attr-defined]
            at_once = max(1, WHITENING_PIXELS // images_NHWC[0, ..., 0].numel())
            batches_BHWC = (images_BHWC.to(self.device) for images_BHWC in images_NHWC.split(at_once))
            stem.whiten(self.normalize(images_BHWC).permute(0, 3, 1, 2) for images_BHWC in batches_BHWC)
            if self.trainer.world_size > 1:  # an eigenvector's sign may differ from machine to machine
                torch.distributed.broadcast(stem.conv.weight.data, 0)


class ConvPoolBlock(nn.Sequential):
    """Convolutions with their activations, and one pool; the arguments are those of `ConvPool`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int],
        padding: str,
        conv_bias: bool,
        activation: str,
        norm: str,
        norm_options: dict[str, float],
        pool: str,
        pool_size: int,
        pool_position: str,
        dropout: float,
        residual: bool,
    ) -> None:
        super().__init__()
        if residual and len(kernel_sizes) < 2:
            raise ValueError("model.residual=true adds a block's first activation to a later convolution - set convs=2")
        if residual and padding == "valid" and any(kernel_size > 1 for kernel_size in kernel_sizes[1:]):
            raise ValueError(
                "model.residual=true adds activations of one size, which valid convolutions are not - set padding=same"
            )
        if padding == "same" and any(kernel_size % 2 == 0 for kernel_size in kernel_sizes):
            raise ValueError(f"model.kernel_size={list(kernel_sizes)} is even - make it odd or set padding=valid")

        def add_norm(position: str) -> None:
            if norm == position:
                self.append(nn.BatchNorm2d(out_channels, **norm_options))  # type: ignore[arg-type]

        def add_pool() -> None:
            if pool != "none":
                self.append(nn.MaxPool2d(pool_size) if pool == "max" else nn.AvgPool2d(pool_size))
            if pool == "sum":
                self.append(Scale(pool_size**2))
            add_norm("pool")

        activations = []  # their places in the sequence
        for number, kernel_size in enumerate(kernel_sizes):
            self.append(nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=conv_bias))
            if pool_position == "first_conv" and number == 0:
                add_pool()
            add_norm("conv")
            activations.append(len(self))
            self.append(ACTIVATIONS[activation]())
            add_norm("activation")
            in_channels = out_channels
        if pool_position == "block":
            add_pool()
        if dropout:
            self.append(Dropout(dropout))
        self.skip = (activations[0], activations[-1]) if residual else None
        if not residual:
            self._pool_before_relu()

    def _pool_before_relu(self) -> None:
        """The same numbers and gradients, to the bit: ReLU keeps the order of the pixels, but for those it makes 0."""
        for place, (layer, following) in enumerate(itertools.pairwise(list(self))):
            if isinstance(layer, nn.ReLU) and isinstance(following, nn.MaxPool2d):
                self[place], self[place + 1] = following, layer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        skipped_BCHW = x_BCHW
        for place, layer in enumerate(self):
            if self.skip and place == self.skip[1]:
                x_BCHW = x_BCHW + skipped_BCHW
            x_BCHW = layer(x_BCHW)
            if self.skip and place == self.skip[0]:
                skipped_BCHW = x_BCHW
        return x_BCHW

    def output_size(self, size: int, where: str) -> int:
        """Height (= width) of the output, in pixels, for an input of `size`; ValueError where nothing is left."""
        left = size
        for layer in self:
            if isinstance(layer, nn.Conv2d) and layer.padding == "valid":
                left -= layer.kernel_size[0] - 1
            elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
                left //= int(layer.kernel_size)  # type: ignore[arg-type]
            if left < 1:
                raise ValueError(
                    f"nothing is left of {size}x{size} pixels in {where} - use fewer blocks, a smaller model.pool_size "
                    "or model.padding=same"
                )
        return left


class WhitenedStem(nn.Module):
    """Conv2d(3, 24, 2): 12 filters that whiten 2x2 patches and their negatives, frozen; only the bias is learnt."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 2, stride)
        self.conv.weight.requires_grad = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(x_BCHW)

    @torch.no_grad()
    def whiten(self, batches_BCHW: Iterable[Tensor]) -> None:
        """Sets the filters to +-(eigenvectors / sqrt(eigenvalues + epsilon)) of the images' 2x2 patches."""
        sums, count = torch.zeros(12, 12, dtype=torch.float64), 0
        for images_BCHW in batches_BCHW:
            if images_BCHW.device.type == "mps":
                images_BCHW = images_BCHW.cpu()  # it has no float64
            patches = images_BCHW.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
            sums = sums.to(patches.device) + patches.T @ patches
            count += len(patches)
        eigenvalues, eigenvectors = torch.linalg.eigh(sums / count)
        filters = (eigenvectors / (eigenvalues + WHITENING_EPSILON).sqrt()).T.reshape(12, 3, 2, 2).flip(0)
        self.conv.weight.copy_(torch.cat([filters, -filters]))


class GlobalMaxPool2d(nn.Module):
    """[B, C, H, W] to [B, C, 1, 1]; the gradient of torch's adaptive pools is not deterministic on a GPU."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return max_pool2d(x_BCHW, x_BCHW.shape[2:])


class GlobalAvgPool2d(nn.Module):
    """As `GlobalMaxPool2d`, the mean."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return avg_pool2d(x_BCHW, x_BCHW.shape[2:])


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


Value = TypeVar("Value", int, float)


def _one_each(name: str, value: Value | Sequence[Value], count: int) -> list[Value]:
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise ValueError(f"model.{name}={values} has {len(values)} values - give one for all, or {count}")
    return values
