"""Averages of the weights: each step's update, by hand."""

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from litcifar.loop.averaging import EMA, Lookahead
from litcifar.models import MLP, ConvPool, ImageClassifier
from tests.conftest import bare_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Weights:
    """The weights after each optimizer step, before any average is made of them."""

    def __init__(self, model: ImageClassifier) -> None:
        self.model = model
        self.steps: list[dict[str, Tensor]] = []

    def __call__(self, *_: Any) -> None:
        self.steps.append({name: p.detach().clone() for name, p in self.model.net.named_parameters()})


class Recording(L.Callback):
    """Registers `Weights` before the average's own hook."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        self.start = {name: p.detach().clone() for name, p in pl_module.net.named_parameters()}
        self.weights = Weights(pl_module)
        trainer.optimizers[0].register_step_post_hook(self.weights)


def fit(model: ImageClassifier, average: L.Callback, epochs: int) -> Recording:
    """Ten steps an epoch, one image each."""
    images = torch.randint(0, 256, (10, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    recording = Recording()
    run = bare_trainer(epochs, callbacks=[recording, average])
    loader = DataLoader(TensorDataset(images, torch.arange(10)))
    run.fit(model, loader, loader)
    return recording


def mlp() -> MLP:
    torch.manual_seed(0)
    return MLP(hidden=(5,), image_size=4, optim={"_target_": "torch.optim.SGD", "lr": 0.1})


def test_ema_is_updated_after_each_step() -> None:
    model = mlp()
    recording = fit(model, EMA(decay=0.9), epochs=1)
    by_hand = recording.weights.steps[0]  # the first update copies
    for step in recording.weights.steps[1:]:
        by_hand = {name: 0.9 * by_hand[name] + 0.1 * step[name] for name in step}
    for name, parameter in model.net.named_parameters():  # Lightning puts the average into the model at the end
        torch.testing.assert_close(parameter.detach(), by_hand[name])


def test_ema_averages_batch_norms_statistics() -> None:
    model = ConvPool(widths=(4,), norm="conv", image_size=4)
    seen: list[Tensor] = []

    def mean() -> Tensor:
        norm = next(layer for layer in model.net.modules() if isinstance(layer, nn.BatchNorm2d))
        assert norm.running_mean is not None
        return norm.running_mean

    class Means(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.optimizers[0].register_step_post_hook(lambda *_: seen.append(mean().clone()))

    average = EMA(decay=0.9)
    bare = bare_trainer(1, callbacks=[Means(), average])
    images = torch.randint(0, 256, (10, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images, torch.arange(10)))
    bare.fit(model, loader, loader)
    by_hand = seen[0]
    for step in seen[1:]:
        by_hand = 0.9 * by_hand + 0.1 * step
    torch.testing.assert_close(mean(), by_hand)


@pytest.mark.parametrize("every", [3, 4, 5])
def test_lookahead_meets_the_weights_every_few_steps_and_at_the_end(every: int) -> None:
    model = mlp()
    recording = fit(model, Lookahead(every), epochs=2)
    slow = recording.start
    for step, fast in enumerate(recording.weights.steps, 1):
        if step % every == 0 and step < 20:
            decay = 0.95**every * (step / 20) ** 3
            slow = {name: decay * slow[name] + (1 - decay) * fast[name] for name in fast}
    for name, parameter in model.net.named_parameters():
        torch.testing.assert_close(parameter.detach(), slow[name])


def test_lookahead_averages_batch_norms_statistics_and_leaves_its_counter_alone() -> None:
    model = ConvPool(widths=(4,), norm="conv", image_size=4)
    average = Lookahead(3)
    fit(model, average, epochs=1)
    norm = next(layer for layer in model.net.modules() if isinstance(layer, nn.BatchNorm2d))
    assert norm.num_batches_tracked == 10
    assert any(norm.running_mean is not None and torch.equal(slow, norm.running_mean) for slow in average.slow)


def test_lookaheads_slow_weights_travel_in_its_state() -> None:
    average, restored = Lookahead(5), Lookahead(5)
    fit(mlp(), average, epochs=1)
    restored.load_state_dict(average.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(average.slow, restored.slow, strict=True))
