"""Shapes in signatures, checked in the first calls of each test: loops of many thousands would only repeat them.

A check takes longer than most of what it checks: without a limit, they are half of the time of all tests of measures.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jaxtyping
from beartype import beartype

CHECKS = 1500
"""How many a test has: of the arguments of a call, and of what it returns."""

_left = CHECKS
_SWITCHED_OFF = jaxtyping.config.jaxtyping_disable
"""Whether somebody wants no checks at all."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """As beartype does it, until the checks of this test are used up."""
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
    """A test of its own: all checks are left, and nothing of it remains."""
    _renew()  # fixtures of modules use checks up, too
    yield
    _renew()


def _renew() -> None:
    global _left  # noqa: PLW0603
    jaxtyping.config.update("jaxtyping_disable", _SWITCHED_OFF)
    _left = CHECKS
