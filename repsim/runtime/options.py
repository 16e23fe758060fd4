"""Declare options once, as the fields of a frozen dataclass with types, bounds, defaults and descriptions.

The options of a command (`repsim.commands.options`), the keys of study files and their JSON schema
(`repsim.study.study_file`), and the signature and docstring of the public function (`accept_options`) are derived from
such a class.
"""

import functools
import inspect
import math
import re
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from repsim.errors import InvalidArgumentError

Function = TypeVar("Function", bound=Callable[..., Any])

Text = Annotated[str, Meta(pattern=r"\S")]
"""Text that is not empty."""
_LARGEST = 2**63 - 1
"""Largest whole number of files and of torch."""
Count = Annotated[int, Meta(ge=0, le=_LARGEST)]
Positive = Annotated[int, Meta(ge=1, le=_LARGEST)]


def option(text: str, *, unset: str = "", path: bool = False, **more: Any) -> Meta:
    """Return the metadata of an option, for `typing.Annotated`.

    Parameters
    ----------
    text : str
        Description: a sentence for the help of the command, the tables of the documentation, and editors.
    unset : str
        Description of the default, if the default is None or empty.
    path : bool
        Whether the option is a path; in a study file, paths are relative to the file.
    **more
        Further entries of ``Meta.extra``.
    """
    return Meta(description=text, extra={"unset": unset, "path": path, **more})


Device = Annotated[Text, option("`auto` (cuda, then mps, then cpu), or a torch device.")]
Memory = Annotated[
    Text | int | None,
    option("Memory that a process may take: 2GiB, 500MB.", unset="half of the machine's, or 80 % of a GPU's"),
]


@dataclass(frozen=True)
class Option:
    """Option of a class of options: one field, described."""

    name: str
    annotation: Any
    """Type without the metadata."""
    hint: Any
    """Type with the metadata."""
    type: msgspec.inspect.Type
    """The type in msgspec's representation, without None."""
    default: Any
    """Default value; `dataclasses.MISSING` if there is none."""
    text: str
    extra: Mapping[str, Any]

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is MISSING

    @property
    def default_text(self) -> str:
        """Description of the default; empty if there is none.

        >>> @dataclass(frozen=True)
        ... class Example:
        ...     limit: Annotated[int | None, option("Number of pictures.", unset="all of them")] = None
        ...     amp: Annotated[bool, option("Half precision.")] = False
        >>> [entry.default_text for entry in options_of(Example)]
        ['all of them', 'false']
        """
        if self.required:
            return ""
        if self.default is None or self.default in ((), [], {}):
            return str(self.extra.get("unset") or "none")
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)


def options_of(kind: type) -> tuple[Option, ...]:
    """Return the options of a class: those without a default first, then its own before those of its bases."""
    return _options_of(kind)


@functools.cache
def _options_of(kind: Any) -> tuple[Option, ...]:  # mypy takes no type[Any] for hashable
    hints = typing.get_type_hints(kind, include_extras=True)
    plain = typing.get_type_hints(kind)
    listed = []
    for field in fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        metas = [meta for meta in getattr(hints[field.name], "__metadata__", ()) if isinstance(meta, Meta)]
        text = next((meta.description for meta in metas if meta.description), "")
        extra = next((meta.extra for meta in metas if meta.extra), {})
        listed.append(
            Option(field.name, plain[field.name], hints[field.name], type_of(hints[field.name]), default, text, extra)
        )
    rank = {name: k for k, base in reversed([*enumerate(kind.__mro__)]) for name in inspect.get_annotations(base)}
    return tuple(sorted(listed, key=lambda entry: (not entry.required, rank[entry.name])))


def type_of(hint: Any) -> msgspec.inspect.Type:
    """Return msgspec's representation of a type, without metadata and without None."""
    return plain_type(msgspec.inspect.type_info(hint))


def plain_type(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """Remove metadata and None from msgspec's representation of a type."""
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        types = tuple(entry for entry in kind.types if not isinstance(entry, msgspec.inspect.NoneType))
        return plain_type(types[0]) if len(types) == 1 else msgspec.inspect.UnionType(types)
    return kind


def accept_options(
    *kinds: type, renamed: Mapping[str, str] | None = None, without: Collection[str] = ()
) -> Callable[[Function], Function]:
    """Return a decorator that adds the options of these classes to the signature and docstring of a function.

    The function takes the options as ``**keywords``. ``{options}`` in its docstring is replaced by their descriptions.

    Parameters
    ----------
    *kinds : type
        Classes of options.
    renamed : mapping of str to str
        Keywords of options whose keyword differs from their name.
    without : collection of str
        Options that are left out, because the function has them as parameters.
    """

    def complete(function: Function) -> Function:
        own = inspect.signature(function)
        kept = [entry for entry in own.parameters.values() if entry.kind is not entry.VAR_KEYWORD]
        added = {
            (renamed or {}).get(entry.name, entry.name): entry
            for kind in kinds
            for entry in options_of(kind)
            if entry.name not in without
        }
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=entry.annotation)
            for name, entry in added.items()
        ]
        function.__signature__ = own.replace(parameters=[*kept, *keywords])  # type: ignore[attr-defined]
        entries = [f"    {name}\n{_docstring_entry(entry)}" for name, entry in added.items()]
        if function.__doc__:  # python -OO removes docstrings
            function.__doc__ = function.__doc__.replace("    {options}\n", "".join(entries))
        return function

    return complete


def _docstring_entry(entry: Option) -> str:
    """Return the description of an option, indented for a docstring."""
    text = f"{entry.text} By default: {entry.default_text}."
    text = re.sub(r"`+([^`]+)`+", r"``\1``", text)  # literals, not references
    return textwrap.indent(textwrap.fill(text, 110), " " * 8) + "\n"


def sort_keywords(
    function: str, keywords: Mapping[str, Any], *kinds: type, renamed: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Split the keywords of a call of ``function`` by the classes of options to which they belong.

    Returns
    -------
    list of dict
        The options of each class, by name, in the order of ``kinds``.

    Raises
    ------
    TypeError
        If a keyword belongs to no class.
    InvalidArgumentError
        If a number is below the smallest one that its option takes, or above the largest one.
    """
    keyword_of = renamed or {}
    options = {keyword_of.get(field.name, field.name): (k, field.name) for k, kind in enumerate(kinds)
               for field in fields(kind)}  # fmt: skip
    by_class: list[dict[str, Any]] = [{} for _ in kinds]
    for keyword, value in keywords.items():
        if keyword not in options:
            raise TypeError(f"{function}() got an unexpected keyword argument {keyword!r}")
        k, name = options[keyword]
        _check_range(keyword, value, kinds[k], name)
        by_class[k][name] = value
    return by_class


def _check_range(keyword: str, value: Any, kind: type, name: str) -> None:
    (info,) = (entry.type for entry in options_of(kind) if entry.name == name)
    if isinstance(info, msgspec.inspect.IntType) and info.ge is not None and isinstance(value, int) and value < info.ge:
        raise InvalidArgumentError(keyword, f"at least {info.ge}", value)
    if isinstance(info, msgspec.inspect.IntType) and info.le is not None and isinstance(value, int) and value > info.le:
        raise InvalidArgumentError(keyword, f"at most {info.le}", value)
    if isinstance(info, msgspec.inspect.LiteralType) and value is not None and value not in info.values:
        raise InvalidArgumentError(keyword, " or ".join(map(repr, info.values)), value)
    if isinstance(info, msgspec.inspect.FloatType) and isinstance(value, int | float):
        low, high = (-math.inf if info.gt is None else info.gt), (math.inf if info.lt is None else info.lt)
        if not low < value < high:
            raise InvalidArgumentError(keyword, f"a number between {low:g} and {high:g}", value)


def fields_of(values: Any, kind: type) -> dict[str, Any]:
    """Return the options of a class as a dictionary, read from the attributes of an object."""
    return {field.name: getattr(values, field.name) for field in fields(kind)}


def markdown_table(kind: type) -> str:
    """Return the options of a class as a Markdown table for the documentation."""
    rows = [
        f"| `{entry.name}` | {_markdown_default(entry)} | {entry.text.replace('|', chr(92) + '|')} |"
        for entry in options_of(kind)
    ]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *rows])


def _markdown_default(entry: Option) -> str:
    """Return the default of an option: a value as code, a description as plain text."""
    if entry.required:
        return "needed"
    value = entry.default
    return entry.default_text if value is None or value in ([], {}) else f"`{entry.default_text}`"
