"""Parts that all laws share: intervals over seeds, the digits, tables, axes of figures, and the command line."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.stats import t
from sklearn.datasets import load_digits

from repsim.figures.canvas import COLOURS, MARKERS, finish_layout, make_figure, save, style_axes
from repsim.figures.styles import COLUMN

Floats = NDArray[np.float64]
Numbers = dict[str, Any]
"""Everything that a law measures and predicts, as JSON can hold it."""


def interval(values: ArrayLike) -> list[float]:
    """Return the mean of independent values and the ends of its 95 % interval, from Student's t distribution.

    >>> interval([1.0, 2.0, 3.0])  # 2 +- 4.303 * 1 / sqrt(3)
    [2.0, -0.484..., 4.484...]
    """
    values = np.asarray(values, dtype=float)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean()), float(values.mean() - half), float(values.mean() + half)]


def digits() -> tuple[Floats, NDArray[np.int64]]:
    """Return scikit-learn's 1797 handwritten digits: pixels (n, 64) from 0 to 1, and classes (n,)."""
    x, y = load_digits(return_X_y=True)
    return x / 16, y.astype(np.int64)


def show(value: float | Sequence[float], decimals: int = 3) -> str:
    """Write a number, or a mean with its interval.

    >>> show(0.5), show([0.5, 0.48, 0.52], decimals=2)
    ('0.500', '0.50 (0.48 to 0.52)')
    """
    if isinstance(value, Sequence):
        mean, low, high = (show(end, decimals) for end in value)
        return f"{mean} ({low} to {high})"
    return f"{value:.{decimals}f}"


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Return a Markdown table, as on the page of the laws; the keys of the rows are its head.

    >>> print(table([{"width": 16, "CKA": 0.5}, {"width": 1024, "CKA": 1.0}]))
    | width | CKA |
    | ---: | ---: |
    | 16 | 0.5 |
    | 1024 | 1.0 |
    """
    rows = list(rows)
    lines = [list(rows[0]), ["---:"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def panels(*labels: tuple[str, str], height: float = 1.7) -> list[Axes]:
    """Return the axes of a new figure, one column of a paper wide, from top to bottom, with these axis labels.

    `finish` gives the upper panel this height in inches.
    """
    figure = make_figure(COLUMN, height * len(labels))
    axes = figure.subplots(len(labels), squeeze=False)[:, 0]
    for ax, (x, y) in zip(axes, labels, strict=True):
        style_axes(ax, x, y)
    figure.set_figheight(height)
    return list(axes)


def points(ax: Axes, x: Sequence[float], intervals: Sequence[Sequence[float]], k: int, label: str = "") -> None:
    """Draw means with their intervals, in the k-th colour and marker."""
    mean, low, high = np.transpose(intervals)
    style: dict[str, Any] = {"color": COLOURS[k], "marker": MARKERS[k], "markersize": 3.0, "linewidth": 0.8}
    ax.errorbar(x, mean, [mean - low, high - mean], **style, label=label, linestyle="none", capsize=1.5)


def band(ax: Axes, x: Sequence[float], intervals: Sequence[Sequence[float]], k: int, label: str = "") -> None:
    """Draw a curve of means with a band of their intervals, in the k-th colour and marker."""
    mean, low, high = np.transpose(intervals)
    ax.plot(x, mean, color=COLOURS[k], marker=MARKERS[k], markersize=2.5, linewidth=0.9, label=label)
    ax.fill_between(x, low, high, color=COLOURS[k], alpha=0.2, linewidth=0)


def log_axis(ax: Axes, ticks: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with these numbers at its ticks."""
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)


def finish(axes: Sequence[Axes], caption: str = "") -> Figure:
    """Add legends and a caption, fix the layout, and return the figure."""
    for ax in axes:
        if ax.get_legend_handles_labels()[1]:
            ax.legend(fontsize=6, frameon=False, handlelength=1.6)
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    finish_layout(figure, [caption] if caption else [])
    return figure


def main(
    script: str, measure: Callable[[bool], Numbers], report: Callable[[Numbers], str], draw: Callable[[Numbers], Figure]
) -> None:
    """Run a law from the command line: measure, print the table, and write the figure and the numbers.

    Parameters
    ----------
    script
        File of the script, after which the figure and the numbers are named.
    measure
        Function that returns the numbers; its argument asks for fewer seeds.
    report
        Function that returns the text to print, from the numbers.
    draw
        Function that returns the figure of the numbers.
    """
    name = Path(script).stem
    parser = argparse.ArgumentParser(description=f"Check the law {name} (docs/laws.md).")
    parser.add_argument("--out", type=Path, default=Path(), help=f"folder for {name}.png and {name}.json")
    parser.add_argument("--quick", action="store_true", help="fewer seeds, in a few seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small: more threads would only wait for each other
    start = time.perf_counter()
    numbers = measure(options.quick)
    print(report(numbers))
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / f"{name}.png"
    save(draw(numbers), picture)
    with Image.open(picture) as image:
        image.convert("RGB").quantize(64).save(picture, dpi=(200, 200), optimize=True)
    picture.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"\n{picture} and {name}.json, after {time.perf_counter() - start:.0f} s")
