"""Draw the map of models: points whose distances approximate the dissimilarity of the models."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from repsim.errors import InvalidInputError
from repsim.figures.canvas import (
    COLOURS,
    COLUMN,
    LEADING,
    MARKERS,
    NOTE,
    finish_layout,
    footnote,
    make_axes,
    resolve_measure,
    style_axes,
)
from repsim.figures.lettering import escape_text, shorten, text_width, wrap
from repsim.presentation.measures import traits
from repsim.study.reading import axis_shares

_DIRECTIONS = 16  # of a name around its point
_MAX_DISTANCE = 90  # points: a name that finds no room within this distance is not drawn

Box = tuple[float, float, float, float]


def plot_map(study: xr.Dataset, measure: str | None = None, ax: Axes | None = None, *, width: float = COLUMN) -> Axes:
    """Draw the first two axes of the classical scaling of models, with clusters by colour and families by marker.

    Squared distances over all axes are 2 (1 - similarity). The label of each axis gives its share of the sum of
    squared distances. Both axes have the same scale.

    docs/figures.md has an example and its picture.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`.
    measure : str, optional
        Measure of the map; by default debiased CKA given the input, if the study has it.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure, with a footnote.
    width : float
        Width of a new figure in inches.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidInputError
        If the study has no map, which needs two trained models.
    """
    measure = resolve_measure(study, measure, among="map")
    at = study.sel({"map": measure})
    places = np.nan_to_num(at["map_coordinates"].values[:, :2])
    clusters, families = at["cluster"].values.tolist(), study["family"].values.tolist()
    models = shorten([escape_text(model) for model in study["model"].values], 0.4 * width, NOTE)
    distinct_families = list(dict.fromkeys(families))
    parts = axis_shares(at["map_eigenvalues"].values)
    if places.shape[1] < 2 or not parts.any():
        raise InvalidInputError(f"there is nothing to draw: under {measure} all models are in one place")
    own = ax is None
    ax = make_axes(width, 0.85 * width) if ax is None else ax
    style_axes(ax, f"axis 1 ({parts[0]:.0%} of squared distances)", f"axis 2 ({parts[1]:.0%})")
    ax.set_aspect("equal", adjustable="datalim")
    several = max(clusters) > 0
    if several:
        _outline_clusters(ax, places, clusters)
    for (x, y), cluster, family in zip(places, clusters, families, strict=True):
        ax.scatter(
            x, y, s=22, color=_colour(cluster), marker=MARKERS[distinct_families.index(family) % len(MARKERS)],
            edgecolors="black", linewidths=0.5, zorder=3, gid="model",
        )  # fmt: skip
    ax.margins(0.22)
    _add_legend(ax, distinct_families, width)
    if own:
        label = f"{escape_text(traits(measure).label)}, mean over matching layers."
        finish_layout(ax.figure.figure, footnote(study, label, _explanation(at, several=several)))
    _name_points(ax, places, models)
    return ax


def _outline_clusters(ax: Axes, places: NDArray[np.float64], clusters: Sequence[int]) -> None:
    """Shade the background of every cluster of two models or more."""
    for cluster in sorted(set(clusters)):
        members = places[np.array(clusters) == cluster]
        colour = np.array(to_rgb(_colour(cluster)))
        if len(members) > 1:
            light = 1 - 0.18 * (1 - colour)  # opaque, because a transparent edge and area would overlap visibly
            ax.fill(
                *_hull(members).T, color=light, linewidth=14, joinstyle="round", capstyle="round", zorder=0,
                gid="cluster",
            )  # fmt: skip


def _colour(cluster: int) -> str:
    return COLOURS[max(cluster, 0) % len(COLOURS)]


def _add_legend(ax: Axes, families: Sequence[str], width: float) -> None:
    """Add a legend of the markers of families, in as many columns as fit."""
    named = [wrap([escape_text(family)], 0.75 * width, NOTE) for family in families]
    widest = max(text_width(line, NOTE) for name in named for line in name.split("\n"))
    keys = [
        Line2D([], [], linestyle="", marker=MARKERS[k % len(MARKERS)], color="0.4", markersize=4, label=name)
        for k, name in enumerate(named)
    ]
    ax.legend(
        handles=keys, fontsize=NOTE, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderpad=0.1,
        ncols=max(1, int(width * 60 // (widest + 22))), handletextpad=0.1, columnspacing=0.8,
    )  # fmt: skip


def _explanation(at: xr.Dataset, *, several: bool) -> str:
    stability = float(at["cluster_stability"])
    if not several:
        return "Markers: families. The models form no clear clusters."
    note = f" (found again under resampled stimuli: adjusted Rand index {stability:z.2f})"
    return f"Markers: families; colours and outlines: clusters{'' if math.isnan(stability) else note}."


def _hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the convex hull, (k, 2), of points, (n, 2), which may coincide (Andrew 1979)."""
    ordered = sorted({(float(x), float(y)) for x, y in points})

    def half_hull(path: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        hull: list[tuple[float, float]] = []
        for x, y in path:
            while len(hull) > 1 and _cross_product(hull[-2], hull[-1], (x, y)) <= 0:
                hull.pop()
            hull.append((x, y))
        return hull[:-1]

    return np.array([*half_hull(ordered), *half_hull(ordered[::-1])] or ordered)


def _cross_product(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _name_points(ax: Axes, places: NDArray[np.float64], names: Sequence[str]) -> None:
    """Write every name at the nearest position inside the axes where it covers no point and no other name."""
    figure = ax.figure.figure
    scale = 72 / figure.dpi
    ax.apply_aspect()
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    points = ax.transData.transform(places) * scale
    frame = ax.get_window_extent()
    inside = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    occupied: list[Box] = [(x - 3.5, y - 3.5, x + 3.5, y + 3.5) for x, y in points]
    for k, name in enumerate(names):
        size = text_width(name, NOTE) + 2, NOTE * LEADING
        for box in _candidate_boxes(points[k], size):
            if _within(box, inside) and not any(_overlap(box, other) for other in occupied):
                occupied.append(box)
                middle = (box[0] + box[2]) / 2 - points[k][0], (box[1] + box[3]) / 2 - points[k][1]
                near = math.hypot(max(abs(middle[0]) - size[0] / 2, 0), max(abs(middle[1]) - size[1] / 2, 0)) < 7
                line = (
                    None if near else {"arrowstyle": "-", "color": "0.5", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
                )
                ax.annotate(
                    name, places[k], middle, textcoords="offset points", ha="center", va="center", fontsize=NOTE,
                    gid="name", arrowprops=line, annotation_clip=False,
                )  # fmt: skip
                break


def _candidate_boxes(point: NDArray[np.float64], size: tuple[float, float]) -> Iterator[Box]:
    """Yield possible boxes of a text around a point, the nearest first."""
    for gap in range(5, _MAX_DISTANCE, 4):
        for k in range(_DIRECTIONS):
            x, y = math.cos(2 * math.pi * k / _DIRECTIONS), math.sin(2 * math.pi * k / _DIRECTIONS)
            left = point[0] + x * gap + (x - 1) * size[0] / 2
            low = point[1] + y * gap + (y - 1) * size[1] / 2
            yield left, low, left + size[0], low + size[1]


def _within(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
