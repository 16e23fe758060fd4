"""Many heatmaps under one scale, so that equal colours are equal values wherever they stand."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from repsim.errors import InvalidInputError
from repsim.figures.canvas import NOTE, PAD, PAGE, add_caption, known_measure, sized
from repsim.figures.heatmaps import checked, draw, explained, known_variables, label_of, once
from repsim.figures.lettering import dress, fold
from repsim.figures.scales import colours_of, extension, label_colour_bar
from repsim.figures.selection import every_pair, pick
from repsim.presentation.scales import Scale, declared, scale_of
from repsim.presentation.stages import boundaries

_BAR = 0.75  # inches: the colour bar with its numbers and its label
_CELL = 0.115  # inches: the name of a layer fits beside it
_NAMES = 1.0  # inches: a longer name of a layer is shortened
_LEAST = 1.45  # inches: a panel with its names; narrower, it goes to the next row


def plot_grid(
    found: xr.Dataset | Sequence[xr.Dataset] | Sequence[xr.DataArray],
    measures: Sequence[str] | None = None,
    *,
    pairs: Sequence[str] | None = None,
    path: bool | None = None,
    marks: bool | None = None,
    width: float | None = None,
) -> Figure:
    """Draw several models or measures as heatmaps with one scale and one colour bar.

    docs/figures.md has an example, which the tests run, and its picture.

    Parameters
    ----------
    found
        A study, a result of `repsim.compare`, or several results; or arrays, as `pick` gives them.
    measures
        Those to draw. By default all of a result and the strictest kernel of a study.
    pairs
        Of a study: which pairs of models, ``a x b``; by default all.
    path, marks
        As in `heatmap`.
    width
        Inches; by default a page's, or less where a few small panels do not fill it.

    Raises
    ------
    InvalidInputError
        If there is nothing to draw, or measures have not one sense and one range: they cannot share a scale.
    UnknownNameError
        For a measure or a pair that is not there.
    """
    panels = list(_panels(found, measures, pairs))
    if not panels:
        raise InvalidInputError("there is nothing to draw: expected at least one pair of models and one measure")
    _check_one_kind(panels)
    values = np.concatenate([np.asarray(panel.values, np.float64).ravel() for panel in panels])
    scale = scale_of(values, *declared(panels[0].attrs))
    labels = list(dict.fromkeys(map(label_of, panels)))
    places = _triangle(panels) or _rows(panels, len(labels), width or PAGE)
    down, across = (max(place[k] for place in places) + 1 for k in (0, 1))
    width = width or min(PAGE, 2 * _BAR + across * max(2.3, _CELL * max(max(panel.shape) for panel in panels)))
    figure = sized(width, width * down / across)
    grid = figure.subplots(down, across, squeeze=False)
    at = dict(zip(places, panels, strict=True))
    side = (width - _BAR - 0.7) / across - 0.08
    for place, ax in np.ndenumerate(grid):
        if place not in at:
            ax.remove()
            continue
        draw(at[place], ax, side, side, scale=scale, size=NOTE + 0.5, names=_NAMES, path=path, marks=marks)
        if len(labels) > 1:
            ax.set_title(fold([label_of(at[place])], side, NOTE + 0.5), fontsize=NOTE + 0.5, pad=3)
        _name_once(at, place, ax)
    add_caption(figure, _caption(panels, path=path, marks=marks))
    label = labels[0] if len(labels) == 1 else "one scale for all panels"
    _finish(figure, [grid[place] for place in places], down, scale, label)
    return figure


def _check_one_kind(panels: Sequence[xr.DataArray]) -> None:
    """Refuse measures that cannot share a scale."""
    kinds = {_kind(panel): label_of(panel) for panel in panels}
    if len(kinds) > 1:
        raise InvalidInputError(
            f"one scale takes measures of one sense and one range, which {' and '.join(kinds.values())} do not have; "
            "draw them apart, or name one"
        )


def _finish(figure: Figure, drawn: Sequence[Axes], down: int, scale: Scale, label: str) -> None:
    """Add the colour bar, and lay the figure out with square panels."""
    bar = figure.colorbar(
        ScalarMappable(*colours_of(scale)), ax=drawn, extend=extension(scale), aspect=30, pad=0.02, fraction=0.05
    )
    label_colour_bar(bar, scale, NOTE)
    bar.set_label(label, fontsize=NOTE + 0.5)
    dress(figure)
    layout = ConstrainedLayoutEngine(w_pad=PAD, h_pad=0.03)
    layout.execute(figure)
    one = drawn[0].get_position(original=True).size * figure.get_size_inches()
    figure.set_figheight(figure.get_figheight() + down * (one[0] - one[1]))  # square panels
    bar.set_label(fold([label], max(1.05 * down * one[0], 0.8), NOTE + 0.5))
    layout.execute(figure)


def _triangle(panels: Sequence[xr.DataArray]) -> list[tuple[int, int]]:
    """Where every model has a row and a column, and every two models a panel; nothing where that is not so."""
    pairs = [(once(panel, "model_a"), once(panel, "model_b")) for panel in panels]
    columns, rows = (list(dict.fromkeys(pair[k][0] for pair in pairs if pair[k])) for k in (1, 0))
    size = len(columns)
    wanted = {(i, j) for i in range(size) for j in range(i + 1)}
    if size < 2 or len(rows) != size or len(panels) != len(wanted):
        return []
    places = [(rows.index(a[0]), columns.index(b[0])) for a, b in pairs]
    return places if set(places) == wanted else []


def _rows(panels: Sequence[xr.DataArray], kinds: int, width: float) -> list[tuple[int, int]]:
    """One after the other; of several measures, those of one pair of models."""
    fits = max(1, int((width - _BAR) // _LEAST))
    across = len(panels) // kinds if kinds > 1 and len(panels) % kinds == 0 else 0
    if not 0 < across <= fits or kinds == 1:
        across = min(len(panels), fits)
        across = math.ceil(len(panels) / math.ceil(len(panels) / across))
    return [(k // across, k % across) for k in range(len(panels))]


def _name_once(at: Mapping[tuple[int, int], xr.DataArray], place: tuple[int, int], ax: Axes) -> None:
    """Leave the names of layers to the neighbour on the left, and to the one below, where it has the same."""
    row, column = place
    for axis, side, beside in ((ax.yaxis, "a", (row, column - 1)), (ax.xaxis, "b", (row + 1, column))):
        if beside in at and _names(at[place], side) == _names(at[beside], side):
            axis.set_tick_params(labelleft=False, labelbottom=False)
            axis.set_label_text("")


def _names(panel: xr.DataArray, side: str) -> tuple[list[str], list[str]]:
    return panel[f"layer_{side}"].values.tolist(), once(panel, f"model_{side}")


def _panels(
    found: xr.Dataset | Sequence[xr.Dataset] | Sequence[xr.DataArray],
    measures: Sequence[str] | None,
    pairs: Sequence[str] | None,
) -> Iterator[xr.DataArray]:
    if isinstance(found, xr.Dataset) and found.attrs.get("format") == "repsim-study":
        for measure in measures or [known_measure(found, None)]:
            yield from every_pair(found, measure) if pairs is None else (pick(found, pair, measure) for pair in pairs)
        return
    if pairs is not None:
        raise InvalidInputError("pairs are a study's; of a result everything is drawn that it holds")
    for each in [found] if isinstance(found, xr.Dataset) else found:
        if isinstance(each, xr.DataArray):
            yield checked(each)
        else:
            yield from (checked(each[name]) for name in known_variables(each, measures))


def _kind(panel: xr.DataArray) -> tuple[object, ...]:
    return declared(panel.attrs)


def _caption(panels: Sequence[xr.DataArray], *, path: bool | None, marks: bool | None) -> list[str]:
    def all_of(*coords: str) -> str:
        return ", ".join(dict.fromkeys(name for panel in panels for coord in coords for name in once(panel, coord)))

    counts = f", {n} samples" if (n := all_of("n_samples")) else ""
    readout = f", readout {names}" if (names := all_of("readout_a", "readout_b")) else ""
    said = [f"{all_of('data') or 'Data not recorded'}{counts}{readout}. Layers by depth; bright is alike."]
    if any(boundaries(panel[dim].values.tolist()) for panel in panels for dim in ("layer_a", "layer_b")):
        said.append("Dashed: stages.")
    said += explained(panels, path=path, marks=marks)
    if any(np.isnan(panel.values).any() for panel in panels):
        said.append("Hatched: no value.")
    return [" ".join(said)]
