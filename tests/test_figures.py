"""The pictures show the numbers they are given."""

from pathlib import Path

import numpy as np
import pytest
import torch

from litcifar import figures
from litcifar.evaluation import Evaluation

ROWS = [
    {"epoch": 1, "train/acc": 0.3, "train/loss": 2.0, "val/acc": 0.35, "val/loss": 1.8},
    {"epoch": 2, "train/acc": 0.5, "train/loss": 1.5},  # an epoch without validation
    {"epoch": 3, "train/acc": 0.6, "train/loss": 1.2, "val/acc": 0.55, "val/loss": 1.3},
]


@pytest.fixture(params=[3, 10])
def evaluation(request: pytest.FixtureRequest) -> Evaluation:
    count = request.param
    labels = torch.arange(count).repeat(3)
    logits = torch.nn.functional.one_hot(labels, count).float()
    logits[0] = logits[1]  # one mistake: class 0 taken for class 1
    return Evaluation("test", [f"class{i}" for i in range(count)], 0.9, 0.1, logits, labels)


def test_curves_draw_training_and_validation_on_shared_axes() -> None:
    accuracy, loss = figures.curves(ROWS).axes
    (train, val), (train_loss, _) = accuracy.get_lines(), loss.get_lines()
    assert train.get_xydata() == pytest.approx(np.array([[1, 30], [2, 50], [3, 60]]))
    assert val.get_xydata() == pytest.approx(np.array([[1, 35], [3, 55]]))
    assert train_loss.get_xydata() == pytest.approx(np.array([[1, 2.0], [2, 1.5], [3, 1.2]]))
    assert (accuracy.get_ylabel(), loss.get_ylabel()) == ("top-1 accuracy, %", "loss")
    legend = accuracy.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["train", "val"]


def test_the_confusion_matrix_writes_every_count(evaluation: Evaluation) -> None:
    (axes,) = figures.confusion_matrix(evaluation).axes
    count = len(evaluation.classes)
    written = [int(text.get_text()) for text in axes.texts]
    assert torch.tensor(written).view(count, count).equal(evaluation.confusion())
    assert [label.get_text() for label in axes.get_yticklabels()] == evaluation.classes
    assert "90.00 %" in axes.get_title()


def test_a_run_has_both_as_files(evaluation: Evaluation, tmp_path: Path) -> None:
    figures.draw_run(tmp_path / "figures", ROWS, evaluation)
    for name in ("curves.png", "confusion_matrix.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")
