"""Warns of what a coming release removes, at the line of the user's code that uses it.

CONTRIBUTING.md has the policy.
"""

import sys
import warnings


def warn_deprecated(what: str, *, instead: str, gone_in: str) -> None:
    """Warn that something public is removed in a coming release.

    Parameters
    ----------
    what
        The public name, parameter or file format, with a capital or as code.
    instead
        What to do, as a clause.
    gone_in
        The release in which it goes: the one after the release that warns first.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as raised:
    ...     warnings.simplefilter("always")
    ...     warn_deprecated("compare(a, b, known=)", instead="give out=", gone_in="0.4.0")
    >>> print(raised[0].message)
    compare(a, b, known=) is deprecated and goes in repsim 0.4.0; give out=
    """
    warnings.warn(
        f"{what} is deprecated and goes in repsim {gone_in}; {instead}", DeprecationWarning, stacklevel=user_level()
    )


def user_level() -> int:
    """Find the ``stacklevel`` with which a warning of the calling function shows the user's line, outside of repsim."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_ours(str(frame.f_globals.get("__name__", ""))):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(module: str) -> bool:
    return module == "repsim" or module.startswith("repsim.")
