"""Check the keywords that figures share, so that a wrong one is one clear error and not one of matplotlib's."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, Normalize

from repsim.errors import InvalidInputError, nearest

IMAGE = ("cmap", "vmin", "vmax", "norm", "annotate", "cbar", "im_kw")
"""Keywords of all functions that draw an image."""
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "title": ((str,), "a text"),
    "labels": ((Mapping,), "a mapping from names to texts"),
    "order": ((Sequence, np.ndarray), "a sequence of names"),
    "style": ((str,), "the name of a style"),
    "width": ((Real,), "a width in inches above 0"),
    "cmap": ((str, Colormap), "a colour map of matplotlib or its name"),
    "vmin": ((Real,), "a number"),
    "vmax": ((Real,), "a number"),
    "norm": ((Normalize,), "a norm of matplotlib"),
    "annotate": ((bool, np.bool_, str), "True, False or a format such as '.2f'"),
    "cbar": ((bool, np.bool_), "True or False"),
    "interval": ((str,), "'numbers' or 'chance'"),
    "im_kw": ((Mapping,), "a mapping of keywords of imshow"),
}


def check_keywords(function: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    """Check the names of all keywords of a figure and the types of those that figures share.

    Raises
    ------
    InvalidInputError
        If a keyword has another type.
    TypeError
        If the figure has no keyword of this name.
    """
    own = list(keywords_of(function))
    for name, value in keywords.items():
        if name not in own:
            similar = nearest(name, own)
            meant = f"did you mean {' or '.join(similar)}?" if similar else f"it has {', '.join(own)}"
            raise TypeError(f"{function.__name__} has no keyword {name!r}; {meant}")
        if value is not None and name in _TYPES:
            _check_value(name, value)


def _check_value(name: str, value: Any) -> None:
    types, expected = _TYPES[name]
    is_wrong = not isinstance(value, types)
    if Real in types and not is_wrong:
        is_wrong = isinstance(value, bool) or not math.isfinite(float(value)) or (name == "width" and value <= 0)
    if is_wrong:
        raise InvalidInputError(f"expected {name}={expected}, got {value!r}")
    if name == "labels" and (others := [x for pair in value.items() for x in pair if not isinstance(x, str)]):
        raise InvalidInputError(f"expected labels={expected}, got one with {others[0]!r}")


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
