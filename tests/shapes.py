"""Check the shapes in signatures during the first calls of each test.

A check takes longer than most functions that it checks: without a limit, the checks take half of the time of all tests
of measures.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jaxtyping
from beartype import beartype

CHECKS = 1500
"""Number of checked calls per test."""

_left = CHECKS
_SWITCHED_OFF = jaxtyping.config.jaxtyping_disable
"""Whether checks are disabled by the environment."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function in beartype's check, which is disabled after `CHECKS` calls."""
    check = beartype(function)

    @wraps(check)
    def counted(*args: Any, **kwargs: Any) -> Any:
        global _left  # noqa: PLW0603
        _left -= 1
        if _left < 0:
            jaxtyping.config.update("jaxtyping_disable", True)
        return check(*args, **kwargs)

    return counted


@contextmanager
def checks() -> Iterator[None]:
    """Reset the number of checks before and after a test."""
    _renew()  # fixtures of modules use checks, too
    yield
    _renew()


def _renew() -> None:
    global _left  # noqa: PLW0603
    jaxtyping.config.update("jaxtyping_disable", _SWITCHED_OFF)
    _left = CHECKS
