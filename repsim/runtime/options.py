"""Options that are written once: a frozen dataclass names them, with types, bounds, defaults and descriptions.

From such a class follow the options of the command (`repsim.commands.options`), the keys of study files and their JSON
schema (`repsim.study.study_file`), and the signature and the documentation of the public function (`takes`).
"""

import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

Function = TypeVar("Function", bound=Callable[..., Any])

Text = Annotated[str, Meta(pattern=r"\S")]
"""Text that is not empty."""
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]


def option(text: str, *, unset: str = "", path: bool = False, **more: Any) -> Meta:
    """Describe an option.

    Parameters
    ----------
    text
        What it is: a sentence for the command's help, the tables of the documentation, and editors.
    unset
        What is done where it is None, in words.
    path
        Whether it is a path, which in a study file is relative to the file.
    """
    return Meta(description=text, extra={"unset": unset, "path": path, **more})


Device = Annotated[Text, option("`auto` (cuda, then mps, then cpu), or a torch device.")]
Memory = Annotated[
    Text | int | None,
    option("Memory that a process may take: 2GiB, 500MB.", unset="half of the machine's, or 80 % of a GPU's"),
]


@dataclass(frozen=True)
class Option:
    """One option of a class of options."""

    name: str
    annotation: Any
    """The type, without what describes it."""
    hint: Any
    """The type, with it."""
    type: msgspec.inspect.Type
    """What msgspec makes of the type, without None."""
    default: Any
    """`dataclasses.MISSING` where there is none."""
    text: str
    extra: Mapping[str, Any]

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING

    @property
    def default_text(self) -> str:
        """The default in words; empty where there is none.

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
    """List the options of a class: those without a default first, and its own before those of its bases."""
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
    home = {name: k for k, base in reversed([*enumerate(kind.__mro__)]) for name in inspect.get_annotations(base)}
    return tuple(sorted(listed, key=lambda entry: (not entry.required, home[entry.name])))


def type_of(hint: Any) -> msgspec.inspect.Type:
    """Ask msgspec what a type is, without its description, and without None."""
    return plain_type(msgspec.inspect.type_info(hint))


def plain_type(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """Leave out descriptions, and None, of what msgspec says of a type."""
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        rest = tuple(entry for entry in kind.types if not isinstance(entry, msgspec.inspect.NoneType))
        return plain_type(rest[0]) if len(rest) == 1 else msgspec.inspect.UnionType(rest)
    return kind


def accept_options(
    *kinds: type, renamed: Mapping[str, str] | None = None, without: Collection[str] = ()
) -> Callable[[Function], Function]:
    """Complete the signature and the docstring of a function whose ``**keywords`` are the options of these classes.

    ``{options}`` in the docstring becomes their descriptions. ``renamed`` maps options to other keywords; ``without``
    are those that the function has as parameters of its own.
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
        entries = [f"    {name}\n{_indented(entry)}" for name, entry in added.items()]
        if function.__doc__:  # python -OO drops it
            function.__doc__ = function.__doc__.replace("    {options}\n", "".join(entries))
        return function

    return complete


def _indented(described: Option) -> str:
    """The text of an option, as it stands in a docstring."""
    text = f"{described.text} By default: {described.default_text}."
    text = re.sub(r"`+([^`]+)`+", r"``\1``", text)  # literals, and no references
    return textwrap.indent(textwrap.fill(text, 110), " " * 8) + "\n"


def sort_keywords(
    function: str, keywords: Mapping[str, Any], *kinds: type, renamed: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Sort the keywords that ``function`` was called with by the classes whose options they are.

    Raises
    ------
    TypeError
        A keyword that is none of theirs.
    """
    keyword_of = renamed or {}
    homes = {keyword_of.get(field.name, field.name): (k, field.name) for k, kind in enumerate(kinds)
             for field in fields(kind)}  # fmt: skip
    sorted_: list[dict[str, Any]] = [{} for _ in kinds]
    for keyword, value in keywords.items():
        if keyword not in homes:
            raise TypeError(f"{function}() got an unexpected keyword argument {keyword!r}")
        k, name = homes[keyword]
        sorted_[k][name] = value
    return sorted_


def fields_of(values: Any, kind: type) -> dict[str, Any]:
    """Take the options of a class from an object that has them among others."""
    return {field.name: getattr(values, field.name) for field in fields(kind)}


def markdown_table(kind: type) -> str:
    """Write the options of a class as a table of the documentation."""
    rows = [
        f"| `{entry.name}` | {_marked(entry)} | {entry.text.replace('|', chr(92) + '|')} |"
        for entry in options_of(kind)
    ]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *rows])


def _marked(described: Option) -> str:
    """The default: a value as code, and words as they are."""
    if described.required:
        return "needed"
    value = described.default
    return described.default_text if value is None or value in ([], {}) else f"`{described.default_text}`"
