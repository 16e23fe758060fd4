"""Draw how much every span of consecutive blocks changes the representation of a network."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from repsim.errors import Function, InvalidInputError, Remedy
from repsim.figures.canvas import COLUMN, NOTE, finish_layout, make_axes, style_axes
from repsim.figures.lettering import escape_text, shorten
from repsim.figures.scales import add_colour_bar, norm_and_colormap
from repsim.presentation.scales import declared, scale_of

_CELL = 0.22  # inches: smallest height of a cell
_NAMES = 40
"""Largest number of first blocks that are all named; of more every second, third, ... is named."""


def plot_spans(spans: pd.DataFrame, ax: Axes | None = None, *, width: float = COLUMN) -> Axes:
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
    width : float
        Width of a new figure in inches.

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
    axes = make_axes(width, max(1.2, _CELL * len(lengths))) if ax is None else ax
    scale = scale_of(values, *declared(attrs))
    norm, colours = norm_and_colormap(scale)
    image = axes.imshow(values, norm=norm, cmap=colours, origin="lower", aspect="auto", interpolation="nearest")
    for row, column in zip(rows[spans["best"]], columns[spans["best"]], strict=True):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#0072B2", linewidth=1.6))
    step, names = -(-len(blocks) // _NAMES), shorten([escape_text(name) for name in blocks], 1.2, NOTE)
    ticks = range(0, len(blocks), step)
    axes.set_xticks(ticks, [names[k] for k in ticks], rotation=90)
    axes.set_yticks(range(len(lengths)), [str(length) for length in lengths])
    style_axes(axes, "first block of the span", "blocks in the span")
    box = axes.get_window_extent().transformed(axes.figure.dpi_scale_trans.inverted())
    add_colour_bar(image, scale, [escape_text(attrs["label"])], box.height)
    assert image.colorbar is not None
    image.colorbar.ax.tick_params(labelsize=NOTE)
    image.colorbar.ax.yaxis.label.set_fontsize(NOTE + 0.5)
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
