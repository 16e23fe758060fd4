"""Warn about public names and keywords that a coming release will remove.

CONTRIBUTING.md describes the deprecation policy.
"""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_deprecated(what: str, *, instead: str, gone_in: str) -> None:
    """Warn that something public will be removed, at the line of the user's code that uses it.

    Parameters
    ----------
    what : str
        The public name, keyword or file format, as the subject of a sentence.
    instead : str
        What to do instead, as a clause.
    gone_in : str
        The release that removes it: the next major one.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as raised:
    ...     warnings.simplefilter("always")
    ...     warn_deprecated("compare(known=...)", instead="write out=", gone_in="2.0.0")
    >>> print(raised[0].message)
    compare(known=...) is deprecated and will be removed in repsim 2.0.0; write out=
    """
    message = f"{what} is deprecated and will be removed in repsim {gone_in}; {instead}"
    warnings.warn(message, DeprecationWarning, stacklevel=user_level())


def rename_keyword(old: str, new: str, *, gone_in: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for a function whose keyword has a new name: it still takes the old one, and warns.

    Parameters
    ----------
    old, new : str
        The names of the keyword.
    gone_in : str
        The release in which the old name is removed.

    Examples
    --------
    >>> @rename_keyword("found", "dataset", gone_in="2.0.0")
    ... def size(dataset):
    ...     return len(dataset)
    >>> with warnings.catch_warnings(action="ignore"):
    ...     size(found=[1, 2])
    2
    """

    def rename(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                name = getattr(function, "__name__", "function")
                if new in kwargs:
                    raise TypeError(f"{name}() got both {new} and {old}, its earlier name")
                warn_deprecated(f"{name}({old}=...)", instead=f"write {new}=", gone_in=gone_in)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return rename


def user_level() -> int:
    """Return the ``stacklevel`` with which a warning of the calling function shows the user's line, outside repsim."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_repsim(str(frame.f_globals.get("__name__", ""))):
        level, frame = level + 1, frame.f_back
    return level


def _is_repsim(module: str) -> bool:
    return module == "repsim" or module.startswith("repsim.")
