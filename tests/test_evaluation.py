"""Evaluation gives exactly the figures of training, from the checkpoint alone."""

import shutil
from pathlib import Path

import pytest
import torch

from litcifar import training
from litcifar.config import EvaluateConfig, TrainConfig, check, compose
from litcifar.evaluation import Evaluation, evaluate
from litcifar.models import ImageClassifier
from tests.conftest import Compose

RECIPES = {
    "mlp": ("model=mlp", "model.hidden=[32]"),
    "cnn": ("model.widths=[4,8]", "model.norm=conv", "augment=standard"),
    "ema": ("model.widths=[4,8]", "model.norm=conv", "ema=0.8"),
    "classes": ("model=mlp", "data.classes=[ship,cat,dog]"),
    "smoothed": ("model=mlp", "model.label_smoothing=0.2", "model.l1=1e-3", "model.loss_reduction=sum"),
    "bf16": ("model.widths=[4,8]", "trainer.precision=bf16-mixed"),
    "mirror": ("model=mlp", "tta=mirror"),
    "bf16_tta": ("model.widths=[4,8]", "trainer.precision=bf16-mixed", "tta=mirror_translate"),
    "whitened": ("model.widths=[8]", "model.stem=whitened", "model.mean=[.5,.5,.5]", "model.std=[.2,.2,.2]"),
}


def config(ckpt: Path, *overrides: str) -> EvaluateConfig:
    return check(compose("evaluate", f"ckpt={ckpt}", *overrides), EvaluateConfig)


@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluate_equals_train(compose: Compose, tmp_path: Path, recipe: str) -> None:
    metrics = training.train(compose(*RECIPES[recipe], "trainer.max_epochs=3"), tmp_path)
    val, test = evaluate(config(tmp_path / "best.ckpt"))
    assert (val.split, test.split) == ("val", "test")
    assert (val.acc, val.loss) == (metrics["val/acc"], metrics["val/loss"])
    assert (test.acc, test.loss) == (metrics["test/acc"], metrics["test/loss"])
    assert (val.tta_acc, test.tta_acc) == (metrics["val/tta_acc"], metrics["test/tta_acc"])


def test_one_split_alone(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp"), tmp_path)
    (only,) = evaluate(config(tmp_path, "split=val"))
    assert only.split == "val"
    assert len(only.labels_N) == 50


def test_test_time_augmentation_can_be_asked_for_and_left_out(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = training.train(compose("model.widths=[4,8]"), tmp_path / "plain")
    augmented = training.train(compose("model.widths=[4,8]", "tta=mirror_translate"), tmp_path / "augmented")
    capsys.readouterr()
    _, plain = evaluate(config(tmp_path / "plain"))
    assert "tta" not in capsys.readouterr().out
    _, test = evaluate(config(tmp_path / "plain", "tta=mirror_translate"))
    assert f"test/tta_acc {augmented['test/tta_acc']:.4f} (mirror_translate)" in capsys.readouterr().out
    _, without = evaluate(config(tmp_path / "augmented", "tta=none"))
    assert (plain.tta_acc, without.tta_acc) == (None, None)
    assert test.tta_acc == augmented["test/tta_acc"]
    assert plain.acc == test.acc == without.acc == metrics["test/acc"] == augmented["test/acc"]
    assert torch.equal(plain.logits_NK, test.logits_NK)  # to the last bit
    assert torch.equal(plain.logits_NK, without.logits_NK)
    assert test.per_class() == plain.per_class()


def test_each_further_view_is_one_more_forward_pass_in_the_precision_of_training(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.train(compose("model.widths=[4]", "trainer.precision=bf16-mixed"), tmp_path)
    forward, passes = ImageClassifier.forward, []

    def noted(model: ImageClassifier, images_BHWC: torch.Tensor) -> torch.Tensor:
        passes.append((len(images_BHWC), model.training, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return forward(model, images_BHWC)

    monkeypatch.setattr(ImageClassifier, "forward", noted)
    (test,) = evaluate(config(tmp_path, "split=test", "tta=mirror_translate"))
    assert passes == 6 * [(40, False, True, False)]
    assert test.tta_logits_NK is not None
    assert (test.tta_logits_NK.shape, test.tta_logits_NK.dtype) == ((40, 10), torch.float32)


def test_the_data_can_lie_elsewhere(compose: Compose, tmp_path: Path, tiny_cifar10: Path) -> None:
    metrics = training.train(compose("model=mlp"), tmp_path / "run")
    (tmp_path / "moved").symlink_to(tiny_cifar10)
    _, test = evaluate(config(tmp_path / "run", f"data.root={tmp_path / 'moved'}"))
    assert test.acc == metrics["test/acc"]


def test_other_images_than_those_of_training_are_noticed(
    compose: Compose, tmp_path: Path, tiny_cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(compose("model=mlp"), tmp_path / "run")
    folder = tmp_path / "other" / "cifar-10-batches-py"
    shutil.copytree(tiny_cifar10 / "cifar-10-batches-py", folder)
    shutil.copy(folder / "data_batch_1", folder / "data_batch_2")
    evaluate(config(tmp_path / "run", f"data.root={tmp_path / 'other'}"))
    assert "not the images that it was trained on" in capsys.readouterr().out


def test_scores_of_each_class_and_the_confusion_matrix_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 0, 0])
    result = Evaluation("test", ["a", "b", "c"], 0.5, 1.0, torch.eye(3)[predicted], labels)
    assert result.confusion().tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    scores = result.per_class()
    assert scores["precision"] == pytest.approx([2 / 4, 1 / 2, 0])
    assert scores["recall"] == pytest.approx([2 / 3, 1 / 2, 0])
    assert scores["F1"] == pytest.approx([4 / 7, 1 / 2, 0])


def test_the_accuracy_with_test_time_augmentation_by_hand() -> None:
    labels, classes = torch.tensor([0, 0, 1, 1]), ["a", "b"]
    plain, augmented = torch.eye(2)[[0, 1, 0, 1]], torch.eye(2)[[0, 1, 1, 1]]
    assert Evaluation("val", classes, 0.5, 1.0, plain, labels, augmented).tta_acc == 0.75
    assert Evaluation("val", classes, 0.5, 1.0, plain, labels).tta_acc is None


def test_the_report_names_every_class(compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained: TrainConfig = compose("model=mlp")
    training.train(trained, tmp_path)
    evaluate(config(tmp_path))
    printed = capsys.readouterr().out
    for name in ("airplane", "truck", "macro average", "precision", "recall", "F1", "val/acc", "test/loss"):
        assert name in printed
