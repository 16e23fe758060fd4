"""Measures of representational similarity, by spec string or by class.

``repsim.metrics.get("cka:kernel=rbf")`` makes a measure from its spec string.

Each file holds one family of measures. The registry imports every file of this folder, so a new file needs no entry
elsewhere. Classes are loaded, and torch with them, at the first use of a measure: ``import repsim.metrics`` alone is
fast.
"""

if __name__ != "repsim.metrics":
    raise ImportError("the folder metrics/ is the package repsim.metrics: write 'import repsim.metrics'")

import functools
import importlib
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, get_args

from repsim.errors import Function, Remedy, UnknownNameError
from repsim.registry import build, load_modules, parse_spec

if TYPE_CHECKING:
    from repsim.metrics.base import Factor, Metric, Recipe

__all__ = ["Factor", "Metric", "Recipe", "get", "groups", "members", "names", "select"]


def __getattr__(name: str) -> Any:
    if name in {"Factor", "Metric", "Recipe"}:
        return getattr(importlib.import_module("repsim.metrics.base"), name)
    raise AttributeError(f"module 'repsim.metrics' has no attribute {name!r}")


@functools.cache
def _load() -> None:
    load_modules(sys.modules[__name__], group="repsim.metrics")


def _registry() -> "dict[str, type[Metric[Any]]]":
    """Return the classes of all measures by name."""
    _load()
    registry: dict[str, type[Metric[Any]]] = importlib.import_module("repsim.metrics.base").Metric.registry
    return registry


def names() -> list[str]:
    """Return the names of all measures, sorted.

    >>> "cka" in names()
    True
    """
    return sorted(_registry())


def groups() -> dict[str, list[str]]:
    """Return the groups of measures (`repsim.metrics.base.Group`), and the names of the measures in each.

    >>> "svcca" in groups()["cca"]
    True
    """
    base = importlib.import_module("repsim.metrics.base")
    grouped: dict[str, list[str]] = {group: [] for group in get_args(base.Group)}
    for name in names():
        grouped[_registry()[name].group].append(name)
    return grouped


def select(spec: str) -> "list[Metric[Any]]":
    """Return the measures that a word selects: a spec string, the name of a group, or ``all``.

    If a measure has the same name as its group, write ``group:cca`` for the group. ``all`` excludes the group
    ``topology``, in which a single pair may take minutes. Measures that need a library that is not installed are left
    out.

    >>> [metric.spec for metric in select("group:cca")]
    ['cca', 'pwcca', 'svcca']
    >>> select("cca"), select("svcca:variance=0.95")
    ([CCA(summary='rho')], [SVCCA(variance=0.95, summary='rho')])
    """
    chosen = members(spec)
    if chosen is None:
        return [get(spec)]
    selected = [build(_registry()[name], {}) for name in chosen]
    return [metric for metric in selected if metric.extra is None or find_spec(metric.extra) is not None]


def members(word: str) -> list[str] | None:
    """Return the names of the measures of a group, or of ``all`` (without topology); None for the spec of one measure.

    >>> members("group:cca"), members("cca")
    (['cca', 'pwcca', 'svcca'], None)
    """
    group = word.removeprefix("group:")
    if group == "all":
        return [name for name in names() if _registry()[name].group != "topology"]
    if group == word and word not in names() and word not in groups():
        if (meant := word.casefold()) in {"all", *groups()}:
            raise UnknownNameError("metric", word, [meant])
        return None
    if group == word and word in names():
        return None
    if group not in groups():
        raise UnknownNameError("group", group, ["all", *groups()])
    return groups()[group]


def get(spec: str) -> "Metric[Any]":
    """Make a measure from its spec string: a name, and options where they differ from their defaults.

    >>> get("svcca:variance=0.95")
    SVCCA(variance=0.95, summary='rho')
    >>> get("ckaa")
    Traceback (most recent call last):
    ...
    repsim.errors.UnknownNameError: unknown metric 'ckaa'; did you mean cka or ...? repsim.metrics.names lists them
    """
    name, options = parse_spec(spec)
    if name not in names():
        raise UnknownNameError("metric", name, names(), remedy=Remedy(Function("repsim.metrics.names"), " lists them"))
    return build(_registry()[name], options)
