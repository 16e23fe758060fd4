"""Write messages of the library for users of the command line: parameters as options, functions as commands."""

import json
import shlex
from functools import partial

import click

from repsim.errors import SAME_CALL, Argument, Function, Hint, RepsimError
from repsim.runtime.events import Note

_OPTION_NAMES = {
    "families": "family",
    "metrics": "metric",
    "model_kwargs": "model-kwarg",
    "pairs": "pair",
    "readouts": "readout",
    "root": "data-root",
}
"""Options whose name is not that of the parameter with dashes."""
_KEY_NAMES = {"data_root": "root"}
"""Keys of a study file whose name is not that of the parameter."""
_COMMAND_TEXTS = {
    SAME_CALL.name: "the same command",
    "repsim.compare": "`repsim compare`",
    "repsim.extractors.factory.make_extractor": "`repsim layers MODEL`",
    "repsim.heatmap": "`repsim heatmap`",
    "repsim.read_activations": "`repsim import`",
    "repsim.metrics.names": "`repsim metrics`",
    "repsim.study.study_file.EXAMPLE": "`repsim run --example`",
    "repsim.run_study": "`repsim run`",
    "repsim.removable_spans": "`repsim spans`",
    "repsim.series": "`repsim series`",
    "repsim.universality": "`repsim universality`",
    "repsim.verify": "`repsim verify`",
    "timm.list_models": "`repsim models '*PATTERN*'`",
}
"""Functions and their counterparts on the command line; other functions keep their Python names."""


def render_for_cli(text: RepsimError | Note | str, command: click.Command | None = None) -> str:
    """Return the text of an error or a note with options instead of parameters; return other texts unchanged.

    Parameters
    ----------
    text : RepsimError, Note or str
        Error that the library raised, or note that it emitted.
    command : click.Command, optional
        Running command; by default that of click's current context.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> from repsim.errors import Remedy
    >>> exists = RepsimError("r.nc exists", remedy=Remedy("use ", Argument("overwrite", True), " to replace it"))
    >>> render_for_cli(exists)
    'r.nc exists; use --overwrite to replace it'
    >>> render_for_cli(RepsimError("damaged", remedy=Remedy("give ", Argument("skip_bad", True))), click.Command("run"))
    'damaged; give the key `skip_bad: true`'
    """
    if isinstance(text, Note):
        return text.prefix + render_for_cli(text.text, command)
    context = click.get_current_context(silent=True)
    command = command or (context.command if context else None)
    if isinstance(text, RepsimError):
        lines = [text.render(partial(_render_part, command=command))]
        lines += [f"({render_for_cli(note, command)})" for note in getattr(text, "__notes__", ())]
        return " ".join(" ".join(lines).split())
    return text.render(partial(_render_part, command=command)) if isinstance(text, Hint) else text


def _render_part(part: Argument | Function, command: click.Command | None) -> str:
    if isinstance(part, Function):
        return _COMMAND_TEXTS.get(part.name, part.name)
    option = f"--{_OPTION_NAMES.get(part.name, part.name.replace('_', '-'))}"
    if command is not None and command.name == "run":
        own_options = {name for parameter in command.params for name in parameter.opts}
        if part.of or option not in own_options:
            return _study_file_key(part)
    values = part.value.items() if isinstance(part.value, dict) else [part.value]
    texts = [f"{value[0]}={value[1]}" if isinstance(value, tuple) else value for value in values]
    if part.metavar:
        return f"{option} {part.metavar}"
    if part.value is None or part.value is True:
        return option
    return " ".join(f"{option} {shlex.quote(str(text))}" for text in texts)


def _study_file_key(part: Argument) -> str:
    """Return an argument as a key of a study file."""
    name = _KEY_NAMES.get(part.name, part.name)
    if part.metavar:
        return f"the key `{name}: {part.metavar}`"
    if part.value is None:
        return f"the key `{name}`"
    return f"the key `{name}: {part.value if isinstance(part.value, str) else json.dumps(part.value)}`"
