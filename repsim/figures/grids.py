"""Many heatmaps under one scale, so that equal colours are equal values wherever they stand."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from repsim.errors import InvalidInputError
from repsim.figures.canvas import NOTE, PAGE, fit, fold, plain
from repsim.figures.excerpts import every_pair, pick
from repsim.figures.heatmaps import ALPHA, checked, draw, known_variables, label_of, once
from repsim.figures.scales import label_colour_bar, scale_of

_BAR = 0.75  # inches: the colour bar with its numbers and its label
_LEAST = 1.45  # inches: a panel with its names; narrower, it goes to the next row


def plot_grid(
    found: xr.Dataset | Sequence[xr.Dataset] | Sequence[xr.DataArray],
    measures: Sequence[str] | None = None,
    *,
    pairs: Sequence[str] | None = None,
    path: bool | None = None,
    marks: bool | None = None,
    width: float = PAGE,
) -> Figure:
    """Draw several models or measures as heatmaps with one scale and one colour bar.

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
        Inches.

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
    kinds = {_kind(panel): label_of(panel) for panel in panels}
    if len(kinds) > 1:
        raise InvalidInputError(
            f"one scale takes measures of one sense and one range, which {' and '.join(kinds.values())} do not have; "
            "draw them apart, or name one"
        )
    values = np.concatenate([np.asarray(panel.values, np.float64).ravel() for panel in panels])
    scale = scale_of(panels[0], values)
    labels = list(dict.fromkeys(map(label_of, panels)))

    across = max(1, min(len(panels), int((width - _BAR) // _LEAST)))
    down = math.ceil(len(panels) / across)
    across = math.ceil(len(panels) / down)
    figure = Figure(figsize=(width, width * down / across))
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for ax in grid[len(panels) :]:
        ax.remove()
    side = (width - _BAR) / across - 0.5
    for ax, panel in zip(grid, panels, strict=False):
        draw(panel, ax, side, side, scale=scale, size=NOTE + 0.5, path=path, marks=marks)
        if len(labels) > 1:
            ax.set_title(fold([label_of(panel)], side, NOTE + 0.5), fontsize=NOTE + 0.5, pad=3)
    bar = figure.colorbar(
        ScalarMappable(scale.norm, scale.colours),
        ax=list(grid[: len(panels)]),
        extend=scale.extend,
        aspect=30,
        pad=0.02,
    )
    label_colour_bar(bar, scale, NOTE)
    bar.set_label("\n".join(labels) if len(labels) == 1 else "one scale for all panels", fontsize=NOTE + 0.5)
    figure.supxlabel(
        fold(_caption(panels, path=path, marks=marks), width - 0.12, NOTE), x=0.06 / width, ha="left", fontsize=NOTE
    )
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
    for _ in range(2):
        layout.execute(figure)
        panel = figure.axes[0].get_position(original=True).width * width
        fit(figure, layout, panel * across, panel * down, keep_width=True)
    layout.execute(figure)
    return figure


def _panels(
    found: xr.Dataset | Sequence[xr.Dataset] | Sequence[xr.DataArray],
    measures: Sequence[str] | None,
    pairs: Sequence[str] | None,
) -> Iterator[xr.DataArray]:
    if isinstance(found, xr.Dataset) and found.attrs.get("format") == "repsim-study":
        for measure in measures or [None]:
            if pairs is None:
                yield from every_pair(found, measure)
            else:
                yield from (pick(found, pair, measure) for pair in pairs)
        return
    if pairs is not None:
        raise InvalidInputError("pairs are a study's; of a result everything is drawn that it holds")
    for each in [found] if isinstance(found, xr.Dataset) else found:
        if isinstance(each, xr.DataArray):
            yield checked(each)
        else:
            yield from (checked(each[name]) for name in known_variables(each, measures))


def _kind(panel: xr.DataArray) -> tuple[object, ...]:
    return panel.attrs.get("sense", "similarity"), *map(float, panel.attrs.get("valid_range", (-math.inf, math.inf)))


def _caption(panels: Sequence[xr.DataArray], *, path: bool | None, marks: bool | None) -> list[str]:
    def all_of(coord: str) -> str:
        return ", ".join(dict.fromkeys(name for panel in panels for name in once(panel, coord)))

    data = all_of("data") or "data not recorded"
    counts = f", {n} samples" if (n := all_of("n_samples")) else ""
    readouts = ", ".join(dict.fromkeys([*filter(None, (all_of("readout_a"), all_of("readout_b")))]))
    said = [
        f"{data}{counts}{f', readout {readouts}' if readouts else ''}. Layers by depth; bright is alike; dashed: stages."
    ]
    if path or (path is None and any("match" in panel.coords for panel in panels)):
        said.append("Rings: the best order-preserving match of every row.")
    if marks or (marks is None and any("p" in panel.coords for panel in panels)):
        said.append(
            f"Crosses: not above chance (permutation p > {ALPHA}, Pearson III, after Holm over the cells of a panel)."
        )
    if any(np.isnan(panel.values).any() for panel in panels):
        said.append("Hatched: no value.")
    return [plain(line) for line in [" ".join(said)]]
