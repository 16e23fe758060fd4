"""Draw the similarity of every two models as a matrix, ordered by a dendrogram."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Unpack, cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.transforms import Affine2DBase, ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

from repsim.errors import InvalidInputError
from repsim.figures.canvas import (
    FigureLayout,
    arrange,
    check_pairs,
    finish_layout,
    footnote,
    inches_of,
    make_axes,
    namer,
    resolve_measure,
    room_of,
    set_title,
    settle,
    style_axes,
)
from repsim.figures.heatmaps import LayerLocator, name_formatter
from repsim.figures.lettering import escape_text, shorten
from repsim.figures.scales import ImageKeywords, ImageOptions, add_colour_bar, draw_image
from repsim.figures.styles import (
    StyleName,
    column_width,
    em,
    in_style,
    ink,
    label_size,
    note_size,
    page_width,
    stroke,
)
from repsim.presentation.measures import traits
from repsim.presentation.model_order import matrix_of_models, order_by_similarity
from repsim.presentation.scales import scale_of
from repsim.study.reading import headline

_IN_A_COLUMN = 16
"""Largest number of models whose matrix has the width of a column; of more it has that of a page."""
_TREE = 0.5
"""Height of the dendrogram in inches."""
_LONGEST = 0.3
"""Largest part of the width that names take."""


@in_style
def plot_models(
    study: xr.Dataset,
    measure: str | None = None,
    ax: Axes | None = None,
    *,
    order: Literal["tree", "study"] | Sequence[str] = "tree",
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
    **image: Unpack[ImageKeywords],
) -> Axes:
    """Draw the similarity of every two models as a matrix, with similar models next to each other.

    The value is that of `plot_pairs`: the mean similarity along matching layers, by split halves if it is known. The
    dendrogram joins clusters with the largest mean similarity of their models first (average linkage); of two orders
    that it allows, the one with more similar neighbours is drawn. The diagonal is empty, because a model is not
    compared with itself.

    docs/figures.md has an example and its picture.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`.
    measure : str, optional
        Measure of the study; by default debiased CKA given the input, if the study has it.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure, with a footnote.
    order : {"tree", "study"} or sequence of str
        By the dendrogram, as in the study, or the models to show in this order.
    title : str, optional
        Title of the axes.
    labels : mapping of str to str, optional
        Names to show for models, by their names in the study.
    width : float, optional
        Width of a new figure in inches; by default one column, of more than 16 models one page.
    style, **image
        As in `repsim.heatmap`.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidInputError
        If fewer than three models have values.
    UnknownNameError
        If ``order`` or ``labels`` has a name that the study does not have.
    """
    measure = resolve_measure(study, measure)
    check_pairs(study)
    value, names = headline(study, measure), study["model"].values.tolist()
    table = matrix_of_models(study, value, measure, names)
    shown = namer(labels, names, "model of this study")
    if isinstance(order, str) and order not in {"tree", "study"}:
        raise InvalidInputError(f"expected order='tree', order='study' or a sequence of names, got {order!r}")
    ordered = order_by_similarity(table)
    if ordered is None:
        raise InvalidInputError(f"there is nothing to draw: fewer than three models have a value under {measure}")
    tree = None
    if order == "tree":
        places, tree = ordered
    else:
        places = arrange(None if isinstance(order, str) else order, names, [], "model of this study")
    table, count = table[np.ix_(places, places)], len(places)
    own = ax is None
    across = (column_width(width) if count <= _IN_A_COLUMN else page_width(width)) if ax is None else room_of(ax)[0]
    ax = make_axes(across, across) if ax is None else ax
    scale, options = scale_of(table, traits(measure).similarity_range), ImageOptions(**image)
    drawn = draw_image(ax, table, scale, options, origin="upper", aspect="equal")
    style_axes(ax, "", "")
    ax.spines[:].set(visible=False)
    ax.patch.set_visible(False)
    texts = shorten([shown(names[k]) for k in places], _LONGEST * across, note_size())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LayerLocator(axis, count, note_size()))
        axis.set_major_formatter(name_formatter(texts))
        axis.set_tick_params(length=0)
    ax.tick_params(axis="x", labelrotation=90)
    if tree is not None:
        _draw_tree(ax, tree)
    if options.cbar:
        height, ends, sizes = inches_of(ax)[1], options.ends(scale, table), (note_size(), label_size())
        add_colour_bar(drawn, [escape_text(traits(measure).label)], 0.75 * height, ends=ends, sizes=sizes)
    set_title(ax, title)
    if not own:
        settle(ax.figure.figure)
    else:
        reading = "matched on one half of the samples and measured on the other" if value == "split_half" else ""
        along = f"Mean along matching layers{', ' * bool(reading)}{reading}."
        linkage = " Order: average linkage." if tree is not None else ""
        _finish(ax, lambda named: footnote(study, f"{along}{linkage}{named}"))
    return ax


def _finish(ax: Axes, caption: Callable[[str], Sequence[str]]) -> None:
    """Lay out the figure so that the matrix is as high as it is wide, with a caption that says how many are named."""
    figure, named = ax.figure.figure, ""
    height = figure.get_figheight()
    for _ in range(2):  # how many names have room is known after the layout
        figure.set_figheight(height)
        finish_layout(figure, caption(named))
        box = ax.get_position(original=True).size * figure.get_size_inches()
        figure.set_figheight(figure.get_figheight() + box[0] - box[1])
        layout = figure.get_layout_engine()
        assert isinstance(layout, FigureLayout)
        layout.attach(figure)
        ax.apply_aspect()
        every = ax.yaxis.get_major_locator()()
        if named or len(every) < 2 or every[1] == 1:
            return
        named = f" One in {every[1]:.0f} models is named."


def _draw_tree(ax: Axes, joints: NDArray[np.float64]) -> None:
    """Draw a dendrogram above the columns of a matrix, in axes that a title stays above."""
    top = ax.figure.dpi_scale_trans + ScaledTranslation(0, 1, cast("Affine2DBase", ax.transAxes))
    place = ax.inset_axes(
        (0, 0.03, 1, _TREE * em()), transform=blended_transform_factory(ax.transAxes, top), gid="tree"
    )
    place.add_collection(LineCollection(list(joints), colors=ink(), linewidths=stroke(0.6)))
    place.set(xlim=ax.get_xlim(), ylim=(0, 1.05))
    place.axis("off")
