"""How alike each pair of models is, with its interval, beside what it is to be held against."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from repsim.errors import InvalidInputError
from repsim.figures.canvas import (
    COLUMN,
    NOTE,
    RELATIONS,
    blank,
    fold,
    footnote,
    has_pairs,
    known_measure,
    plain,
    settle,
    tidy,
    width_of,
)
from repsim.figures.canvas import style as style_of
from repsim.figures.excerpts import traits

_PITCH = 0.135  # inches: a line of text of a row
_CONTROLS = {
    "control": ("control: untrained", {"marker": "D", "facecolors": "white", "edgecolors": "black", "s": 11}),
    "threshold_index": ("chance, 95 % point", {"marker": "|", "color": "black", "s": 34}),
    "split_half": ("split half", {"marker": "x", "color": "0.35", "s": 11}),
}


def plot_pairs(study: xr.Dataset, measure: str | None = None, ax: Axes | None = None, *, width: float = COLUMN) -> Axes:
    """Draw the index of every pair of models with its 95 % interval, and its controls: a forest plot.

    The index is the mean similarity along the best match of layers. Beside it: that of the best control (networks that
    have learned nothing), the 95 % point of permuted samples, the match of one half of the samples measured on the
    other; and as a number the calibrated index, max(0, (T - tau) / (1 - tau)), 0 for chance and 1 for equal networks.

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
    inches = width if ax is None else ax.get_window_extent().width / ax.figure.dpi + 1
    names = {
        name: fold([plain(name.replace(" x ", " \N{MULTIPLICATION SIGN} "))], 0.42 * inches, NOTE)
        for name in at["pair"].values.tolist()
    }
    lines = max(name.count("\n") + 1 for name in names.values())
    relations = [each for each in RELATIONS if each in at["relation"].values]
    if ax is None:
        ax = blank(width, _PITCH * (lines * len(names) + 1.4 * len(relations)) + 0.3)
    tidy(ax, plain(traits(measure)["label"]) + ", best match", "")
    row, ticks = 0.0, []
    right = blended_transform_factory(ax.transAxes, ax.transData)
    said = {"transform": right, "fontsize": NOTE, "va": "center"}
    ax.text(1.02, 0, "calibr.", **said)
    seen: dict[str, object] = {}
    for relation in relations:
        ax.text(0.0, row, relation, **said, fontweight="bold")
        row += 1.4 / lines if lines > 1 else 1
        for pair in at["pair"].values[at["relation"].values == relation].tolist():
            one = at.sel(pair=pair)
            index, low, high, level = (
                float(one[name]) for name in ("index", "index_low", "index_high", "calibrated_index")
            )
            look = style_of(relation)
            if not np.isnan(low):
                ax.plot(
                    [low, high], [row, row], color=look["color"], linewidth=1.2, solid_capstyle="butt", gid="interval"
                )
            ax.scatter(index, row, color=look["color"], marker=look["marker"], s=13, zorder=3, gid="index")
            for name, (label, how) in _CONTROLS.items():
                if not np.isnan(value := float(one[name])):
                    seen[label] = ax.scatter(value, row, linewidths=0.7, zorder=2.5, gid=name, **how)
            ax.text(1.02, row, "-" if np.isnan(level) else f"{level:.2f}", **said)
            ticks.append((row, names[pair]))
            row += 1
        row += 0.3
    ax.set_yticks([place for place, _ in ticks], [name for _, name in ticks], fontsize=NOTE)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(row - 0.2, -0.7)
    ax.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    if seen:
        columns = max(1, int(inches * 72 // (max(width_of(label, NOTE) for label in seen) + 22)))
        ax.legend(
            [*seen.values()], [*seen], fontsize=NOTE, frameon=False, ncols=columns, loc="lower right",
            bbox_to_anchor=(1.15, 1.0), handletextpad=0.2, columnspacing=0.8, borderpad=0.1,
        )  # fmt: skip
    if own:
        settle(ax.figure.figure, footnote(study, _reading(at, seen)))
    return ax


def _reading(at: xr.Dataset, seen: dict[str, object]) -> str:
    missing = [label for label, _ in _CONTROLS.values() if label not in seen]
    text = "Filled: mean along the best match of layers, line: 95 % interval; calibr.: 0 is chance, 1 equal networks."
    names = sorted({name for name in at["control_name"].values.tolist() if name})
    if names:
        text += f" Control: {' or '.join(names)}."
    return text + (f" Not known here: {', '.join(missing)}." if missing else "")
