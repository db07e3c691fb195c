"""The templates of the pages; whatever is put into them is escaped."""

import base64
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@functools.cache  # an answer of the demo takes several
def template(name: str, **filters: Callable[..., Any]) -> Template:
    """A file of this folder, to be rendered; a value that it lacks is an error."""
    loader = PackageLoader("litcifar")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"embedded": embedded, **filters}
    return environment.get_template(name)


def embedded(png: bytes) -> str:
    """A picture as an address, for a page that needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def text(name: str) -> str:
    """A file of this folder as it is."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
