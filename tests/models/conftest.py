"""A small MLP, and what its optimizer is made from."""

from typing import Any

import torch

from litcifar.models import MLP

SIZE = 4  # height and width of the images here, in pixels
STILL = {"_target_": "torch.optim.SGD", "lr": 0.0}
SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
TRIANGULAR = {"_target_": "litcifar.optim.Triangular", "interval": "step", "total_steps": "total_steps"}


def mlp(**options: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(hidden=(5,), image_size=SIZE, **{"optim": STILL, **options})
