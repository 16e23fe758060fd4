"""One measure against another: whether they find the same layers alike."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats

from repsim.errors import InvalidInputError
from repsim.figures.canvas import COLUMN, NOTE, blank, footnote, known_measure, settle, style, tidy
from repsim.figures.heatmaps import caption_of, checked, known_variables, label_of
from repsim.figures.lettering import plain
from repsim.figures.selection import pick
from repsim.results.variables import RELATIONS

_MANY = 2000  # points: as shapes they would make a file that no viewer is glad of


def plot_measures(found: xr.Dataset, a: str, b: str, ax: Axes | None = None, *, width: float = COLUMN) -> Axes:
    """Draw one measure against another, a point every pair of layers of two models.

    Rank correlations (Spearman's rho, Kendall's tau-b) say how far both order the pairs of layers alike. They are over
    layer pairs, which are not independent, so there is no p-value. There is a diagonal only where both have one range.

    docs/figures.md has an example, which the tests run, and its picture.

    Parameters
    ----------
    found
        A study, or a result of `repsim.compare`.
    a, b
        Measures: across, and upwards.
    ax
        Where to draw; by default a figure of its own, with a footnote.
    width
        Inches, of a figure of its own.

    Raises
    ------
    UnknownNameError
        For a measure that is not there.
    InvalidInputError
        If fewer than three pairs of layers have both values.
    """
    groups, attrs, said = (
        _of_study(found, a, b) if found.attrs.get("format") == "repsim-study" else _of_result(found, a, b)
    )
    x, y = np.concatenate([np.stack(each) for each in groups.values()], axis=1) if groups else np.zeros((2, 0))
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        raise InvalidInputError(f"there is nothing to draw: fewer than three pairs of layers have both {a} and {b}")
    own = ax is None
    ax = blank(width, 0.82 * width) if ax is None else ax
    tidy(ax, plain(attrs[0]["label"]), plain(attrs[1]["label"]))
    for relation, values in groups.items():
        look = style(relation)
        ax.scatter(
            *values, s=7, marker=look["marker"], facecolors="none", edgecolors=look["color"], linewidths=0.6, alpha=0.7,
            label=relation or None, rasterized=both.size > _MANY, gid="pairs",
        )  # fmt: skip
    ranges = [[*map(float, each["valid_range"]), each["sense"]] for each in attrs]
    if ranges[0] == ranges[1]:
        ends = [min(x[both].min(), y[both].min()), max(x[both].max(), y[both].max())]
        ax.plot(ends, ends, color="0.5", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0, gid="identity")
    if "" not in groups:
        ax.legend(
            fontsize=NOTE, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, handletextpad=0.1,
            columnspacing=0.8, borderpad=0.1,
        )  # fmt: skip
    ax.set_title(_ranked(x[both], y[both]), fontsize=NOTE, loc="left", pad=4 if "" in groups else 14)
    if own:
        settle(ax.figure.figure, said)
    return ax


_Values = tuple[NDArray[np.float64], NDArray[np.float64]]
_Found = tuple[dict[str, _Values], tuple[Mapping[str, Any], Mapping[str, Any]], list[str]]


def _of_study(study: xr.Dataset, a: str, b: str) -> _Found:
    a, b = known_measure(study, a), known_measure(study, b)
    groups: dict[str, list[_Values]] = {}
    attrs: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
    for pair, relation in zip(study["pair"].values.tolist(), study["relation"].values.tolist(), strict=True):
        both = pick(study, pair, a), pick(study, pair, b)
        attrs = both[0].attrs, both[1].attrs
        groups.setdefault(relation, []).append((both[0].values.ravel(), both[1].values.ravel()))
    joined = {
        name: (np.concatenate([x for x, _ in groups[name]]), np.concatenate([y for _, y in groups[name]]))
        for name in RELATIONS
        if name in groups
    }
    return joined, attrs, footnote(study, "A point: two layers of two trained models.")


def _of_result(result: xr.Dataset, a: str, b: str) -> _Found:
    both = [checked(result[name]) for each in (a, b) for name in known_variables(result, [each])[:1]]
    values = both[0].values, both[1].values
    if {"model_a", "model_b"} <= set(result.coords) and (
        result["model_a"].values.tolist() == result["model_b"].values.tolist()
    ):
        apart = np.triu(np.ones(values[0].shape, bool), 1)  # each pair once, and no layer with itself
        values = values[0][apart], values[1][apart]
    attrs = tuple(
        {"sense": "similarity", "valid_range": (-math.inf, math.inf), "label": label_of(each)} | each.attrs
        for each in both
    )
    return (
        {"": (values[0].ravel(), values[1].ravel())},
        (attrs[0], attrs[1]),
        caption_of(both[0], "A point: two layers."),
    )


def _ranked(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """Both rank correlations; a constant has none."""
    text = f"{len(x)} layer pairs"
    if len(set(x)) < 2 or len(set(y)) < 2:
        return f"{text}, all equal under one measure: no rank correlation"
    rho, tau = stats.spearmanr(x, y).statistic, stats.kendalltau(x, y).statistic
    return f"Spearman \N{GREEK SMALL LETTER RHO} {rho:z.2f}, Kendall \N{GREEK SMALL LETTER TAU} {tau:z.2f} ({text})"
