"""Sizes, colours, captions, layout and saving of all figures.

Only matplotlib's object interface is used: no pyplot and no display, and no global setting is changed. A figure is
freed with its last reference.
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
from repsim.figures.lettering import escape_text, set_fallback_fonts, wrap
from repsim.results.variables import KINDS_OF_PAIRS
from repsim.runtime.files import replacing
from repsim.study.reading import strictest

FORMATS: dict[str, dict[str, None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""Suffixes of the formats, each with the metadata to omit so that equal figures are equal files."""

COLUMN, PAGE = 3.3, 7.0
"""Widths of one column and of one page of a paper, in inches."""
SMALLEST, LARGEST = 6.0, 9.0
"""Smallest and largest font size of layer names, in points; smaller names cannot be read in print."""
TITLE, TEXT, SMALL = 10.0, 9.0, 8.0
"""Font sizes of heatmaps in points: titles; axis labels; numbers of the colour bar and caption."""
NOTE = 6.5
"""Font size of numbers, legends and captions of figures at column width, in points."""
LEADING = 1.25
"""Height of a line of text divided by its font size."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe and Ito (2008), distinct for colour-blind readers, without yellow, too bright for white paper."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
"""Markers that accompany the colours, for prints without colour."""
_TEXT_MARGIN = 4.0  # inches: provisional room for text around the axes, before the layout
PAD = 0.06
"""Padding at both sides in inches: at some resolutions letters are wider than at that of the layout."""
_SCREEN = 110  # dots per inch in notebooks
_LINES = ("-", "--", ":")
NARROW = 2.0
"""Smallest width to which text is wrapped, in inches."""


def save(figure: Figure, path: str | Path) -> None:
    """Save a figure as .png (200 dots per inch), .pdf (with embedded fonts) or .svg (text remains text).

    An existing file is replaced once the new one is complete. Equal figures give equal files, without dates and random
    ids.

    Parameters
    ----------
    figure : Figure
        Figure to save.
    path : path
        File with one of the three suffixes.

    Raises
    ------
    InvalidInputError
        If the suffix is another one.
    OutputError
        If the file cannot be written.
    """
    path = Path(path)
    suffix = check_format(path)
    fixed: dict[Any, Any] = {"svg.hashsalt": "repsim", "svg.fonttype": "none", "pdf.fonttype": 42}
    with replacing(path, overwrite=True) as partial, mpl.rc_context(fixed):
        figure.savefig(partial, format=suffix[1:], dpi=200, metadata=FORMATS[suffix])


def check_format(path: Path) -> str:
    """Return the suffix of a figure's file in lower case; raise `InvalidInputError` if it is none of `FORMATS`."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InvalidInputError(f"{path.name!r} has none of the suffixes {', '.join(FORMATS)}; use one of them")
    return suffix


def resize_to_panels(figure: Figure, layout: ConstrainedLayoutEngine, width: float, height: float) -> None:
    """Set the size of a figure so that its panels together have this width and height, with room for the text."""
    layout.execute(figure)
    size, ax = figure.get_size_inches(), figure.axes[0]
    rows, columns = cast("SubplotSpec", ax.get_subplotspec()).get_geometry()[:2]
    panel = ax.get_position(original=True).size * size
    figure.set_size_inches(size[0] + width - columns * panel[0], size[1] + height - rows * panel[1])


class NotebookFigure(Figure):
    """Figure that notebooks display although pyplot does not manage it."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG at screen resolution."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_SCREEN)
    return picture.getvalue()


def make_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches.

    It has the resolution of a screen, at which hinted letters are widest, so that names also fit in print.
    """
    figure = NotebookFigure(figsize=(width, height), dpi=_SCREEN)
    FigureCanvasAgg(figure)
    return figure


def make_axes(width: float, height: float) -> Axes:
    """Return the axes of a new figure of this size in inches; `finish_layout` adds the room for text."""
    return make_figure(width, height).subplots()


def style_axes(ax: Axes, x: str, y: str) -> None:
    """Set the axis labels of a plot of curves or points, with small text and thin lines."""
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    for name, text, room in (("x", x, box.width), ("y", y, box.height)):
        ax.set(**{f"{name}label": wrap([text], 0.85 * room, NOTE + 0.5)})
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_fontsize(NOTE + 0.5)
    ax.tick_params(labelsize=NOTE, length=2.5, width=0.6, pad=2)
    ax.spines[:].set_linewidth(0.6)
    ax.spines[["top", "right"]].set_visible(False)


def style(relation: str) -> dict[str, Any]:
    """Return the colour, marker and line style of a relation, equal in all figures."""
    k = KINDS_OF_PAIRS.index(relation) if relation in KINDS_OF_PAIRS else len(KINDS_OF_PAIRS) - 1
    return {"color": COLOURS[k], "marker": MARKERS[k], "linestyle": (*_LINES, "-.")[k]}


def finish_layout(figure: Figure, caption: Sequence[str]) -> None:
    """Add the caption and fix the layout: the axes keep the height of the figure, which grows by the room for text.

    The layout runs only here, because a layout at every drawing would change the figure when it is saved.
    """
    layout, height = ConstrainedLayoutEngine(w_pad=PAD, h_pad=0.03), figure.get_figheight()
    add_caption(figure, caption)
    set_fallback_fonts(figure)
    figure.set_figheight(height + _TEXT_MARGIN)
    layout.execute(figure)
    around = (1 - figure.axes[0].get_position(original=True).height) * (height + _TEXT_MARGIN)
    figure.set_figheight(height + around)
    layout.execute(figure)


def add_caption(figure: Figure, caption: Sequence[str]) -> None:
    """Add a caption below a figure, a little narrower than the figure, because letters on screens can be wider."""
    inches = figure.get_figwidth()
    figure.supxlabel(wrap(caption, 0.95 * inches - 0.12, NOTE), x=0.06 / inches, ha="left", fontsize=NOTE)


def footnote(study: xr.Dataset, *sentences: str) -> list[str]:
    """Return a footnote: models, data, and sentences about the figure."""
    count, families = study.sizes["model"], len(set(study["family"].values.tolist()))
    models = f"{count} trained model{'s' * (count > 1)} of {families} famil{'ies' if families > 1 else 'y'}"
    on = f"{study['n_samples'].item()} samples of {study['data'].item()}, readout {study['readout'].item()}"
    return [" ".join([escape_text(f"{models}; {on}."), *sentences])]


def resolve_measure(study: xr.Dataset, measure: str | None, *, among: str = "measure") -> str:
    """Return the measure after checking its name; by default the strictest kernel: given the input, if known."""
    if study.attrs.get("format") != "repsim-study":
        raise InvalidInputError("expected a study of repsim.universality or repsim.open_study")
    if among not in study.coords:
        raise InvalidInputError(f"this study has no {among}: it needs two trained models or more")
    names = study[among].values.tolist()
    if measure is None:
        return strict if (strict := strictest(study)) in names else names[0]
    if measure not in names:
        raise UnknownNameError(f"{among} of this study", measure, names)
    return measure


def check_pairs(study: xr.Dataset) -> None:
    """Check that a study has a pair of trained models."""
    if not study.sizes.get("pair"):
        raise InvalidInputError("there is nothing to draw: this study has no pair of trained models")
