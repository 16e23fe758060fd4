"""Draw and save all figures of a study or a series."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repsim.errors import Argument, Function, Hint, InvalidInputError, Remedy
from repsim.figures.canvas import resolve_measure, save
from repsim.figures.depths import plot_depths
from repsim.figures.forests import plot_families, plot_pairs
from repsim.figures.grids import plot_grid
from repsim.figures.maps import plot_map
from repsim.figures.matrices import plot_models
from repsim.figures.scatters import plot_measures
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
from repsim.results.versions import SERIES

Figures = dict[str, tuple[str, Callable[[], Figure]]]
"""Names of figures -> their subject, and the function that draws them."""
FEW = 60
"""Largest number of pairs of models whose heatmaps fit on a page."""


def draw_all(
    study: xr.Dataset, *, width: float | None = None, among: Collection[str] | None = None
) -> Iterator[tuple[str, str, Figure | None]]:
    """Draw every figure for which a study or a series has data.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`, or series of `repsim.series`.
    width : float, optional
        Width of every figure in inches; by default one column, and one page for the grid of heatmaps and for a matrix
        of many models. A style is that of `style_context` around the loop.
    among : collection of str, optional
        Names of the figures to draw; by default all.

    Yields
    ------
    name : str
        Name of the figure.
    description : str
        Subject of the figure, or the reason why it cannot be drawn.
    figure : Figure or None
    """
    is_series = study.attrs.get("format") == SERIES
    for name, (description, make) in (_of_series if is_series else _of_study)(study, width).items():
        if among is not None and name not in among:
            continue
        try:
            figure = make()
        except InvalidInputError as error:
            yield name, Hint(error.problem, remedy=error.remedy), None
        else:
            yield name, description, figure


def _of_series(series: xr.Dataset, width: float | None) -> Figures:
    """Return the figures of a series, with their subjects."""
    subjects: dict[str, tuple[str, Callable[..., Axes]]] = {
        "trajectories": ("similarity of layers along the axis", plot_trajectories),
        "layers": ("layers by values of the axis", plot_layers_by_step),
        "convergence": ("where layers settle, by depth", plot_convergence),
        "trend": ("similarity of networks and its trend", plot_trend),
        "runs": ("runs at equal values of the axis", plot_runs),
        "every_point": ("every point with every point", plot_every_point),
        "drift": ("distance from the reference, by depth", plot_drift),
    }
    return {
        name: (subject, lambda plot=plot: _figure_of(plot(series, width=width)))  # type: ignore[misc]
        for name, (subject, plot) in subjects.items()
    }


def _of_study(study: xr.Dataset, width: float | None) -> Figures:
    """Return the figures of a study, with their subjects."""
    measure = resolve_measure(study, None)
    others = [name for name in study["measure"].values.tolist() if name != "cka"]
    drawn: Figures = {
        "heatmaps": ("every layer with every layer", lambda: _grid(study, measure, width)),
        "depths": ("which depth matches which", lambda: _figure_of(plot_depths(study, width=width))),
        "similarity": (
            "how alike layers and their matches are",
            lambda: _figure_of(plot_depths(study, show="similarity", width=width)),
        ),
        "models": ("which models are alike", lambda: _figure_of(plot_models(study, width=width))),
        "pairs": ("how alike models are, and their controls", lambda: _figure_of(plot_pairs(study, width=width))),
        "families": (
            "what pairs of families share that was learned", lambda: _figure_of(plot_families(study, width=width))
        ),
        "shares": ("where the energy of kernels comes from", lambda: _figure_of(plot_shares(study, width=width))),
        "map": ("the map of models", lambda: _figure_of(plot_map(study, width=width))),
    }  # fmt: skip
    if others:
        drawn["measures"] = (
            f"cka against {others[-1]}", lambda: _figure_of(plot_measures(study, "cka", others[-1], width=width))
        )  # fmt: skip
    return drawn


def save_all(
    study: xr.Dataset,
    folder: str | Path,
    *,
    form: str = "png",
    width: float | None = None,
    dpi: float | None = None,
    among: Collection[str] | None = None,
) -> Iterator[tuple[str, str, Path | None]]:
    """Save every figure of a study or a series in a folder, each in its own file.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`, or series of `repsim.series`.
    folder : path
        Folder for the files.
    form : {"png", "pdf", "svg", "eps", "tiff"}
        Format of the files.
    width, among
        As in `draw_all`.
    dpi : float, optional
        As in `save`.

    Yields
    ------
    name : str
        Name of the figure.
    description : str
        Subject of the figure, or the reason why it cannot be drawn.
    path : Path or None
        File of the figure.
    """
    for name, description, figure in draw_all(study, width=width, among=among):
        path = Path(folder) / f"{name}.{form}" if figure else None
        if figure and path:
            save(figure, path, dpi=dpi)
        yield name, description, path


def _grid(study: xr.Dataset, measure: str, width: float | None) -> Figure:
    if (count := study.sizes.get("pair", 0)) > FEW:
        raise InvalidInputError(
            f"{count} pairs of models are too many for one page",
            remedy=Remedy("select some with ", Argument("pairs"), " of ", Function("repsim.heatmap")),
        )
    return plot_grid(study, [measure], width=width)


def _figure_of(ax: Axes) -> Figure:
    return ax.figure.figure
