"""The measures: ``repsim.metrics.get("cka:kernel=rbf")`` by spec string, or the classes themselves.

One file a family. A new file in this folder is found by itself; nothing else has to name it.
"""

if __name__ != "repsim.metrics":
    raise ImportError("the folder metrics/ is the package repsim.metrics: write 'import repsim.metrics'")

import functools
import sys
from typing import Any

from repsim.errors import UnknownNameError
from repsim.metrics.base import Factor, Metric, Recipe
from repsim.registry import build, load_modules, parse_spec

__all__ = ["Factor", "Metric", "Recipe", "get", "names"]


@functools.cache
def _load() -> None:
    load_modules(sys.modules[__name__], group="repsim.metrics")


def names() -> list[str]:
    """Names of all measures.

    >>> "cka" in names()
    True
    """
    _load()
    return sorted(Metric.registry)


def get(spec: str) -> Metric[Any]:
    """Make a measure from its spec string: a name, and options where they differ from their defaults.

    >>> get("svcca:variance=0.95")
    SVCCA(variance=0.95)
    >>> get("ckaa")
    Traceback (most recent call last):
    ...
    repsim.errors.UnknownNameError: unknown metric 'ckaa'; did you mean cka or cca? `repsim metrics` lists them all
    """
    name, options = parse_spec(spec)
    if name not in names():
        raise UnknownNameError("metric", name, names(), hint="`repsim metrics` lists them all")
    return build(Metric.registry[name], options)
