"""Draw how much every span of consecutive blocks changes the representation of a network."""

from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from repsim.errors import Function, InvalidInputError, Remedy
from repsim.figures.canvas import finish_layout, inches_of, make_axes, namer, room_of, set_title, style_axes
from repsim.figures.lettering import escape_text, shorten
from repsim.figures.scales import ImageKeywords, ImageOptions, add_colour_bar, draw_image
from repsim.figures.styles import StyleName, column_width, em, in_style, label_size, note_size, stroke
from repsim.presentation.scales import declared, scale_of

_CELL = 0.22  # inches: smallest height of a cell
_NAMES = 40
"""Largest number of first blocks that are all named; of more every second, third, ... is named."""


@in_style
def plot_spans(
    spans: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
    **image: Unpack[ImageKeywords],
) -> Axes:
    """Draw the similarity of the layers before and after every span, by first block and number of blocks.

    The most similar span of every number of blocks has a frame. The colours are those of heatmaps: they span the range
    that the measure declares.

    docs/blocks.md has an example and its picture.

    Parameters
    ----------
    spans : pandas.DataFrame
        Table of `repsim.removable_spans`.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure, with a footnote.
    title : str, optional
        Title of the axes.
    labels : mapping of str to str, optional
        Names to show for blocks.
    width : float, optional
        Width of a new figure in inches; by default one column.
    style, **image
        As in `repsim.heatmap`.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidInputError
        If the table is not one of `repsim.removable_spans`, or has lost its attributes.
    """
    if not {"k", "first", "similarity", "best"} <= set(spans.columns) or "layers" not in spans.attrs:
        raise InvalidInputError(
            "expected the table of ", Function("repsim.removable_spans"), remedy=Remedy("keep its attrs if you copy it")
        )
    attrs: dict[str, Any] = {str(name): value for name, value in spans.attrs.items()}
    blocks, lengths = attrs["layers"][1:], sorted(set(spans["k"]))
    values = np.full((len(lengths), len(blocks)), np.nan)
    rows, columns = spans["k"].map(lengths.index), spans["first"].map(blocks.index)
    values[rows, columns] = spans["similarity"]
    own = ax is None
    axes = make_axes(column_width(width), em() * max(1.2, _CELL * len(lengths))) if ax is None else ax
    scale, options = scale_of(values, *declared(attrs)), ImageOptions(**image)
    drawn = draw_image(axes, values, scale, options, aspect="auto")
    for row, column in zip(rows[spans["best"]], columns[spans["best"]], strict=True):
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#0072B2", linewidth=stroke(1.6))
        )
    step, names = (
        -(-len(blocks) // _NAMES),
        shorten([*map(namer(labels, blocks, "block of these spans"), blocks)], 1.2, note_size()),
    )
    ticks = range(0, len(blocks), step)
    axes.set_xticks(ticks, [names[k] for k in ticks], rotation=90)
    axes.set_yticks(range(len(lengths)), [str(length) for length in lengths])
    style_axes(axes, "first block of the span", "blocks in the span")
    if options.cbar:
        height = room_of(axes)[1] if ax is not None else inches_of(axes)[1]
        ends, sizes = options.ends(scale, values), (note_size(), label_size())
        add_colour_bar(drawn, [escape_text(attrs["label"])], height, ends=ends, sizes=sizes)
    set_title(axes, title)
    if own:
        finish_layout(
            axes.figure,  # type: ignore[arg-type]
            [
                escape_text(
                    f"{attrs['model']}, {attrs['n_samples']:,} samples of {attrs['data']}: similarity of the layers "
                    "before and after each span. Frames: the most similar span of each length. Similarity is not "
                    "accuracy."
                )
            ],
        )
    return axes
