"""Models as points: the nearer, the more alike."""

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
    blank,
    footnote,
    known_measure,
    settle,
    tidy,
)
from repsim.figures.lettering import fold, plain, shorten, width_of
from repsim.presentation.measures import traits
from repsim.study.reading import axis_shares

_AROUND = 16
_FAR = 90  # points: a name further from its point than this is left out

Box = tuple[float, float, float, float]


def plot_map(study: xr.Dataset, measure: str | None = None, ax: Axes | None = None, *, width: float = COLUMN) -> Axes:
    """Draw the first two axes of the classical scaling of models, with clusters by colour and families by marker.

    Squared distances of all axes together are 2 (1 - similarity); each axis says which part of their sum it carries.
    Both axes have one scale.

    docs/figures.md has an example, which the tests run, and its picture.

    Parameters
    ----------
    study
        What `repsim.universality` returns.
    measure
        One of the study's maps; by default debiased CKA given the input, where that is known.
    ax
        Where to draw; by default a figure of its own, with a footnote.
    width
        Inches, of a figure of its own.

    Raises
    ------
    InvalidInputError
        If the study has no map: it takes two trained models.
    """
    measure = known_measure(study, measure, among="map")
    at = study.sel({"map": measure})
    places = np.nan_to_num(at["map_coordinates"].values[:, :2])
    clusters, families = at["cluster"].values.tolist(), study["family"].values.tolist()
    models = shorten([plain(model) for model in study["model"].values], 0.4 * width, NOTE)
    of = list(dict.fromkeys(families))
    parts = axis_shares(at["map_eigenvalues"].values)
    if places.shape[1] < 2 or not parts.any():
        raise InvalidInputError(f"there is nothing to draw: under {measure} all models are in one place")
    own = ax is None
    ax = blank(width, 0.85 * width) if ax is None else ax
    tidy(ax, f"axis 1 ({parts[0]:.0%} of squared distances)", f"axis 2 ({parts[1]:.0%})")
    ax.set_aspect("equal", adjustable="datalim")
    several = max(clusters) > 0
    if several:
        _outline_clusters(ax, places, clusters)
    for (x, y), cluster, family in zip(places, clusters, families, strict=True):
        ax.scatter(
            x, y, s=22, color=_colour(cluster), marker=MARKERS[of.index(family) % len(MARKERS)],
            edgecolors="black", linewidths=0.5, zorder=3, gid="model",
        )  # fmt: skip
    ax.margins(0.22)
    _add_legend(ax, of, width)
    if own:
        label = f"{plain(traits(measure).label)}, mean over matched depths."
        settle(ax.figure.figure, footnote(study, label, _reading(at, several=several)))
    _name_points(ax, places, models)
    return ax


def _outline_clusters(ax: Axes, places: NDArray[np.float64], clusters: Sequence[int]) -> None:
    """Shade the ground of every cluster of two models or more."""
    for cluster in sorted(set(clusters)):
        members = places[np.array(clusters) == cluster]
        colour = np.array(to_rgb(_colour(cluster)))
        if len(members) > 1:
            light = 1 - 0.18 * (1 - colour)  # opaque: edge and ground would add up to a darker seam
            ax.fill(
                *_hull(members).T, color=light, linewidth=14, joinstyle="round", capstyle="round", zorder=0,
                gid="cluster",
            )  # fmt: skip


def _colour(cluster: int) -> str:
    return COLOURS[max(cluster, 0) % len(COLOURS)]


def _add_legend(ax: Axes, families: Sequence[str], width: float) -> None:
    """Name the families by their markers, in as many columns as there is room for."""
    named = [fold([plain(family)], 0.75 * width, NOTE) for family in families]
    widest = max(width_of(line, NOTE) for name in named for line in name.split("\n"))
    keys = [
        Line2D([], [], linestyle="", marker=MARKERS[k % len(MARKERS)], color="0.4", markersize=4, label=name)
        for k, name in enumerate(named)
    ]
    ax.legend(
        handles=keys, fontsize=NOTE, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderpad=0.1,
        ncols=max(1, int(width * 60 // (widest + 22))), handletextpad=0.1, columnspacing=0.8,
    )  # fmt: skip


def _reading(at: xr.Dataset, *, several: bool) -> str:
    firm = float(at["cluster_stability"])
    if not several:
        return "Markers: families. The models form no clear clusters."
    found = "" if math.isnan(firm) else f" (found again under resampled stimuli: adjusted Rand index {firm:z.2f})"
    return f"Markers: families; colours and outlines: clusters{found}."


def _hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The convex outline of points, of which two or more may be one (Andrew 1979)."""
    ordered = sorted({(float(x), float(y)) for x, y in points})

    def chain(some: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        made: list[tuple[float, float]] = []
        for x, y in some:
            while len(made) > 1 and _turn(made[-2], made[-1], (x, y)) <= 0:
                made.pop()
            made.append((x, y))
        return made[:-1]

    return np.array([*chain(ordered), *chain(ordered[::-1])] or ordered)


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _name_points(ax: Axes, places: NDArray[np.float64], names: Sequence[str]) -> None:
    """Write every name at the nearest place where it covers neither a point nor another name, inside the axes."""
    figure = ax.figure.figure
    scale = 72 / figure.dpi
    ax.apply_aspect()
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    points = ax.transData.transform(places) * scale
    frame = ax.get_window_extent()
    inside = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    taken: list[Box] = [(x - 3.5, y - 3.5, x + 3.5, y + 3.5) for x, y in points]
    for k, name in enumerate(names):
        size = width_of(name, NOTE) + 2, NOTE * LEADING
        for box in _around(points[k], size):
            if _within(box, inside) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
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


def _around(point: NDArray[np.float64], size: tuple[float, float]) -> Iterator[Box]:
    """Boxes of text around a point, nearest first."""
    for gap in range(5, _FAR, 4):
        for k in range(_AROUND):
            x, y = math.cos(2 * math.pi * k / _AROUND), math.sin(2 * math.pi * k / _AROUND)
            left = point[0] + x * gap + (x - 1) * size[0] / 2
            low = point[1] + y * gap + (y - 1) * size[1] / 2
            yield left, low, left + size[0], low + size[1]


def _within(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
