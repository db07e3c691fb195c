"""What every network shares: pixels, loss, metrics, optimizer and scheduler, checkpoints."""

import importlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset

from litcifar.config import ParameterKind
from litcifar.models import MLP, ConvPool, ImageClassifier
from litcifar.models.classifier import RANKS_APART, MeanOfBatches, Normalize
from tests.conftest import bare_trainer
from tests.models.conftest import SGD, SIZE, TRIANGULAR, mlp

# Lightning compares the loaders' workers with the processors, but these images are in memory.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (10, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(10).flip(0)


def batches(images: Tensor, labels: Tensor) -> DataLoader:
    """Of 4, 4 and 2 images."""
    return DataLoader(TensorDataset(images, labels), batch_size=4)


def fit(
    model: ImageClassifier, images: Tensor, labels: Tensor, mixed: Tensor | None = None, **options: Any
) -> L.Trainer:
    """A training of one epoch or more, in batches of 4, 4 and 2 images, validated on the same images."""
    run = bare_trainer(**options)
    run.fit(model, batches(images, labels if mixed is None else mixed), batches(images, labels))
    return run


# --- Pixels


def test_every_pixel_value_is_scaled_and_normalised() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    by_hand = (pixels.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    normalised = Normalize(MEAN, STD)(pixels)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.double(), by_hand, rtol=0, atol=1e-6)


def test_by_default_pixels_are_scaled_to_0_to_1(images: Tensor) -> None:
    torch.testing.assert_close(mlp().normalize(images), images / 255)


@pytest.mark.parametrize("model", [MLP, ConvPool])
def test_logits_are_those_of_the_network_fed_with_normalised_pixels(images: Tensor, model: Any) -> None:
    classifier = model(image_size=SIZE, mean=MEAN, std=STD, **({"widths": (4,)} if model is ConvPool else {}))
    by_hand = (images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(classifier(images), classifier.net(by_hand))


def test_there_are_as_many_logits_as_classes(images: Tensor) -> None:
    assert mlp(classes=("bird", "cat", "dog"))(images).shape == (10, 3)
    assert mlp()(images).shape == (10, 10)


def test_example_input_is_one_image_of_bytes() -> None:
    example = mlp().example_input_array
    assert isinstance(example, Tensor)
    assert example.shape == (1, SIZE, SIZE, 3)
    assert example.dtype == torch.uint8


# --- Loss


def test_loss_is_the_mean_cross_entropy(images: Tensor, labels: Tensor) -> None:
    model = mlp()
    by_hand = -model(images).log_softmax(1)[torch.arange(10), labels].mean()
    torch.testing.assert_close(model.loss(images, labels), by_hand)


def test_label_smoothing_spreads_its_share_over_all_classes(images: Tensor, labels: Tensor) -> None:
    model = mlp(label_smoothing=0.2)
    targets = 0.8 * one_hot(labels, 10) + 0.2 / 10
    by_hand = -(targets * model(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model.loss(images, labels), by_hand)


def test_loss_may_be_summed_over_the_batch(images: Tensor, labels: Tensor) -> None:
    mean, total = mlp(), mlp(loss_reduction="sum")
    torch.testing.assert_close(total.loss(images, labels), 10 * mean.loss(images, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_loss_is_taken_in_float32_at_least(images: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    loss = model.loss(images, labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    by_hand = -model(images).double().log_softmax(1)[torch.arange(10), labels].mean()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_l1_adds_absolute_weights_but_not_biases_or_norm_scales(images: Tensor, labels: Tensor, reduction: str) -> None:
    model, plain = (mlp(batch_norm=True, l1=l1, loss_reduction=reduction) for l1 in (0.01, 0.0))
    weights = sum(layer.weight.abs().sum() for layer in model.net.modules() if isinstance(layer, nn.Linear))
    added = model.loss(images, labels) - plain.loss(images, labels)
    torch.testing.assert_close(added, 0.01 * torch.as_tensor(weights), rtol=1e-4, atol=1e-5)


def test_labels_may_be_probabilities(images: Tensor) -> None:
    model = mlp()
    labels_BK = torch.rand(10, 10).softmax(1)
    by_hand = -(labels_BK * model(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model.loss(images, labels_BK), by_hand)


# --- Metrics. The last batch is smaller and more of it is right: a mean of the batches' means would differ.


def half_right(model: ImageClassifier, images: Tensor) -> Tensor:
    """Labels of which the last two and one of the first four are what the model says."""
    labels = model(images).argmax(1)
    labels[[0, 1, 2, 4, 5, 6, 7]] += 1
    return labels % 10


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_training_metrics_are_averages_over_the_epochs_images(images: Tensor, reduction: str) -> None:
    model = mlp(label_smoothing=0.1, loss_reduction=reduction)
    labels = half_right(model, images)
    run = fit(model, images, labels)
    loss = cross_entropy(model(images), labels, label_smoothing=0.1)
    assert run.callback_metrics["train/acc"].item() == pytest.approx(0.3)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_training_loss_includes_l1(images: Tensor, labels: Tensor) -> None:
    losses = []
    for l1 in (0.0, 0.01):
        run = fit(mlp(l1=l1), images, labels)
        losses.append(run.callback_metrics["train/loss"].item())
    weights = sum(p.abs().sum().item() for p in mlp().net.parameters() if p.ndim == 2)
    assert losses[1] - losses[0] == pytest.approx(0.01 * weights, rel=1e-4)


def test_training_accuracy_on_mixed_labels_counts_the_larger_share(images: Tensor) -> None:
    model = mlp()
    labels = half_right(model, images)
    labels_BK = 0.6 * one_hot(labels, 10) + 0.4 * one_hot((labels + 5) % 10, 10)
    run = fit(model, images, labels, labels_BK)
    assert run.callback_metrics["train/acc"].item() == pytest.approx(0.3)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_metrics_are_averages_over_all_images_of_the_plain_loss(images: Tensor, split: str) -> None:
    model = mlp(label_smoothing=0.1, l1=0.01, loss_reduction="sum")
    labels = half_right(model, images)
    run = bare_trainer()
    evaluate = run.validate if split == "val" else run.test
    (metrics,) = evaluate(model, batches(images, labels), verbose=False)
    loss = cross_entropy(model(images), labels)
    assert metrics == {f"{split}/acc": pytest.approx(0.3), f"{split}/loss": pytest.approx(loss.item(), rel=1e-5)}


class Truth(L.LightningDataModule):
    """In the first epoch, and the first validation, every label is right; from then on none is."""

    def __init__(self, model: ImageClassifier, images: Tensor) -> None:
        super().__init__()
        self.images, self.labels = images, model(images).argmax(1)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        return batches(self.images, (self.labels + (self.trainer.current_epoch > 0)) % 10)

    val_dataloader = train_dataloader


def test_each_epoch_has_metrics_of_its_own(images: Tensor) -> None:
    model = mlp()
    run = bare_trainer(epochs=2, reload_dataloaders_every_n_epochs=1)
    run.fit(model, datamodule=Truth(model, images))
    assert run.callback_metrics["train/acc"] == 0
    assert run.callback_metrics["val/acc"] == 0


def test_evaluation_gives_float32_logits_under_autocast(images: Tensor, labels: Tensor) -> None:
    model = mlp()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.bfloat16
        assert model.validation_step((images, labels), 0).dtype == torch.float32
        assert model.test_step((images, labels), 0).dtype == torch.float32


# --- The optimizer's steps


@pytest.mark.parametrize("ending", [{"head"}, set(get_args(ParameterKind))], ids=["one", "all"])
def test_a_group_that_has_ended_gets_no_gradients_where_others_go_on(
    images: Tensor, labels: Tensor, ending: set[str]
) -> None:
    own = {kind: {"until": 0.5} if kind in ending else {} for kind in get_args(ParameterKind)}
    model, gradients = mlp(optim={**SGD, "groups": own}, scheduler=TRIANGULAR), Counter[str]()
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: gradients.update([name]))
    trainer = fit(model, images, labels, epochs=4)
    head = 7 if ending == {"head"} else 12  # steps; after six the factor is `end`
    assert trainer.global_step == 12
    assert gradients == {"net.1.weight": 12, "net.1.bias": 12, "net.3.weight": head, "net.3.bias": head}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "optim",
    [
        {"_target_": "torch.optim.Adam", "eps": 1.0},
        {"_target_": "torch.optim.SGD"},
        {"_target_": "litcifar.optim.Muon"},
    ],
    ids=["adam", "sgd", "muon"],
)
def test_gradients_are_clipped_for_fused_optimizers(
    images: Tensor, labels: Tensor, optim: dict[str, Any], precision: str
) -> None:
    model = mlp(optim={"lr": 1.0, **optim}, gradient_clip_val=1e-6)
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, images, labels, precision=precision)
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(before, model.parameters(), strict=True))


def test_gradients_of_float16_are_clipped_once_they_are_no_longer_scaled(images: Tensor, labels: Tensor) -> None:
    model = mlp(optim={"_target_": "torch.optim.SGD", "lr": 1.0}, gradient_clip_val=0.01)
    before = parameters_to_vector(model.parameters()).detach().clone()
    fit(model, images, labels, plugins=[MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=1024))])
    change = (parameters_to_vector(model.parameters()) - before).norm()
    assert 0.01 < change < 0.0301  # of three steps; 0.01 / 1024 each if what is clipped were still scaled


def test_a_fused_optimizer_unscales_gradients_of_float16_without_asking_for_their_values(
    images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(GradScaler, "_maybe_opt_step")  # which asks whether all are finite
    changes: list[Tensor] = []
    plain: dict[str, Any] = {}
    for options in (plain, {"plugins": [MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=1024))]}):
        model = mlp(optim={"_target_": "torch.optim.SGD", "lr": 0.1})
        before = parameters_to_vector(model.parameters()).detach().clone()
        fit(model, images, labels, **options)
        changes.append(parameters_to_vector(model.parameters()) - before)
    torch.testing.assert_close(*changes, rtol=0.01, atol=1e-4)


# --- Lightning's hooks around backward and the optimizer


class Backward(MLP):
    """Twice the gradient."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(2 * loss, *args, **kwargs)


def trained_weights(model: ImageClassifier, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
    fit(model, images, labels, epochs=2, **options)
    return parameters_to_vector(model.parameters())


@pytest.mark.parametrize("hook", ["on_before_backward", "on_after_backward", "on_before_optimizer_step"])
def test_a_callback_hears_every_step(images: Tensor, labels: Tensor, hook: str) -> None:
    heard: list[int] = []

    def hear(trainer: L.Trainer, *_: Any) -> None:
        heard.append(trainer.global_step)

    fit(mlp(), images, labels, callbacks=[LambdaCallback(**{hook: hear})])
    assert heard == [0, 1, 2]


@pytest.mark.parametrize("clip", [None, 0.01], ids=["plain", "clipped"])
def test_steps_that_are_heard_are_those_that_are_not(images: Tensor, labels: Tensor, clip: float | None) -> None:
    def train(**options: Any) -> Tensor:
        return trained_weights(mlp(optim=SGD, gradient_clip_val=clip), images, labels, **options)

    unheard = train()
    assert torch.equal(train(callbacks=[LambdaCallback(on_after_backward=lambda *_: None)]), unheard)
    assert torch.equal(train(profiler=SimpleProfiler()), unheard)
    assert not torch.equal(unheard, parameters_to_vector(mlp().parameters()))


def test_a_network_of_ones_own_may_change_backward(images: Tensor, labels: Tensor) -> None:
    options: dict[str, Any] = {"hidden": (5,), "image_size": SIZE}
    torch.manual_seed(0)
    changed = Backward(**options, optim={"_target_": "torch.optim.SGD", "lr": 0.1})
    usual = mlp(optim={"_target_": "torch.optim.SGD", "lr": 0.2})
    assert torch.equal(trained_weights(changed, images, labels), trained_weights(usual, images, labels))


def test_steps_are_in_the_profile_that_is_asked_for(images: Tensor, labels: Tensor) -> None:
    profiler = SimpleProfiler()
    fit(mlp(), images, labels, profiler=profiler)
    recorded = profiler.recorded_durations
    assert len(recorded["optimizer_step"]) == len(recorded["[LightningModule]MLP.on_after_backward"]) == 3


class SaveInTheMiddle(L.Callback):
    """After the second of four epochs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    "optim",
    [
        {"_target_": "torch.optim.Adam", "lr": 0.01},
        {**SGD, "groups": {"head": {"lr": 0.3, "until": 0.75}}},
        {"_target_": "litcifar.optim.Muon", "lr": 0.1, "momentum": 0.9, "groups": {"hidden": {"orthogonal": True}}},
    ],
    ids=["adam", "sgd", "muon"],
)
def test_a_resumed_training_is_the_uninterrupted_one(
    images: Tensor, labels: Tensor, tmp_path: Path, optim: dict[str, Any]
) -> None:
    whole, resumed = (mlp(optim=optim, scheduler=TRIANGULAR) for _ in range(2))
    fit(whole, images, labels, epochs=4, callbacks=[SaveInTheMiddle(tmp_path / "a.ckpt")])
    loader = batches(images, labels)
    bare_trainer(epochs=4).fit(resumed, loader, loader, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    untrained = mlp().parameters()
    assert not any(torch.equal(a, b) for a, b in zip(untrained, resumed.parameters(), strict=True))


ONE_CYCLE = {
    "_target_": "torch.optim.lr_scheduler.OneCycleLR",
    "max_lr": 0.1,
    "total_steps": "total_steps",
    "cycle_momentum": False,
}
COSINE = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": "total_steps"}


@pytest.mark.parametrize(
    ("scheduler", "interval", "options", "expected"),
    [
        (ONE_CYCLE, "step", {}, 12),  # 4 epochs of 3 batches
        (ONE_CYCLE, "step", {"max_steps": 7}, 7),
        (ONE_CYCLE, "step", {"limit_train_batches": 1}, 4),
        (COSINE, "step", {}, 12),
        (COSINE, "epoch", {}, 4),
        (COSINE, "epoch", {"max_steps": 6}, 2),
    ],
    ids=["one_cycle", "one_cycle_cut", "one_cycle_limited", "cosine", "epochs", "epochs_cut"],
)
def test_total_steps_stands_for_the_length_of_the_run(
    images: Tensor, labels: Tensor, scheduler: dict[str, Any], interval: str, options: dict[str, Any], expected: int
) -> None:
    optim = {"_target_": "torch.optim.SGD", "lr": 0.1}
    model = mlp(optim=optim, scheduler={**scheduler, "interval": interval})
    (config,) = fit(model, images, labels, epochs=4, **options).lr_scheduler_configs
    length = getattr(config.scheduler, "total_steps" if scheduler is ONE_CYCLE else "T_max")
    assert length == expected
    assert config.scheduler.last_epoch == expected  # so many times it was stepped


@pytest.mark.parametrize("monitor", ["val/acc", "val/loss", "train/acc", "train/loss"])
def test_plateau_scheduler_watches_its_metric(images: Tensor, labels: Tensor, monitor: str) -> None:
    scheduler = {
        "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "interval": "epoch",
        "monitor": monitor,
        "patience": 0,
        "factor": 0.5,
        "eps": 0.0,
    }
    model = mlp(optim={"_target_": "torch.optim.SGD", "lr": 1e-30}, scheduler=scheduler)  # nothing improves
    run = fit(model, images, labels, epochs=3)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25e-30)


def test_the_accuracy_of_training_needs_no_logits_that_the_next_step_takes_the_place_of(
    images: Tensor, labels: Tensor
) -> None:
    """As the steps of a CUDA graph do."""
    model, kept = mlp(), list[Tensor]()
    model.net.register_forward_hook(lambda *arguments: kept.append(arguments[-1]))
    model.loss(images, labels)
    right = int((kept[0].argmax(1) == labels).sum())
    kept[0].data.copy_(torch.nn.functional.one_hot(labels, 10))
    model._update_train_metrics()
    assert float(model.train_metrics["acc"].compute()) == pytest.approx(right / 10)
    assert right < 10


def test_the_mean_of_batches_is_no_half_precision_sum() -> None:
    """704 * 64 * 2.3 is beyond float16."""
    mean = MeanOfBatches().to(torch.float16)
    mean.update(torch.full((704,), 2.3), weight=torch.full((704,), 64))
    assert float(mean.compute()) == pytest.approx(2.3, abs=1e-3)


def test_each_process_draws_other_random_numbers() -> None:
    """Of a seed a CPU's generator takes the last 32 bits."""
    model, drawn = mlp(), set[float]()
    for rank in range(8):
        model._draw_anew(3 * 1_000_003 + rank * RANKS_APART)
        drawn.add(float(torch.rand(())))
    assert len(drawn) == 8


# --- Checkpoints


def trained(name: str, tmp_path: Path, images: Tensor, labels: Tensor) -> tuple[ImageClassifier, Path]:
    """A network none of whose options is the default, after an epoch of training, and its checkpoint."""
    common: dict[str, Any] = {
        "classes": ["a", "b", "c"],
        "image_size": SIZE,
        "mean": MEAN,
        "std": STD,
        "label_smoothing": 0.1,
        "l1": 1e-4,
        "optim": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
        "scheduler": {**ONE_CYCLE, "interval": "step"},
    }
    conv: dict[str, Any] = {
        "widths": (4, 6),
        "convs": (1, 2),
        "norm": "conv",
        "norm_scale": False,
        "head": (5,),
        "logit_scale": 0.5,
    }
    model = {
        "MLP": lambda: MLP(hidden=(7, 5), activation="tanh", batch_norm=True, dropout=0.2, init="he", **common),
        "ConvPool": lambda: ConvPool(**conv, **common),
    }[name]()
    model.provenance = {"seed": 3}
    run = fit(model, images, labels % 3)
    run.save_checkpoint(tmp_path / "a.ckpt")
    return model.eval(), tmp_path / "a.ckpt"


@pytest.mark.parametrize("name", ["MLP", "ConvPool"])
def test_checkpoint_is_all_it_takes_to_get_the_network_back(
    tmp_path: Path, images: Tensor, labels: Tensor, name: str
) -> None:
    model, path = trained(name, tmp_path, images, labels)
    loaded = type(model).load_from_checkpoint(path, weights_only=True).eval()
    assert torch.equal(loaded(images), model(images))
    assert loaded.classes == ["a", "b", "c"]
    assert loaded.provenance == {"seed": 3}
    assert dict(loaded.hparams) == dict(model.hparams)


@pytest.mark.parametrize("name", ["MLP", "ConvPool"])
def test_checkpoint_is_read_without_hydra(
    tmp_path: Path, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, path = trained(name, tmp_path, images, labels)
    for module in [module for module in sys.modules if module.split(".")[0] in ("litcifar", "hydra")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "hydra", None)  # importing it is now an error
    fresh = getattr(importlib.import_module("litcifar.models"), name)
    assert fresh is not type(model)
    assert torch.equal(fresh.load_from_checkpoint(path, weights_only=True).eval()(images), model(images))
