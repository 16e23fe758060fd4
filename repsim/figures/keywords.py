"""Check the keywords that figures share, so that a wrong one is one clear error and not one of matplotlib's."""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.mathtext import MathTextParser

from repsim.errors import InvalidInputError, nearest, reason

IMAGE = ("cmap", "vmin", "vmax", "norm", "annotate", "cbar", "im_kw")
"""Keywords of all functions that draw an image."""
_BOOL = (bool, np.bool_)
_NAMES = (Iterable,)
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "ax": ((Axes,), "axes of matplotlib"),
    "title": ((str,), "a text"),
    "measure": ((str,), "the name of a measure"),
    "comparison": ((str,), "the name of a comparison"),
    "run": ((str,), "the name of a run"),
    "layer": ((str,), "the name of a layer"),
    "labels": ((Mapping,), "a mapping from names to texts"),
    "order": (_NAMES, "a sequence of names"),
    "metrics": (_NAMES, "a sequence of names"),
    "measures": (_NAMES, "a sequence of names"),
    "pairs": (_NAMES, "a sequence of names"),
    "most": ((Integral,), "a whole number of 1 or more"),
    "style": ((str,), "the name of a style"),
    "font": ((str,), "the name of a font family"),
    "size": ((Real,), "a size in points above 0"),
    "width": ((Real,), "a width in inches above 0"),
    "stages": (_BOOL, "True or False"),
    "path": (_BOOL, "True or False"),
    "marks": (_BOOL, "True or False"),
    "cmap": ((str, Colormap), "a colour map of matplotlib or its name"),
    "vmin": ((Real,), "a number"),
    "vmax": ((Real,), "a number"),
    "norm": ((Normalize,), "a norm of matplotlib"),
    "annotate": ((*_BOOL, str), "True, False or a format of numbers such as '.2f'"),
    "cbar": (_BOOL, "True or False"),
    "interval": ((str,), "'numbers' or 'chance'"),
    "im_kw": ((Mapping,), "a mapping of keywords of imshow"),
}
_POSITIVE = ("size", "width")
"""Keywords that are numbers above 0."""
_TEXTS = ("order", "metrics", "measures", "pairs", "im_kw")
"""Keywords whose items are texts."""


def check_keywords(function: Callable[..., Any], keywords: Mapping[str, Any], arguments: Sequence[Any] = ()) -> None:
    """Check the names of all keywords of a figure, and the types of keywords and arguments that figures share.

    Raises
    ------
    InvalidInputError
        If a keyword has another type.
    TypeError
        If the figure has no keyword of this name.
    """
    own = list(keywords_of(function))
    for name in keywords:
        if name not in own:
            similar = nearest(name, own)
            meant = f"did you mean {' or '.join(similar)}?" if similar else f"it has {', '.join(own)}"
            raise TypeError(f"{function.__name__} has no keyword {name!r}; {meant}")
    check_values(dict(zip(own, arguments, strict=False)) | dict(keywords))


def check_values(keywords: Mapping[str, Any]) -> None:
    """Check the types of the keywords that figures share, and raise `InvalidInputError` if one has another type."""
    for name, value in keywords.items():
        if value is not None and name in _TYPES:
            _check_value(name, value)


def _check_value(name: str, value: Any) -> None:
    types, expected = _TYPES[name]
    is_wrong = not isinstance(value, types) or (types is _NAMES and isinstance(value, Iterator))
    if Real in types and not is_wrong:
        is_wrong = isinstance(value, bool) or not math.isfinite(float(value)) or (name in _POSITIVE and value <= 0)
    if name == "most" and not is_wrong:
        is_wrong = isinstance(value, bool) or value < 1
    if name == "annotate" and isinstance(value, str):
        is_wrong = not _is_format(value)
    if is_wrong:
        raise InvalidInputError(f"expected {name}={expected}, got {value!r}")
    if name == "title":
        _check_mathematics(value)
    items = [x for pair in value.items() for x in pair] if name == "labels" else value if name in _TEXTS else ()
    if others := [x for x in items if not isinstance(x, str)]:
        raise InvalidInputError(f"expected {name}={expected}, got one with {others[0]!r}")


def without_negative_zero(form: str) -> str:
    """Return a format of numbers that writes -0.001 as 0.00 and not as -0.00.

    >>> without_negative_zero(".2f"), without_negative_zero("+.2f"), without_negative_zero("*^+9.1%")
    ('z.2f', '+z.2f', '*^+z9.1%')
    """
    return re.sub(r"^((?:.?[<>=^])?[-+ ]?)z?", r"\1z", form)


def _is_format(text: str) -> bool:
    """Return whether a text is a format of numbers, as in f-strings after the colon."""
    try:
        return all(
            f"{value:{form}}".isprintable() for value in (0.5, -0.5) for form in (text, without_negative_zero(text))
        )
    except ValueError:
        return False


def _check_mathematics(text: str) -> None:
    """Raise `InvalidInputError` if matplotlib cannot read what is between the dollar signs of a text."""
    if rcParams["text.usetex"] or not rcParams["text.parse_math"]:
        return
    for line in text.split("\n"):
        if line.replace(r"\$", "").count("$") % 2:  # matplotlib writes such a line as it is
            continue
        try:
            MathTextParser("path").parse(line)
        except ValueError as error:
            raise InvalidInputError(f"the formula in title={text!r} is not valid: {reason(error, 3)}") from None


def keywords_of(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the names of the keywords of a figure."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            yield from IMAGE
        elif parameter.kind in {parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            yield name


def draws_image(function: Callable[..., Any]) -> bool:
    """Return whether a figure is an image with a colour map."""
    return "cmap" in keywords_of(function)
