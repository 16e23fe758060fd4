"""Find classes by name: import modules and entry points, and parse spec strings such as ``cka:kernel=rbf``."""

import dataclasses
import importlib
import pkgutil
import types
import typing
import warnings
from importlib.metadata import entry_points
from typing import Any, TypeVar

from repsim.errors import BrokenPluginWarning, InvalidInputError, UnknownNameError, reason

T = TypeVar("T")


def load_modules(package: types.ModuleType, group: str) -> None:
    """Import every module of ``package`` and load every entry point of ``group``.

    The classes in them register themselves at import, so a new measure needs no entry in a list. An entry point that
    cannot be loaded is left out with a `BrokenPluginWarning`.
    """
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in entry_points(group=group):
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - unknown what other packages do at import
            warnings.warn(
                f"{group}: the plug-in {entry.name} = {entry.value} cannot be loaded and is left out ({reason(error)})",
                BrokenPluginWarning,
                stacklevel=1,
            )


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split a spec such as ``"cka:kernel=rbf,bandwidth=0.5"`` into a name and options.

    >>> parse_spec("cka:kernel=rbf,bandwidth=0.5")
    ('cka', {'kernel': 'rbf', 'bandwidth': '0.5'})
    """
    name, _, rest = spec.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise InvalidInputError(f"cannot read {part!r} in {spec!r}; write name:option=value,option=value")
        if key in options:
            raise InvalidInputError(f"option {key!r} is given twice in {spec!r}")
        options[key] = value
    return name, options


def build(cls: type[T], options: dict[str, str]) -> T:
    """Make an instance of a dataclass from option strings, converting each to the type of its field.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     x: float = 0.0
    >>> build(Point, {"x": "2"})
    Point(x=2.0)
    """
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in names:
            raise UnknownNameError("option", key, names, where=f"options: {', '.join(names) or 'none'}")
        values[key] = _read(text, hints[key], key)
    return cls(**values)


def _read(text: str, hint: Any, key: str) -> Any:
    """Convert ``text`` to the type ``hint``: float, int, bool, a value of a Literal, or an optional one of these."""
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        if text not in choices:
            raise UnknownNameError(f"value of {key}", text, choices)
        return text
    if isinstance(hint, types.UnionType):
        return _read(text, next(c for c in choices if c is not types.NoneType), key)
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        return hint(text)
    except (ValueError, KeyError):
        raise InvalidInputError(f"option {key}={text!r} should be a {hint.__name__}") from None
