"""Dropout: what is kept, how it is scaled, and what the mask depends on."""

import pytest
import torch
from torch import Tensor, nn

from litcifar.models.dropout import Dropout

COUNT = 1_000_003  # odd: no whole number of draws of 64 bits


def kept(p: float, seed: int = 0, count: int = COUNT) -> Tensor:
    """Float32 [count], 1 for what was kept."""
    torch.manual_seed(seed)
    return (Dropout(p)(torch.ones(count)) != 0).float()


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_the_share_that_is_left_out_is_the_probability(p: float) -> None:
    share = 1 - kept(p).mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / COUNT) ** 0.5


def test_neighbours_are_independent() -> None:
    mask = kept(0.5) - 0.5
    for distance in (1, 2, 3, 4, 8):
        correlation = 4 * (mask[distance:] * mask[:-distance]).mean().item()
        assert abs(correlation) < 5 / COUNT**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_kept_is_scaled_as_torch_does(dtype: torch.dtype) -> None:
    x = torch.full((1000,), 3.0, dtype=dtype)
    torch.manual_seed(0)
    ours, torchs = Dropout(0.25)(x), nn.functional.dropout(x, 0.25)
    assert ours.dtype == dtype
    assert set(ours.tolist()) == set(torchs.tolist())
    assert len(set(ours.tolist())) == 2


def test_gradients_go_through_what_is_kept() -> None:
    x = torch.randn(50, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, 2.0))


def test_the_mask_is_a_function_of_torchs_random_state() -> None:
    assert torch.equal(kept(0.5, seed=1, count=100), kept(0.5, seed=1, count=100))
    assert not torch.equal(kept(0.5, seed=1, count=100), kept(0.5, seed=2, count=100))
    dropout, x = Dropout(0.5), torch.ones(100)
    assert not torch.equal(dropout(x), dropout(x))


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3, 3), (1,), (0, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_the_order_of_memory_is_kept() -> None:
    x = torch.ones(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert Dropout(0.5)(x).is_contiguous(memory_format=torch.channels_last)
    strided = torch.ones(6, 10)[::2, ::3]
    assert Dropout(0.5)(strided).shape == (3, 4)


@pytest.mark.parametrize("p", [0.999_999, 1.0])
def test_all_may_be_left_out(p: float) -> None:
    assert kept(p, count=100).sum() == 0


def test_evaluation_changes_nothing_and_draws_nothing() -> None:
    x, dropout = torch.randn(10), Dropout(0.5).eval()
    state = torch.get_rng_state()
    assert dropout(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_without_probability_nothing_is_drawn() -> None:
    x, state = torch.randn(10), torch.get_rng_state()
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(torch.get_rng_state(), state)
