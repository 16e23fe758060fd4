"""How alike each pair of models is, with its interval, beside what it is to be held against."""

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
    blank,
    footnote,
    has_pairs,
    known_measure,
    settle,
    style,
    tidy,
)
from repsim.figures.lettering import fold, plain, width_of
from repsim.presentation.measures import traits
from repsim.results.variables import RELATIONS

_PITCH = 0.135  # inches: a line of text of a row
_CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "control": (
        "control: untrained", {"marker": "D", "facecolors": "white", "edgecolors": "black", "s": 11, "zorder": 2.5}
    ),
    "threshold_index": ("chance, 95 % point", {"marker": "|", "color": "black", "s": 34, "zorder": 2.5}),
    "split_half": ("split half", {"marker": "+", "color": "black", "s": 22, "zorder": 4}),
}  # fmt: skip


def plot_pairs(study: xr.Dataset, measure: str | None = None, ax: Axes | None = None, *, width: float = COLUMN) -> Axes:
    """Draw the index of every pair of models with its 95 % interval, and its controls: a forest plot.

    The index is the mean similarity along the best match of layers. Beside it: that of the best control (networks that
    have learned nothing), the 95 % point of permuted samples, the match of one half of the samples measured on the
    other; and as a number the calibrated index, max(0, (T - tau) / (1 - tau)), 0 for chance and 1 for equal networks.

    docs/figures.md has an example, which the tests run, and its picture.

    Parameters
    ----------
    study
        What `repsim.universality` returns.
    measure
        One of the study's; by default debiased CKA given the input, where that is known.
    ax
        Where to draw; by default a figure of its own, as high as there are pairs, with a footnote.
    width
        Inches, of a figure of its own.

    Raises
    ------
    InvalidInputError
        If no pair has an index.
    """
    measure = known_measure(study, measure)
    has_pairs(study)
    at = study.sel(measure=measure)
    if np.isnan(at["index"].values).all():
        raise InvalidInputError(f"there is nothing to draw: no pair of models has an index under {measure}")
    own = ax is None
    inches = width if ax is None else ax.get_window_extent().width / ax.figure.figure.dpi + 1
    names = {name: _name(name, 0.4 * inches) for name in at["pair"].values.tolist()}
    lines = max(name.count("\n") + 1 for name in names.values())
    relations = [each for each in RELATIONS if each in at["relation"].values]
    ax = blank(width, _PITCH * lines * (len(names) + len(relations))) if ax is None else ax
    tidy(ax, "", "")
    ax.set_xlabel(fold([plain(traits(measure).label)], 0.5 * inches, NOTE + 0.5), fontsize=NOTE + 0.5)
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
    ax.text(1.02, 0, "calibrated", **_beside(ax))
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
        settle(ax.figure.figure, footnote(study, _reading(at, seen)))
    return ax


def _name(pair: str, inches: float) -> str:
    """A pair on one line, or its models on one each."""
    first, second = (plain(model) for model in pair.split(" x ", 1))
    one = f"{first} \N{MULTIPLICATION SIGN} {second}"
    if width_of(one, NOTE) <= 72 * inches:
        return one
    return fold([first, f"\N{MULTIPLICATION SIGN} {second}"], inches, NOTE)


def _draw_row(one: xr.Dataset, ax: Axes, row: int, look: dict[str, Any]) -> dict[str, Artist]:
    """Draw one pair; what was drawn, by what it is called."""
    index, low, high, level = (float(one[name]) for name in ("index", "index_low", "index_high", "calibrated_index"))
    if not np.isnan(low):
        ax.plot([low, high], [row, row], color=look["color"], linewidth=1.2, solid_capstyle="butt", gid="interval")
    drawn: dict[str, Artist] = {
        "index": ax.scatter(index, row, color=look["color"], marker=look["marker"], s=15, zorder=3, gid="index")
    }
    for name, (label, how) in _CONTROLS.items():
        if not np.isnan(value := float(one[name])):
            drawn[label] = ax.scatter(value, row, linewidths=0.7, gid=name, **how)
    ax.text(1.02, row, "-" if np.isnan(level) else f"{level:z.2f}", **_beside(ax))
    return drawn


def _beside(ax: Axes) -> dict[str, Any]:
    """Text to the right of a row."""
    return {"transform": blended_transform_factory(ax.transAxes, ax.transData), "fontsize": NOTE, "va": "center"}


def _reading(at: xr.Dataset, seen: Mapping[str, Artist]) -> str:
    missing = [label for label, _ in _CONTROLS.values() if label not in seen]
    text = (
        "Index: mean along the best match of layers, with its 95 % interval; calibrated: 0 is chance, 1 equal networks."
    )
    names = sorted({name for name in at["control_name"].values.tolist() if name})
    if names:
        text += f" Control: {' or '.join(names)}."
    return text + (f" Not known here: {', '.join(missing)}." if missing else "")
