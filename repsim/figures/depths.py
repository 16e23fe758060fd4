"""Which depth of one network matches which of another, and how alike they are there."""

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
    blank,
    footnote,
    has_pairs,
    known_measure,
    settle,
    style,
    tidy,
)
from repsim.figures.lettering import fold, plain
from repsim.figures.selection import pick
from repsim.presentation.measures import traits
from repsim.results.variables import RELATIONS
from repsim.study.layer_matching import relative


class Curve(NamedTuple):
    """One pair of models: at each depth of a, the depth of its best match in b, and their similarity."""

    group: str
    relation: str
    here: NDArray[np.float64]
    there: NDArray[np.float64]
    value: NDArray[np.float64]


def plot_depths(
    study: xr.Dataset,
    measure: str | None = None,
    ax: Axes | None = None,
    *,
    show: Literal["depth", "similarity"] = "depth",
    width: float = COLUMN,
) -> Axes:
    """Draw, along the depth of one network, the depth of the best match in another one, or the similarity there.

    Relative depth is j / (B - 1), 0 for the first layer and 1 for the last. Each pair of models is a thin line; a
    thick one is the mean over pairs of a kind, at every depth that one of them has a layer at. On the dotted diagonal
    both networks do the same at the same relative depth; above it the second one needs longer (Raghu et al. 2021).
    Pairs of two families run from the family that the study names first.

    docs/figures.md has an example, which the tests run, and its picture.

    Parameters
    ----------
    study
        What `repsim.universality` returns.
    measure
        One of the study's; by default debiased CKA given the input, where that is known.
    ax
        Where to draw; by default a figure of its own, with a footnote.
    show
        ``depth`` of the match, or the ``similarity`` of a layer and its match.
    width
        Inches, of a figure of its own.

    Raises
    ------
    InvalidInputError
        If no pair has networks of two layers or more that match.
    """
    measure = known_measure(study, measure)
    has_pairs(study)
    if show not in {"depth", "similarity"}:
        raise InvalidInputError(f"expected show='depth' or show='similarity', got {show!r}")
    curves = list(_curves(study, measure))
    if not curves:
        raise InvalidInputError(f"there is nothing to draw: no two models match under {measure}")
    own = ax is None
    ax = blank(width, width * (0.84 if show == "depth" else 0.6)) if ax is None else ax
    label = plain(traits(measure).label)
    if show == "depth":
        ax.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, linestyle=(0, (1, 2)), gid="identity", zorder=0)
        ax.set(ylim=(-0.02, 1.02), aspect="equal")
    tidy(ax, "relative depth in the first model", "relative depth of its best match" if show == "depth" else label)
    ax.set_xlim(-0.02, 1.02)
    curves.sort(key=lambda curve: RELATIONS.index(curve.relation))
    for group in dict.fromkeys(curve.group for curve in curves):
        _draw_group(ax, [curve for curve in curves if curve.group == group], depth=show == "depth", width=width)
    ax.legend(fontsize=NOTE, frameon=False, loc="best", handlelength=2.6)
    if own:
        how = "Thin: pairs of models; thick: their mean. Match: the best one that keeps the order of layers."
        settle(ax.figure.figure, footnote(study, f"{label}.", how))
    return ax


def _draw_group(ax: Axes, curves: Sequence[Curve], *, depth: bool, width: float) -> None:
    """Draw pairs of one kind as thin lines, and their mean at every depth that one of them has a layer at."""
    look = style(curves[0].relation)
    for curve in curves:
        y = curve.there if depth else curve.value
        ax.plot(curve.here, y, color=look["color"], linewidth=0.5, alpha=0.35, gid="pair")
    at = np.unique(np.concatenate([curve.here for curve in curves]))
    mean = np.mean([np.interp(at, c.here, c.there if depth else c.value) for c in curves], axis=0)
    label = fold([plain(f"{curves[0].group} ({len(curves)} pair{'s' * (len(curves) > 1)})")], 0.5 * width, NOTE)
    ax.plot(at, mean, **look, linewidth=1.4, markersize=3, label=label, gid="mean")


def _curves(study: xr.Dataset, measure: str) -> Iterator[Curve]:
    families = dict(zip(study["model"].values.tolist(), study["family"].values.tolist(), strict=True))
    order = list(dict.fromkeys(families.values()))
    for k, relation in enumerate(study["relation"].values.tolist()):
        pair = str(study["pair"].values[k])
        a, b = (families[str(study[f"pair_{side}"].values[k])] for side in "ab")
        if relation == "other family" and order.index(a) > order.index(b):
            pair, a, b = " x ".join(reversed(pair.split(" x "))), b, a
        panel = pick(study, pair, measure)
        there = relative(panel["match"].values, panel.shape[1])
        here = relative(np.arange(panel.shape[0]), panel.shape[0])
        rows = np.flatnonzero(~np.isnan(there) & ~np.isnan(here))
        if rows.size:
            value = panel.values[rows, panel["match"].values[rows]]
            group = f"{a} \N{RIGHTWARDS ARROW} {b}" if relation == "other family" and len(order) == 2 else relation
            yield Curve(group, relation, here[rows], there[rows], value)
