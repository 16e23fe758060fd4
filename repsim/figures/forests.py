"""Draw pairs of models, and pairs of families, with intervals and controls, as forest plots."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from repsim.errors import InvalidInputError
from repsim.figures.canvas import (
    add_legend_above,
    arrange,
    check_pairs,
    finish_layout,
    footnote,
    look_of,
    make_axes,
    namer,
    resolve_measure,
    room_of,
    set_title,
    style_axes,
)
from repsim.figures.lettering import escape_text, shorten, text_width, wrap
from repsim.figures.selection import groups_of_pairs
from repsim.figures.styles import (
    StyleName,
    column_width,
    in_style,
    ink,
    label_size,
    mark,
    note_size,
    paper,
    stroke,
)
from repsim.presentation.measures import traits
from repsim.presentation.thinning import MOST_PAIRS, left_out, thinned
from repsim.results.variables import CONTROL_PAIRS, RELATIONS
from repsim.study.reading import LEVEL_NAMES, controls_of_pairs, headline, strictest_controlled

_PITCH = 1.5
"""Height of a line of text in font sizes."""
_LEAST = 2.2
"""Smallest distance of rows in font sizes: controls above and below a row are not between two rows."""
_HIGHEST = 7.6
"""Largest height of the rows of a forest in inches, with which a figure and its caption fit on a page."""
_CONTROLS = dict(zip(CONTROL_PAIRS, ("D", "<", ">"), strict=True))
"""Markers of the controls: the triangle points at the network that is trained."""
_FILLS = {"": "paper", "networks": "0.6", "architectures": "ink"}
"""Fill of the marks of pairs of families by the level of the claim."""
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "index": ("match on all samples", {"marker": 7, "s": 9, "zorder": 4}),
    "threshold_index": ("chance, 95 % point", {"marker": "x", "s": 10, "zorder": 2.5}),
}
"""Marks other than the value and its controls; the first is a triangle above the row, whose tip is the value."""
_ABOVE = 0.28
"""Distance above its row of the value of all samples, which is near the other value and would hide it."""
_OFFSETS = dict(zip(CONTROL_PAIRS, (0.0, -0.62, 0.62), strict=True))
"""Distances below their row of the controls in font sizes; they are often nearly equal and would hide each other."""

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


@in_style
def plot_pairs(
    study: xr.Dataset,
    measure: str | None = None,
    ax: Axes | None = None,
    *,
    order: str | Sequence[str] | None = None,
    most: int | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
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
    order : "value" or sequence of str, optional
        Pairs in one list, the largest values first; or names of pairs in the order in which they are shown. By default
        pairs are in groups of the same relation.
    most : int, optional
        Largest number of pairs. By default as many as fit on a page: of each group the largest, the smallest, and
        others between them; with ``order`` the first ones.
    title : str, optional
        Title of the axes.
    labels : mapping of str to str, optional
        Names to show for models, by their names in the study.
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
        If no pair has an index.
    UnknownNameError
        If ``order`` or ``labels`` has a name that the study does not have.
    """
    measure = resolve_measure(study, measure)
    check_pairs(study)
    at = study.sel(measure=measure)
    value = headline(study, measure)
    if np.isnan(at[value].values).all():
        raise InvalidInputError(f"there is nothing to draw: no pair of models has an index under {measure}")
    own = ax is None
    inches = column_width(width) if ax is None else room_of(ax)[0] + 1
    shown_name = _short_namer(labels, study["model"].values.tolist(), 0.4 * inches)
    pairs, values, count = at["pair"].values.tolist(), at[value].values.tolist(), at.sizes["pair"]
    groups = groups_of_pairs(study)
    titles = {name: _format_heading(name, 0.42 * inches) for name in set(groups)}
    longest = _format_pair(_widest(pairs, shown_name), 0.4 * inches, shown_name)
    lines = max(name.count("\n") + 1 for name in [longest, *(titles.values() if order is None else ())])
    pitch = max(lines * _PITCH, _LEAST) * note_size() / 72
    room = most or max(2, min(MOST_PAIRS, int(_HIGHEST / pitch) - len(set(groups))))
    if order is not None:
        shown, headings = arrange(order, pairs, values, "pair of this study")[:room], []
    else:
        headings = [group for relation in RELATIONS for group in dict.fromkeys(groups) if group.startswith(relation)]
        shown = thinned(values, groups, headings, room) if count > room else list(range(count))
    at, groups = at[_OF_PAIRS].isel(pair=shown), [groups[k] for k in shown]
    ax = make_axes(inches, pitch * (len(shown) + max(len(headings), 1))) if ax is None else ax
    style_axes(ax, "", "")
    ax.set_xlabel(wrap([escape_text(traits(measure).label)], 0.5 * inches, label_size()), fontsize=label_size())
    controls = controls_of_pairs(study).sel(measure=measure).isel(pair=shown)
    rows: list[str] = []
    seen: dict[str, Artist] = {}
    for heading in headings or [""]:
        rows.append(titles.get(heading, ""))
        for k in range(len(shown)) if not heading else [k for k, group in enumerate(groups) if group == heading]:
            one, of_pair = at.isel(pair=k), controls.isel(pair=k).values.tolist()
            look = look_of(str(one["relation"].item()))
            drawn = _draw_value(one, value, ax, len(rows), look) | _draw_controls(
                dict(zip(CONTROL_PAIRS, of_pair, strict=True)), ax, len(rows), 72 * pitch / note_size()
            )
            seen |= {name: artist for name, artist in drawn.items() if name not in seen}
            rows.append(_format_pair(one["pair"].item(), 0.4 * inches, shown_name))
    ax.set_yticks(range(len(rows)), rows, fontsize=note_size())
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in titles.values() else "normal")
    if at["learned"].notnull().any():
        ax.text(1.02, 0, "learned", **_right_label_style(ax))
    _finish_rows(ax, len(rows), seen, 1.2)
    set_title(ax, title)
    if own:
        omitted = left_out(len(shown), count, "pairs of models") if order is None else _first(len(shown), count)
        finish_layout(ax.figure.figure, footnote(study, _explanation(value, seen), *filter(None, [omitted])))
    return ax


def _first(shown: int, count: int) -> str:
    """Return the sentence of a caption about pairs that an order leaves out; empty if there are none."""
    return f"{shown} of {count:,} pairs of models are drawn." if shown < count else ""


@in_style
def plot_families(
    study: xr.Dataset,
    measure: str | None = None,
    ax: Axes | None = None,
    *,
    order: str | Sequence[str] | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
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
    order : "value" or sequence of str, optional
        Pairs with the largest effects first, or names of pairs in the order in which they are shown; by default that
        of the study.
    title : str, optional
        Title of the axes.
    labels : mapping of str to str, optional
        Names to show for families, by their names in the study.
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
    inches = column_width(width) if ax is None else room_of(ax)[0] + 1
    pairs, effects, count = at["families"].values.tolist(), at["effect"].values.tolist(), at.sizes["families"]
    shown_name = _short_namer(labels, study["family"].values.tolist(), 0.4 * inches, "family of this study")
    lines = _format_pair(_widest(pairs, shown_name), 0.4 * inches, shown_name).count("\n") + 1
    pitch = max(lines * _PITCH, _LEAST) * note_size() / 72
    room = min(MOST_PAIRS, int(_HIGHEST / pitch))
    if order is not None:
        shown = arrange(order, pairs, effects, "pair of families of this study")[:room]
    else:
        shown = thinned(effects, [""] * count, [""], room) if count > room else list(range(count))
    at, names = at[_OF_FAMILIES].isel(families=shown), [_format_pair(pairs[k], 0.4 * inches, shown_name) for k in shown]
    ax = make_axes(inches, pitch * len(names) + _PITCH * note_size() / 72) if ax is None else ax
    style_axes(ax, "", "")
    label = wrap([escape_text(f"{traits(measure).label}: effect of training")], 0.6 * inches, label_size())
    ax.set_xlabel(label, fontsize=label_size())
    seen: dict[str, Artist] = {}
    for row, families in enumerate(at["families"].values.tolist()):
        one = at.sel(families=families)
        differences = float(one["trained_value"]) - one["control_value"].values
        drawn = _draw_effect(one, measure, ax, row) | _draw_controls(
            dict(zip(CONTROL_PAIRS, differences.tolist(), strict=True)), ax, row, 72 * pitch / note_size()
        )
        seen |= {name: artist for name, artist in drawn.items() if name not in seen}
    seen = dict(sorted(seen.items(), key=lambda item: item[0].startswith("control")))  # the levels first
    ax.set_yticks(range(len(names)), names, fontsize=note_size())
    _finish_rows(ax, len(names), seen, 1.02)
    set_title(ax, title)
    if own:
        intervals = (
            "Trained networks minus the strongest control. Thick line: 95 % over samples; thin: over networks and "
            "samples, where there are enough networks."
        )
        text = "Small marks: minus each control. Fill: what is claimed, which needs more than this one effect."
        omitted = left_out(len(names), count, "pairs of families") if order is None else ""
        finish_layout(ax.figure.figure, footnote(study, intervals, text, *filter(None, [omitted])))
    return ax


def _draw_effect(one: xr.Dataset, measure: str, ax: Axes, row: int) -> dict[str, Artist]:
    """Draw the effect of one pair of families with both intervals; return the mark by its label in the legend."""
    if np.isnan(effect := float(one["effect"])):
        return {}
    level = str(one["claim_level"].item())
    look: dict[str, Any] = {"color": "0.35", "solid_capstyle": "butt"}
    ends = [float(one["effect_low"]), float(one["effect_high"])]
    ax.plot(ends, [row, row], linewidth=stroke(2.2), gid="samples", **look)
    if measure in one["kernel"].values:
        ends = [float(one[f"effect_network_{end}"].sel(kernel=measure)) for end in ("low", "high")]
        ax.plot(ends, [row, row], linewidth=stroke(0.8), gid="networks", **look)
    fill: Any = {"paper": paper(), "ink": ink()}.get(_FILLS[level], _FILLS[level])
    dot = ax.scatter(
        effect, row, marker="o", s=mark(4.0) ** 2, linewidths=stroke(0.8), zorder=4, gid="effect", facecolors=fill,
        edgecolors=ink(),
    )  # fmt: skip
    return {f"claimed of {LEVEL_NAMES[level]}" if level else "not shown": dot}


def _finish_rows(ax: Axes, count: int, seen: Mapping[str, Artist], right: float) -> None:
    """Set the limits, the line at 0 and the legend of a forest plot, which ends at ``right`` of the axes."""
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(count - 0.3, -0.6)
    ax.margins(x=0.08)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, -0.04 * (high - min(low, 0))), max(high, 0.0))  # 0 is always in view
    ax.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))  # more labels of small numbers would overlap
    add_legend_above(
        ax, [*seen.values()], [*seen], ncols=2, loc="lower right", bbox_to_anchor=(right, 1.0),
        handletextpad=0.2,
    )  # fmt: skip


def _short_namer(
    labels: Mapping[str, str] | None, names: Sequence[str], inches: float, what: str = "model of this study"
) -> Callable[[str], str]:
    """Return a function from a name in the data to the text that a line of this width has room for, after a sign."""
    shown, different = namer(labels, names, what), list(dict.fromkeys(names))
    room = inches - text_width("\N{MULTIPLICATION SIGN} ", note_size()) / 72
    return dict(zip(different, shorten([*map(shown, different)], room, note_size()), strict=True)).__getitem__


def _widest(pairs: Sequence[str], shown: Callable[[str], str]) -> str:
    """Return the pair whose names are the widest together."""
    names = {name for pair in pairs for name in pair.split(" x ", 1)}
    widths = {name: text_width(shown(name), note_size()) for name in names}
    return max(pairs, key=lambda pair: sum(widths[name] for name in pair.split(" x ", 1)))


def _format_pair(pair: str, inches: float, shown: Callable[[str], str]) -> str:
    """Return the name of a pair on one line, or on two if it is too long."""
    first, second = (shown(model) for model in pair.split(" x ", 1))
    one = f"{first} \N{MULTIPLICATION SIGN} {second}"
    return one if text_width(one, note_size()) <= 72 * inches else f"{first}\n\N{MULTIPLICATION SIGN} {second}"


def _format_heading(group: str, inches: float) -> str:
    """Return the heading of a group on one line, or on two if it is too long; bold text is wider."""
    if 1.15 * text_width(group, note_size()) <= 72 * inches:
        return group
    return "\n".join(shorten(group.replace(": ", ":\n").split("\n"), inches / 1.15, note_size()))


def _draw_value(one: xr.Dataset, name: str, ax: Axes, row: int, look: dict[str, Any]) -> dict[str, Artist]:
    """Draw the value of one pair with its interval, and marks beside it; return the marks by their labels.

    The ends of the interval are higher than the mark of the value and in front of it, so that no interval is hidden.
    """
    value, low, high, learned = (float(one[column]) for column in (name, f"{name}_low", f"{name}_high", "learned"))
    if not np.isnan(low):
        ends: dict[str, Any] = {"marker": "|", "markersize": mark(5.5), "markeredgewidth": stroke(0.9), "zorder": 3.5}
        ax.plot([low, high], [row, row], color=look["color"], linewidth=stroke(0.9), gid="interval", **ends)
    label = "split half" if name == "split_half" else "match on all samples"
    drawn: dict[str, Artist] = {
        label: ax.scatter(
            value, row, color=look["color"], marker=look["marker"], s=mark(3.0) ** 2, linewidths=0, zorder=3, gid=name
        )
    }
    for other, (text, marker) in _OTHERS.items():
        if other != name and not np.isnan(level := float(one[other])):
            at = row - _ABOVE if other == "index" else row
            size = {"s": mark(marker["s"] ** 0.5) ** 2, "color": ink() if other != "index" else "0.45"}
            drawn[text] = ax.scatter(level, at, linewidths=stroke(0.7), gid=other, **(marker | size))
    if not np.isnan(learned):
        ax.text(1.02, row, f"{learned:z.2f}", **_right_label_style(ax))
    return drawn


def _draw_controls(values: Mapping[str, float], ax: Axes, row: int, font_sizes: float) -> dict[str, Artist]:
    """Draw the controls of a row that is so many font sizes high; return the marks by their labels in the legend."""
    return {
        f"control: {name}": ax.scatter(
            value,
            row + _OFFSETS[name] / font_sizes,
            marker=_CONTROLS[name],
            gid=name,
            facecolors=paper(),
            edgecolors=ink(),
            linewidths=stroke(0.7),
            s=mark(3.3) ** 2,
            zorder=2.5,
        )
        for name, value in values.items()
        if not np.isnan(value)
    }


def _right_label_style(ax: Axes) -> dict[str, Any]:
    """Return the style of the text to the right of a row."""
    return {"transform": blended_transform_factory(ax.transAxes, ax.transData), "fontsize": note_size(), "va": "center"}


def _explanation(value: str, seen: Mapping[str, Artist]) -> str:
    text = (
        "Mean along matching layers, matched on one half of the samples and measured on the other, with its 95 % "
        "interval"
        if value == "split_half"
        else "Mean along the best match of layers, with its 95 % interval"
    )
    has_control = any(label.startswith("control") for label in seen)
    text += "; learned: minus the strongest control." if has_control else "."
    missing = [label for label, _ in _OTHERS.values() if label not in seen]
    if not has_control:
        missing.insert(0, "controls (untrained networks)")
    return text + (f" Not known here: {', '.join(missing)}." if missing else "")
