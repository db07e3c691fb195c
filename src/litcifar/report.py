"""A run, or an evaluation, on one page with its pictures inside: it opens offline, wherever it is sent."""

import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from litcifar import run_folder, style
from litcifar.models.layers import Layer
from litcifar.run_folder import FIGURES, REPORT
from litcifar.templates import template

if TYPE_CHECKING:
    from litcifar.evaluation import Evaluation

SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Report:
    """What a page says.

    headline, facts: what is said in large letters at the top, and in a table at the end: names and values.
    commands: what each does, and how it is written. layers: as `layers.layers` gives them, the last being the total.
    class_counts: of each split; none for an evaluation.
    """

    title: str
    subtitle: str
    headline: Mapping[str, str]
    evaluation: "Evaluation"
    layers: Sequence[Layer]
    config: Mapping[str, Any]
    commands: Mapping[str, str]
    facts: Mapping[str, str]
    notes: Sequence[str] = ()
    class_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def html(self, pictures: Mapping[str, bytes]) -> str:
        """The page. pictures: PNG files by name: curves, learning_rate, confusion_matrix, ...; any may be missing."""
        scores, images = self.evaluation.per_class(), self.evaluation.confusion().sum(1).tolist()
        rows = [(name, images[k], [of[k] for of in scores.values()]) for k, name in enumerate(self.evaluation.classes)]
        return template("report.html", css_width=css_width).render(
            report=self,
            split=SPLITS[self.evaluation.split],
            scores=scores,
            per_class=[*rows, ("macro average", sum(images), [*self.evaluation.macro().values()])],
            config=OmegaConf.to_yaml(OmegaConf.create(dict(self.config))),
            pictures=pictures,
        )

    def write(self, folder: Path, drawn: Mapping[str, Figure]) -> dict[str, bytes]:
        """Writes report.html and figures/<name>.png into a folder; returns the PNG files by name. MachineError."""
        pictures = {name: style.png(figure) for name, figure in drawn.items()}
        for name, content in pictures.items():
            run_folder.write(folder / FIGURES / f"{name}.png", content)
        run_folder.write(folder / REPORT, self.html(pictures).encode())
        return pictures


def to_tensorboard(folder: Path, pictures: Mapping[str, bytes], step: int) -> None:
    """Adds PNG files to the folder of TensorBoard's events, as they are: its own `add_image` would make them anew."""
    from tensorboard.compat.proto.event_pb2 import Event  # here because a run without TensorBoard needs none of it
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for name, content in pictures.items():
        width, height = size(content)
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
        summary = Summary(value=[Summary.Value(tag=f"figures/{name}", image=image)])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()


def css_width(png: bytes) -> int:
    """In a screen's pixels, 96 an inch: letters of the same size in all pictures."""
    return round(96 / style.DPI * size(png)[0])


def size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG file, in pixels, which stand at the beginning of it (PNG specification, 11.2.1)."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height
