"""What the library's messages call parameters and functions, in the words of the command line: options and commands."""

import json
import shlex
from functools import partial

import click

from repsim.errors import SAME_CALL, Argument, Function, Hint, RepsimError
from repsim.runtime.events import Note

_OPTIONS = {
    "metrics": "metric",
    "model_kwargs": "model-kwarg",
    "pairs": "pair",
    "readouts": "readout",
    "root": "data-root",
}
"""Options that are not called like the parameter, with dashes."""
_KEYS = {"data_root": "root"}
"""Keys of a study file that are not called like the parameter."""
_COMMANDS = {
    SAME_CALL.name: "the same command",
    "repsim.compare": "`repsim compare`",
    "repsim.extractors.factory.make_extractor": "`repsim layers MODEL`",
    "repsim.heatmap": "`repsim heatmap`",
    "repsim.metrics.names": "`repsim metrics`",
    "repsim.study.study_file.EXAMPLE": "`repsim run --example`",
    "repsim.run_study": "`repsim run`",
    "repsim.universality": "`repsim universality`",
    "repsim.verify": "`repsim verify`",
    "timm.list_models": "`repsim models '*PATTERN*'`",
}
"""Functions and what they are on the command line; the others keep their names, which are Python's."""


def said(text: RepsimError | Note | str, command: click.Command | None = None) -> str:
    """Write an error or a note as the user of a command knows its parameters; other texts are what they are.

    Parameters
    ----------
    text
        What the library raised, or gave as a note.
    command
        The command that runs; by default the one that click knows of.

    Examples
    --------
    >>> from repsim.errors import Remedy
    >>> exists = RepsimError("r.nc exists", remedy=Remedy("use ", Argument("overwrite", True), " to replace it"))
    >>> said(exists)
    'r.nc exists; use --overwrite to replace it'
    >>> said(RepsimError("damaged", remedy=Remedy("give ", Argument("skip_bad", True))), click.Command("run"))
    'damaged; give the key `skip_bad: true`'
    """
    if isinstance(text, Note):
        return text.prefix + said(text.text, command)
    context = click.get_current_context(silent=True)
    command = command or (context.command if context else None)
    if isinstance(text, RepsimError):
        lines = [text.spelled(partial(_word, command=command))]
        lines += [f"({said(note, command)})" for note in getattr(text, "__notes__", ())]
        return " ".join(" ".join(lines).split())
    return text.spelled(partial(_word, command=command)) if isinstance(text, Hint) else text


def _word(part: Argument | Function, command: click.Command | None) -> str:
    if isinstance(part, Function):
        return _COMMANDS.get(part.name, part.name)
    option = f"--{_OPTIONS.get(part.name, part.name.replace('_', '-'))}"
    if command is not None and command.name == "run":
        its_own = {name for parameter in command.params for name in parameter.opts}
        if part.of or option not in its_own:
            return _key(part)
    values = part.value.items() if isinstance(part.value, dict) else [part.value]
    texts = [f"{value[0]}={value[1]}" if isinstance(value, tuple) else value for value in values]
    if part.metavar:
        return f"{option} {part.metavar}"
    if part.value is None or part.value is True:
        return option
    return " ".join(f"{option} {shlex.quote(str(text))}" for text in texts)


def _key(part: Argument) -> str:
    """An argument as a key of a study file."""
    name = _KEYS.get(part.name, part.name)
    if part.metavar:
        return f"the key `{name}: {part.metavar}`"
    if part.value is None:
        return f"the key `{name}`"
    return f"the key `{name}: {part.value if isinstance(part.value, str) else json.dumps(part.value)}`"
