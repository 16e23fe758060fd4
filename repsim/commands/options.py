"""Options of commands, made of the classes in which the library writes them once (`repsim.runtime.options`)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import click
import msgspec

from repsim.runtime.options import Option, options_of

F = TypeVar("F", bound=Callable[..., Any])


def options(
    *kinds: type,
    flags: Mapping[str, Sequence[str]] | None = None,
    several: Collection[str] = (),
    without: Collection[str] = (),
    complete: Mapping[str, Any] | None = None,
) -> Callable[[F], F]:
    """Add the options of these classes to a command, which gets each as the keyword of its name.

    Parameters
    ----------
    flags
        What is written on the command line where that is not ``--name``, and the keyword where that is another.
    several
        Options that may occur several times; the command gets a tuple.
    without
        Options that the command takes in another way.
    complete
        How the shell completes an option's value.
    """

    def add(command: F) -> F:
        for kind in reversed(kinds):
            for entry in reversed(options_of(kind)):
                if entry.name not in without:
                    names = (flags or {}).get(entry.name, [f"--{entry.name.replace('_', '-')}"])
                    command = click.option(
                        *names, **_settings(entry, several=entry.name in several),
                        shell_complete=(complete or {}).get(entry.name),
                    )(command)  # fmt: skip
        return command

    return add


def _settings(entry: Option, *, several: bool) -> dict[str, Any]:
    """What click is told of an option."""
    info = entry.type
    if isinstance(info, msgspec.inspect.BoolType):
        return {"is_flag": True, "help": entry.text.replace("`", "")}
    kind: Any = str
    if isinstance(info, msgspec.inspect.LiteralType):
        kind = click.Choice(list(info.values))
    elif isinstance(info, msgspec.inspect.IntType):
        kind = int if info.ge is None else click.IntRange(min=info.ge)
    several = several or isinstance(info, msgspec.inspect.ListType | msgspec.inspect.DictType)
    plain = not several and not entry.required and entry.default is not None
    said = "" if plain or entry.required or entry.default_text == "none" else f"  [default: {entry.default_text}]"
    settings: dict[str, Any] = {
        "type": kind,
        "multiple": several,
        "required": entry.required and not several,
        "help": entry.text.replace("`", "") + said,
        "metavar": entry.extra.get("metavar"),
    }
    return settings | ({"default": entry.default, "show_default": True} if plain else {})
