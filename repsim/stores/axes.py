"""Coordinates of models, such as the training step, the width or the seed: their names and values, checked once.

A store keeps them in its provenance under ``axes``. Names are identifiers in lower case. A value is a finite number, or
a text that is not empty.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, SupportsFloat

from repsim.errors import Argument, InvalidArgumentError, InvalidInputError, Remedy, RepsimError

AxisValue = float | int | str
"""Value of a model on one axis."""
Axes = Mapping[str, AxisValue]
"""Values of a model by the name of the axis."""
StatedAxes = Mapping[str, SupportsFloat | str]
"""Axes as a user states them, with numbers of Python or numpy."""

ENTRY = "axes"
"""Entry of the provenance with the axes that the user has stated."""
COMPUTED = "computed"
"""Entry of the provenance with axes that the extraction has computed: the size of the network."""
SIZES = ("parameters", "depth", "width")
"""Axes that say how large a network is, which the extraction computes."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LARGEST = 2**63
"""Integers of this modulus or above do not fit into the files of results."""
_LONGEST = 200
"""Largest length of a name or a text in bytes."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def check_axes(axes: Any, where: str = "axes") -> dict[str, AxisValue]:
    """Check the names and values of axes, and return them with Python's numbers.

    Parameters
    ----------
    axes : mapping of str to number or str
        Values by the name of the axis; numbers of numpy are converted, and arrays of one number without axes.
    where : str
        Beginning of error messages.

    Raises
    ------
    InvalidInputError
        It is no mapping, a name is no identifier in lower case, or a value is neither a finite number nor a text.

    Examples
    --------
    >>> import numpy as np
    >>> check_axes({"step": np.int64(1000), "lr": np.float32(0.5), "run": "a"})
    {'step': 1000, 'lr': 0.5, 'run': 'a'}
    >>> check_axes({"step": True})
    Traceback (most recent call last):
    ...
    repsim.errors.InvalidInputError: axes: step is True; expected a finite number, or a text that is not empty
    """
    if not isinstance(axes, Mapping):
        raise InvalidInputError(
            f"{where}: expected a dictionary such as {{'step': 1000, 'width': 64}}, got {type(axes).__name__}"
        )
    return {check_axis_name(name, where): _check_value(name, value, where) for name, value in axes.items()}


def check_axis_name(name: Any, where: str = "axes") -> str:
    """Return the name of an axis after checking it: an identifier of small letters, digits and underscores.

    Raises
    ------
    InvalidInputError
        It is another text, or no text.

    Examples
    --------
    >>> check_axis_name("batch_size")
    'batch_size'
    >>> check_axis_name("Batch size")
    Traceback (most recent call last):
    ...
    repsim.errors.InvalidInputError: axes: 'Batch size' cannot name an axis; ... and underscores, as in batch_size
    """
    if not (isinstance(name, str) and _NAME.fullmatch(name) and len(name) <= _LONGEST):
        shown = repr(name) if len(repr(name)) <= 60 else f"{repr(name)[:60]}..."
        raise InvalidInputError(
            f"{where}: {shown} cannot name an axis; a name begins with a small letter and goes on with small letters, "
            "digits and underscores, as in batch_size"
        )
    return str(name)


def _check_value(name: str, value: Any, where: str) -> AxisValue:
    plain = value.item() if type(value).__module__ == "numpy" and hasattr(value, "dtype") and not value.shape else value
    if isinstance(plain, str) and plain.strip():
        from repsim.labels import check_name  # noqa: PLC0415 - imports numpy, and `repsim --help` reads this module

        check_name(f"{where}: the value of {name}", plain, _LONGEST)
        return str(plain)
    if isinstance(plain, int) and not isinstance(plain, bool) and abs(plain) < _LARGEST:
        return int(plain)
    if isinstance(plain, float) and math.isfinite(plain):
        return float(plain)
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    raise InvalidInputError(f"{where}: {name} is {shown}; expected a finite number, or a text that is not empty")


def read_value(text: str) -> AxisValue:
    """Return the number that a text writes, or else the text; a text in quotes stays a text.

    >>> read_value("001000"), read_value("1e-3"), read_value("a"), read_value("'16'"), read_value("inf")
    (1000, 0.001, 'a', '16', 'inf')
    """
    text = text.strip()
    if len(text) <= _LONGEST and _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def read_texts(axes: Any) -> dict[str, AxisValue]:
    """Return axes from a mapping or from texts ``NAME=VALUE``, with texts that write a number as numbers.

    >>> read_texts(["step=1000", "lr=1e-3"]), read_texts({"step": "1000", "run": "a"})
    ({'step': 1000, 'lr': 0.001}, {'step': 1000, 'run': 'a'})
    """
    if not isinstance(axes, Mapping):
        pairs = [str(text).partition("=") for text in axes]
        for name, equals, value in pairs:
            if not (name.strip() and equals and value.strip()):
                raise InvalidArgumentError("axes", "NAME=VALUE (step=1000, run=a)", name + equals + value)
        names = [name.strip() for name, _, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InvalidInputError(Argument("axes"), f": {twice} is given twice")
        axes = {name: value for name, (_, _, value) in zip(names, pairs, strict=True)}
    return check_axes({name: read_value(value) if isinstance(value, str) else value for name, value in axes.items()})


def axes_of(provenance: Mapping[str, Any], entry: str = ENTRY) -> dict[str, AxisValue]:
    """Return the axes in an entry of the provenance of a store; none if it is missing, or of another meaning.

    Before stores had axes, a user may have recorded anything under these names.

    >>> axes_of({"axes": {"step": 3}}), axes_of({"axes": "NCHW"}), axes_of({})
    ({'step': 3}, {}, {})
    """
    try:
        return check_axes(provenance.get(entry, {}))
    except RepsimError:
        return {}


def refuse_axes_in(provenance: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` if a provenance that the user states has the entry of the axes."""
    if ENTRY in provenance:
        raise InvalidInputError(
            f"provenance: {ENTRY} has a parameter of its own", remedy=Remedy("use ", Argument("axes"))
        )


def in_words(axes: Axes) -> str:
    """Return axes on one line.

    >>> in_words({"step": 1000, "run": "a"})
    'step=1000, run=a'
    """
    return ", ".join(
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in axes.items()
    )
