"""Evaluation gives exactly the figures of training, from the checkpoint alone."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from litcifar import training
from litcifar.checkpoints import load
from litcifar.config import EvaluateConfig, TrainConfig, check, train_config
from litcifar.data import CIFAR10DataModule
from litcifar.data.cifar10_files import CLASSES
from litcifar.errors import ConfigError, DataError, MachineError
from litcifar.evaluation import Evaluation, evaluate, print_answers
from litcifar.keys import compose
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
    return check(compose("evaluate", f"ckpt={ckpt}", "figures=false", *overrides), EvaluateConfig)


@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluate_equals_train(compose: Compose, tmp_path: Path, recipe: str) -> None:
    metrics = training.train(compose(*RECIPES[recipe], "trainer.max_epochs=3"), tmp_path)
    val, test = evaluate(config(tmp_path / "best.ckpt"))
    assert (val.split, test.split) == ("val", "test")
    assert (val.acc, val.loss) == (metrics["val/acc"], metrics["val/loss"])
    assert (test.acc, test.loss) == (metrics["test/acc"], metrics["test/loss"])
    assert (val.tta_acc, test.tta_acc) == (metrics["val/tta_acc"], metrics["test/tta_acc"])


def test_convolutions_are_not_tried_out_as_in_training(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `trainer.benchmark=true`; an evaluation alone has none tried out, and other algorithms may round otherwise."""
    seen = []
    evaluated = ImageClassifier.test_step

    def test_step(self: ImageClassifier, *batch: Any) -> Any:
        seen.append(torch.backends.cudnn.benchmark)
        return evaluated(self, *batch)

    monkeypatch.setattr(ImageClassifier, "test_step", test_step)
    training.train(compose("model=mlp", "trainer.benchmark=true", "trainer.max_epochs=1"), tmp_path)
    assert seen == [False]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_the_figures_image_by_image(compose: Compose, tmp_path: Path) -> None:
    metrics = training.train(compose("model=mlp", "model.hidden=[8]", "data.classes=[ship,cat,dog]"), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    results = evaluate(config(tmp_path, "figures=true"))
    data = CIFAR10DataModule(**compose().data.model_dump(include={"root", "verify", "val_size"}))
    train_images, train_labels, test_images, test_labels = data.read()
    of_file = {"val": (train_images, train_labels), "test": (test_images, test_labels)}
    model = load(tmp_path).model
    for result in results:
        folder = tmp_path / "evaluation" / "best" / result.split
        found = rows(folder / "predictions.csv")
        assert list(found[0]) == ["index", "label", "prediction", "p_ship", "p_cat", "p_dog"]
        right = sum(row["label"] == row["prediction"] for row in found)
        acc = torch.tensor(right, dtype=torch.float32) / len(found)
        assert acc.item() == result.acc == metrics[f"{result.split}/acc"]
        images, labels = of_file[result.split]
        indices = [int(row["index"]) for row in found]
        assert [row["label"] for row in found] == [CLASSES[labels[index]] for index in indices]
        with torch.no_grad():
            expected = model(torch.from_numpy(images[indices])).softmax(1)
        probabilities = [[float(row[f"p_{name}"]) for name in ("ship", "cat", "dog")] for row in found]
        assert torch.tensor(probabilities).allclose(expected, atol=1e-6)
        assert [sum(row) for row in probabilities] == pytest.approx([1] * len(found), abs=1e-8)
        assert {path.stem for path in (folder / "figures").iterdir()} == {
            *("confusion_matrix", "per_class", "mistakes", "reliability", "first_layer")
        }
        page = (folder / "report.html").read_text()
        assert f"{100 * result.acc:.2f} % on the {'validation' if result.split == 'val' else 'test'} set" in page
    assert set(indices) <= set(range(40))
    assert {path: path.read_bytes() for path in before} == before


def test_predictions_can_be_written_elsewhere(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(compose("model=mlp"), tmp_path / "run")
    evaluate(config(tmp_path / "run" / "last.ckpt", "split=test", f"folder={tmp_path / 'else'}"))
    assert [path.name for path in (tmp_path / "else" / "test").iterdir()] == ["predictions.csv"]
    assert f"test      {tmp_path / 'else' / 'test' / 'predictions.csv'}" in capsys.readouterr().out
    evaluate(config(tmp_path / "run" / "last.ckpt", "split=val"))
    assert [path.name for path in (tmp_path / "run" / "evaluation").iterdir()] == ["last"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.train(compose("model=mlp"), tmp_path)
    (tmp_path / "evaluation").touch()
    monkeypatch.setattr(CIFAR10DataModule, "read", lambda self: pytest.fail("the images were read"))
    with pytest.raises(MachineError, match=r"evaluation' is no folder, and .* - give another one: folder=\.\.\."):
        evaluate(config(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(MachineError, match=r"cannot be written - give another folder: folder=\.\.\."):
        evaluate(config(tmp_path, f"folder={tmp_path / 'new' / 'one'}"))
    assert not (tmp_path / "new").exists()


def test_probabilities_predictions_and_mistakes_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.5 - 1e-3, 1e-3], [0.1, 0.7, 0.2], [0.2, 0.0, 0.8], [0.6, 0.3, 0.1]])
    labels = torch.tensor([0, 0, 1, 1])
    result = Evaluation("val", ["a", "b", "c"], 0.25, 1.0, probabilities.log(), labels, indices_N=labels + 7)
    assert torch.allclose(result.probabilities_NK, probabilities.double(), atol=1e-7)
    assert result.predictions_N.tolist() == [0, 1, 2, 0]
    assert result.mistakes().tolist() == [2, 1, 3]
    # Confidences 0.5, 0.7, 0.8, 0.6 lie in bins of their own; only the first is right.
    assert result.calibration_error() == pytest.approx((0.5 + 0.7 + 0.8 + 0.6) / 4, abs=1e-6)
    lines = result.predictions_csv().splitlines()
    assert lines[0] == "index,label,prediction,p_a,p_b,p_c"
    index, label, prediction, *written = lines[3].split(",")
    assert (index, label, prediction) == ("8", "b", "c")
    assert [float(p) for p in written] == pytest.approx([0.2, 0.0, 0.8])


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


def test_images_of_other_classes_are_refused(tmp_path: Path, tiny_image_folder: Path) -> None:
    own = ["data=image_folder", f"data.root={tiny_image_folder}", "data.val_size=10", "logger=none", "figures=false"]
    training.train(train_config("model=mlp", "trainer.max_epochs=1", *own), tmp_path / "run")
    other = tmp_path / "images"
    shutil.copytree(tiny_image_folder, other)
    for split in ("train", "test"):
        (other / split / "blue").rename(other / split / "sky")
    with pytest.raises(DataError, match="classes of these images are red, sky, the network's blue, red - give"):
        evaluate(config(tmp_path / "run", f"data.root={other}"))
    with pytest.raises(
        ConfigError, match=r"data\.verify=False: the run's data set, ImageFolder, has no such key - leave"
    ):
        evaluate(config(tmp_path / "run", "data.verify=false"))


def test_a_device_that_is_not_there_is_refused(compose: Compose, tmp_path: Path) -> None:
    training.train(compose("model=mlp"), tmp_path)
    with pytest.raises(MachineError, match="accelerator=gpu: none was found - use auto"):
        evaluate(config(tmp_path, "accelerator=gpu"))


def test_scores_of_each_class_and_the_confusion_matrix_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 0, 0])
    result = Evaluation("test", ["a", "b", "c"], 0.5, 1.0, torch.eye(3)[predicted], labels)
    assert result.confusion().tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    scores = result.per_class()
    assert scores["precision"] == pytest.approx([2 / 4, 1 / 2, 0])
    assert scores["recall"] == pytest.approx([2 / 3, 1 / 2, 0])
    assert scores["F1"] == pytest.approx([4 / 7, 1 / 2, 0])


def test_the_macro_average_leaves_out_a_class_without_image_and_answer() -> None:
    logits, labels = torch.eye(4)[[0, 0, 1]], torch.tensor([0, 1, 1])  # neither c nor d occurs
    macro = Evaluation("val", ["a", "b", "c", "d"], 0.5, 1.0, logits, labels).macro()
    assert macro == pytest.approx({"precision": 3 / 4, "recall": 3 / 4, "F1": 2 / 3})


@pytest.mark.parametrize(("classes", "fits"), [(10, True), (20, True), (100, False)])
def test_a_confusion_matrix_that_does_not_fit_is_not_printed(classes: int, fits: bool) -> None:
    labels = torch.arange(classes)
    names = [f"class {number}" for number in range(classes)]
    result = Evaluation("val", names, 0.5, 1.0, torch.eye(classes), labels)
    console = Console(width=20 * 4 + 6, record=True, file=io.StringIO())
    print_answers(result, console)
    printed = console.export_text()
    assert ("row = true class" in printed) == fits
    assert ("confusion matrix of 100 classes is wider than this screen" in printed) != fits


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
