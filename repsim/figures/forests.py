"""Draw the similarity of all pairs of models, with intervals and controls, as a forest plot."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

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
from repsim.figures.lettering import escape_text, text_width, wrap
from repsim.presentation.measures import traits
from repsim.results.variables import RELATIONS

_PITCH = 0.135  # inches: height of a line of text
_CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "control": (
        "control: untrained", {"marker": "D", "facecolors": "white", "edgecolors": "black", "s": 11, "zorder": 2.5}
    ),
    "threshold_index": ("chance, 95 % point", {"marker": "|", "color": "black", "s": 34, "zorder": 2.5}),
    "split_half": ("split half", {"marker": "+", "color": "black", "s": 22, "zorder": 4}),
}  # fmt: skip


def plot_pairs(study: xr.Dataset, measure: str | None = None, ax: Axes | None = None, *, width: float = COLUMN) -> Axes:
    """Draw the index of every pair of models with its 95 % interval and its controls: a forest plot.

    The index T is the mean similarity along the best match of layers. Three other marks are drawn if known: the index
    of the best control (untrained networks), the 95 % point tau of permuted samples, and the index on one half of the
    samples for the match of the other half. A number gives the calibrated index, max(0, (T - tau) / (1 - tau)), which
    is 0 for chance and 1 for equal networks.

    docs/figures.md has an example and its picture.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`.
    measure : str, optional
        Measure of the study; by default debiased CKA given the input, if the study has it.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure, whose height follows from the number of pairs, with a
        footnote.
    width : float
        Width of a new figure in inches.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidInputError
        If no pair has an index.
    """
    measure = resolve_measure(study, measure)
    check_pairs(study)
    at = study.sel(measure=measure)
    if np.isnan(at["index"].values).all():
        raise InvalidInputError(f"there is nothing to draw: no pair of models has an index under {measure}")
    own = ax is None
    inches = width if ax is None else ax.get_window_extent().width / ax.figure.figure.dpi + 1
    names = {name: _format_pair(name, 0.4 * inches) for name in at["pair"].values.tolist()}
    lines = max(name.count("\n") + 1 for name in names.values())
    relations = [relation for relation in RELATIONS if relation in at["relation"].values]
    ax = make_axes(width, _PITCH * lines * (len(names) + len(relations))) if ax is None else ax
    style_axes(ax, "", "")
    ax.set_xlabel(wrap([escape_text(traits(measure).label)], 0.5 * inches, NOTE + 0.5), fontsize=NOTE + 0.5)
    rows: list[str] = []
    seen: dict[str, Artist] = {}
    for relation in relations:
        rows.append(relation)
        for pair in at["pair"].values[at["relation"].values == relation].tolist():
            seen = _draw_row(at.sel(pair=pair), ax, len(rows), style(relation)) | seen
            rows.append(names[pair])
    ax.set_yticks(range(len(rows)), rows, fontsize=NOTE)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in relations else "normal")
    ax.text(1.02, 0, "calibrated", **_right_label_style(ax))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(len(rows) - 0.3, -0.6)
    ax.margins(x=0.08)
    ax.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    ax.legend(
        [*seen.values()], [*seen], fontsize=NOTE, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.2, 1.0),
        handletextpad=0.2, columnspacing=0.8, borderpad=0.1,
    )  # fmt: skip
    if own:
        finish_layout(ax.figure.figure, footnote(study, _explanation(at, seen)))
    return ax


def _format_pair(pair: str, inches: float) -> str:
    """Return the name of a pair on one line, or on two if it is too long."""
    first, second = (escape_text(model) for model in pair.split(" x ", 1))
    one = f"{first} \N{MULTIPLICATION SIGN} {second}"
    if text_width(one, NOTE) <= 72 * inches:
        return one
    return wrap([first, f"\N{MULTIPLICATION SIGN} {second}"], inches, NOTE)


def _draw_row(one: xr.Dataset, ax: Axes, row: int, look: dict[str, Any]) -> dict[str, Artist]:
    """Draw one pair; return the marks by their labels in the legend."""
    index, low, high, level = (float(one[name]) for name in ("index", "index_low", "index_high", "calibrated_index"))
    if not np.isnan(low):
        ax.plot([low, high], [row, row], color=look["color"], linewidth=1.2, solid_capstyle="butt", gid="interval")
    drawn: dict[str, Artist] = {
        "index": ax.scatter(index, row, color=look["color"], marker=look["marker"], s=15, zorder=3, gid="index")
    }
    for name, (label, marker) in _CONTROLS.items():
        if not np.isnan(value := float(one[name])):
            drawn[label] = ax.scatter(value, row, linewidths=0.7, gid=name, **marker)
    ax.text(1.02, row, "-" if np.isnan(level) else f"{level:z.2f}", **_right_label_style(ax))
    return drawn


def _right_label_style(ax: Axes) -> dict[str, Any]:
    """Return the style of the text to the right of a row."""
    return {"transform": blended_transform_factory(ax.transAxes, ax.transData), "fontsize": NOTE, "va": "center"}


def _explanation(at: xr.Dataset, seen: Mapping[str, Artist]) -> str:
    missing = [label for label, _ in _CONTROLS.values() if label not in seen]
    text = (
        "Index: mean along the best match of layers, with its 95 % interval; calibrated: 0 is chance, 1 equal networks."
    )
    names = sorted({name for name in at["control_name"].values.tolist() if name})
    if names:
        text += f" Control: {' or '.join(names)}."
    return text + (f" Not known here: {', '.join(missing)}." if missing else "")
