"""Draw results, studies and series as matplotlib figures in the sizes and colours of printed papers.

Each figure is a function that draws on given Axes or on a figure of its own. Only matplotlib's object interface is
used: no pyplot and no display, and no global setting is changed.
"""

from repsim.figures.canvas import FORMATS, png, save
from repsim.figures.depths import plot_depths
from repsim.figures.figure_set import FEW, draw_all, save_all
from repsim.figures.forests import plot_families, plot_pairs
from repsim.figures.grids import plot_grid
from repsim.figures.heatmaps import figure, heatmap
from repsim.figures.maps import plot_map
from repsim.figures.matrices import plot_models
from repsim.figures.scatters import plot_measures
from repsim.figures.selection import pick
from repsim.figures.series import (
    plot_convergence,
    plot_drift,
    plot_every_point,
    plot_layers_by_step,
    plot_runs,
    plot_trajectories,
    plot_trend,
)
from repsim.figures.shares import plot_shares
from repsim.figures.spans import plot_spans
from repsim.figures.styles import STYLES, style_context
from repsim.presentation.stages import boundaries

__all__ = [
    "FEW",
    "FORMATS",
    "STYLES",
    "boundaries",
    "draw_all",
    "figure",
    "heatmap",
    "pick",
    "plot_convergence",
    "plot_depths",
    "plot_drift",
    "plot_every_point",
    "plot_families",
    "plot_grid",
    "plot_layers_by_step",
    "plot_map",
    "plot_measures",
    "plot_models",
    "plot_pairs",
    "plot_runs",
    "plot_shares",
    "plot_spans",
    "plot_trajectories",
    "plot_trend",
    "png",
    "save",
    "save_all",
    "style_context",
]
