"""All figures of a study, one after the other."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repsim.errors import Argument, Function, Hint, InvalidInputError, Remedy
from repsim.figures.canvas import COLUMN, known_measure, save
from repsim.figures.depths import plot_depths
from repsim.figures.forests import plot_pairs
from repsim.figures.grids import plot_grid
from repsim.figures.maps import plot_map
from repsim.figures.scatters import plot_measures
from repsim.figures.shares import plot_shares

FEW = 60
"""Pairs of models whose heatmaps fit a page."""


def draw_all(
    study: xr.Dataset, *, width: float | None = None, among: Collection[str] | None = None
) -> Iterator[tuple[str, str, Figure | None]]:
    """Draw every figure that a study has.

    Parameters
    ----------
    study
        What `repsim.universality` returns.
    width
        Inches; by default a column's, and a page's for the grid of heatmaps.
    among
        Only those of these names.

    Yields
    ------
    tuple
        A name, what the figure shows or why there is none, and the figure or None.
    """
    measure = known_measure(study, None)
    column = width or COLUMN
    others = [name for name in study["measure"].values.tolist() if name != "cka"]
    drawn: dict[str, tuple[str, Callable[[], Figure]]] = {
        "heatmaps": ("every layer with every layer", lambda: _grid(study, measure, width)),
        "depths": ("which depth matches which", lambda: _of(plot_depths(study, width=column))),
        "similarity": (
            "how alike layers and their matches are", lambda: _of(plot_depths(study, show="similarity", width=column))
        ),
        "pairs": ("how alike models are, and their controls", lambda: _of(plot_pairs(study, width=column))),
        "shares": ("where the energy of kernels comes from", lambda: _of(plot_shares(study, width=column))),
        "map": ("the map of models", lambda: _of(plot_map(study, width=column))),
    }  # fmt: skip
    if others:
        drawn["measures"] = (
            f"cka against {others[-1]}", lambda: _of(plot_measures(study, "cka", others[-1], width=column))
        )  # fmt: skip
    for name, (what, make) in drawn.items():
        if among is not None and name not in among:
            continue
        try:
            figure = make()
        except InvalidInputError as error:
            yield name, Hint(error.problem, remedy=error.remedy), None
        else:
            yield name, what, figure


def save_all(
    study: xr.Dataset, folder: str | Path, *, form: str = "png", width: float | None = None
) -> Iterator[tuple[str, str, Path | None]]:
    """Write every figure of a study into a folder, as `draw_all` gives them: a file each, or the reason for none."""
    for name, what, figure in draw_all(study, width=width):
        path = Path(folder) / f"{name}.{form}" if figure else None
        if figure and path:
            save(figure, path)
        yield name, what, path


def _grid(study: xr.Dataset, measure: str, width: float | None) -> Figure:
    if (count := study.sizes.get("pair", 0)) > FEW:
        raise InvalidInputError(
            f"{count} pairs of models are too many for one page",
            remedy=Remedy("name some (", Argument("pairs"), " of ", Function("repsim.heatmap"), ")"),
        )
    return plot_grid(study, [measure], width=width)


def _of(ax: Axes) -> Figure:
    return ax.figure.figure
