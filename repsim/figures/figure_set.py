"""Draw and save all figures of a study or a series."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repsim.errors import Argument, Function, Hint, InvalidInputError, Remedy, UnknownNameError
from repsim.figures.canvas import namer, resolve_measure, save
from repsim.figures.depths import plot_depths
from repsim.figures.forests import plot_families, plot_pairs
from repsim.figures.grids import plot_grid
from repsim.figures.keywords import draws_image
from repsim.figures.maps import plot_map
from repsim.figures.matrices import plot_models
from repsim.figures.scales import ImageKeywords
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

FEW = 60
"""Largest number of pairs of models whose heatmaps fit on a page."""
Drawn = tuple[str, Callable[..., Axes | Figure], str]
"""Subject of a figure, the function that draws it, and the kinds of names that its keyword ``labels`` takes."""
_OF_SERIES: dict[str, Drawn] = {
    "trajectories": ("similarity of layers along the axis", plot_trajectories, "layer"),
    "layers": ("layers by values of the axis", plot_layers_by_step, "layer"),
    "convergence": ("where layers settle, by depth", plot_convergence, "one_run"),
    "trend": ("similarity of networks and its trend", plot_trend, "one_run"),
    "runs": ("runs at equal values of the axis", plot_runs, "layer"),
    "every_point": ("every point with every point", plot_every_point, "one_run"),
    "drift": ("distance from the reference, by depth", plot_drift, ""),
}
_OF_STUDY: dict[str, Drawn] = {
    "depths": ("which depth matches which", plot_depths, "family architecture"),
    "similarity": ("how alike layers and their matches are", partial(plot_depths, show="similarity"),
                   "family architecture"),
    "models": ("which models are alike", plot_models, "model"),
    "pairs": ("how alike models are, and their controls", plot_pairs, "model"),
    "families": ("what pairs of families share that was learned", plot_families, "family"),
    "shares": ("where the energy of kernels comes from", plot_shares, ""),
    "map": ("the map of models", plot_map, "model family"),
}  # fmt: skip


def draw_all(
    study: xr.Dataset,
    *,
    width: float | None = None,
    among: Collection[str] | None = None,
    labels: Mapping[str, str] | None = None,
    title: str | None = None,
    **image: Unpack[ImageKeywords],
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
    labels : mapping of str to str, optional
        Names to show for models, families, layers and runs, in the figures that have them.
    title : str, optional
        Title of every figure.
    **image
        ``cmap``, ``vmin``, ``vmax`` and other keywords of `repsim.heatmap`, for the figures that are images.

    Yields
    ------
    name : str
        Name of the figure.
    description : str
        Subject of the figure, or the reason why it cannot be drawn.
    figure : Figure or None

    Raises
    ------
    UnknownNameError
        If there is no such figure, or nothing with a name in ``labels``.
    InvalidInputError
        If there are keywords of images, and no figure is one.
    """
    drawn = _figures(study)
    for name in among or ():
        if name not in drawn:
            raise UnknownNameError("figure", name, list(drawn))
    chosen = [plot for name, (_, plot, _) in drawn.items() if among is None or name in among]
    if image and not any(map(draws_image, chosen)):
        raise InvalidInputError(
            "none of these figures is an image, which alone has a colour map and limits of colours; leave them out"
        )
    names = _names(study)
    namer(labels, [name for of_kind in names.values() for name in of_kind], "model, family, layer or run")
    for name, (description, plot, kinds) in drawn.items():
        if among is not None and name not in among:
            continue
        own = {name for kind in kinds.split() for name in names[kind]}
        shown = {name: text for name, text in (labels or {}).items() if name in own}
        try:
            options = {"labels": shown} if shown else {}
            figure = plot(study, width=width, title=title, **options, **(image if draws_image(plot) else {}))
        except InvalidInputError as error:
            yield name, Hint(error.problem, remedy=error.remedy), None
        else:
            yield name, description, figure if isinstance(figure, Figure) else figure.figure.figure


def _names(study: xr.Dataset) -> dict[str, list[str]]:
    """Return the names in a study or a series by their kind."""
    kinds = ("model", "family", "architecture", "layer", "one_run")
    names = {kind: list(map(str, study[kind].values)) if kind in study.coords else [] for kind in kinds}
    if "layer_a" in study.coords:
        layers = zip(study["model_a"].values.tolist(), study["layer_a"].values.tolist(), strict=True)
        names["layer"] = [layer.removeprefix(f"{model}/") for model, layer in layers]
    return names


def _figures(study: xr.Dataset) -> dict[str, Drawn]:
    """Return the figures of a study or a series, by their names."""
    if study.attrs.get("format") == SERIES:
        return _OF_SERIES
    measure = resolve_measure(study, None)
    drawn: dict[str, Drawn] = {
        "heatmaps": ("every layer with every layer", partial(_grid, measure), "layer model"), **_OF_STUDY
    }  # fmt: skip
    if others := [name for name in study["measure"].values.tolist() if name != "cka"]:
        drawn["measures"] = (f"cka against {others[-1]}", partial(plot_measures, a="cka", b=others[-1]), "")
    return drawn


def save_all(
    study: xr.Dataset,
    folder: str | Path,
    *,
    form: str = "png",
    width: float | None = None,
    dpi: float | None = None,
    among: Collection[str] | None = None,
    **options: Any,
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
    width, among, **options
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
    for name, description, figure in draw_all(study, width=width, among=among, **options):
        path = Path(folder) / f"{name}.{form}" if figure else None
        if figure and path:
            save(figure, path, dpi=dpi)
        yield name, description, path


def _grid(measure: str, study: xr.Dataset, **options: Any) -> Figure:
    if (count := study.sizes.get("pair", 0)) > FEW:
        raise InvalidInputError(
            f"{count} pairs of models are too many for one page",
            remedy=Remedy("select some with ", Argument("pairs"), " of ", Function("repsim.heatmap")),
        )
    return plot_grid(study, [measure], **options)
