"""Draw the depths of matching layers of two networks, and the similarity of matching layers by depth."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from repsim.errors import InvalidInputError
from repsim.figures.canvas import (
    COLUMN,
    NOTE,
    check_pairs,
    finish_layout,
    footnote,
    make_axes,
    resolve_measure,
    style,
    style_axes,
)
from repsim.figures.lettering import escape_text, wrap
from repsim.figures.selection import values_of_pairs
from repsim.presentation.measures import traits
from repsim.results.variables import ACROSS_FAMILIES, RELATIONS
from repsim.study.layer_matching import relative

_MOST_LINES = 100
"""Largest number of pairs of a group that are drawn as thin lines; more would be one grey area."""


class Curve(NamedTuple):
    """Curve of one pair of models: for the matched layers of a, (n,), depths in a and b, and similarities."""

    group: str
    relation: str
    depth: NDArray[np.float64]
    match_depth: NDArray[np.float64]
    value: NDArray[np.float64]


def plot_depths(
    study: xr.Dataset,
    measure: str | None = None,
    ax: Axes | None = None,
    *,
    show: Literal["depth", "similarity"] = "depth",
    width: float = COLUMN,
) -> Axes:
    """Draw the depth of the best match, or its similarity, against the depth in the first network.

    Relative depth is j / (B - 1) for layer j of B layers, 0 for the first layer and 1 for the last. Each pair of models
    is a thin line. Thick lines are means over pairs with the same relation, at every depth at which one of them has a
    layer. On the dotted diagonal, matching layers have the same relative depth in both networks; above it, they are
    deeper in the second one (Raghu et al. 2021). The first network of a pair of two families is of the family that the
    study lists first.

    docs/figures.md has an example and its picture.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`.
    measure : str, optional
        Measure of the study; by default debiased CKA given the input, if the study has it.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure, with a footnote.
    show : {"depth", "similarity"}
        Depth of the match, or similarity of a layer and its match.
    width : float
        Width of a new figure in inches.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidInputError
        If no pair has networks of two layers or more that match.
    """
    measure = resolve_measure(study, measure)
    check_pairs(study)
    if show not in {"depth", "similarity"}:
        raise InvalidInputError(f"expected show='depth' or show='similarity', got {show!r}")
    curves = list(_curves(study, measure))
    if not curves:
        raise InvalidInputError(f"there is nothing to draw: no two models match under {measure}")
    own = ax is None
    ax = make_axes(width, width * (0.84 if show == "depth" else 0.6)) if ax is None else ax
    label = escape_text(traits(measure).label)
    if show == "depth":
        ax.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, linestyle=(0, (1, 2)), gid="identity", zorder=0)
        ax.set(ylim=(-0.02, 1.02), aspect="equal")
    style_axes(
        ax, "relative depth in the first model", "relative depth of its best match" if show == "depth" else label
    )
    ax.set_xlim(-0.02, 1.02)
    curves.sort(key=lambda curve: RELATIONS.index(curve.relation))
    groups = list(dict.fromkeys(curve.group for curve in curves))
    for group in groups:
        _draw_group(ax, [curve for curve in curves if curve.group == group], depth=show == "depth", width=width)
    ax.legend(fontsize=NOTE, frameon=False, loc="best", handlelength=2.6)
    if own:
        thinned = any(_every([curve for curve in curves if curve.group == group]) > 1 for group in groups)
        thin = f"some of the pairs of models, at most {_MOST_LINES} of a kind" if thinned else "pairs of models"
        whose = "the mean of all of them" if thinned else "their mean"
        legend = f"Thin: {thin}; thick: {whose}. Match: the best one that keeps the order of layers."
        finish_layout(ax.figure.figure, footnote(study, f"{label}.", legend))
    return ax


def _every(curves: Sequence[Curve]) -> int:
    """Return of how many pairs of a group one is drawn as a thin line."""
    return math.ceil(len(curves) / _MOST_LINES)


def _draw_group(ax: Axes, curves: Sequence[Curve], *, depth: bool, width: float) -> None:
    """Draw the pairs of one group as thin lines, and their mean at every depth at which one of them has a layer."""
    look = style(curves[0].relation)
    for curve in curves[:: _every(curves)]:
        y = curve.match_depth if depth else curve.value
        ax.plot(curve.depth, y, color=look["color"], linewidth=0.5, alpha=0.35, gid="pair")
    at = np.unique(np.concatenate([curve.depth for curve in curves]))
    mean = np.mean([np.interp(at, c.depth, c.match_depth if depth else c.value) for c in curves], axis=0)
    label = wrap([escape_text(f"{curves[0].group} ({len(curves)} pair{'s' * (len(curves) > 1)})")], 0.5 * width, NOTE)
    ax.plot(at, mean, **look, linewidth=1.4, markersize=3, label=label, gid="mean")


def _curves(study: xr.Dataset, measure: str) -> Iterator[Curve]:
    families = dict(zip(study["model"].values.tolist(), study["family"].values.tolist(), strict=True))
    order = list(dict.fromkeys(families.values()))
    matches = study["match"].sel(measure=measure).values
    models = zip(study["pair_a"].values.tolist(), study["pair_b"].values.tolist(), strict=True)
    relations = study["relation"].values.tolist()
    of_pairs = zip(models, relations, matches, values_of_pairs(study, measure), strict=True)
    for (first, second), relation, of_pair, values in of_pairs:
        a, b = families[first], families[second]
        direction, own = 0, values
        if relation in ACROSS_FAMILIES and order.index(a) > order.index(b):
            a, b, direction, own = b, a, 1, values.T
        match = of_pair[direction, : len(own)]
        match_depth = relative(match, own.shape[1])
        depth = relative(np.arange(len(own)), len(own))
        rows = np.flatnonzero(~np.isnan(match_depth) & ~np.isnan(depth))
        if rows.size:
            group = f"{a} \N{RIGHTWARDS ARROW} {b}" if relation in ACROSS_FAMILIES and len(order) == 2 else relation
            yield Curve(group, relation, depth[rows], match_depth[rows], own[rows, match[rows]])
