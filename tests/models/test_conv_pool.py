"""The Conv-Pool family: layers and their order, parameters, what each option computes, what cannot be built."""

import copy
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from litcifar.data import CIFAR10DataModule
from litcifar.models import ConvPool, conv_pool
from litcifar.models.conv_pool import ConvPoolBlock, GlobalAvgPool2d, GlobalMaxPool2d, WhitenedStem
from tests.conftest import bare_trainer

# Lightning compares the loaders' workers with the processors, but these images are in memory.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

RECORD: dict[str, Any] = {
    "stem": "whitened",
    "activation": "gelu",
    "conv_bias": False,
    "norm": "conv",
    "norm_scale": False,
    "pool_position": "first_conv",
    "global_pool": "max",
    "head_bias": False,
    "logit_scale": 1 / 9,
    "init": "dirac",
}
DEEP_BLOCK: dict[str, Any] = {"convs": 2, "kernel_size": (3, 1), "norm": "pool", "dropout": 0.25}


Layer = TypeVar("Layer", bound=nn.Module)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def layers(module: nn.Module) -> list[nn.Module]:
    return list(module.children())


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.children()]


def blocks(model: ConvPool) -> list[ConvPoolBlock]:
    return [layer for layer in layers(model.net) if isinstance(layer, ConvPoolBlock)]


def of_kind(model: nn.Module, kind: type[Layer]) -> list[Layer]:
    return [layer for layer in model.modules() if isinstance(layer, kind)]


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def features() -> Tensor:
    """What the first block gets: [B, 3, 12, 12]."""
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


# --- Numbers of parameters


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"widths": (32, 64, 128), "head": (128,), "head_dropout": 0.5, "init": "glorot"}, 356_810),
        ({"widths": (32, 64), "padding": "valid"}, 42_442),
        (
            {"widths": (32, 64, 128), **DEEP_BLOCK, "head": (256,), "head_dropout": 0.5},
            (9 * 3 + 1) * 32  # the 3x3 convolutions, with their biases
            + (9 * 32 + 1) * 64
            + (9 * 64 + 1) * 128
            + 33 * 32  # the 1x1 convolutions
            + 65 * 64
            + 129 * 128
            + 2 * (32 + 64 + 128)  # batch norm: scale and bias
            + (128 * 4 * 4 + 1) * 256
            + 257 * 10,
        ),
        (
            {"widths": (32, 64, 128)},
            (9 * 3 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 128 + (128 * 4 * 4 + 1) * 10,
        ),
        (
            {"widths": (32, 64), "convs": 2},
            28 * 32 + (9 * 32 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 64 + (64 * 8 * 8 + 1) * 10,
        ),
        (
            {"widths": (4, 5), "convs": (1, 2)},
            (9 * 3 + 1) * 4 + (9 * 4 + 1) * 5 + (9 * 5 + 1) * 5 + (5 * 8 * 8 + 1) * 10,
        ),
        ({**RECORD, "widths": (64, 128, 128), "convs": 2}, 569_656),
        ({**RECORD, "widths": (64, 256, 256), "convs": 2}, 1_972_792),
        ({**RECORD, "widths": (128, 384, 384), "convs": 2}, 4_606_520),
        ({**RECORD, "widths": (128, 384, 512), "convs": 3, "residual": True}, 9_918_776),
    ],
    ids=["keras", "simple", "deep", "torch", "torch_double", "uneven", "record93", "record94", "record95", "record96"],
)
def test_number_of_parameters(options: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):  # shapes only
        assert parameters(ConvPool(**options | {"init": "default"})) == expected


# --- The order of layers


def test_deep_cnns_block_is_conv3_conv1_pool_norm_dropout() -> None:
    for block in blocks(ConvPool(widths=(4, 8, 8), **DEEP_BLOCK)):
        assert kinds(block) == ["Conv2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU", "BatchNorm2d", "Dropout"]
        assert [conv.kernel_size for conv in of_kind(block, nn.Conv2d)] == [(3, 3), (1, 1)]
        assert [dropout.p for dropout in of_kind(block, nn.Dropout)] == [0.25]


def test_record_block_pools_right_after_its_first_convolution() -> None:
    for block in blocks(ConvPool(widths=(4, 8, 8), convs=2, **RECORD)):
        assert kinds(block) == ["Conv2d", "MaxPool2d", "BatchNorm2d", "GELU", "Conv2d", "BatchNorm2d", "GELU"]


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("none", ["Conv2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU"]),
        ("conv", ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"]),
        ("activation", ["Conv2d", "ReLU", "BatchNorm2d", "Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d"]),
        ("pool", ["Conv2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU", "BatchNorm2d"]),
    ],
)
def test_norm_stands_after_what_it_is_named_after(norm: Any, expected: list[str]) -> None:
    (block,) = blocks(ConvPool(widths=(4,), convs=2, norm=norm))
    assert kinds(block) == expected


def test_network_is_stem_blocks_global_pool_head_scale() -> None:
    model = ConvPool(widths=(4, 4), head=(6, 5), head_dropout=0.5, **RECORD)
    hidden = ["Linear", "GELU", "Dropout"]
    stem = ["ChannelsFirst", "WhitenedStem", "GELU"]
    expected = [
        *stem,
        "ConvPoolBlock",
        "ConvPoolBlock",
        "GlobalMaxPool2d",
        "Flatten",
        *hidden,
        *hidden,
        "Linear",
        "Scale",
    ]
    assert kinds(model.net) == expected
    assert [layer.out_features for layer in of_kind(model, nn.Linear)] == [6, 5, 10]


def test_without_head_one_linear_layer_follows_the_last_block() -> None:
    assert kinds(ConvPool(widths=(4,)).net) == ["ChannelsFirst", "ConvPoolBlock", "Flatten", "Linear"]


def test_activation_and_stem_activation_are_set_apart() -> None:
    model = ConvPool(widths=(4,), stem="whitened", stem_activation="tanh", activation="silu", head=(5,))
    assert [kind for kind in kinds(model.net) if kind in ("Tanh", "SiLU", "GELU")] == ["Tanh", "SiLU"]
    assert kinds(blocks(model)[0]) == ["Conv2d", "SiLU", "MaxPool2d"]


def test_convs_dropout_and_kernel_size_may_differ() -> None:
    model = ConvPool(widths=(4, 4), convs=(2, 2), kernel_size=(5, 3), dropout=(0.0, 0.4))
    assert [kinds(block)[-2:] for block in blocks(model)] == [["MaxPool2d", "ReLU"], ["ReLU", "Dropout"]]
    assert [conv.kernel_size for conv in of_kind(model, nn.Conv2d)] == [(5, 5), (3, 3)] * 2
    assert [len(of_kind(block, nn.Conv2d)) for block in blocks(ConvPool(widths=(4, 4), convs=(1, 3)))] == [1, 3]


@pytest.mark.parametrize(("option", "last_only"), [("conv_bias", False), ("head_bias", True)])
def test_biases_can_be_left_out(option: str, last_only: bool) -> None:
    options: dict[str, Any] = {option: False}
    model = ConvPool(widths=(4, 4), head=(5,), **options)
    convs = [conv.bias is None for conv in of_kind(model, nn.Conv2d)]
    head = [linear.bias is None for linear in of_kind(model, nn.Linear)]
    assert (convs, head) == (([False] * 2, [False, True]) if last_only else ([True] * 2, [False] * 2))


def test_norm_has_the_momentum_and_epsilon_asked_for() -> None:
    model = ConvPool(widths=(4, 4), norm="conv", norm_momentum=0.4, norm_eps=1e-12)
    assert [(norm.momentum, norm.eps) for norm in of_kind(model, nn.BatchNorm2d)] == [(0.4, 1e-12)] * 2


def test_images_become_channels_first_without_a_copy(images: Tensor) -> None:
    model = ConvPool(widths=(4,))
    pixels = model.normalize(images)
    planes = layers(model.net)[0](pixels)
    assert planes.shape == (4, 3, 32, 32)
    assert planes.data_ptr() == pixels.data_ptr()
    assert planes.is_contiguous(memory_format=torch.channels_last)


# --- Sizes


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        ({"padding": "same"}, 8 * 8),
        ({"padding": "valid"}, 6 * 6),  # 32 - 2 = 30, 15 - 2 = 13, 6
        ({"padding": "same", "kernel_size": 5}, 8 * 8),
        ({"padding": "valid", "kernel_size": 2}, 7 * 7),  # 31, 15; 14, 7
        ({"pool_size": 3}, 3 * 3),  # 10, 3
        ({"pool_size": 4}, 2 * 2),
        ({"pool": "none"}, 32 * 32),
        ({"padding": "valid", "pool_position": "first_conv", "convs": 2}, 3 * 3),  # 30, 15, 13; 11, 5, 3
        ({"stem": "whitened"}, 7 * 7),  # 31, 15, 7
        ({"stem": "whitened", "stem_stride": 2}, 4 * 4),  # 16, 8, 4
        ({"global_pool": "max"}, 1),
        ({"global_pool": "average"}, 1),
        ({"image_size": 23}, 5 * 5),
    ],
    ids=str,
)
def test_head_reads_every_position_that_is_left(options: dict[str, Any], positions: int) -> None:
    model = ConvPool(widths=(2, 4), **options)
    assert of_kind(model, nn.Linear)[0].in_features == 4 * positions
    assert model(model.example_input_array).shape == (1, 10)


@pytest.mark.parametrize(
    ("options", "block"),
    [
        ({"widths": (4,) * 6}, "block 6 of 6"),
        ({"widths": (4, 4), "kernel_size": 17, "padding": "valid"}, "block 2 of 2"),  # 16, 8
        ({"widths": (4, 4), "pool_size": 6}, "block 2 of 2"),  # 5
        ({"widths": (4,), "image_size": 4, "convs": 2, "padding": "valid"}, "block 1 of 1"),  # 2, 0
        ({"widths": (4, 4, 4), "image_size": 8, "stem": "whitened"}, "block 3 of 3"),  # 7, 3, 1
        ({"widths": (4,) * 6, "global_pool": "max"}, "block 6 of 6"),
    ],
    ids=["pools", "valid", "pool_size", "valid_convs", "stem", "global_pool"],
)
def test_block_that_leaves_no_pixel_is_named_in_one_line(options: dict[str, Any], block: str) -> None:
    with pytest.raises(ValueError, match=f"^nothing is left of .* in {block} - use fewer blocks") as error:
        ConvPool(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, r"model.kernel_size=\[4\] is even - make it odd or set padding=valid"),
        ({"residual": True, "convs": 2, "padding": "valid"}, r"model.residual=true .* set padding=same"),
        ({"kernel_size": (3, 2), "convs": 2}, r"model.kernel_size=\[3, 2\] is even"),
        ({"residual": True}, r"model.residual=true .* set convs=2"),
        ({"residual": True, "convs": (2, 1)}, r"model.residual=true .* set convs=2"),
        ({"convs": (1, 2, 3)}, r"model.convs=\[1, 2, 3\] has 3 values - give one for all, or 2"),
        ({"dropout": (0.1,)}, r"model.dropout=\[0.1\] has 1 values - give one for all, or 2"),
        ({"kernel_size": (3, 1)}, r"model.kernel_size=\[3, 1\] has 2 values - give one for all, or 1"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        ConvPool(widths=(4, 4), **options)
    assert "\n" not in str(error.value)


# --- What the options compute


def test_a_block_convolves_activates_and_pools(features: Tensor) -> None:
    (block,) = blocks(ConvPool(widths=(5,)))
    windows = relu(layers(block)[0](features)).reshape(4, 5, 6, 2, 6, 2)
    torch.testing.assert_close(block(features), windows.amax((3, 5)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu_after_the_max_pool_is_relu_before_it_to_the_bit(features: Tensor, dtype: torch.dtype) -> None:
    (block,) = blocks(ConvPool(widths=(5,)))
    (conv, pool, activation) = layers(block.to(dtype))
    results = []
    for order in ([conv, pool, activation], [conv, activation, pool]):
        block.zero_grad()
        pixels = features.to(dtype, copy=True).requires_grad_()
        out = nn.Sequential(*order)(pixels)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out))
        results.append([out, pixels.grad, *(p.grad for p in conv.parameters())])
    assert all(torch.equal(after, before) for after, before in zip(*results, strict=True))


def test_an_activation_that_is_no_relu_stands_before_its_pool() -> None:
    (block,) = blocks(ConvPool(widths=(5,), activation="gelu"))
    assert kinds(block) == ["Conv2d", "GELU", "MaxPool2d"]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sum_pool_adds_up_the_pixels_of_its_window(features: Tensor, size: int) -> None:
    (block,) = blocks(ConvPool(widths=(5,), pool="sum", pool_size=size))
    windows = relu(layers(block)[0](features)).reshape(4, 5, 12 // size, size, 12 // size, size)
    torch.testing.assert_close(block(features), windows.sum((3, 5)))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sum_pool_is_the_average_times_its_area(features: Tensor, size: int) -> None:
    total, average = (blocks(ConvPool(widths=(5,), pool=pool, pool_size=size))[0] for pool in ("sum", "average"))
    average.load_state_dict(total.state_dict())
    torch.testing.assert_close(total(features), average(features) * size**2)


@pytest.mark.parametrize(("pool", "reduce"), [("max", torch.amax), ("average", torch.mean)])
def test_global_pool_is_over_all_positions(images: Tensor, pool: Any, reduce: Any) -> None:
    model = ConvPool(widths=(5,), global_pool=pool)
    channels_first, block, *_, head = layers(model.net)
    by_hand = head(reduce(block(channels_first(model.normalize(images))), (2, 3)))
    torch.testing.assert_close(model(images), by_hand)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("ours", "torchs"),
    [(GlobalMaxPool2d(), nn.AdaptiveMaxPool2d(1)), (GlobalAvgPool2d(), nn.AdaptiveAvgPool2d(1))],
    ids=["max", "average"],
)
def test_global_pools_are_torchs_adaptive_ones_to_the_bit(
    ours: nn.Module, torchs: nn.Module, dtype: torch.dtype
) -> None:
    """Small whole numbers, so that the maximum is there twice: its gradient goes to the first."""
    numbers = torch.randint(0, 4, (6, 8, 3, 3), generator=torch.Generator().manual_seed(0))
    gradients = []
    for pool in (ours, torchs):
        x = numbers.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
        pooled = pool(x)
        pooled.square().sum().backward()
        gradients.append((pooled, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("convs", [2, 3])
def test_residual_adds_the_first_activation_to_the_last_convolutions_output(features: Tensor, convs: int) -> None:
    (block,) = blocks(ConvPool(widths=(5,), convs=convs, residual=True, norm="conv", pool_position="first_conv"))
    convolutions, norms = of_kind(block, nn.Conv2d), of_kind(block, nn.BatchNorm2d)
    for norm in norms:
        nn.init.normal_(norm.bias)
    block.eval()
    first = x = relu(norms[0](layers(block)[1](convolutions[0](features))))
    for conv, norm in zip(convolutions[1:-1], norms[1:-1], strict=True):
        x = relu(norm(conv(x)))
    by_hand = relu(norms[-1](convolutions[-1](x)) + first)
    torch.testing.assert_close(block(features), by_hand)


def test_without_residual_nothing_is_added(features: Tensor) -> None:
    (block,) = blocks(ConvPool(widths=(5,), convs=2))
    torch.testing.assert_close(block(features), nn.Sequential(*block)(features))


def test_logit_scale_multiplies_the_logits(images: Tensor) -> None:
    plain, scaled = ConvPool(widths=(4,)), ConvPool(widths=(4,), logit_scale=0.25)
    scaled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(scaled(images), plain(images) * 0.25)


def test_frozen_norm_scale_is_one_and_not_trained_but_its_bias_is() -> None:
    for norm in of_kind(ConvPool(widths=(4, 4), norm="conv", norm_scale=False), nn.BatchNorm2d):
        assert torch.equal(norm.weight, torch.ones(4))
        assert not norm.weight.requires_grad
        assert norm.bias.requires_grad


def test_norm_scale_is_trained_unless_frozen() -> None:
    assert all(norm.weight.requires_grad for norm in of_kind(ConvPool(widths=(4, 4), norm="conv"), nn.BatchNorm2d))


# --- The first weights


@pytest.mark.parametrize(("init", "gain"), [("fan_in", 1), ("he", 2)])
def test_normal_filters_have_the_variance_that_their_inputs_ask_for(init: Any, gain: int) -> None:
    torch.manual_seed(0)
    _, conv = of_kind(ConvPool(widths=(64, 64), init=init), nn.Conv2d)
    assert conv.weight.std().item() == pytest.approx((gain / (9 * 64)) ** 0.5, rel=0.03)
    assert conv.bias is not None
    assert not conv.bias.any()


def test_glorot_filters_are_uniform_within_their_bound() -> None:
    torch.manual_seed(0)
    _, conv = of_kind(ConvPool(widths=(64, 32), init="glorot"), nn.Conv2d)
    bound = (6 / (9 * 64 + 9 * 32)) ** 0.5
    assert 0.99 * bound < conv.weight.abs().max() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert conv.bias is not None
    assert not conv.bias.any()


def test_dirac_filters_hand_their_input_on_first(features: Tensor) -> None:
    model = ConvPool(widths=(5, 8), init="dirac", conv_bias=False)
    for conv, channels in zip(of_kind(model, nn.Conv2d), (3, 5), strict=True):
        x = torch.randn(2, channels, 7, 7)
        torch.testing.assert_close(conv(x)[:, :channels], x)
        assert conv.weight[channels:].flatten(1).std(1).min() > 0  # the others are PyTorch's own


# --- The whitened stem


def coloured(std: float = 1.0) -> Tensor:
    """Images [N, 3, 16, 16] whose colours and neighbouring pixels go together, as those of photographs do."""
    noise = torch.randn(40, 3, 17, 17, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("dc,nchw->ndhw", torch.tensor([[1.0, 0.5, 0.2], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]), noise)
    return std * (mixed[..., 1:, 1:] + 0.5 * mixed[..., :-1, :-1]) + 0.3 * std


def second_moments(stem: WhitenedStem, images: Tensor) -> Tensor:
    """Of the first 12 filters' responses, without bias, over every patch: [12, 12]."""
    responses = nn.functional.conv2d(images, stem.conv.weight[:12]).transpose(0, 1).reshape(12, -1)
    return responses @ responses.T / responses.shape[1]


def second_moments_of_patches(images: Tensor) -> Tensor:
    patches = nn.functional.unfold(images, 2).transpose(0, 1).reshape(12, -1).double()
    return patches @ patches.T / patches.shape[1]


def test_stem_is_a_2x2_convolution_to_24_channels_of_which_the_bias_is_learnt() -> None:
    stem = WhitenedStem()
    assert stem.conv.weight.shape == (24, 3, 2, 2)
    assert not stem.conv.weight.requires_grad
    assert stem.conv.bias is not None
    assert stem.conv.bias.requires_grad


def test_whitening_filters_come_with_their_negatives() -> None:
    stem = WhitenedStem()
    stem.whiten([coloured()])
    assert torch.equal(stem.conv.weight[12:], -stem.conv.weight[:12])


def test_whitened_responses_are_uncorrelated_and_of_size_one() -> None:
    stem, images = WhitenedStem(), coloured()
    stem.whiten([images])
    torch.testing.assert_close(second_moments(stem, images), torch.eye(12), rtol=0, atol=0.01)


def test_images_may_be_whitened_some_at_a_time() -> None:
    at_once, some = WhitenedStem(), WhitenedStem()
    at_once.whiten([coloured()])
    some.whiten(coloured().split(3))
    torch.testing.assert_close(at_once.conv.weight, some.conv.weight)


def test_whitening_keeps_the_weight_frozen() -> None:
    stem = WhitenedStem()
    stem.whiten([coloured()])
    assert not stem.conv.weight.requires_grad


def test_epsilon_shrinks_the_responses_to_directions_without_contrast() -> None:
    stem, images = WhitenedStem(), coloured(std=0.02)
    stem.whiten([images])
    sizes = second_moments(stem, images).diag()
    eigenvalues = torch.linalg.eigvalsh(second_moments_of_patches(images)).flip(0)
    torch.testing.assert_close(sizes, (eigenvalues / (eigenvalues + 5e-4)).float(), rtol=1e-3, atol=1e-4)


def test_black_images_give_finite_filters() -> None:
    stem = WhitenedStem()
    stem.whiten([torch.zeros(2, 3, 8, 8)])
    torch.testing.assert_close(stem.conv.weight.flatten(1).norm(dim=1), torch.full((24,), 5e-4**-0.5))


# --- What a fit does to the stem


def whitened() -> ConvPool:
    optim = {"_target_": "torch.optim.SGD", "lr": 1e-3}
    return ConvPool(widths=(4,), stem="whitened", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), optim=optim)


def data(root: Path, **options: Any) -> CIFAR10DataModule:
    return CIFAR10DataModule(root=str(root), verify=False, val_size=50, **options)


def stem_of(model: ConvPool) -> nn.Conv2d:
    (stem,) = of_kind(model, WhitenedStem)
    return stem.conv


@pytest.mark.parametrize("pixels_at_once", [10_000_000, 7 * 32 * 32])
def test_a_fit_whitens_by_the_normalised_training_images(
    tiny_cifar10: Path, pixels_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv_pool, "WHITENING_PIXELS", pixels_at_once)
    model, images = whitened(), data(tiny_cifar10)
    bare_trainer().fit(model, datamodule=images)
    pixels = images.images("train", 150).double() / 255
    normalised = (pixels - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.25, 0.3])
    expected = WhitenedStem()
    expected.whiten([normalised.permute(0, 3, 1, 2)])
    ours, theirs = (conv.weight.flatten(1) for conv in (stem_of(model), expected.conv))
    cosines = nn.functional.cosine_similarity(ours, theirs).abs()  # the sign of an eigenvector is free
    torch.testing.assert_close(cosines, torch.ones(24))
    torch.testing.assert_close(ours.norm(dim=1), theirs.norm(dim=1))


def test_a_fit_trains_the_stems_bias_alone(tiny_cifar10: Path) -> None:
    model = whitened()
    before = copy.deepcopy(stem_of(model).bias)
    bare_trainer().fit(model, datamodule=data(tiny_cifar10))
    weight, bias = stem_of(model).weight, stem_of(model).bias
    assert torch.equal(weight[12:], -weight[:12])
    assert before is not None
    assert bias is not None
    assert not torch.equal(bias, before)


def test_a_resumed_fit_keeps_the_checkpoints_filters(tiny_cifar10: Path, tmp_path: Path) -> None:
    first, resumed, first_trainer = whitened(), whitened(), bare_trainer()
    first_trainer.fit(first, datamodule=data(tiny_cifar10))
    first_trainer.save_checkpoint(tmp_path / "a.ckpt")
    other_images = data(tiny_cifar10, split_seed=7)
    bare_trainer(epochs=2).fit(resumed, datamodule=other_images, ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(stem_of(resumed).weight, stem_of(first).weight)
