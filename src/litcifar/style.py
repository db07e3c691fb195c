"""How all pictures look, and the files that they become."""

import functools
import io
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure

BLUE, RED, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#5F6B76"  # Okabe and Ito's, which all can tell apart; a grey
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # which comes with matplotlib: the same pictures everywhere
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "grid.color": "#DFE3E7",
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called $a$
}
DPI = 150

Options = ParamSpec("Options")


def styled(draw: Callable[Options, Figure]) -> Callable[Options, Figure]:
    """Draws in this module's style, and leaves the user's as it was."""

    @functools.wraps(draw)
    def drawn(*args: Options.args, **kwargs: Options.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def png(figure: Figure) -> bytes:
    """The picture as a PNG file."""
    content = io.BytesIO()
    with warnings.catch_warnings(), mpl.rc_context(STYLE):  # ticks are made when they are first drawn
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a class's name: a box is drawn
        figure.savefig(content, format="png", dpi=DPI, pil_kwargs={"compress_level": 4})  # 6 takes twice as long
    return content.getvalue()
