"""The measures: ``repsim.metrics.get("cka:kernel=rbf")`` by spec string, or the classes themselves.

One file a family. A new file in this folder is found by itself; nothing else has to name it. The classes are loaded,
and torch with them, when one is first asked for: ``import repsim.metrics`` alone is quick.
"""

if __name__ != "repsim.metrics":
    raise ImportError("the folder metrics/ is the package repsim.metrics: write 'import repsim.metrics'")

import functools
import importlib
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, get_args

from repsim.errors import UnknownNameError
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
    """Names of all measures.

    >>> "cka" in names()
    True
    """
    return sorted(_registry())


def groups() -> dict[str, list[str]]:
    """Groups of measures (`repsim.metrics.base.Group`), and the names of those in each.

    >>> "svcca" in groups()["cca"]
    True
    """
    base = importlib.import_module("repsim.metrics.base")
    grouped: dict[str, list[str]] = {group: [] for group in get_args(base.Group)}
    for name in names():
        grouped[_registry()[name].group].append(name)
    return grouped


def select(spec: str) -> "list[Metric[Any]]":
    """Make the measures that a word stands for: a spec string, the name of a group, or ``all``.

    Where a measure has the name of its group, write ``group:cca`` for all of them. ``all`` is without the group
    ``topology``, of which a single pair may take minutes. Measures of a group whose library is not installed are left
    out.

    >>> [metric.spec for metric in select("group:cca")]
    ['cca', 'pwcca', 'svcca']
    >>> select("cca"), select("svcca:variance=0.95")
    ([CCA(summary='rho')], [SVCCA(variance=0.95, summary='rho')])
    """
    chosen = members(spec)
    if chosen is None:
        return [get(spec)]
    made = [build(_registry()[name], {}) for name in chosen]
    return [metric for metric in made if metric.extra is None or find_spec(metric.extra) is not None]


def members(word: str) -> list[str] | None:
    """Names of the measures of a group, or of ``all`` (without topology); None where the word is one measure's spec.

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
    repsim.errors.UnknownNameError: unknown metric 'ckaa'; did you mean cka or ... `repsim metrics` lists them all
    """
    name, options = parse_spec(spec)
    if name not in names():
        raise UnknownNameError("metric", name, names(), hint="`repsim metrics` lists them all")
    return build(_registry()[name], options)
