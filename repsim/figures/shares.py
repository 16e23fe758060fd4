"""Where the energy of representations comes from, at every depth: the input, all families, one family, a seed."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from repsim.errors import InvalidInputError
from repsim.figures.canvas import COLOURS, COLUMN, MARKERS, NOTE, blank, footnote, known_measure, settle, tidy
from repsim.study.reading import known_shares, share_places


def plot_shares(study: xr.Dataset, ax: Axes | None = None, *, width: float = COLUMN) -> Axes:
    """Draw the shares of representational energy by depth, of trained networks and of untrained ones.

    Lines and not a stack: a share is estimated without bias, may be a little below 0, and is then seen to be. What
    these models cannot tell apart is drawn as its sum. Bands are 95 % intervals.

    docs/figures.md has an example, which the tests run, and its picture.

    Parameters
    ----------
    study
        What `repsim.universality` returns.
    ax
        Where to draw; by default a figure of its own, with a footnote.
    width
        Inches, of a figure of its own.

    Raises
    ------
    InvalidInputError
        If the study has no shares: it takes two trained models.
    """
    known_measure(study, None)
    if not study.sizes.get("state") or np.isnan(study["share"].values).all():
        raise InvalidInputError(
            "there is nothing to draw: this study has no shares; it takes two trained models or more"
        )
    own = ax is None
    ax = blank(width, 0.6 * width) if ax is None else ax
    tidy(ax, "relative depth", "share of the energy")
    ax.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    states = study["state"].values.tolist()
    shares, places = known_shares(study), share_places(study)
    for name, label in shares.items():
        k = places[name]
        for state in states:
            at = study.sel(state=state, share_of=name)
            trained = state == "trained"
            look: dict[str, Any] = (
                {"linestyle": "-", "linewidth": 1.3} if trained else {"linestyle": "--", "linewidth": 0.9}
            )
            ax.plot(
                at["depth"], at["share"], color=COLOURS[k], **look, marker=MARKERS[k], markersize=3,
                markerfacecolor=COLOURS[k] if trained else "white", markeredgewidth=0.8,
                label=label if trained else None, gid=f"{state} {name}",
            )  # fmt: skip
            shade: dict[str, Any] = {"color": COLOURS[k], "alpha": 0.2 if trained else 0.1, "linewidth": 0}
            ax.fill_between(at["depth"], at["share_low"], at["share_high"], **shade)
    ax.set_xlim(-0.02, 1.02)
    if len(states) > 1:
        ax.plot([], [], color="0.3", linestyle="--", linewidth=0.9, label="untrained")
    ax.legend(
        fontsize=NOTE, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), handlelength=2,
        columnspacing=1, borderpad=0.1,
    )  # fmt: skip
    if own:
        lines = (
            "Solid: trained; dashed, open: untrained."
            if len(states) > 1
            else f"Only {states[0]} networks: no others are in this study."
        )
        sums = " Sums: these models cannot tell the parts apart." if any("_and_" in name for name in shares) else ""
        settle(ax.figure.figure, footnote(study, f"Debiased linear kernels. {lines} Bands: 95 % intervals.{sums}"))
    return ax
