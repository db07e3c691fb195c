"""Batch norm over several processes: here the one that may be all; tests/machine/test_ranks.py has two."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from litcifar.models.synced_norm import SyncedBatchNorm, synchronise


@pytest.fixture(autouse=True)
def _world_of_one() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2), (torch.float64, 1e-12)])
def test_is_as_exact_as_its_input(dtype: torch.dtype, error: float) -> None:
    nets = [nn.BatchNorm1d(5).to(dtype), synchronise(nn.Sequential(nn.BatchNorm1d(5).to(dtype)))]
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    outputs = [each(x) for each in nets]
    assert outputs[1].dtype == dtype
    torch.testing.assert_close(*outputs, rtol=error, atol=error)
    torch.testing.assert_close(nets[0].running_var, nets[1][0].running_var, rtol=error, atol=error)  # type: ignore[index]


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("shape", [(6, 5, 4, 4), (6, 5)])
def test_is_torchs_own_with_gradients_and_running_statistics(shape: tuple[int, ...], momentum: float | None) -> None:
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    net = nn.Sequential(nn.Identity(), nn.Sequential(kind(5, momentum=momentum)))
    nets: list[nn.Module] = [net, synchronise(copy.deepcopy(net))]
    assert any(isinstance(layer, SyncedBatchNorm) for layer in nets[1].modules())
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x, weight = (torch.randn(shape, generator=generator) * 3 + 1 for _ in range(2))
        inputs = [x.clone().requires_grad_() for _ in nets]
        outputs = [each(own) for each, own in zip(nets, inputs, strict=True)]
        for output in outputs:
            (output * weight).sum().backward()
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    for name, value in nets[0].state_dict().items():
        torch.testing.assert_close(value, nets[1].state_dict()[name])
    for ours, theirs in zip(*(each.parameters() for each in nets), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*(each.eval()(x) for each in nets))
