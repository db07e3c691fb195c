"""Batch norm over a batch that several processes share."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all processes, and that of its gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class SyncedBatchNorm(_BatchNorm):
    """Normalises by mean and variance of the whole batch, as one process would; torch's SyncBatchNorm wants a GPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # of any number of dimensions: [B, C] or [B, C, ...]

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.track_running_stats:
            return super().forward(input)
        others = [dim for dim in range(input.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(input.ndim)]
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(torch.promote_types(input.dtype, torch.float32))
            count = x.new_full((1,), x.numel() / x.shape[1])
            sums = _Sum.apply(torch.cat([x.sum(others), count]))
            count, mean_C = sums[-1], sums[:-1] / sums[-1]
            centred = x - mean_C.view(shape)
            variance_C = _Sum.apply(centred.square().sum(others)) / count
            scale_C = (variance_C + self.eps).rsqrt()
            if self.weight is not None:
                scale_C = scale_C * self.weight
            y = centred * scale_C.view(shape)
            if self.bias is not None:
                y = y + self.bias.view(shape)
            self._track(mean_C.detach(), variance_C.detach() * count / (count - 1))
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance_C.to(self.running_var.dtype), weight)


def synchronise(net: nn.Module) -> nn.Module:
    """The network with each batch norm replaced by a synchronised one of the same parameters and names."""
    for name, layer in net.named_children():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            synced = SyncedBatchNorm(layer.num_features, layer.eps, layer.momentum)
            synced.__dict__.update(layer.__dict__)  # the very parameters and buffers
            setattr(net, name, synced)
        else:
            synchronise(layer)
    return net
