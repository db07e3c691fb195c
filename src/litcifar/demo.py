"""A page in the browser: an image is dropped or drawn, and the network says what it sees; with what is known of it.

Shape suffixes: N images, H height, W width, C channels.
"""

import base64
import binascii
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from litcifar import checkpoints, templates
from litcifar.checkpoints import Checkpoint
from litcifar.config import TTA, DemoConfig, TrainConfig, WhereConfig
from litcifar.console import quiet, short
from litcifar.data import ShapesDataModule, shapes
from litcifar.data.image_file import decode, quoted
from litcifar.errors import DataError, UserError, explained, require
from litcifar.machine import device, signals
from litcifar.models import ImageClassifier
from litcifar.prediction import printable, probabilities
from litcifar.report import css_width
from litcifar.run_folder import BEST, FIGURES, METRICS, read_metrics

if TYPE_CHECKING:
    import gradio as gr

EXAMPLES = 30  # at most; of each class as many
MOST_CLASSES = 20  # whose probabilities are shown
WAITING = 32  # requests; the next one is told to come again
AT_ONCE = 2  # requests: each may hold an image of 50 megapixels a few times over
KEPT_SECONDS = 60  # of an image that was dropped, which the page shows
MAX_FIGURE = 5_000_000  # bytes
PNG = b"\x89PNG\r\n\x1a\n"
TITLES = {  # of a run's figures, in this order; others come after them under their file's name
    "curves": "Accuracy and loss of each epoch",
    "confusion_matrix": "Confusion matrix: a row is a true class, a column what the network said",
    "per_class": "Precision, recall and F1 of each class",
    "mistakes": "The most confident mistakes, with predicted and true classes",
    "reliability": "Confidence against accuracy",
    "first_layer": "Weights of the first layer",
    "training_images": "Training images after augmentation",
    "learning_rate": "Learning rate of each epoch",
}
ENVIRONMENT = {  # read by Gradio and what it imports: nothing is reported, asked or loaded from outside
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),  # requests: else it sums up the last 10,000 after each
}


@dataclass(frozen=True)
class Examples:
    """images_NHWC: uint8, as they are in the test set. labels: their classes. note: what a reader has to know of them.
    why: there are none, for the terminal: it names folders.
    """

    images_NHWC: np.ndarray
    labels: Sequence[str]
    note: str = ""
    why: str = ""


@dataclass(frozen=True)
class Known:
    """What the page says of a network. facts: names and values. figures: PNG files by name, in their order."""

    name: str
    facts: Mapping[str, str]
    figures: Mapping[str, bytes]
    note: str = ""


def demo(config: DemoConfig) -> None:
    """Serves the page until a signal comes, and prints where it is once it is there.

    Raises CheckpointError, and MachineError where Gradio is missing or the port is taken.
    """
    quiet()
    require("litcifar-demo", "gradio", extra="demo")
    from litcifar import server

    checkpoint = checkpoints.load(config.ckpt, config.trust)
    trained, model = checkpoint.config, checkpoint.model.to(device.chosen(config.accelerator))
    with tempfile.TemporaryDirectory(prefix="litcifar-demo-") as uploads:
        os.environ |= ENVIRONMENT | {"GRADIO_TEMP_DIR": uploads, "GRADIO_EXAMPLES_CACHE": f"{uploads}/examples"}
        with server.listen(config.host, config.port) as listening:
            with signals.deferred():
                import gradio  # noqa: F401  # seconds: here, where nothing else can go wrong any more
            warnings.filterwarnings("ignore", module="PIL")  # on odd metadata of an image; what matters is an error
            print(printable(f"{short(checkpoint.path)}: {trained.name}, {', '.join(model.classes)}"), flush=True)
            examples = examples_of(trained, checkpoint.provenance.fingerprint, config.data)
            if examples.note:
                print(printable(f"examples  {examples.why or examples.note}"))
            blocks = page(model, known_of(checkpoint), examples, config.tta)
            host = f"[{config.host}]" if ":" in config.host else config.host  # as an address has it
            address = f"http://{host}:{listening.getsockname()[1]}"
            app = server.application(blocks, {host.lower(), "127.0.0.1", "localhost"}, Path(uploads), **look())
            server.serve(app, listening, lambda: print(f"demo      {address} - Ctrl-C ends it", flush=True))


def page(model: ImageClassifier, known: Known, examples: Examples, tta: TTA) -> "gr.Blocks":
    """Three tabs: an image or an example, a drawing, and what is known of the network."""
    import gradio as gr

    shown = min(len(model.classes), MOST_CLASSES)
    options: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "network", "show_progress": "hidden"}

    def of_file(file: dict[str, Any] | None) -> Any:
        return answer(model, Path(file["path"]), tta) if file else (None, "")

    def of_drawing(event: gr.EventData) -> Any:
        with tempfile.TemporaryDirectory() as folder:  # on Windows no open file is opened again by its name
            file = Path(folder, "drawing.png")
            file.write_bytes(png_of(event.image))
            return answer(model, file, tta)

    def of_example(event: gr.SelectData) -> Any:
        image, label = examples.images_NHWC[event.index], examples.labels[event.index]
        return None, *answered(model, image, tta, f"An example of the test set. True class: {label}.")

    def label() -> gr.Label:
        return gr.Label(num_top_classes=shown, label="What it sees")

    with gr.Blocks(
        title=f"{known.name} - litcifar", analytics_enabled=False, delete_cache=(10, KEPT_SECONDS)
    ) as blocks:
        gr.HTML(_html("head", known=known, classes=model.classes))
        with gr.Tab("Image"):
            with gr.Row():
                with gr.Column(min_width=300):
                    image = gr.Image(
                        type="filepath",
                        image_mode=None,
                        sources=["upload", "clipboard"],
                        label="Image",
                        height=300,
                        buttons=[],
                        elem_id="image",
                    )
                    seen = gr.HTML()
                with gr.Column(min_width=300):
                    outputs = [label(), seen]
            image.input(of_file, image, outputs, preprocess=False, trigger_mode="always_last", **options)
            if len(examples.labels):
                gr.HTML(_html("examples"))
                gallery = gr.Gallery(
                    list(zip(map(Image.fromarray, examples.images_NHWC), examples.labels, strict=True)),
                    format="png",
                    show_label=False,
                    allow_preview=False,
                    height="auto",
                    buttons=[],
                    interactive=False,
                    elem_id="examples",
                )
                gallery.select(of_example, None, [image, *outputs], **options)
            if examples.note:
                gr.HTML(_html("note", text=examples.note))
        with gr.Tab("Draw"), gr.Row():
            with gr.Column(min_width=300):
                canvas = gr.HTML(html_template=_html("draw"), js_on_load=templates.text("demo.js"), elem_id="draw")
                seen = gr.HTML()
            with gr.Column(min_width=300):
                canvas.submit(of_drawing, None, [label(), seen], trigger_mode="always_last", **options)
        with gr.Tab("About this model"):
            pictures = {TITLES.get(name, name): content for name, content in known.figures.items()}
            gr.HTML(_html("about", known=known, pictures=pictures))
    return blocks.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


def answer(model: ImageClassifier, path: Path, tta: TTA) -> tuple[dict[str, float] | None, str]:
    """The probability of each class and the image as the network sees it, as HTML; or None, and why there is no answer.

    The file is read and answered as litcifar-predict does it.
    """
    try:
        image = decode(path, model.image_size)
        return answered(model, image.pixels, tta, f"({image.note})" if image.note else "")
    except DataError as error:
        problem = str(error).removeprefix(quoted(path)).strip().replace(str(path), "it")
        return None, _html("problem", text=f"The file {problem}.")
    except Exception as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return None, _html("problem", text="That did not work - where litcifar-demo was started it says why.")


def answered(model: ImageClassifier, pixels: np.ndarray, tta: TTA, note: str) -> tuple[dict[str, float], str]:
    """What `answer` gives, for an image of the network's size, uint8 [H, W, 3]."""
    (shares,) = probabilities(model, torch.from_numpy(pixels.copy())[None], tta).tolist()
    seen = _html("seen", png=_png(pixels), size=model.image_size, note=note)
    return dict(zip(model.classes, shares, strict=True)), seen


def png_of(address: Any) -> bytes:
    """The file in a data URI, as a browser gives a canvas; nothing where it is none."""
    kind, _, content = address.partition(",") if isinstance(address, str) else ("", "", "")
    try:
        return base64.b64decode(content, validate=True) if kind == "data:image/png;base64" else b""
    except binascii.Error:
        return b""


def examples_of(trained: TrainConfig, fingerprint: str, where: WhereConfig) -> Examples:
    """The first test images of each class, where the set is on this machine: nothing is loaded from the network.

    fingerprint: of the images that the network was trained on.
    """
    try:
        data = checkpoints.data_of(trained.with_data(where))
        if isinstance(data, ShapesDataModule):  # its training images take many times as long
            images, labels = shapes.draw(data.sizes[1], seed=1)
            names, changed = np.array(data.class_names)[labels], False
        else:
            data.setup()
            images, names = data.images("test").numpy(), np.array(data.classes)[data.labels("test")]
            changed = data.fingerprint != fingerprint
        each = max(1, EXAMPLES // len(data.classes))
        rows = [row for name in data.classes for row in np.flatnonzero(names == name)[:each]][:EXAMPLES]
    except (UserError, OSError) as error:
        note = "There are no examples: the test set is not at hand. Where litcifar-demo was started it says why."
        return Examples(np.empty((0, 0, 0, 3), np.uint8), [], note, f"none: {error}")
    note = "These are not the images that it was trained on." if changed else ""
    return Examples(images[rows], names[rows].tolist(), note)


def known_of(checkpoint: Checkpoint) -> Known:
    """What the checkpoint and the files beside it say; those of a run are of its best.ckpt."""
    path, provenance, model = checkpoint.path, checkpoint.provenance, checkpoint.model
    facts = {"parameters": f"{sum(weight.numel() for weight in model.net.parameters()):,}"}
    try:
        metrics = read_metrics(path.parent) or {}
    except (OSError, ValueError):
        metrics = {}
    if path.name != BEST:
        metrics = {}
    for split, name in {"test": "test accuracy", "val": "validation accuracy"}.items():
        accuracy = metrics.get(f"{split}/acc")
        if isinstance(accuracy, float):
            facts[name] = f"{100 * accuracy:.2f} %"
    facts |= {
        "trained on": provenance.data,
        "epoch": str(checkpoint.epoch),
        "seed": str(checkpoint.config.seed),
        "image": f"{model.image_size} x {model.image_size} pixels",
        "precision": provenance.precision,
    }
    figures = _figures(path.parent / FIGURES) if path.name == BEST else {}
    note = "" if metrics else f"There is no {METRICS} of this checkpoint beside it: its accuracy is not known here."
    return Known(checkpoint.config.name, facts, figures, note)


def look() -> dict[str, Any]:
    """The page's theme, style and script: a light page, in fonts that every machine has."""
    import gradio as gr

    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "DejaVu Sans Mono", "monospace"]
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=mono)
    return {"theme": theme, "css": templates.text("demo.css"), "js": "() => document.body.classList.remove('dark')"}


def _figures(folder: Path) -> dict[str, bytes]:
    found = {}
    for file in folder.glob("*.png"):
        if file.is_file() and file.stat().st_size <= MAX_FIGURE and (content := file.read_bytes()).startswith(PNG):
            found[file.stem] = content
    return {name: found[name] for name in [*TITLES, *sorted(found.keys() - TITLES.keys())] if name in found}


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _html(part: str, **values: Any) -> str:
    """A macro of demo.html; what it is given is escaped."""
    return str(getattr(templates.template("demo.html", css_width=css_width).module, part)(**values))
