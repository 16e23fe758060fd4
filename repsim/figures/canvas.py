"""What all figures share: sizes, colours, captions, and how they are saved.

Only matplotlib's object interface is used: no pyplot, no display, no global setting is read into or changed. A figure
made here belongs to whoever asked for it and goes away with its last reference.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.figures.lettering import dress, fold, plain
from repsim.results.variables import RELATIONS
from repsim.runtime.files import replacing
from repsim.study.reading import strictest

FORMATS: dict[str, dict[str, None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""What can be saved, each with the metadata that would make two equal figures differ."""

COLUMN, PAGE = 3.3, 7.0
"""Inches: the width of a column of a paper and of its page."""
SMALLEST, LARGEST = 6.0, 9.0
"""Points: layer names; smaller cannot be read in print."""
TITLE, TEXT, SMALL = 10.0, 9.0, 8.0
"""Points, of heatmaps: titles; axis labels; the colour bar's numbers and the caption."""
NOTE = 6.5
"""Points, of figures at column width: numbers, legends, captions."""
LEADING = 1.25
"""The height of a line of text over its font size, with some air."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008), told apart whatever cones an eye has; the yellow, too bright for white paper, is left out."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
"""Beside the colours, for print without any."""
_AROUND = 4.0  # inches: room for any text around axes, until it is known how much it takes
PAD = 0.06
"""Inches at both sides: letters are a little wider at some resolutions than at that of the layout."""
_SCREEN = 110  # dots per inch in notebooks
_LINES = ("-", "--", ":")
NARROW = 2.0
"""Inches: text is not folded to less than this."""


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as .png (200 dots per inch), .pdf (fonts embedded) or .svg (text stays text).

    An older file is replaced, and only by a complete one. Equal figures give equal bytes: no dates, no random ids.

    Raises
    ------
    InvalidInputError
        For another suffix.
    OutputError
        Where the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InvalidInputError(f"{path.name!r} says no format; end it in {', '.join(FORMATS)}")
    fixed: dict[Any, Any] = {"svg.hashsalt": "repsim", "svg.fonttype": "none", "pdf.fonttype": 42}
    with replacing(path, overwrite=True) as partial, mpl.rc_context(fixed):
        figure.savefig(partial, format=suffix[1:], dpi=200, metadata=FORMATS[suffix])


def fit(figure: Figure, layout: ConstrainedLayoutEngine, width: float, height: float) -> None:
    """Size the figure so that its panels are so large together, and the text around them has its room."""
    layout.execute(figure)
    size, ax = figure.get_size_inches(), figure.axes[0]
    rows, columns = cast("SubplotSpec", ax.get_subplotspec()).get_geometry()[:2]
    panel = ax.get_position(original=True).size * size
    figure.set_size_inches(size[0] + width - columns * panel[0], size[1] + height - rows * panel[1])


class Shown(Figure):
    """A figure that notebooks show by itself: pyplot, whose figures they show, knows nothing of it."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """Draw a figure for the screen."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_SCREEN)
    return picture.getvalue()


def sized(width: float, height: float) -> Figure:
    """Make an empty figure of so many inches.

    It is laid out for the screen, where hinted letters are widest: in print the names around axes then fit, too.
    """
    figure = Shown(figsize=(width, height), dpi=_SCREEN)
    FigureCanvasAgg(figure)
    return figure


def blank(width: float, height: float) -> Axes:
    """Make a figure that so far has nothing but axes of this height; `settle` gives the text around them its room."""
    return sized(width, height).subplots()


def tidy(ax: Axes, x: str, y: str) -> None:
    """Give axes of curves or points their labels, in the sizes of a column, and thin lines."""
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    for name, text, room in (("x", x, box.width), ("y", y, box.height)):
        ax.set(**{f"{name}label": fold([text], 0.85 * room, NOTE + 0.5)})
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_fontsize(NOTE + 0.5)
    ax.tick_params(labelsize=NOTE, length=2.5, width=0.6, pad=2)
    ax.spines[:].set_linewidth(0.6)
    ax.spines[["top", "right"]].set_visible(False)


def style(relation: str) -> dict[str, Any]:
    """Colour, marker and line of a relation: the same in every figure."""
    k = RELATIONS.index(relation) if relation in RELATIONS else len(RELATIONS)
    return {"color": COLOURS[k], "marker": MARKERS[k], "linestyle": (*_LINES, "-.")[k]}


def settle(figure: Figure, caption: Sequence[str]) -> None:
    """Lay a figure out, once and for all: as high as its axes and the text around them, with its caption below.

    Laid out anew at every drawing, saving a figure would change it. The height it was made with is that of the axes.
    """
    layout, height = ConstrainedLayoutEngine(w_pad=PAD, h_pad=0.03), figure.get_figheight()
    add_caption(figure, caption)
    dress(figure)
    figure.set_figheight(height + _AROUND)
    layout.execute(figure)
    around = (1 - figure.axes[0].get_position(original=True).height) * (height + _AROUND)
    figure.set_figheight(height + around)
    layout.execute(figure)


def add_caption(figure: Figure, caption: Sequence[str]) -> None:
    """Write below a figure, as wide as it is; on a screen letters can be wider by some percent than in print."""
    inches = figure.get_figwidth()
    figure.supxlabel(fold(caption, 0.95 * inches - 0.12, NOTE), x=0.06 / inches, ha="left", fontsize=NOTE)


def footnote(study: xr.Dataset, *said: str) -> list[str]:
    """Say what was compared, on what; and then what is said of the figure itself."""
    count, families = study.sizes["model"], len(set(study["family"].values.tolist()))
    models = f"{count} trained model{'s' * (count > 1)} of {families} famil{'ies' if families > 1 else 'y'}"
    on = f"{study['n_samples'].item()} samples of {study['data'].item()}, readout {study['readout'].item()}"
    return [" ".join([plain(f"{models}; {on}."), *said])]


def known_measure(study: xr.Dataset, measure: str | None, *, among: str = "measure") -> str:
    """Take the measure of this name; by default the strictest kernel: given the input, where that is known."""
    if study.attrs.get("format") != "repsim-study":
        raise InvalidInputError("expected a study of repsim.universality or repsim.open_study")
    if among not in study.coords:
        raise InvalidInputError(f"this study has no {among}: it takes two trained models or more")
    names = study[among].values.tolist()
    if measure is None:
        return strict if (strict := strictest(study)) in names else names[0]
    if measure not in names:
        raise UnknownNameError(f"{among} of this study", measure, names)
    return measure


def has_pairs(study: xr.Dataset) -> None:
    """Refuse a study without any pair of trained models."""
    if not study.sizes.get("pair"):
        raise InvalidInputError("there is nothing to draw: this study has no pair of trained models")
