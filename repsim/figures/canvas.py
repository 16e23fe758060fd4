"""Captions, layout and saving of all figures, and names that a caller has chosen.

Only matplotlib's object interface is used: no pyplot and no display, and no global setting is changed. A figure is
freed with its last reference.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Affine2DBase, BboxBase, ScaledTranslation, blended_transform_factory

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.figures.lettering import escape_text, set_fallback_fonts, text_width, wrap
from repsim.figures.styles import LEADING, em, frame, label_size, legend_size, note_size, title_size
from repsim.results.variables import KINDS_OF_PAIRS
from repsim.runtime.files import replacing
from repsim.study.reading import strictest

FORMATS: dict[str, dict[str, None]] = {
    ".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".eps": {}, ".tiff": {}, ".tif": {}
}  # fmt: skip
"""Suffixes of the formats, each with the metadata to omit so that equal figures are equal files."""

SMALLEST, LARGEST = 6.0, 9.0
"""Smallest and largest font size of layer names, in points; smaller names cannot be read in print."""
TITLE, TEXT, SMALL = 10.0, 9.0, 8.0
"""Font sizes of heatmaps in points: titles; axis labels; numbers of the colour bar and caption."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe and Ito (2008), distinct for colour-blind readers, without yellow, too bright for white paper."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
"""Markers that accompany the colours, for prints without colour."""
DPI = 300
"""Dots per inch of saved figures, which journals ask for."""
_TEXT_MARGIN = 4.0  # inches: provisional room for text around the axes, before the layout
PAD = 0.06
"""Padding at both sides in inches."""
_SCREEN = 110  # dots per inch in notebooks
_LINES = ("-", "--", ":")
NARROW = 2.0
"""Smallest width to which text is wrapped, in inches."""
_SLACK = 0.01
"""Change of the height of axes in inches that is no reason to change that of the figure."""
_PASSES, _STILL = 5, 1e-3
"""Largest number of passes of the layout, and the movement, as a share of the figure, at which it is done."""
_AXIS = 0.5
"""Width of the numbers and the label of an axis in inches."""
_FEW_AXES = 6
"""Largest number of axes that are laid out when something is drawn on one; of more it would take seconds."""
_NO_ROOM = "constrained_layout not applied"
"""Beginning of matplotlib's warning that text leaves no room for axes."""
_SHRINKING = 0.65
"""Part of the user's axes that is left once constrained layout has made room for their labels."""


NUMBER = "number"
"""Id of numbers in the cells of an image."""
READABLE = 5.0
"""Smallest font size of numbers in cells in points; smaller ones cannot be read in print."""


def save(figure: Figure, path: str | Path, *, dpi: float | None = None) -> None:
    """Save a figure as .png, .pdf or .eps (with embedded fonts), .svg (text remains text), or .tiff.

    The file is exactly as wide and high as the figure. An existing file is replaced once the new one is complete. Equal
    figures give equal files, without dates and random ids. An .eps file cannot hold transparency: transparent colours
    are mixed with white.

    Parameters
    ----------
    figure : Figure
        Figure to save.
    path : path
        File with one of these suffixes.
    dpi : float, optional
        Dots per inch; by default 300, or ``savefig.dpi`` of rcParams if it is set.

    Raises
    ------
    InvalidInputError
        If the suffix is another one, or the text leaves no room for the axes.
    OutputError
        If the file cannot be written.
    """
    path = Path(path)
    suffix = check_format(path)
    set_dpi = mpl.rcParams["savefig.dpi"]
    dpi = dpi or (DPI if set_dpi == mpl.rcParamsDefault["savefig.dpi"] else set_dpi)
    fixed: dict[Any, Any] = {"svg.hashsalt": "repsim", "svg.fonttype": "none", "pdf.fonttype": 42, "ps.fonttype": 42,
                             "savefig.bbox": None}  # fmt: skip
    with replacing(path, overwrite=True) as partial, mpl.rc_context(fixed), _no_room_is_an_error(figure):
        data = io.BytesIO()  # the writers of matplotlib and Pillow end in tracebacks on a full disk
        if suffix == ".eps":
            with _opaque(figure):
                figure.savefig(data, format="eps", dpi=dpi)
            data = io.BytesIO(re.sub(rb"%%CreationDate: .*\n", b"", data.getvalue()))
        elif suffix in {".tiff", ".tif"}:
            from PIL import Image  # noqa: PLC0415 - most figures need none

            figure.savefig(picture := io.BytesIO(), format="png", dpi=dpi)
            with Image.open(picture) as pixels:
                pixels.convert("RGB").save(data, format="TIFF", compression="tiff_lzw", dpi=(dpi, dpi))
        else:
            figure.savefig(data, format=suffix[1:], dpi=dpi, metadata=FORMATS[suffix])
        partial.write_bytes(data.getvalue())


@contextmanager
def _no_room_is_an_error(figure: Figure) -> Iterator[None]:
    """Raise `InvalidInputError` for matplotlib's warning that its layout has left no room for axes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", _NO_ROOM, UserWarning)
        try:
            yield
        except UserWarning:
            raise InvalidInputError(
                f"the text leaves no room for the axes in a figure of {figure.get_figwidth():.1f} inches; give more "
                "width or a smaller font size"
            ) from None


@contextmanager
def _opaque(figure: Figure) -> Iterator[None]:
    """Mix transparent colours with white for a while."""

    def mixed(colours: Any) -> Any:
        rgba = to_rgba_array(colours)
        return rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]

    undo: list[Callable[[], object]] = []
    for artist in figure.findobj(lambda artist: artist.get_alpha() not in {None, 1}):
        alpha = artist.get_alpha()
        undo.append(lambda artist=artist, alpha=alpha: artist.set_alpha(alpha))  # type: ignore[misc]
        if isinstance(artist, Line2D):
            colour = artist.get_color()
            undo.append(lambda artist=artist, colour=colour: artist.set_color(colour))  # type: ignore[misc]
            artist.set(color=mixed(to_rgba_array(colour, alpha))[0], alpha=None)
        elif isinstance(artist, Collection | Patch):
            faces, edges = artist.get_facecolor(), artist.get_edgecolor()
            undo.append(lambda artist=artist, faces=faces, edges=edges: artist.set(facecolor=faces, edgecolor=edges))  # type: ignore[misc]
            artist.set(alpha=None, facecolor=mixed(faces), edgecolor=mixed(edges))
    try:
        yield
    finally:
        for step in reversed(undo):
            step()


def check_format(path: Path) -> str:
    """Return the suffix of a figure's file in lower case; raise `InvalidInputError` if it is none of `FORMATS`."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InvalidInputError(f"{path.name!r} has none of the suffixes {', '.join(FORMATS)}; use one of them")
    return suffix


def _lay_out(figure: Figure, layout: ConstrainedLayoutEngine) -> None:
    """Lay out a figure without matplotlib's warning that there is no room: drawing or saving the figure repeats it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NO_ROOM, UserWarning)
        layout.execute(figure)


def _corners(figure: Figure) -> Any:
    """Return the positions of all axes of a figure, as shares of its size."""
    return np.array([ax.get_position(original=True).extents for ax in figure.axes])


class FigureLayout(ConstrainedLayoutEngine):
    """Constrained layout that runs at every drawing, so that titles and fonts that are set later have their room.

    It starts from the same positions every time, so that it depends on the figure and its resolution only: saving a
    figure does not change the next file.
    """

    def __init__(self, pad: float = PAD, h_pad: float = 0.03) -> None:
        super().__init__(w_pad=pad, h_pad=h_pad)
        self.then: list[Callable[[], None]] = []
        """Functions that run after the layout, because their drawing depends on positions on paper."""
        self._first: WeakKeyDictionary[Axes, BboxBase] = WeakKeyDictionary()
        self._panel, self._height = 0.0, 0.0

    def attach(self, figure: Figure) -> None:
        """Lay out a figure, and again whenever it is drawn."""
        _lay_out(figure, self)
        for ax in figure.axes:
            fit_numbers(ax, READABLE)
        self._panel, self._height = _panel_of(figure)[2][1], figure.get_figheight()
        figure.set_layout_engine(self)

    def execute(self, fig: Any) -> None:
        """Lay out the figure within its size."""
        self._run(fig)
        for follow in self.then:
            follow()

    def fit_height(self, figure: Figure) -> None:
        """Let the axes keep their height: the figure grows by what has been added, unless the user has set its height.

        The figure keeps its width.
        """
        if not self._panel or figure.get_figheight() != self._height:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # there may be no room yet
            self._run(figure)
        if abs(_panel_of(figure)[2][1] - self._panel) > _SLACK:
            figure.set_figheight(self._height + _TEXT_MARGIN)
            self._run(figure)
            _, (rows, _), panel = _panel_of(figure)
            figure.set_figheight(figure.get_figheight() + rows * (self._panel - panel[1]))
            self._height = figure.get_figheight()

    def _run(self, fig: Any) -> None:
        """Run the layout; axes with square cells first fill their place, because only then it is exact."""
        aspects = []
        for ax in fig.axes:
            ax.set_position(self._first.setdefault(ax, ax.get_position(original=True).frozen()))
            ax.set_in_layout(True)
            if ax.get_adjustable() == "datalim":
                ax.autoscale_view()  # limits that an equal scale has widened are no start for the next ones
            if ax.get_adjustable() == "box":
                aspects.append((ax, ax.get_aspect()))
                ax.set_aspect("auto")
        for _ in range(_PASSES):  # labels that are longer than their axes need several
            before = _corners(fig)
            super().execute(fig)
            if np.abs(_corners(fig) - before).max(initial=0) < _STILL:
                break
        for ax, aspect in aspects:
            ax.set_aspect(aspect)


def fit_numbers(ax: Axes, least: float = 0.0) -> None:
    """Set the font size of the numbers in the cells of an image so that they fit.

    Raises
    ------
    InvalidInputError
        If they would be smaller than ``least``, in points.
    """
    texts = [text for text in ax.texts if text.get_gid() == NUMBER]
    if not texts:
        return
    lines = [text.get_text().split("\n") for text in texts]
    longest = max(text_width(line, 10) / 10 for line in {line for of_cell in lines for line in of_cell})
    highest = max(map(len, lines))
    rows, columns = ax.images[0].get_size()
    across, up = inches_of(ax)
    if ax.get_aspect() != "auto":
        across, up = (min(across / columns, up / rows) * count for count in (columns, rows))
    room = 72 * min(across / columns / (1.15 * longest), up / rows / (LEADING * highest + 0.25))
    if room < least:
        raise InvalidInputError(
            f"numbers in {rows} x {columns} cells would be {room:.1f} points high, which cannot be read; give more "
            "width or a shorter format, or draw no numbers"
        )
    for text in texts:
        text.set_fontsize(min(max(room, 2.0), note_size()))


def resize_to_panels(figure: Figure, layout: ConstrainedLayoutEngine, width: float, height: float) -> None:
    """Set the size of a figure so that its panels together have this width and height, with room for the text."""
    _lay_out(figure, layout)
    size, (rows, columns), panel = _panel_of(figure)
    figure.set_size_inches(size[0] + width - columns * panel[0], size[1] + height - rows * panel[1])


def fit_to_width(figure: Figure, layout: ConstrainedLayoutEngine, ratio: float, highest: float) -> None:
    """Set the height of a figure of fixed width so that each panel is ``ratio`` times as high as wide."""
    _lay_out(figure, layout)
    size, (rows, _), panel = _panel_of(figure)
    figure.set_figheight(size[1] + rows * (min(ratio * panel[0], highest) - panel[1]))


def _panel_of(figure: Figure) -> tuple[Any, tuple[int, int], Any]:
    """Return the size of a figure, its rows and columns of panels, and the size of a panel in inches."""
    size, ax = figure.get_size_inches(), figure.axes[0]
    rows, columns = cast("SubplotSpec", ax.get_subplotspec()).get_geometry()[:2]
    return size, (rows, columns), ax.get_position(original=True).size * size


class NotebookFigure(Figure):
    """Figure that notebooks display although pyplot does not manage it, and that is saved with the height it needs."""

    def savefig(self, *args: Any, **options: Any) -> None:
        """Save the figure as matplotlib does, after its height has been fitted."""
        if isinstance(layout := self.get_layout_engine(), FigureLayout):
            layout.fit_height(self)
        super().savefig(*args, **options)

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG at screen resolution."""
    picture = io.BytesIO()
    with mpl.rc_context({"savefig.bbox": None}):
        figure.savefig(picture, format="png", dpi=_screen_dpi())
    return picture.getvalue()


def _screen_dpi() -> float:
    """Return the resolution on screens: ``figure.dpi`` of rcParams if it is set."""
    own = float(mpl.rcParams["figure.dpi"])
    return _SCREEN if own == mpl.rcParamsDefault["figure.dpi"] else own


def make_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, with the resolution of a screen."""
    figure = NotebookFigure(figsize=(width, height), dpi=_screen_dpi())
    FigureCanvasAgg(figure)
    return figure


def make_axes(width: float, height: float) -> Axes:
    """Return the axes of a new figure of this size in inches; `finish_layout` adds the room for text."""
    return make_figure(width, height).subplots()


def inches_of(ax: Axes) -> tuple[float, float]:
    """Return the width and height of axes in inches."""
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    return float(box.width), float(box.height)


def room_of(ax: Axes) -> tuple[float, float]:
    """Return the width and height in inches that axes will at least have once constrained layout has run."""
    width, height = inches_of(ax)
    engine = ax.figure.figure.get_layout_engine()
    share = _SHRINKING if engine is not None and not isinstance(engine, FigureLayout) else 1.0
    square = ax.get_aspect() != "auto" and ax.get_adjustable() == "box"
    return (share * min(width, height),) * 2 if square else (share * width, share * height)


def settle(figure: Figure) -> None:
    """Run the layout of a figure of the user once, because one run is not exact for axes with square cells."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine) and len(figure.axes) <= _FEW_AXES:
        engine.execute(figure)


def style_axes(ax: Axes, x: str, y: str) -> None:
    """Set the axis labels of a plot of curves or points, with small text and thin lines."""
    for name, text, room in zip("xy", (x, y), room_of(ax), strict=True):
        ax.set(**{f"{name}label": wrap([text], max(0.85 * room, 0.4), label_size())})
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_fontsize(label_size())
    style_ticks(ax)
    ax.spines[:].set_linewidth(frame())
    ax.spines[["top", "right"]].set_visible(False)


def style_ticks(ax: Axes, size: float | None = None) -> None:
    """Set the size of ticks and of their labels, and the font, because labels that are made later have that of then."""
    family = mpl.rcParams["font.family"]
    ax.tick_params(labelsize=size or note_size(), length=2.5 * em(), width=frame(), pad=2, labelfontfamily=family)
    ax.tick_params(which="minor", length=1.5 * em(), width=frame(0.4), labelfontfamily=family)


def set_title(ax: Axes, title: str | None, size: float | None = None) -> None:
    """Set the title of axes; formulas between dollars are read as such, as in matplotlib."""
    if title is not None:
        ax.set_title(title, fontsize=size or title_size())


def add_legend_above(ax: Axes, *args: Any, **options: Any) -> Legend:
    """Add a legend above axes, keep its room free from a title that may be set later, and return it."""
    look: dict[str, Any] = {"frameon": False, "borderpad": 0.1, "columnspacing": 0.8, "bbox_to_anchor": (-0.02, 1.0),
                            "loc": "lower left", "fontsize": legend_size()}  # fmt: skip
    inches = ax.figure.figure.get_figwidth() - _AXIS * em()
    for columns in range(options.pop("ncols", 1), 0, -1):
        legend = ax.legend(*args, ncols=columns, **(look | options))
        if legend.get_window_extent().width / ax.figure.figure.dpi <= inches:
            break
    inches = legend.get_window_extent().height / ax.figure.figure.dpi
    reserve_above(ax, inches + legend.borderaxespad * legend_size() / 72)
    return legend


def reserve_above(ax: Axes, inches: float) -> None:
    """Keep the room above axes free from a title, for a legend or a line of text."""
    top = ax.figure.dpi_scale_trans + ScaledTranslation(0, 1, cast("Affine2DBase", ax.transAxes))
    ax.inset_axes((0, 0, 1, inches), transform=blended_transform_factory(ax.transAxes, top), gid="room").axis("off")


def write_above(ax: Axes, lines: Sequence[str], offset: float = 0.0) -> None:
    """Write small text above axes at the left, ``offset`` inches above them, where a title does not cover it."""
    inches = offset + 0.05 + len("\n".join(lines).split("\n")) * note_size() * LEADING / 72
    top = ax.figure.dpi_scale_trans + ScaledTranslation(0, 1, cast("Affine2DBase", ax.transAxes))
    place = blended_transform_factory(ax.transAxes, top)
    ax.text(0, offset + 0.04, "\n".join(lines), transform=place, fontsize=note_size(), va="bottom", gid="statistics")
    reserve_above(ax, inches)


def look_of(relation: str) -> dict[str, Any]:
    """Return the colour, marker and line style of a relation, equal in all figures."""
    k = KINDS_OF_PAIRS.index(relation) if relation in KINDS_OF_PAIRS else len(KINDS_OF_PAIRS) - 1
    return {"color": COLOURS[k], "marker": MARKERS[k], "linestyle": (*_LINES, "-.")[k]}


def finish_layout(figure: Figure, caption: Sequence[str], then: Callable[[], None] | None = None) -> None:
    """Add the caption and the layout: the axes keep the height of the figure, which grows by the room for text.

    The layout runs again at every drawing, and ``then`` after it.
    """
    layout, height, margin = FigureLayout(), figure.get_figheight(), _TEXT_MARGIN * em()
    add_caption(figure, caption)
    set_fallback_fonts(figure)
    figure.set_figheight(height + margin)
    _lay_out(figure, layout)
    around = (1 - figure.axes[0].get_position(original=True).height) * (height + margin)
    figure.set_figheight(height + around)
    if then is not None:
        layout.then.append(then)
    layout.attach(figure)


def add_caption(figure: Figure, caption: Sequence[str]) -> None:
    """Add a caption below a figure, a little narrower than the figure, because letters on screens can be wider."""
    inches, size = figure.get_figwidth(), note_size()
    figure.supxlabel(wrap(caption, 0.95 * inches - 0.12, size), x=0.06 / inches, ha="left", fontsize=size)


def namer(labels: Mapping[str, str] | None, names: Iterable[object], what: str) -> Callable[[object], str]:
    """Return a function from a name in the data to the text that a figure shows for it.

    Parameters
    ----------
    labels : mapping of str to str, optional
        Names that are shown in another way.
    names : iterable of str
        Names in the data.
    what : str
        What they are names of, for the error.

    Raises
    ------
    UnknownNameError
        If a label is for a name that the data do not have.
    """
    texts, originals = dict(labels or {}), list(dict.fromkeys(map(str, names)))
    for name in texts:
        if name not in originals:
            raise UnknownNameError(what, name, originals, listed=True)
    return lambda name: escape_text(texts.get(str(name), name))


def arrange(order: str | Sequence[str] | None, names: Sequence[str], values: Sequence[float], what: str) -> list[int]:
    """Return the positions of names in the order in which a figure shows them.

    Parameters
    ----------
    order : "value" or sequence of str, optional
        Names to show in this order; or "value", the largest first. By default all in the order of the data.
    names, values : sequence
        Names in the data, and their values.
    what : str
        What they are names of, for the error.

    Raises
    ------
    UnknownNameError
        If the data do not have a name.
    """
    if order is None:
        return list(range(len(names)))
    if isinstance(order, str):
        if order != "value":
            raise InvalidInputError(f"expected order='value' or a sequence of names, got {order!r}")
        numbers = np.nan_to_num(np.array(values, np.float64), nan=-np.inf)
        return [int(k) for k in np.argsort(-numbers, kind="stable")]
    for name in order:
        if name not in names:
            raise UnknownNameError(what, name, names, listed=True)
    return [list(names).index(name) for name in order]


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
