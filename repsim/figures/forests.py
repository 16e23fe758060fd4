"""Draw pairs of models, and pairs of families, with intervals and controls, as forest plots."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
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
from repsim.presentation.thinning import MOST_PAIRS, left_out, thinned
from repsim.results.variables import CONTROL_PAIRS, RELATIONS
from repsim.study.reading import LEVEL_NAMES, controls_of_pairs, headline, strictest_controlled

_PITCH = 0.135  # inches: height of a line of text
_HOLLOW: dict[str, Any] = {"facecolors": "white", "edgecolors": "black", "linewidths": 0.7, "s": 11, "zorder": 2.5}
_CONTROLS = dict(zip(CONTROL_PAIRS, ("D", "<", ">"), strict=True))
"""Markers of the controls: the triangle points at the network that is trained."""
_LEVELS: dict[str, dict[str, Any]] = {
    "": {"facecolors": "white", "edgecolors": "black"},
    "networks": {"facecolors": "0.6", "edgecolors": "black"},
    "architectures": {"facecolors": "black", "edgecolors": "black"},
}
"""Fill of the marks of pairs of families by the level of the claim."""
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "index": ("match on all samples", {"marker": "+", "color": "black", "s": 22, "zorder": 4}),
    "threshold_index": ("chance, 95 % point", {"marker": "|", "color": "black", "s": 34, "zorder": 2.5}),
}
"""Marks other than the value and its controls."""

_OF_PAIRS = [
    "threshold_index",
    "learned",
    *(f"{name}{end}" for name in ("index", "split_half") for end in ("", "_low", "_high")),
]  # fmt: skip
_OF_FAMILIES = [
    "effect", "effect_low", "effect_high", "effect_network_low", "effect_network_high", "trained_value",
    "control_value", "claim_level",
]  # fmt: skip
"""Variables that a row of each figure reads."""


def plot_pairs(study: xr.Dataset, measure: str | None = None, ax: Axes | None = None, *, width: float = COLUMN) -> Axes:
    """Draw the similarity of every pair of models with its 95 % interval and its controls: a forest plot.

    The value is the mean similarity along the match of layers: matched on one half of the samples and measured on the
    other, which has no optimism (split half). Measures without a split-half value have that of all samples. Other marks
    are drawn if known: the three controls (both networks untrained, or one of them), the value of all samples, and
    the 95 % point of permuted samples. A number gives the learned effect: the value minus the strongest control.

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
    value = headline(study, measure)
    if np.isnan(at[value].values).all():
        raise InvalidInputError(f"there is nothing to draw: no pair of models has an index under {measure}")
    own = ax is None
    inches = width if ax is None else ax.get_window_extent().width / ax.figure.figure.dpi + 1
    of_pairs, count = at["relation"].values.tolist(), at.sizes["pair"]
    relations = [relation for relation in RELATIONS if relation in of_pairs]
    shown = thinned(at[value].values.tolist(), of_pairs, relations) if count > MOST_PAIRS else list(range(count))
    at = at[_OF_PAIRS].isel(pair=shown)
    names = {name: _format_pair(name, 0.4 * inches) for name in at["pair"].values.tolist()}
    lines = max(name.count("\n") + 1 for name in names.values())
    ax = make_axes(width, _PITCH * lines * (len(names) + len(relations))) if ax is None else ax
    style_axes(ax, "", "")
    ax.set_xlabel(wrap([escape_text(traits(measure).label)], 0.5 * inches, NOTE + 0.5), fontsize=NOTE + 0.5)
    controls = controls_of_pairs(study).sel(measure=measure).isel(pair=shown)
    rows: list[str] = []
    seen: dict[str, Artist] = {}
    for relation in relations:
        rows.append(relation)
        for pair in at["pair"].values[at["relation"].values == relation].tolist():
            one = at.sel(pair=pair)
            drawn = _draw_value(one, value, ax, len(rows), style(relation)) | _draw_controls(
                dict(zip(CONTROL_PAIRS, controls.sel(pair=pair).values.tolist(), strict=True)), ax, len(rows)
            )
            seen |= {name: artist for name, artist in drawn.items() if name not in seen}
            rows.append(names[pair])
    ax.set_yticks(range(len(rows)), rows, fontsize=NOTE)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in relations else "normal")
    ax.text(1.02, 0, "learned", **_right_label_style(ax))
    _finish_rows(ax, len(rows), seen, 1.2)
    if own:
        omitted = left_out(len(names), count, "pairs of models")
        finish_layout(ax.figure.figure, footnote(study, _explanation(value, seen), *filter(None, [omitted])))
    return ax


def plot_families(
    study: xr.Dataset, measure: str | None = None, ax: Axes | None = None, *, width: float = COLUMN
) -> Axes:
    """Draw the effect of training on the similarity of every pair of families, against each control.

    The large mark is the similarity of trained networks minus that of the strongest control, with its 95 % intervals:
    the thick line is over samples, the thin line over networks and samples. Small marks are the differences from the
    other controls. The fill of the large mark is the level of the claim (docs/what-universality-means.md), which
    needs more than this one effect.

    docs/figures.md has an example and its picture.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`.
    measure : str, optional
        Measure of the study; by default debiased CKA given the input and the class labels, as far as the study has
        them.
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
        If no pair of families has all of its controls.
    """
    if measure is None:  # of few samples, nothing may be left within the classes
        kernels = strictest_controlled(study)
        with_effect = [name for name in kernels if study["effect"].sel(measure=name).notnull().any()]
        measure = (with_effect or kernels)[-1]
    measure = resolve_measure(study, measure)
    at = study.sel(measure=measure)
    if not study.sizes.get("families") or np.isnan(at["effect"].values).all():
        raise InvalidInputError(
            f"there is nothing to draw: under {measure} no pair of families has untrained networks of both"
        )
    own = ax is None
    inches = width if ax is None else ax.get_window_extent().width / ax.figure.figure.dpi + 1
    count = at.sizes["families"]
    shown = thinned(at["effect"].values.tolist(), [""] * count, [""]) if count > MOST_PAIRS else list(range(count))
    at = at[_OF_FAMILIES].isel(families=shown)
    names = [_format_pair(name, 0.4 * inches) for name in at["families"].values.tolist()]
    lines = max(name.count("\n") + 1 for name in names)
    ax = make_axes(width, _PITCH * (lines * len(names) + 1)) if ax is None else ax
    style_axes(ax, "", "")
    label = wrap([escape_text(f"{traits(measure).label}: effect of training")], 0.6 * inches, NOTE + 0.5)
    ax.set_xlabel(label, fontsize=NOTE + 0.5)
    seen: dict[str, Artist] = {}
    for row, families in enumerate(at["families"].values.tolist()):
        one = at.sel(families=families)
        differences = float(one["trained_value"]) - one["control_value"].values
        drawn = _draw_effect(one, measure, ax, row) | _draw_controls(
            dict(zip(CONTROL_PAIRS, differences.tolist(), strict=True)), ax, row
        )
        seen |= {name: artist for name, artist in drawn.items() if name not in seen}
    seen = dict(sorted(seen.items(), key=lambda item: item[0].startswith("control")))  # the levels first
    ax.set_yticks(range(len(names)), names, fontsize=NOTE)
    _finish_rows(ax, len(names), seen, 1.02)
    if own:
        intervals = (
            "Trained networks minus the strongest control. Thick line: 95 % over samples; thin: over networks and "
            "samples, where there are enough networks."
        )
        text = "Small marks: minus each control. Fill: what is claimed, which needs more than this one effect."
        omitted = left_out(len(names), count, "pairs of families")
        finish_layout(ax.figure.figure, footnote(study, intervals, text, *filter(None, [omitted])))
    return ax


def _draw_effect(one: xr.Dataset, measure: str, ax: Axes, row: int) -> dict[str, Artist]:
    """Draw the effect of one pair of families with both intervals; return the mark by its label in the legend."""
    if np.isnan(effect := float(one["effect"])):
        return {}
    level = str(one["claim_level"].item())
    look: dict[str, Any] = {"color": "0.35", "solid_capstyle": "butt"}
    ax.plot([float(one["effect_low"]), float(one["effect_high"])], [row, row], linewidth=2.2, gid="samples", **look)
    if measure in one["kernel"].values:
        ends = [float(one[f"effect_network_{end}"].sel(kernel=measure)) for end in ("low", "high")]
        ax.plot(ends, [row, row], linewidth=0.8, gid="networks", **look)
    mark = ax.scatter(effect, row, marker="o", s=20, linewidths=0.8, zorder=4, gid="effect", **_LEVELS[level])
    return {f"claimed of {LEVEL_NAMES[level]}" if level else "not shown": mark}


def _finish_rows(ax: Axes, count: int, seen: Mapping[str, Artist], right: float) -> None:
    """Set the limits, the line at 0 and the legend of a forest plot, which ends at ``right`` of the axes."""
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(count - 0.3, -0.6)
    ax.margins(x=0.08)
    ax.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))  # more labels of small numbers would overlap
    ax.legend(
        [*seen.values()], [*seen], fontsize=NOTE, frameon=False, ncols=2, loc="lower right",
        bbox_to_anchor=(right, 1.0), handletextpad=0.2, columnspacing=0.8, borderpad=0.1,
    )  # fmt: skip


def _format_pair(pair: str, inches: float) -> str:
    """Return the name of a pair on one line, or on two if it is too long."""
    first, second = (escape_text(model) for model in pair.split(" x ", 1))
    one = f"{first} \N{MULTIPLICATION SIGN} {second}"
    if text_width(one, NOTE) <= 72 * inches:
        return one
    return wrap([first, f"\N{MULTIPLICATION SIGN} {second}"], inches, NOTE)


def _draw_value(one: xr.Dataset, name: str, ax: Axes, row: int, look: dict[str, Any]) -> dict[str, Artist]:
    """Draw the value of one pair with its interval, and marks beside it; return the marks by their labels."""
    value, low, high, learned = (float(one[column]) for column in (name, f"{name}_low", f"{name}_high", "learned"))
    if not np.isnan(low):
        ax.plot([low, high], [row, row], color=look["color"], linewidth=1.2, solid_capstyle="butt", gid="interval")
    label = "split half" if name == "split_half" else "match on all samples"
    drawn: dict[str, Artist] = {
        label: ax.scatter(value, row, color=look["color"], marker=look["marker"], s=15, zorder=3, gid=name)
    }
    for other, (text, marker) in _OTHERS.items():
        if other != name and not np.isnan(level := float(one[other])):
            drawn[text] = ax.scatter(level, row, linewidths=0.7, gid=other, **marker)
    ax.text(1.02, row, "-" if np.isnan(learned) else f"{learned:z.2f}", **_right_label_style(ax))
    return drawn


def _draw_controls(values: Mapping[str, float], ax: Axes, row: int) -> dict[str, Artist]:
    """Draw the controls of a row; return the marks by their labels in the legend."""
    return {
        f"control: {name}": ax.scatter(value, row, marker=_CONTROLS[name], gid=name, **_HOLLOW)
        for name, value in values.items()
        if not np.isnan(value)
    }


def _right_label_style(ax: Axes) -> dict[str, Any]:
    """Return the style of the text to the right of a row."""
    return {"transform": blended_transform_factory(ax.transAxes, ax.transData), "fontsize": NOTE, "va": "center"}


def _explanation(value: str, seen: Mapping[str, Artist]) -> str:
    text = (
        "Mean along matching layers, matched on one half of the samples and measured on the other, with its 95 % "
        "interval"
        if value == "split_half"
        else "Mean along the best match of layers, with its 95 % interval"
    )
    text += "; learned: minus the strongest control."
    missing = [label for label, _ in _OTHERS.values() if label not in seen]
    if not any(label.startswith("control") for label in seen):
        missing.insert(0, "controls (untrained networks)")
    return text + (f" Not known here: {', '.join(missing)}." if missing else "")
