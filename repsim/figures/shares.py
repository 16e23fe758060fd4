"""Draw the shares of representational energy by depth: input, all families, one family, one network."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from repsim.errors import InvalidInputError
from repsim.figures.canvas import (
    COLOURS,
    MARKERS,
    add_legend_above,
    finish_layout,
    footnote,
    make_axes,
    namer,
    resolve_measure,
    set_title,
    style_axes,
)
from repsim.figures.styles import StyleName, column_width, in_style, mark, paper, stroke
from repsim.study.reading import known_shares, share_places


@in_style
def plot_shares(
    study: xr.Dataset,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
    """Draw the shares of representational energy by depth, of trained networks and of untrained ones.

    Layers that match are compared, at the relative depths that they have in each network.

    The shares are lines and not stacked areas: they are estimated without bias and may be a little below 0, which a
    stack would hide. Shares that the models of the study cannot separate are drawn as their sum. Bands are 95 %
    intervals.

    docs/figures.md has an example and its picture.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure, with a footnote.
    title : str, optional
        Title of the axes.
    labels : mapping of str to str, optional
        Names to show for shares, by the names that the legend has without them.
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
        If the study has no shares, which need two trained models.
    """
    resolve_measure(study, None)
    if not study.sizes.get("state") or np.isnan(study["share"].values).all():
        raise InvalidInputError(
            "there is nothing to draw: this study has no shares; they need two trained models or more"
        )
    own = ax is None
    ax = make_axes(column_width(width), 0.6 * column_width(width)) if ax is None else ax
    style_axes(ax, "relative depth", "share of the energy")
    ax.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    states = study["state"].values.tolist()
    shares, places = known_shares(study), share_places(study)
    shown = namer(labels, shares.values(), "share of this study")
    for name, label in shares.items():
        k = places[name]
        for state in states:
            at = study.sel(state=state, share_of=name)
            trained = state == "trained"
            line_style: dict[str, Any] = (
                {"linestyle": "-", "linewidth": stroke(1.3)}
                if trained
                else {"linestyle": "--", "linewidth": stroke(0.9)}
            )
            ax.plot(
                at["depth"], at["share"], color=COLOURS[k], **line_style, marker=MARKERS[k], markersize=mark(3),
                markerfacecolor=COLOURS[k] if trained else paper(), markeredgewidth=stroke(0.8),
                label=shown(label) if trained else None, gid=f"{state} {name}",
            )  # fmt: skip
            shade: dict[str, Any] = {"color": COLOURS[k], "alpha": 0.2 if trained else 0.1, "linewidth": 0}
            ax.fill_between(at["depth"], at["share_low"], at["share_high"], **shade)
    ax.set_xlim(-0.02, 1.02)
    if len(states) > 1:
        ax.plot([], [], color="0.3", linestyle="--", linewidth=stroke(0.9), label="untrained")
    add_legend_above(ax, ncols=2, handlelength=2, columnspacing=1)
    set_title(ax, title)
    if own:
        lines = (
            "Solid: trained; dashed, open: untrained."
            if len(states) > 1
            else f"Only {states[0]} networks: no others are in this study."
        )
        sums = " Sums: these models cannot tell the parts apart." if any("_and_" in name for name in shares) else ""
        finish_layout(
            ax.figure.figure,
            footnote(study, f"Debiased linear kernels, along matching layers. {lines} Bands: 95 % intervals.{sums}"),
        )
    return ax
