"""Make options of commands from the option classes of the library (`repsim.runtime.options`)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import click
import msgspec

from repsim.runtime.options import Option, options_of

F = TypeVar("F", bound=Callable[..., Any])


def options(
    *kinds: type,
    flags: Mapping[str, Sequence[str]] | None = None,
    several: Mapping[str, str] | None = None,
    without: Collection[str] = (),
    complete: Mapping[str, Any] | None = None,
) -> Callable[[F], F]:
    """Return a decorator that adds the options of these classes to a command.

    The command receives each option as the keyword argument of its name.

    Parameters
    ----------
    kinds : type
        Option classes.
    flags : mapping of str to sequence of str, optional
        Flags of the options whose flag is not ``--name``; a last entry without dashes is the keyword argument.
    several : mapping of str to str, optional
        Options that may be repeated although they have one value in the library, and a sentence that explains how the
        command uses several. The command receives a tuple.
    without : collection of str
        Options to leave out, because the command takes their values in another way.
    complete : mapping of str to callable, optional
        Shell completers of option values.
    """

    def add(command: F) -> F:
        for kind in reversed(kinds):
            for entry in reversed(options_of(kind)):
                if entry.name not in without:
                    names = (flags or {}).get(entry.name, [f"--{entry.name.replace('_', '-')}"])
                    command = click.option(
                        *names, **_option_settings(entry, several=(several or {}).get(entry.name)),
                        shell_complete=(complete or {}).get(entry.name),
                    )(command)  # fmt: skip
        return command

    return add


def _option_settings(entry: Option, *, several: str | None) -> dict[str, Any]:
    """Return the arguments of `click.option` for one option."""
    info = entry.type
    if isinstance(info, msgspec.inspect.BoolType):
        return {"is_flag": True, "help": entry.text.replace("`", "")}
    kind: Any = str
    if isinstance(info, msgspec.inspect.LiteralType):
        kind = click.Choice(list(info.values))
    elif entry.extra.get("path") and not several:
        kind = click.Path()  # completes names of files
    elif isinstance(info, msgspec.inspect.IntType):
        kind = int if info.ge is None else click.IntRange(min=info.ge)
    elif isinstance(info, msgspec.inspect.FloatType):
        kind = click.FloatRange(min=info.gt, max=info.lt, min_open=True, max_open=True)
    if isinstance(info, msgspec.inspect.ListType | msgspec.inspect.DictType):
        several = several or "Repeat the option for several."
    plain = not several and not entry.required and entry.default is not None
    note = "" if plain or entry.required or entry.default_text == "none" else f"  [default: {entry.default_text}]"
    settings: dict[str, Any] = {
        "type": kind,
        "multiple": bool(several),
        "required": entry.required and not several,
        "help": " ".join(filter(None, [entry.text.replace("`", ""), several])) + note,
        "metavar": entry.extra.get("metavar"),
    }
    if isinstance(info, msgspec.inspect.IntType) and info.le is not None:
        settings["callback"] = partial(_check_maximum, most=info.le)  # click.IntRange(max) would fill the help
    return settings | ({"default": entry.default, "show_default": True} if plain else {})


def _check_maximum(_: click.Context, __: click.Parameter, value: Any, *, most: int) -> Any:
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and number > most:
            raise click.BadParameter(f"{number} is more than {most}, the largest number")
    return value
