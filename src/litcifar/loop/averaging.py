"""Averages of the weights, made after each optimizer step."""

from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from litcifar.models import ImageClassifier


class EMA(EMAWeightAveraging):
    """Lightning's exponential moving average, from the first step's weights on; of batch norm's running statistics too.

    Its own callback is called once a turn, and a turn is many steps; torch's own update waits for a GPU in each. Of
    weights in half precision, where a step's share would be lost, the average is float32 between two validations.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)
        self.decay = decay

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        dtype = torch.promote_types(pl_module.dtype, torch.float32)  # type: ignore[arg-type]
        self._average_model.to(pl_module.device, dtype)
        average, weights = (
            [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
            for module in (self._average_model.module, pl_module)
        )
        blend, count = get_ema_multi_avg_fn(self.decay), self._average_model.n_averaged
        has_begun, exact = bool(count > 0), pl_module.dtype == dtype

        def update(*_: Any) -> None:
            nonlocal has_begun
            if has_begun:
                blend(average, weights if exact else [weight.to(dtype) for weight in weights], count)
            else:
                torch._foreach_copy_(average, weights)
                has_begun = True
            count.add_(1)

        trainer.optimizers[0].register_step_post_hook(update)

    def on_train_batch_end(self, *_: Any) -> None:
        pass


class Lookahead(Callback):
    """Every few steps the weights and a slow average of them meet (Zhang et al. 2019; this variant: arXiv 2404.00498).

    every: steps between two meetings. After step t of T, slow = d * slow + (1 - d) * weights and weights = slow, with
    d = 0.95^every * (t / T)^3, and d = 1 at the end of the run. Batch norm's running statistics are averaged too.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.slow: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        fast = [tensor for tensor in pl_module.net.state_dict().values() if tensor.is_floating_point()]
        self.slow = [slow.to(pl_module.device) for slow in self.slow] or [tensor.clone() for tensor in fast]
        total = pl_module.total_steps

        def update(*_: Any) -> None:
            step = trainer.global_step + 1  # it is counted after the optimizer's hooks
            if step % self.every and step != total:
                return
            decay = 1.0 if step == total else 0.95**self.every * (step / total) ** 3
            torch._foreach_lerp_(self.slow, fast, 1 - decay)
            torch._foreach_copy_(fast, self.slow)

        trainer.optimizers[0].register_step_post_hook(update)

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.slow = state_dict["slow"]
