"""The optimizer and the schedule of the CIFAR-10 speed records (airbench, Keller Jordan 2024, arXiv 2404.00498).

Shape suffixes: N filters (or output features), M weights of each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan 2024, https://kellerjordan.github.io/posts/muon


class Triangular(LambdaLR):
    """Each group's learning rate times a factor: linearly from `start` up to 1, then down to `end`.

    total_steps: of the run. peak: the share of them after which the factor is 1, in [0, 1); 0 leaves out the rise.
    A group with an option `until` has the whole schedule in that share of the run, in (0, 1], and then the factor 0.

    Raises ValueError where a share is out of its range, or a factor below 0.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, start: float = 0.2, peak: float = 0.23, end: float = 0.07
    ) -> None:
        shares = [group.get("until", 1.0) for group in optimizer.param_groups]
        if total_steps < 1 or not 0 <= peak < 1 or not all(0 < share <= 1 for share in shares) or min(start, end) < 0:
            given = f"total_steps={total_steps}, start={start}, peak={peak}, end={end}"
            raise ValueError(f"{given} or a group's until ({shares}) is out of range")
        super().__init__(
            optimizer,
            [partial(triangle, length=share * total_steps, start=start, peak=peak, end=end) for share in shares],
        )


def triangle(step: int, length: float, start: float, peak: float, end: float) -> float:
    """The factor at a step, from 0, of `Triangular` over `length` steps."""
    share = step / length
    if share > 1:
        return 0.0
    if share < peak:
        return start + (1 - start) * share / peak
    return 1 + (end - 1) * (share - peak) / (1 - peak)


class Muon(Optimizer):
    """Muon for groups with `orthogonal`, torch's SGD for all others (Jordan 2024, https://kellerjordan.github.io/posts/muon).

    An orthogonal group's weights, of two dimensions or more, count as matrices [N, M]. Their step is `lr` times the
    orthogonalised momentum: its singular values are about 1, whatever the gradient's scale.

    momentum, nesterov: of both kinds of groups.
    weight_decay: as in torch's SGD; of orthogonal weights as in AdamW, and without effect where they are renormalized.
    orthogonal: whether the group takes Muon's steps.
    renormalize: scales each orthogonal weight to norm sqrt(N) before its step.
    steps: Newton-Schulz iterations; see `orthogonalize`.
    fused: torch's fused SGD.

    Raises ValueError for a value out of range and for an orthogonal group's parameter of one dimension.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        orthogonal: bool = False,
        renormalize: bool = True,
        steps: int = 3,
        fused: bool = True,
    ) -> None:
        if min(lr, momentum, weight_decay) < 0 or steps < 1:
            raise ValueError(f"lr={lr}, momentum={momentum}, weight_decay={weight_decay} or steps={steps} is too small")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "orthogonal": orthogonal,
            "renormalize": renormalize,
            "steps": steps,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        vectors = [tuple(p.shape) for p in param_group["params"] if p.ndim < 2]
        if param_group["orthogonal"] and vectors:
            raise ValueError(f"orthogonal needs weights of two dimensions or more, not {vectors[0]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._orthogonal_step if group["orthogonal"] else self._sgd_step)(group, params)
        return loss

    def _sgd_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        has_momentum = group["momentum"] != 0
        buffers = [self.state[p].get("momentum_buffer") for p in params] if has_momentum else []
        sgd(
            params,
            [p.grad for p in params if p.grad is not None],
            buffers,
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            fused=group["fused"],
            dampening=0,
            maximize=False,
        )
        for p, buffer in zip(params, buffers, strict=has_momentum):
            self.state[p]["momentum_buffer"] = buffer

    def _orthogonal_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr = group["lr"]
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        updates = torch._foreach_add(grads, buffers, alpha=group["momentum"]) if group["nesterov"] else buffers
        if group["renormalize"]:
            norms = torch._foreach_norm(params)
            torch._foreach_mul_(params, [len(p) ** 0.5 / norm for p, norm in zip(params, norms, strict=True)])
        elif group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for p, update in zip(params, updates, strict=True):
            p.add_(orthogonalize(update.flatten(1), group["steps"]).view(p.shape), alpha=-lr)


def orthogonalize(matrix_NM: Tensor, steps: int) -> Tensor:
    """Newton-Schulz iterations with Muon's polynomial: the same singular vectors, all singular values about 1.

    They end between 0.68 and 1.21 where they were at least a sixtieth (3 steps) or a thousandth (5) of the norm.
    In autocast's type where that is on, as it is in training; else in bf16 on a GPU, as published, and in float32
    elsewhere, as many CPUs emulate bf16.
    """
    a, b, c = NEWTON_SCHULZ
    tall = len(matrix_NM) > matrix_NM.shape[1]
    x = matrix_NM.T if tall else matrix_NM
    x = (x / x.norm().clamp_min(1e-20)).to(torch.bfloat16 if x.is_cuda else torch.float32)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
