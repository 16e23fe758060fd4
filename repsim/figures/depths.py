"""Draw the depths of matching layers of two networks, and the similarity of matching layers by depth."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from repsim.errors import InvalidInputError
from repsim.figures.canvas import (
    COLOURS,
    MARKERS,
    add_legend_above,
    check_pairs,
    finish_layout,
    footnote,
    look_of,
    make_axes,
    namer,
    resolve_measure,
    set_title,
    settle,
    style_axes,
)
from repsim.figures.lettering import escape_text, wrap
from repsim.figures.selection import groups_of_pairs, values_of_pairs
from repsim.figures.styles import StyleName, column_width, in_style, legend_size, mark, stroke
from repsim.presentation.measures import traits
from repsim.results.variables import ACROSS_FAMILIES, RELATIONS
from repsim.study.layer_matching import relative

_MANY = 30
"""Number of pairs of a group from which on thin lines are paler, so that the means stand out."""
_MOST_LINES = 100
"""Largest number of pairs of a group that are drawn as thin lines; more would be one grey area."""


class Curve(NamedTuple):
    """Curve of one pair of models: for the matched layers of a, (n,), depths in a and b, and similarities."""

    group: str
    relation: str
    depth: NDArray[np.float64]
    match_depth: NDArray[np.float64]
    value: NDArray[np.float64]
    alike: bool
    """Whether the group is named by the architecture that its models share."""


@in_style
def plot_depths(
    study: xr.Dataset,
    measure: str | None = None,
    ax: Axes | None = None,
    *,
    show: Literal["depth", "similarity"] = "depth",
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
    """Draw the depth of the best match, or its similarity, against the depth in the first network.

    Relative depth is j / (B - 1) for layer j of B layers, 0 for the first layer and 1 for the last. Each pair of models
    is a thin line. Thick lines are means over pairs with the same relation (of models that are alike, of the same
    family or architecture), at every depth at which one of them has a layer. On the dotted diagonal, matching layers
    have the same relative depth in both networks; above it, they are deeper in the second one (Raghu et al. 2021). The
    first network of a pair of two families is of the family that the study lists first.

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
    title : str, optional
        Title of the axes.
    labels : mapping of str to str, optional
        Names to show for families or architectures, by their names in the study.
    width : float, optional
        Width of a new figure in inches; by default one column.
    style : {"nature", "neurips", "talk"}, optional
        Fonts, sizes and widths (`repsim.figures.style_context`).

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
    named = [*study["family"].values, *(study["architecture"].values if "architecture" in study.coords else ())]
    namer(labels, named, "family of this study")  # checks the names
    curves = list(_curves(study, measure, dict(labels or {})))
    if not curves:
        raise InvalidInputError(f"there is nothing to draw: no two models match under {measure}")
    own = ax is None
    width = column_width(width)
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
    for group, look in zip(groups, _looks(curves, groups), strict=True):
        _draw_group(ax, [curve for curve in curves if curve.group == group], look, depth=show == "depth", width=width)
    add_legend_above(ax, ncols=1 if len(groups) < 3 else 2, handlelength=2.6)
    set_title(ax, title)
    if not own:
        settle(ax.figure.figure)
    else:
        thinned = any(_every([curve for curve in curves if curve.group == group]) > 1 for group in groups)
        thin = f"some of the pairs of models, at most {_MOST_LINES} of a kind" if thinned else "pairs of models"
        whose = "the mean of all of them" if thinned else "their mean"
        alike = "One name: models of one architecture. " if any(curve.alike for curve in curves) else ""
        legend = f"Thin: {thin}; thick: {whose}. {alike}Match: the best one that keeps the order of layers."
        measured = [f"{label}."] if show == "depth" else []  # the label of an axis names it otherwise
        finish_layout(ax.figure.figure, footnote(study, *measured, legend))
    return ax


def _every(curves: Sequence[Curve]) -> int:
    """Return of how many pairs of a group one is drawn as a thin line."""
    return math.ceil(len(curves) / _MOST_LINES)


def _looks(curves: Sequence[Curve], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Return the look of every group: that of its relation for the first, and spare colours for others."""
    of_relations = [look_of(next(curve.relation for curve in curves if curve.group == group)) for group in groups]
    taken = {look["color"] for look in of_relations}
    after_relations = np.roll(np.arange(len(COLOURS)), -len(RELATIONS)).tolist()
    spare = cycle([k for k in after_relations if COLOURS[k] not in taken])
    looks: list[dict[str, Any]] = []
    for look in of_relations:
        if look in looks:
            k = next(spare)
            look |= {"color": COLOURS[k], "marker": MARKERS[k]}
        looks.append(look)
    return looks


def _draw_group(ax: Axes, curves: Sequence[Curve], look: dict[str, Any], *, depth: bool, width: float) -> None:
    """Draw the pairs of one group as thin lines, and their mean at every depth at which one of them has a layer."""
    alpha = 0.35 if len(curves) < _MANY else 0.15
    for curve in curves[:: _every(curves)]:
        y = curve.match_depth if depth else curve.value
        ax.plot(curve.depth, y, color=look["color"], linewidth=stroke(0.5), alpha=alpha, gid="pair")
    at = np.unique(np.concatenate([curve.depth for curve in curves]))
    mean = np.mean([np.interp(at, c.depth, c.match_depth if depth else c.value) for c in curves], axis=0)
    label = wrap(
        [escape_text(f"{curves[0].group} ({len(curves)} pair{'s' * (len(curves) > 1)})")], 0.5 * width, legend_size()
    )
    ax.plot(at, mean, **look, linewidth=stroke(1.4), markersize=mark(3), label=label, gid="mean", zorder=3)


def _curves(study: xr.Dataset, measure: str, labels: Mapping[str, str]) -> Iterator[Curve]:
    families = dict(zip(study["model"].values.tolist(), study["family"].values.tolist(), strict=True))
    order = list(dict.fromkeys(families.values()))
    matches = study["match"].sel(measure=measure).values
    models = zip(study["pair_a"].values.tolist(), study["pair_b"].values.tolist(), strict=True)
    relations = study["relation"].values.tolist()
    kinds = groups_of_pairs(study)
    of_pairs = zip(models, relations, kinds, matches, values_of_pairs(study, measure), strict=True)
    for (first, second), relation, kind, of_pair, values in of_pairs:
        a, b = families[first], families[second]
        direction, own = 0, values
        if relation in ACROSS_FAMILIES and order.index(a) > order.index(b):
            a, b, direction, own = b, a, 1, values.T
        match = of_pair[direction, : len(own)]
        match_depth = relative(match, own.shape[1])
        depth = relative(np.arange(len(own)), len(own))
        rows = np.flatnonzero(~np.isnan(match_depth) & ~np.isnan(depth))
        if rows.size:
            of = kind.partition(": ")[2]
            group = f"{labels.get(of, of)}{' family' * (relation == 'same family')}" if of else relation
            if relation in ACROSS_FAMILIES and len(order) == 2:
                group = f"{labels.get(a, a)} \N{RIGHTWARDS ARROW} {labels.get(b, b)}"
            yield Curve(group, relation, depth[rows], match_depth[rows], own[rows, match[rows]], bool(of))
