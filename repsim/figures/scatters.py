"""Draw one measure against another, to see whether they rank pairs of layers alike."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats

from repsim.errors import InvalidInputError
from repsim.figures.canvas import (
    add_legend_above,
    finish_layout,
    footnote,
    inches_of,
    look_of,
    make_axes,
    resolve_measure,
    set_title,
    style_axes,
    write_above,
)
from repsim.figures.heatmaps import check_dims, label_of, make_caption, select_variables
from repsim.figures.lettering import escape_text, wrap
from repsim.figures.selection import values_of_pairs
from repsim.figures.styles import StyleName, column_width, in_style, legend_size, mark, note_size, stroke
from repsim.presentation.measures import traits
from repsim.results.variables import RELATIONS
from repsim.runtime.deprecation import rename_keyword

_MAX_VECTOR_POINTS = 2000  # more points are rasterised, because viewers are slow with so many shapes
_MOST_POINTS = 20_000  # of more points only some are drawn, because they would cover one another


@rename_keyword("found", "dataset", gone_in="2.0.0")
@in_style
def plot_measures(
    dataset: xr.Dataset,
    a: str,
    b: str,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
    """Draw one measure against another, with a point for every pair of layers of two models.

    Rank correlations (Spearman's rho, Kendall's tau-b) measure how similarly both order the pairs of layers. Pairs of
    layers are not independent, so there is no p-value. The diagonal is drawn only if both measures have the same range.

    docs/figures.md has an example and its picture.

    Parameters
    ----------
    dataset : xarray.Dataset
        Study of `repsim.universality`, or result of `repsim.compare`.
    a, b : str
        Measures along the horizontal and the vertical axis.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure, with a footnote.
    title : str, optional
        Title of the axes.
    width : float, optional
        Width of a new figure in inches; by default one column.
    style : {"nature", "neurips", "talk"}, optional
        Fonts, sizes and widths (`repsim.figures.style_context`).

    Returns
    -------
    Axes

    Raises
    ------
    UnknownNameError
        If the data set does not have a measure.
    InvalidInputError
        If fewer than three pairs of layers have both values.
    """
    is_study = dataset.attrs.get("format") == "repsim-study"
    groups, attrs, caption = _from_study(dataset, a, b) if is_study else _from_result(dataset, a, b)
    x, y = np.concatenate([np.stack(values) for values in groups.values()], axis=1) if groups else np.zeros((2, 0))
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        raise InvalidInputError(f"there is nothing to draw: fewer than three pairs of layers have both {a} and {b}")
    own = ax is None
    ax = make_axes(column_width(width), 0.82 * column_width(width)) if ax is None else ax
    style_axes(ax, escape_text(attrs[0]["label"]), escape_text(attrs[1]["label"]))
    every = math.ceil(x.size / _MOST_POINTS)
    for relation, (along, up) in groups.items():
        look = look_of(relation)
        ax.scatter(
            along[::every], up[::every], s=mark(2.65) ** 2, marker=look["marker"], facecolors="none",
            edgecolors=look["color"], linewidths=stroke(0.6), alpha=0.7, label=relation or None,
            rasterized=both.size > _MAX_VECTOR_POINTS, gid="pairs",
        )  # fmt: skip
    ranges = [[*map(float, declared["valid_range"]), declared["sense"]] for declared in attrs]
    if ranges[0] == ranges[1]:
        ends = [min(x[both].min(), y[both].min()), max(x[both].max(), y[both].max())]
        ax.plot(ends, ends, color="0.5", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0, gid="identity")
    above = 0.0
    if "" not in groups:
        legend = add_legend_above(ax, ncols=3, handletextpad=0.1)
        above = legend.get_window_extent().height / ax.figure.figure.dpi + legend.borderaxespad * legend_size() / 72
    write_above(ax, [wrap([_format_correlations(x[both], y[both])], inches_of(ax)[0], note_size())], above)
    set_title(ax, title)
    if own:
        omitted = f" One in {every} is drawn; the correlations are of all." if every > 1 else ""
        finish_layout(ax.figure.figure, [*caption[:-1], caption[-1] + omitted])
    return ax


_Values = tuple[NDArray[np.float64], NDArray[np.float64]]
_Selection = tuple[dict[str, _Values], tuple[Mapping[str, Any], Mapping[str, Any]], list[str]]


def _from_study(study: xr.Dataset, a: str, b: str) -> _Selection:
    a, b = resolve_measure(study, a), resolve_measure(study, b)
    groups: dict[str, list[_Values]] = {}
    attrs = tuple(
        {"label": declares.label, "sense": declares.sense, "valid_range": list(declares.valid_range)}
        for declares in map(traits, (a, b))
    )
    both = zip(values_of_pairs(study, a), values_of_pairs(study, b), strict=True)
    for relation, (x, y) in zip(study["relation"].values.tolist(), both, strict=True):
        groups.setdefault(relation, []).append((x.ravel(), y.ravel()))
    joined = {
        name: (np.concatenate([x for x, _ in groups[name]]), np.concatenate([y for _, y in groups[name]]))
        for name in RELATIONS
        if name in groups
    }
    return joined, (attrs[0], attrs[1]), footnote(study, "A point: two layers of two trained models.")


def _from_result(result: xr.Dataset, a: str, b: str) -> _Selection:
    both = [check_dims(result[select_variables(result, [measure])[0]]) for measure in (a, b)]
    values = both[0].values, both[1].values
    if {"model_a", "model_b"} <= set(result.coords) and (
        result["model_a"].values.tolist() == result["model_b"].values.tolist()
    ):
        upper = np.triu(np.ones(values[0].shape, bool), 1)  # every pair once, without the diagonal
        values = values[0][upper], values[1][upper]
    attrs = tuple(
        {"sense": "similarity", "valid_range": (-math.inf, math.inf), "label": label_of(variable)} | variable.attrs
        for variable in both
    )
    return (
        {"": (values[0].ravel(), values[1].ravel())},
        (attrs[0], attrs[1]),
        make_caption(both[0], "A point: two layers."),
    )


def _format_correlations(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """Format both rank correlations, which are undefined if a measure is constant."""
    text = f"{len(x)} layer pairs"
    if len(set(x)) < 2 or len(set(y)) < 2:
        return f"{text}, all equal under one measure: no rank correlation"
    rho, tau = stats.spearmanr(x, y).statistic, stats.kendalltau(x, y).statistic
    return f"Spearman \N{GREEK SMALL LETTER RHO} {rho:z.2f}, Kendall \N{GREEK SMALL LETTER TAU} {tau:z.2f} ({text})"
