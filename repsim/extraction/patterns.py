"""Take several files of weights by a pattern of their names, and the axes of the models from these names.

In ``runs/{run}/step_{step}.pt`` a field in braces is an axis, ``{step:d}`` one of digits only. ``*``, ``?``, ``[ab]``
and ``**`` match as in a shell. Every file that fits is one model.
"""

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.extraction.options import Model
from repsim.extractors.factory import store_name
from repsim.runtime.files import expand_home, natural_key
from repsim.stores.axes import AxisValue, check_axes, check_axis_name, in_words, read_value
from repsim.stores.axes_files import AxesFile, read_axes_file

AnyModel = TypeVar("AnyModel", bound=Model)
_TOKEN = re.compile(r"\{([^{}]*)\}|(\*\*/|\*|\?)|(\[[^\]/]+\])|([^{}*?\[]+|.)")
_SHELL = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}


def is_pattern(weights: str) -> bool:
    """Return whether weights are a pattern of names of files, and not the name of one file.

    >>> is_pattern("runs/{run}/step_{step}.pt"), is_pattern("runs/*.pt"), is_pattern("runs/last.pt")
    (True, True, False)
    """
    return any(letter in weights for letter in "{*?[") and not Path(weights).is_file()


def expand_patterns(models: Sequence[AnyModel]) -> list[AnyModel]:
    """Replace every model whose weights are a pattern by one model for each file that fits.

    The models of a pattern are in the order of their axes, numbers by their size. Fields of the pattern become axes,
    and name the store: ``resnet18.run-a.step-1000``. Without fields the store is named after the file.

    Raises
    ------
    InvalidInputError
        No file fits; a field has a name that no axis can have; a file fits in more than one way; or two files have the
        same axes, or the same name.
    """
    return [one for model in models for one in (_expand(model) if is_pattern(model.weights) else [model])]


def _expand(model: AnyModel) -> Iterator[AnyModel]:
    pattern = str(expand_home(Path(model.weights)))
    fields = _fields(pattern)
    shell = re.sub(r"\{[^{}]*\}", "*", pattern)
    axes_of = {path: axes for path in sorted(_paths(shell)) if Path(path).is_file()
               and (axes := _read_name(path, pattern)) is not None}  # fmt: skip
    if not axes_of:
        raise InvalidInputError(f"no file fits {pattern}; {_contents(shell)}")
    by_axes: dict[tuple[AxisValue, ...], str] = {}
    for path, axes in axes_of.items():
        if fields and (earlier := by_axes.setdefault(tuple(axes.values()), path)) != path:
            raise InvalidInputError(
                f"{earlier} and {path} have the same axes, {in_words(axes)}; give the part that differs a field of its "
                "own, as in runs/{run}/step_{step}.pt"
            )
    names: dict[str, str] = {}
    for path in sorted(
        axes_of, key=lambda path: ([_rank(value) for value in axes_of[path].values()], natural_key(path))
    ):
        name = _name(model, path, axes_of[path])
        if (earlier := names.setdefault(name, path)) != path:
            raise InvalidInputError(
                f"{earlier} and {path} would have the same store, {name}.h5; give the part that differs a field, as in "
                "runs/{run}/last.pt"
            )
        yield replace(model, weights=path, axes=merge(model.axes, axes_of[path], path, "its name"), store=name)


def merge(
    axes: Mapping[str, AxisValue], more: Mapping[str, AxisValue], model: str, source: str
) -> dict[str, AxisValue]:
    """Return the axes of both mappings; raise `InvalidInputError` if they contradict each other."""
    for name in axes.keys() & more.keys():
        if axes[name] != more[name]:
            raise InvalidInputError(f"{model}: {name} is {axes[name]!r}, but {more[name]!r} in {source}; state it once")
    return {**axes, **more}


def _fields(pattern: str) -> list[str]:
    """Return the names of the fields of a pattern, after checking them."""
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", pattern)):
        raise InvalidInputError(
            f"weights: {pattern} has a brace without its other; write fields as in step_{{step}}.pt"
        )
    fields = []
    for text in re.findall(r"\{([^{}]*)\}", pattern):
        name, colon, kind = text.partition(":")
        if colon and kind != "d":
            raise InvalidInputError(f"weights: in {pattern} the field {{{text}}} is of no kind; {{{name}:d}} is digits")
        fields.append(check_axis_name(name, f"weights: in {pattern}"))
    return list(dict.fromkeys(fields))


def _read_name(path: str, pattern: str) -> dict[str, AxisValue] | None:
    """Return the axes in the name of a file; None if it does not fit the pattern."""
    shortest, longest = (re.fullmatch(_regex(pattern, end), path, re.DOTALL) for end in ("?", ""))
    if shortest is None or longest is None:
        return None
    first, second = (
        {name: read_value(text) for name, text in match.groupdict().items()} for match in (shortest, longest)
    )
    if first != second:
        raise InvalidInputError(
            f"{path} fits {pattern} in more than one way ({in_words(first)}; {in_words(second)})",
            remedy=Remedy("write more of the name, or {step:d} for a field of digits"),
        )
    return check_axes(first, path)


def _regex(pattern: str, end: str) -> str:
    """Return the regular expression of a pattern; quantifiers end in ``end``, ``?`` for the shortest match."""
    parts, seen = [], set()
    for field, shell, letters, literal in _TOKEN.findall(pattern):
        name, _, kind = field.partition(":")
        if name and name in seen:
            parts.append(f"(?P={name})")
        elif name:
            seen.add(name)
            parts.append(rf"(?<!\d)(?P<{name}>\d+)(?!\d)" if kind else f"(?P<{name}>[^/]+{end})")
        elif shell:
            parts.append(_SHELL[shell].replace("*", f"*{end}"))
        else:
            parts.append(_one_of(letters) if letters else re.escape(literal))
    return "".join(parts)


def _one_of(letters: str) -> str:
    """Return the regular expression of letters in brackets, as a shell reads them."""
    inside = re.sub(r"([\\\[&~|^])", r"\\\1", letters[1:-1].removeprefix("!"))
    return f"[^{inside}]" if letters[1] == "!" else f"[{inside}]"


def _paths(shell: str) -> list[str]:
    return glob.glob(shell, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern


def _contents(shell: str) -> str:
    """Say what is in the deepest folder that fits the beginning of a pattern."""
    parts = Path(shell).parts
    for k in range(len(parts) - 1, -1, -1):
        folders = [path for path in _paths(str(Path(*parts[:k]))) if Path(path).is_dir()]
        if folders:
            folder = Path(min(folders, key=natural_key))
            break
    names = sorted((path.name + "/" * path.is_dir() for path in folder.iterdir()), key=natural_key)
    where = folder.absolute() if folder == Path() else folder
    return f"{where} holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else f"{where} is empty"


def _rank(value: AxisValue) -> tuple[int, float, list[tuple[int, int, str]]]:
    """Return a key by which numbers come before texts."""
    return (1, 0.0, natural_key(value)) if isinstance(value, str) else (0, value, [])


def _name(model: Model, path: str, axes: Mapping[str, AxisValue]) -> str:
    """Return the name of the store: of the model, with the axes or else the name of the file."""
    end = "".join(f".{name}-{value}" for name, value in axes.items()) or f"+{Path(path).stem}"
    if model.store is not None:
        return model.store + end
    return store_name(model.name, path, model.seed, **model.choices).replace(f"+{Path(path).stem}", end, 1)


def add_axes(models: Sequence[AnyModel], names: Sequence[str], path: str) -> tuple[list[AnyModel], list[str]]:
    """Add the axes of a CSV file to models.

    Parameters
    ----------
    models : sequence of Model
        The models.
    names : sequence of str
        Names of their stores.
    path : str
        The CSV file (`repsim.stores.axes_files`).

    Returns
    -------
    list of Model
        The models with their axes.
    list of str
        Messages for the user: lines of the file without a model, and models without a line.

    Raises
    ------
    InvalidInputError
        The file cannot be read, no line is about one of these models, two lines are about the same model, or a line
        contradicts the axes that a model has.
    """
    table = read_axes_file(path)
    lines: list[list[str]] = [[] for _ in models]
    for line in table.axes:
        for k in _positions(table, line, models, names):
            lines[k].append(line)
    if twice := [(name, own) for name, own in zip(names, lines, strict=True) if len(own) > 1]:
        name, (first, second, *_) = twice[0]
        raise InvalidInputError(f"{path}: two lines are about {name}: {first} and {second}")
    used = {line for own in lines for line in own}
    if not used:
        raise InvalidInputError(
            f"{path}: no line is about one of these models; the column {table.key} holds {_some(list(table.axes))}, "
            f"the models are {_some(list(names))}",
            remedy=Remedy(Argument("axes_file"), " takes files relative to the CSV, or names of stores"),
        )
    lacking = [name for name, own in zip(names, lines, strict=True) if not own]
    unused = [line for line in table.axes if line not in used]
    notes = [f"{path}: lines without a model: {_some(unused)}"] if unused else []
    notes += [f"{path}: models without a line: {_some(lacking)}"] if lacking else []
    with_axes = [
        replace(model, axes=merge(model.axes, table.axes[own[0]], name, path)) if own else model
        for model, name, own in zip(models, names, lines, strict=True)
    ]
    return with_axes, notes


def _positions(table: AxesFile, line: str, models: Sequence[Model], names: Sequence[str]) -> Iterator[int]:
    """Yield the positions of the models that a line of a CSV file is about."""
    if table.key == "model":
        yield from (k for k, name in enumerate(names) if name == line)
        return
    file = table.path.parent / expand_home(Path(line))
    paths = {os.path.realpath(path) for path in ([file] if file.exists() else _paths(str(file)))}
    for k, model in enumerate(models):
        if model.weights not in {"pretrained", "random"} and os.path.realpath(model.weights) in paths:
            yield k


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{f', ... ({len(names)})' if len(names) > 3 else ''}"
