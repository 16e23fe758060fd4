"""Draw the map of models: points whose distances approximate the dissimilarity of the models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from repsim.errors import InvalidInputError
from repsim.figures.canvas import (
    COLOURS,
    MARKERS,
    add_legend_above,
    finish_layout,
    footnote,
    inches_of,
    make_axes,
    namer,
    resolve_measure,
    set_title,
    style_axes,
)
from repsim.figures.lettering import escape_text, shorten, text_width, wrap
from repsim.figures.styles import (
    LEADING,
    StyleName,
    column_width,
    in_style,
    legend_size,
    mark,
    note_size,
    paper,
    stroke,
)
from repsim.presentation.measures import traits
from repsim.study.reading import axis_shares

_MARK = 3.8  # points: size of a mark
_LOWEST, _HIGHEST = 0.4, 0.85  # heights of the axes, as shares of the width
_DIRECTIONS = 16  # of a name around its point
_FEW_MODELS = 12
"""Largest number of models of which every name has a place, at the end of a long line if need be."""
_DISTANCES = (90, 22)
"""Largest distance in points of a name from its point, of few models and of many: lines of many would cross."""

Box = tuple[float, float, float, float]


@in_style
def plot_map(
    study: xr.Dataset,
    measure: str | None = None,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
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
    title : str, optional
        Title of the axes.
    labels : mapping of str to str, optional
        Names to show for models and families, by their names in the study.
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
        If the study has no map, which needs two trained models.
    """
    measure = resolve_measure(study, measure, among="map")
    at = study.sel({"map": measure})
    places = np.nan_to_num(at["map_coordinates"].values[:, :2])
    clusters, families = at["cluster"].values.tolist(), study["family"].values.tolist()
    width = column_width(width) if ax is None else inches_of(ax)[0]
    shown = namer(labels, [*study["model"].values, *families], "model or family of this study")
    models = shorten([shown(model) for model in study["model"].values], 0.4 * width, note_size())
    distinct_families = list(dict.fromkeys(families))
    several_families = len(distinct_families) <= len(MARKERS)
    parts = axis_shares(at["map_eigenvalues"].values)
    if places.shape[1] < 2 or not parts.any():
        raise InvalidInputError(f"there is nothing to draw: under {measure} all models are in one place")
    own = ax is None
    extent = np.ptp(places, axis=0)  # models on a line need no square, which would be empty
    ratio = float(np.clip(1.6 * extent[1] / max(extent[0], 1e-9), _LOWEST, _HIGHEST))
    ax = make_axes(width, ratio * width) if ax is None else ax
    style_axes(ax, f"axis 1 ({parts[0]:.0%} of squared distances)", f"axis 2 ({parts[1]:.0%})")
    ax.set_aspect("equal", adjustable="datalim")
    several = max(clusters) > 0
    if several:
        _outline_clusters(ax, places, clusters)
    for (x, y), cluster, family in zip(places, clusters, families, strict=True):
        ax.scatter(
            x, y, s=mark(_MARK) ** 2, color=_colour(cluster),
            marker=MARKERS[distinct_families.index(family) if several_families else 0],
            edgecolors=paper(), linewidths=stroke(0.5), zorder=3, gid="model",
        )  # fmt: skip
    edge = 0.08 * extent.max()  # the layout may shrink margins, but not cut off an outline
    ax.update_datalim([places.min(axis=0) - edge, places.max(axis=0) + edge])
    ax.margins(0.22)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    if several_families:
        _add_legend(ax, [*map(shown, distinct_families)], width)
    set_title(ax, title)
    place_names = partial(_place_names, ax, _write_names(ax, places, models))
    if own:
        label = f"{escape_text(traits(measure).label)}, mean over matching layers."
        markers = "Markers: families." if several_families else ""
        markers += " Names: where there is room." if len(models) > _FEW_MODELS else ""
        reading = [markers, _explanation(at, several=several), _overlaps(places, width)]
        finish_layout(ax.figure.figure, footnote(study, label, *filter(None, reading)), place_names)
    else:
        place_names()
    return ax


def _overlaps(places: NDArray[np.float64], width: float) -> str:
    """Return a sentence if marks of some models cover each other in a figure of this width; else an empty string."""
    extent = float(np.ptp(places, axis=0).max()) * 1.44  # with the margins
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(len(places), 1)]
    least = mark(_MARK) / 72 / (0.8 * width) * extent
    close = int((distances < least).sum())
    return f"Marks that overlap are of models less than {least:.1g} apart." if close else ""


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
    size = legend_size()
    named = [wrap([family], 0.75 * width, size) for family in families]
    widest = max(text_width(line, size) for name in named for line in name.split("\n"))
    keys = [
        Line2D([], [], linestyle="", marker=MARKERS[k % len(MARKERS)], color="0.4", markersize=mark(4), label=name)
        for k, name in enumerate(named)
    ]
    columns = max(1, int(width * 60 // (widest + 3.4 * size)))
    add_legend_above(ax, handles=keys, ncols=columns, handletextpad=0.1)


def _explanation(at: xr.Dataset, *, several: bool) -> str:
    stability = float(at["cluster_stability"])
    if not several:
        return "The models form no clear clusters."
    note = f" (found again under resampled stimuli: adjusted Rand index {stability:z.2f})"
    return f"Colours and outlines: clusters{'' if math.isnan(stability) else note}."


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


def _write_names(ax: Axes, places: NDArray[np.float64], names: Sequence[str]) -> list[Annotation]:
    """Write the name of every point, with a line to it, in places that `_place_names` chooses."""
    line = {"arrowstyle": "-", "color": "0.5", "linewidth": stroke(0.5), "shrinkA": 0, "shrinkB": 3}
    return [
        ax.annotate(
            name, place, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=note_size(),
            gid="name", arrowprops=line, annotation_clip=False, in_layout=False,
        )
        for name, place in zip(names, places, strict=True)
    ]  # fmt: skip


def _place_names(ax: Axes, names: Sequence[Annotation]) -> None:
    """Move every name to the nearest position inside the axes where it covers no point and no other name.

    A name without such a position is hidden.
    """
    scale = 72 / ax.figure.figure.dpi
    ax.apply_aspect()
    points = ax.transData.transform([name.xy for name in names]) * scale
    frame = ax.get_window_extent()
    inside = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    half = mark(_MARK) / 2 + 1.3
    occupied: list[Box] = [(x - half, y - half, x + half, y + half) for x, y in points]
    for point, name in zip(points, names, strict=True):
        points_high = float(name.get_fontsize())
        size = text_width(name.get_text(), points_high) + 2, points_high * LEADING
        boxes = (
            box
            for box in _candidate_boxes(point, size, _DISTANCES[len(names) > _FEW_MODELS])
            if _within(box, inside) and not any(_overlap(box, other) for other in occupied)
        )
        box = next(boxes, None)
        name.set_visible(box is not None)
        if box is None:
            continue
        occupied.append(box)
        middle = (box[0] + box[2]) / 2 - point[0], (box[1] + box[3]) / 2 - point[1]
        name.xyann = middle
        near = math.hypot(max(abs(middle[0]) - size[0] / 2, 0), max(abs(middle[1]) - size[1] / 2, 0)) < 7
        assert name.arrow_patch is not None
        name.arrow_patch.set_visible(not near)


def _candidate_boxes(point: NDArray[np.float64], size: tuple[float, float], distance: int) -> Iterator[Box]:
    """Yield possible boxes of a text around a point up to a distance, the nearest first."""
    for gap in range(5, distance, 4):
        for k in range(_DIRECTIONS):
            x, y = math.cos(2 * math.pi * k / _DIRECTIONS), math.sin(2 * math.pi * k / _DIRECTIONS)
            left = point[0] + x * gap + (x - 1) * size[0] / 2
            low = point[1] + y * gap + (y - 1) * size[1] / 2
            yield left, low, left + size[0], low + size[1]


def _within(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
