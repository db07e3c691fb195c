"""A look at a data set before training: how many images of which class, and what augmentation makes of them."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from litcifar import figures, run_folder, style
from litcifar.config import LookConfig
from litcifar.console import console as make_console
from litcifar.console import quiet, short
from litcifar.data import ImageDataModule
from litcifar.training import prepare

ROWS = 20  # of a picture: more classes are left out of it


def look(config: LookConfig) -> dict[str, dict[str, int]]:
    """Prints and returns the number of images of each class in each split; writes images.png and augmented.png.

    Raises ConfigError, DataError and MachineError.
    """
    console = make_console()
    quiet()
    folder = Path(config.folder)
    run_folder.check_writable(folder, "folder")
    data, config, _ = prepare(config, console)
    data.setup()
    counts = data.class_counts()
    table = Table(title=f"{data.name}: images of each class", title_justify="left")
    for column in ("class", *counts):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name in data.classes:
        table.add_row(name, *(f"{of_class[name]:,}" for of_class in counts.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(of_class.values()):,}" for of_class in counts.values()))
    console.print(table)
    height, width, channels = data.images("train", 1).shape[1:]
    console.print(f"shape       {height} x {width} x {channels}, uint8")
    console.print(f"fingerprint {data.fingerprint} (SHA-256 of the images and labels)")

    pictures = {"images": of_each_class(data, config.columns), "augmented": augmented(data, config.columns)}
    for name, figure in pictures.items():
        path = folder / f"{name}.png"
        run_folder.write(path, style.png(figure))
        console.print(f"{name:11} {short(path)}", soft_wrap=True)
    return counts


def of_each_class(data: ImageDataModule, columns: int = 10) -> Figure:
    """The first training images of each class, a row for each; of the first 20 classes."""
    images_NHWC, labels_N = data.images("train"), data.labels("train")
    shown, captions = [], []
    for k, name in enumerate(data.classes[:ROWS]):
        row = list(images_NHWC[(labels_N == k).nonzero().flatten()[:columns]].numpy())
        missing = columns - len(row)
        shown += row + missing * [np.full_like(images_NHWC[0].numpy(), 255)]
        captions += (len(row) * [figures.short(name)]) + missing * [""]
    return figures.image_grid(shown, captions, columns, f"Training images of '{data.name}'")


def augmented(data: ImageDataModule, columns: int = 10) -> Figure:
    """The first training image of each class, a row for each: as it is, then as epoch after epoch of a run shows it."""
    assert data.augment is not None
    images_NHWC, labels_N = data.images("train"), data.labels("train")
    of_class = [(labels_N == k).nonzero().flatten()[:1] for k in range(min(len(data.classes), ROWS))]
    firsts = torch.cat(of_class)
    images_BHWC, labels_B, indices_B = images_NHWC[firsts], labels_N[firsts], data.indices("train")[firsts]
    epochs = columns - 1
    views = [(images_BHWC, labels_B)]
    views += [data.augment(images_BHWC, labels_B, n, 0, indices_B, progress=n / epochs) for n in range(epochs)]
    shown = [images[place].numpy() for place in range(len(firsts)) for images, _ in views]
    captions = [figures.label_text(labels[place], data.classes) for place in range(len(firsts)) for _, labels in views]
    return figures.image_grid(shown, captions, columns, "As they are (left), and augmented, epoch after epoch")
