"""Check the shapes in signatures during the first calls of each test.

A check takes longer than most functions that it checks: without a limit, the checks take half of the time of all tests
of measures.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
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


def install(modules: Sequence[str]) -> None:
    """Check the shapes in the signatures of these modules, which must not be imported yet.

    Functions inside of functions are left out: a check is compiled whenever such a function is defined, and that takes
    ten times as long as most of the calls in which it happens.
    """
    decorate = jaxtyping.jaxtyped

    def decorator(*, typechecker: Any) -> Callable[[Any], Any]:
        def decorated(thing: Any) -> Any:
            is_local = isinstance(thing, FunctionType) and "<locals>" in thing.__qualname__
            return thing if is_local else decorate(thing, typechecker=typechecker)

        return decorated

    vars(jaxtyping)["jaxtyped"] = decorator  # by this name the hook calls it
    jaxtyping.install_import_hook(modules, "tests.shapes.checked")


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
