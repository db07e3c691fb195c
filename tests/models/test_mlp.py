"""The multilayer perceptron: its layers and their order, its parameters, its first weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from litcifar.models import MLP


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def linears(model: MLP) -> list[nn.Linear]:
    return [layer for layer in model.net.modules() if isinstance(layer, nn.Linear)]


def kinds(model: MLP) -> list[str]:
    return [type(layer).__name__ for layer in model.net.children()]


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("hidden", "options", "expected"),
    [
        ((), {}, 30_730),  # logistic regression
        ((128,), {}, 394_634),  # the NumPy MLP
        ((128, 64), {"classes": ("airplane", "automobile", "bird")}, 3072 * 128 + 128 + 128 * 64 + 64 + 64 * 3 + 3),
        ((128, 128), {"activation": "sigmoid"}, 394_634 + 128 * 128 + 128),
        ((7,), {"batch_norm": True, "image_size": 4}, 48 * 7 + 7 + 2 * 7 + 7 * 10 + 10),
    ],
    ids=["logistic_regression", "numpy_mlp", "three_class_mlp", "sigmoid_mlp", "batch_norm"],
)
def test_number_of_parameters(hidden: tuple[int, ...], options: dict[str, Any], expected: int) -> None:
    assert parameters(MLP(hidden=hidden, **options)) == expected


def test_one_hidden_layer_is_linear_then_activation() -> None:
    assert kinds(MLP(hidden=(4,))) == ["Flatten", "Linear", "ReLU", "Linear"]


def test_batch_norm_comes_before_and_dropout_after_each_activation() -> None:
    block = ["Linear", "BatchNorm1d", "Tanh", "Dropout"]
    model = MLP(hidden=(4, 3), activation="tanh", batch_norm=True, dropout=0.3)
    assert kinds(model) == ["Flatten", *block, *block, "Linear"]
    assert {layer.p for layer in model.net.children() if isinstance(layer, nn.Dropout)} == {0.3}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("relu", nn.ReLU), ("gelu", nn.GELU), ("silu", nn.SiLU), ("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid)],
)
def test_activation_is_the_one_of_that_name(name: str, kind: type[nn.Module]) -> None:
    assert type(list(MLP(hidden=(4,), activation=name, image_size=4).net.children())[2]) is kind


def test_logistic_regression_is_a_matrix_product_with_the_pixels_row_by_row(images: Tensor) -> None:
    model = MLP(hidden=())
    (layer,) = linears(model)
    by_hand = (images.double() / 255).reshape(5, 3072) @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(model(images).double(), by_hand, rtol=1e-4, atol=1e-5)


def test_flattening_copies_nothing(images: Tensor) -> None:
    model = MLP(hidden=(4,))
    seen: list[Tensor] = []
    model.normalize.register_forward_hook(lambda module, args, output: seen.append(output))
    linears(model)[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images)
    assert seen[0].data_ptr() == seen[1].data_ptr()


@pytest.mark.parametrize(("init", "gain"), [("fan_in", 1), ("he", 2)])
def test_normal_weights_have_the_variance_that_their_inputs_ask_for(init: Any, gain: int) -> None:
    torch.manual_seed(0)
    for layer in linears(MLP(hidden=(512,), init=init)):
        assert layer.weight.std().item() == pytest.approx((gain / layer.in_features) ** 0.5, rel=0.04)
        assert layer.weight.abs().max() > 3 * layer.weight.std()  # no uniform distribution


def test_glorot_weights_are_uniform_within_their_bound() -> None:
    torch.manual_seed(0)
    for layer in linears(MLP(hidden=(512,), init="glorot")):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.04)


@pytest.mark.parametrize("init", ["fan_in", "he", "glorot"])
def test_biases_start_at_zero(init: Any) -> None:
    assert not any(layer.bias.any() for layer in linears(MLP(hidden=(16,), init=init)))


def test_default_weights_are_those_of_pytorch() -> None:
    torch.manual_seed(1)
    (ours,) = linears(MLP(hidden=()))
    torch.manual_seed(1)
    theirs = nn.Linear(3072, 10)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
