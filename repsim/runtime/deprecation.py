"""Warn about public names and keywords that a coming release will remove.

CONTRIBUTING.md describes the deprecation policy.
"""

import sys
import warnings


def warn_deprecated(what: str, *, instead: str, gone_in: str) -> None:
    """Warn that something public will be removed, at the line of the user's code that uses it.

    Parameters
    ----------
    what : str
        The public name, keyword or file format, as the subject of a sentence.
    instead : str
        What to do instead, as a clause.
    gone_in : str
        The release that removes it: the one after the release that warns first.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as raised:
    ...     warnings.simplefilter("always")
    ...     warn_deprecated("compare(known=...)", instead="write out=", gone_in="0.4.0")
    >>> print(raised[0].message)
    compare(known=...) is deprecated and will be removed in repsim 0.4.0; write out=
    """
    message = f"{what} is deprecated and will be removed in repsim {gone_in}; {instead}"
    warnings.warn(message, DeprecationWarning, stacklevel=user_level())


def user_level() -> int:
    """Return the ``stacklevel`` with which a warning of the calling function shows the user's line, outside repsim."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_repsim(str(frame.f_globals.get("__name__", ""))):
        level, frame = level + 1, frame.f_back
    return level


def _is_repsim(module: str) -> bool:
    return module == "repsim" or module.startswith("repsim.")
