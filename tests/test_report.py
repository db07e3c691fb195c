"""The page of a run: whole, by itself, and about the right run; and no picture can lose one."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from litcifar import figures, style, training
from litcifar.config import TrainConfig, check
from litcifar.evaluation import Evaluation
from litcifar.keys import compose
from litcifar.models import MLP
from litcifar.models.layers import layers
from litcifar.report import Report, size
from tests.conftest import Compose

VOID = {"meta", "img", "br"}
PICTURES = {
    "curves",
    "learning_rate",
    "confusion_matrix",
    "per_class",
    "mistakes",
    "reliability",
    "training_images",
    "first_layer",
}
NASTY = ["<script>alert(1)</script>", "a & b \"quoted\" 'twice'", "</td><img src=http://example.org/x.png>", "$x_1"]


class Page(HTMLParser):
    """A page's texts, tags and attributes; fails where a tag is not closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    @property
    def images(self) -> list[bytes]:
        sources = [str(attributes["src"]) for tag, attributes in self.attributes if tag == "img"]
        return [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]


def assert_alone(page: Page) -> None:
    """Nothing is fetched from elsewhere, and nothing runs."""
    for tag, attributes in page.attributes:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not [key for key in attributes if key.startswith("on") or key in ("href", "srcset")]
        assert str(attributes.get("src", "data:")).startswith("data:")
    styles = [text for text in page.texts if "color-scheme" in text]
    assert styles
    assert not re.search(r"url\(|@import", "".join(styles))


def run_page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answers() -> Evaluation:
    labels = torch.arange(12) % 4
    logits = 3 * torch.eye(4)[labels]
    logits[0] = logits[1]
    return Evaluation("test", NASTY, 11 / 12, 0.25, logits, labels)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory, tiny_cifar10: Path) -> tuple[Path, dict[str, Any]]:
    """A run of two epochs with everything that is drawn."""
    folder = tmp_path_factory.mktemp("runs") / "cnn run"
    given = [
        "data.val_size=50",
        "data.batch_size=16",
        "model.widths=[4]",
        "augment=standard",
        f"data.root={tiny_cifar10}",
    ]
    config = compose("train", *given, "data.verify=false", "trainer.max_epochs=2", "trainer.precision=32-true")
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["model=conv_pool", "data.root=a b", "seed=0"]))
    before = config | {"trainer": config["trainer"] | {"max_epochs": 1}}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(before))
    return folder, training.train(check(config, TrainConfig), folder)


def test_a_run_leaves_its_pictures_and_a_page_that_holds_each(cnn: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = cnn
    files = {path.stem: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert files.keys() == PICTURES
    page = run_page(folder)
    assert_alone(page)
    assert sorted(page.images) == sorted(files.values())
    widths = [int(str(attributes["width"])) for tag, attributes in page.attributes if tag == "img"]
    assert sorted(widths) == sorted(round(size(content)[0] * 96 / 150) for content in files.values())


def test_the_page_says_what_metrics_json_says(cnn: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = cnn
    page = run_page(folder)
    for key in ("test/acc", "val/acc"):
        assert f"{100 * metrics[key]:.2f} %" in page.texts
    assert f"{metrics['test/loss']:.4f}" in page.texts
    assert f"{metrics['params']:,}" in page.texts
    assert f"{metrics['best_epoch']} of 2" in page.texts
    assert f"conv_pool: {100 * metrics['test/acc']:.2f} % on the test set" in page.texts
    assert "4x16x16" in page.texts  # the pool's output
    assert metrics["fingerprint"] in page.texts
    (config,) = (text for text in page.texts if "\nseed: 0\n" in text)
    assert yaml.safe_load(config) == metrics["config"]


def test_the_page_says_how_to_go_on(cnn: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = cnn
    texts = run_page(folder).texts
    assert "litcifar-train model=conv_pool 'data.root=a b' seed=0 trainer.max_epochs=2" in texts
    assert f"litcifar-evaluate 'ckpt={folder}/best.ckpt'" in texts  # its name has a space
    assert f"litcifar-train 'resume={folder}' trainer.max_epochs=4" in texts


def test_tensorboard_gets_the_same_files(cnn: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = cnn
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {f"figures/{name}" for name in PICTURES}
    for name in PICTURES:
        (image,) = events.Images(f"figures/{name}")
        assert image.encoded_image_string == (folder / "figures" / f"{name}.png").read_bytes()
        assert image.step == 20
    assert len(events.Scalars("val/acc")) == 2  # which are still there


def test_a_run_without_a_test_and_without_a_command_reports_on_validation(compose: Compose, tmp_path: Path) -> None:
    given = ("model=mlp", "model.hidden=[]", "data.classes=[ship,cat]", "test=false", "figures=true")
    metrics = training.train(compose(*given, "trainer.max_epochs=1"), tmp_path)
    page = run_page(tmp_path)
    assert f"mlp: {100 * metrics['val/acc']:.2f} % on the validation set" in page.texts
    assert "test accuracy" not in page.text
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == PICTURES
    (code,) = (text for text in page.texts if "read_metrics" in text)
    compile(code, "page", "exec")
    assert not (tmp_path / "tensorboard").exists()


def test_figures_can_be_left_out(compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training.train(compose("model=mlp", "figures=false"), tmp_path)
    assert not (tmp_path / "figures").exists()
    assert not (tmp_path / "report.html").exists()
    assert "report" not in capsys.readouterr().out


def test_a_failure_to_draw_is_one_line_and_loses_nothing(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[/no] such\nfont")

    monkeypatch.setattr(figures, "reliability", fail)
    metrics = training.train(compose("model=mlp", "figures=true"), tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert "No figures and no report: RuntimeError: [/no] such font - the run itself is whole" in printed
    assert not any("report.html" in line for line in printed)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())


def test_names_are_escaped(answers: Evaluation, tmp_path: Path) -> None:
    page_of = Report(
        title=NASTY[0],
        subtitle=NASTY[1],
        headline={NASTY[2]: NASTY[0]},
        evaluation=answers,
        layers=layers(MLP(classes=NASTY, hidden=[])),
        config={"name": NASTY[0], "hidden": [1, 2]},
        commands={"Reproduce": f"litcifar-train name={NASTY[1]}"},
        facts={"data": NASTY[2]},
        notes=[NASTY[0]],
        class_counts={"train": dict.fromkeys(NASTY, 5)},
    )
    page = Page(page_of.html({}))
    assert_alone(page)
    for name in NASTY:
        assert name in page.texts
    assert page.images == []
    drawn = figures.of_answers(answers, torch.zeros(12, 32, 32, 3, dtype=torch.uint8), MLP(classes=NASTY, hidden=[]))
    written = page_of.write(tmp_path, drawn)
    assert sorted(run_page(tmp_path).images) == sorted(written.values())


def test_the_table_of_classes_by_hand(answers: Evaluation) -> None:
    page = Page(Report("t", "s", {}, answers, layers(MLP(classes=NASTY)), {}, {}, {}).html({}))
    row = page.texts.index(NASTY[0])
    cells = [text for text in page.texts[row:] if text]
    assert cells[:5] == [NASTY[0], "3", "100.0", "66.7", "80.0"]  # one of three is taken for the next class
    assert cells[5:10] == [NASTY[1], "3", "75.0", "100.0", "85.7"]
    macro = cells[cells.index("macro average") :][:5]
    assert macro == ["macro average", "12", "93.8", "91.7", "91.4"]


def test_the_size_of_a_picture_is_read_from_its_file() -> None:
    assert size(style.png(figures.learning_rate([]))) == (1710, 345)
