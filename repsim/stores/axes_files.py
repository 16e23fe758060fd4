"""Read the coordinates of models from a CSV file: one line per model, and one column per axis.

The column ``model`` holds the names of the models, which are those of their stores. Or the column ``weights`` holds
files of weights, or patterns (``*``) that match several. All other columns are axes.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from repsim.errors import InvalidInputError
from repsim.runtime.csv_files import read_csv
from repsim.stores.axes import AxisValue, check_axes, read_value


@dataclass(frozen=True)
class AxesFile:
    """Axes in a CSV file, by model or by file of weights."""

    path: Path
    key: Literal["model", "weights"]
    """Column that says which model a line is about."""
    axes: dict[str, dict[str, AxisValue]]
    """Axes by the entry of this column; an axis whose field is empty is left out."""


def read_axes(path: str | os.PathLike[str]) -> dict[str, dict[str, AxisValue]]:
    r"""Read the axes of models, for stores that exist already.

    Parameters
    ----------
    path : path
        A CSV file with the column ``model`` and one column per axis. Fields that write a number are numbers, and empty
        fields are left out.

    Returns
    -------
    dict
        The axes by the name of the model.

    Raises
    ------
    InvalidInputError
        The file is no table, lacks the column ``model``, or names a model twice; or an axis has an impossible name or
        value. The message says the line.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "runs.csv")
    ...     written = file.write_text("model,step,run\nnet.1,0100,a\nnet.2,200,\n")
    ...     read_axes(file)
    {'net.1': {'step': 100, 'run': 'a'}, 'net.2': {'step': 200}}
    """
    table = read_axes_file(path)
    if table.key != "model":
        raise InvalidInputError(
            f"{table.path}: stores are told apart by the names of their models; add the column model"
        )
    return table.axes


def read_axes_file(path: str | os.PathLike[str]) -> AxesFile:
    """Read a CSV file whose lines are about models, or about files of weights (the column ``weights``)."""
    path = Path(path)
    head, *lines = read_csv(path, "axes").rows
    keys = [name for name in head if name in {"model", "weights"}]
    if len(keys) != 1:
        wanted = "expected one column model, or one column weights" if len(keys) != 2 else "keep one of the columns"
        raise InvalidInputError(f"{path} has the columns {', '.join(head[:8])}; {wanted}")
    if twice := next((name for name in head if head.count(name) > 1), None):
        raise InvalidInputError(f"{path} has two columns {twice}")
    column = head.index(keys[0])
    axes: dict[str, dict[str, AxisValue]] = {}
    for number, line in enumerate(lines, start=2):
        where, name = f"{path}, line {number}", line[column]
        if not name:
            raise InvalidInputError(f"{where}: the field {keys[0]} is empty")
        if name in axes:
            raise InvalidInputError(f"{where}: {name} has a line already")
        texts = {axis: text for axis, text in zip(head, line, strict=True) if axis != keys[0]}
        check_axes(dict.fromkeys(texts, 0), str(path))
        axes[name] = check_axes({axis: read_value(text) for axis, text in texts.items() if text}, where)
    if not axes:
        raise InvalidInputError(f"{path} has no line below its header")
    return AxesFile(path, "model" if keys[0] == "model" else "weights", axes)
