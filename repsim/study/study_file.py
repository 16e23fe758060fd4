"""Read and check study files, from which `repsim run` works.

docs/study-file.md explains every key, and `EXAMPLE` is a study file. Likely mistakes are errors that name their line: a
repeated key, an unknown key, or ``no``, which is false in YAML, in place of a name. msgspec checks the values against
the types of the options.
"""

import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec.inspect import BoolType, DataclassType, DictType, FloatType, IntType, ListType, LiteralType, StrType

from repsim.errors import Function, InvalidInputError, Remedy, StoreError, UnknownNameError, reason
from repsim.extraction.options import Data, Model, Passes
from repsim.runtime.files import expand_home
from repsim.runtime.options import Option, Text, option, options_of, plain_type, type_of
from repsim.study.options import StatisticsOptions

_MAX_BYTES = 2**20
"""Largest size of a study file: a larger file was named by mistake."""
_MAX_DEPTH = 5
"""Largest depth of nested lists and keys."""
_NAMED_DATA = {"torch", "hfds", "hfids", "tfds", "wds"}
"""Prefixes of data sets that timm opens by name, which are not paths."""
_TYPE_NAMES: dict[type[msgspec.inspect.Type], str] = {
    StrType: "text",
    IntType: "a whole number",
    FloatType: "a number",
    BoolType: "true or false",
    ListType: "a list",
    msgspec.inspect.VarTupleType: "a list of numbers",
    DictType: "keys with values",
    DataclassType: "keys with values",
}
_SHORT_FORMS = {Model: "name", Data: "source"}
"""Sections that may be written as plain text, and the key that the text then gives."""


@dataclass(frozen=True, kw_only=True)
class Protocol(Passes, StatisticsOptions):
    """Contents of a study file."""

    models: Annotated[list[Model], option("The networks: each a name, or keys of a model.")]
    data: Annotated[Data, option("The samples: their source, or keys of the data.")]
    out: Annotated[Text | None, option("Folder for all output.", unset="named like the file", path=True)] = None
    figures: Annotated[bool, option("Draw the figures.")] = True
    report: Annotated[bool, option("Write the report page.")] = True

    def differences(self, other: "Protocol") -> list[str]:
        """Return the keys whose values differ from another study, without keys that do not change its numbers."""
        ignored = {"out", "figures", "report", "memory", "workers", "together"}
        return [
            item.name
            for item in fields(self)
            if item.name not in ignored and getattr(self, item.name) != getattr(other, item.name)
        ]


EXAMPLE = """\
# A study of networks that come with repsim: it runs offline, in a minute.
models:
  - digits_resnet.seed0          # a name: pretrained weights
  - digits_resnet.seed1
  - digits_vit.seed0
  - name: digits_vit.seed1       # or keys of a model: weights, seed, recalibrate
    weights: pretrained
data:
  source: digits                 # pictures, texts, arrays: docs/samples.md
  split: test
  limit: 200
layers: blocks
readout: mean
metrics: [cka, mutual_knn]
families:                        # models whose names match; others: by their architecture
  resnet: ["digits_resnet*"]
  vit: ["digits_vit*"]
controls: untrained:1            # of every architecture, as controls; 3 for a real study
permutations: 199                # 1000 for a real study
seed: 0
"""


def read_protocol(path: Path) -> tuple[Protocol, str]:
    """Read a study file.

    Returns
    -------
    Protocol
        Contents of the file. Relative paths are resolved against its folder.
    str
        Text of the file.

    Raises
    ------
    StoreError
        If the file cannot be read.
    InvalidInputError, UnknownNameError
        If the file is not a valid study file; the message names the line.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is no study file: it is not text in UTF-8") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {reason(error)}") from None
    if len(raw) > _MAX_BYTES:
        raise InvalidInputError(f"{path} is no study file: it has more than a megabyte")
    return parse_protocol(text, path), text


def parse_protocol(text: str, path: Path = Path("study.yaml")) -> Protocol:
    """Parse the text of a study file.

    Parameters
    ----------
    text
        Text of the study file.
    path
        Its path, for error messages and relative paths. The file need not exist.

    >>> parse_protocol(EXAMPLE).metrics
    ['cka', 'mutual_knn']
    >>> parse_protocol("modles: [resnet50]")
    Traceback (most recent call last):
    ...
    repsim.errors.UnknownNameError: unknown key 'modles'; did you mean models or ...? (study.yaml, line 1)
    """
    try:
        _check_events(text, path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        tab = mark is not None and text[mark.index : mark.index + 1] == "\t"
        why = "a tab; YAML is indented with spaces" if tab else getattr(error, "problem", None) or reason(error)
        raise InvalidInputError(f"{path}{line}: this is not valid YAML: {why}") from None
    if node is None:
        raise InvalidInputError(
            f"{path} is empty", remedy=Remedy(Function("repsim.study.study_file.EXAMPLE"), " is a study file")
        )
    protocol: Protocol = _Reader(path).section(node, Protocol, "a study file")
    if not protocol.models:
        raise InvalidInputError(f"{path}: models: name at least one")
    listed: set[str] = set()
    for model in protocol.models:
        if repr(model) in listed:
            raise InvalidInputError(f"{path}: models: {model.name} is listed twice; a study takes every network once")
        listed.add(repr(model))
    if "," in protocol.readout:
        raise InvalidInputError(
            f"{path}: readout: a study takes one readout, not {protocol.readout!r}; write one study file for each"
        )
    return protocol


def _check_events(text: str, path: Path) -> None:
    """Refuse anchors, aliases, deep nesting and several documents before anything is built from the text.

    With aliases a small file can describe a huge value.
    """
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = event.start_mark
        location = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InvalidInputError(
                f"{location}: anchors and aliases (& and *) are not allowed in a study file; put globs in quotes"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > _MAX_DEPTH or documents > 1:
            problem = "is nested too deeply" if depth > _MAX_DEPTH else "cannot have a second document"
            raise InvalidInputError(f"{location}: a study file {problem}")


def schema() -> dict[str, Any]:
    """Return the JSON schema of study files, with which editors complete and check keys.

    >>> schema()["$defs"]["Protocol"]["properties"]["draws"]["minimum"]
    1
    """
    document = msgspec.json.schema(Protocol)
    for section in document["$defs"].values():
        section["additionalProperties"] = False
    keys = document["$defs"]["Protocol"]["properties"]
    short = {"type": "string", "pattern": r"\S"}
    keys["models"]["items"] = {"anyOf": [short, keys["models"]["items"]]}
    keys["data"] = {"description": keys["data"]["description"], "anyOf": [short, {"$ref": "#/$defs/Data"}]}
    keys["untrained"] = {"description": "controls: untrained:N, in its earlier form.", "type": "integer",
                         "minimum": 0, "deprecated": True}  # fmt: skip
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Study file of repsim", **document}


@dataclass(frozen=True)
class _Reader:
    """Converter of YAML nodes, which have line numbers, to checked values."""

    path: Path

    def location(self, node: yaml.Node) -> str:
        """Return the path and line of a node."""
        return f"{self.path}, line {node.start_mark.line + 1}"

    def section(self, node: yaml.Node, kind: type[Any], what: str) -> Any:
        """Convert a mapping node to a dataclass whose fields are its keys."""
        keys = {key.name: key for key in options_of(kind)}
        values: dict[str, Any] = {}
        for name, key_node, value in self.items(node, what):
            if name == "untrained" and kind is Protocol:  # the key of the previous release
                if "controls" in {other for other, *_ in self.items(node, what)}:
                    raise InvalidInputError(
                        f"{self.location(key_node)}: untrained is an earlier form of controls; keep one of the two"
                    )
                count = self.value(value, _UNTRAINED)
                values |= {"controls": f"untrained:{count}"} if count else {}
                continue
            if name not in keys:
                raise UnknownNameError("key", name, keys, where=self.location(key_node))
            if value.tag == "tag:yaml.org,2002:null" and keys[name].default is None:
                continue  # `limit:` without a value means the default
            values[name] = self.value(value, keys[name])
        for key in keys.values():
            if key.required and key.name not in values:
                raise InvalidInputError(f"{self.location(node)}: {what} needs the key {key.name}: {key.text}")
        return kind(**values)

    def items(self, node: yaml.Node, what: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Yield the keys of a mapping node with their nodes and the nodes of their values; refuse repeated keys."""
        if not isinstance(node, yaml.MappingNode):
            raise InvalidInputError(
                f"{self.location(node)}: {what} is {_TYPE_NAMES[DictType]}, not {_describe_node(node)}"
            )
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = self.convert(key, Text, f"a key of {what}")
            if name in seen:
                raise InvalidInputError(f"{self.location(key)}: {name} is already set in line {seen[name]}")
            seen[name] = key.start_mark.line + 1
            yield name, key, value

    def value(self, node: yaml.Node, key: Option) -> Any:
        """Convert the value of a key to its type."""
        kind = key.type
        if isinstance(kind, DataclassType):
            return self.part(node, kind.cls, key.name)
        if isinstance(kind, ListType) and isinstance(kind.item_type, DataclassType):
            parts = node.value if isinstance(node, yaml.SequenceNode) else self.convert(node, list, key.name)
            return [self.part(part, kind.item_type.cls, key.name) for part in parts]
        if isinstance(kind, DictType):
            inner = typing.get_args(key.annotation)[1]
            entries = {
                name: self.convert(value, inner, f"{key.name}: {name}") for name, _, value in self.items(node, key.name)
            }
            try:
                return key.extra.get("check", dict)(entries)
            except InvalidInputError as error:
                raise InvalidInputError(f"{self.location(node)}: {error.problem}", remedy=error.remedy) from None
        value = self.convert(node, key.hint, key.name, key.extra.get("written"))
        return self.resolve(value) if key.extra.get("path") and isinstance(value, str) else value

    def part(self, node: yaml.Node, kind: type[Any], name: str) -> Any:
        """Convert a section of the file, or its short form, to a dataclass."""
        if isinstance(node, yaml.ScalarNode):
            short = next(key for key in options_of(kind) if key.name == _SHORT_FORMS[kind])
            text = self.convert(node, short.hint, name)
            return kind(**{short.name: self.resolve(text) if short.extra["path"] else text})
        return self.section(node, kind, f"each of {name}" if kind is Model else name)

    def convert(self, node: yaml.Node, hint: Any, name: str, written: str | None = None) -> Any:
        """Convert a node to a value of this type, checked by msgspec."""
        value = self.plain(node)
        try:
            return msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            kind = type_of(hint)
            for index in re.findall(r"\[(\d+)\]", str(error).rpartition(" - at ")[2]):  # the invalid item of a list
                if isinstance(kind, ListType) and isinstance(node, yaml.SequenceNode):
                    node, kind = node.value[int(index)], plain_type(kind.item_type)
            raise self.error(node, kind, name, written) from None

    def error(self, node: yaml.Node, kind: msgspec.inspect.Type, name: str, written: str | None) -> Exception:
        """Return the error of an invalid value: the expected type, and what YAML reads."""
        value, location = self.plain(node), self.location(node)
        if isinstance(kind, LiteralType) and isinstance(value, str):
            return UnknownNameError(f"value of {name}", value, [str(item) for item in kind.values], where=location)
        if isinstance(kind, IntType) and type(value) is int:
            return InvalidInputError(f"{location}: {name} is at least {kind.ge}, not {value}")
        if isinstance(kind, StrType) and isinstance(value, str):
            return InvalidInputError(
                f"{location}: {name} is written as in {written}, not {value!r}" if written and value.strip()
                else f"{location}: {name} is empty"
            )  # fmt: skip
        hint = ""
        if isinstance(kind, StrType) and isinstance(node, yaml.ScalarNode) and node.value:
            hint = f'; write "{node.value}" if that is its name'
        return InvalidInputError(f"{location}: {name} is {_type_name(kind)}, not {_describe_node(node)}{hint}")

    def plain(self, node: yaml.Node) -> Any:
        """Return the value that YAML reads from a node; values with other tags than YAML's own are never built."""
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return {name: self.plain(value) for name, _, value in self.items(node, "a value")}
        return yaml.SafeLoader("").construct_object(node) if node.tag.startswith("tag:yaml.org,2002:") else object()

    def resolve(self, text: str) -> str:
        """Resolve a path relative to the folder of the file; names of weights and data sets stay unchanged."""
        path = self.path.parent / expand_home(Path(text))
        if text == "folders" or text.startswith("re:"):  # groups that are no file
            return text
        named = text in {"pretrained", "random", "digits"} or text.partition("/")[0].lower() in _NAMED_DATA
        return text if named and not (text not in {"pretrained", "random", "digits"} and path.exists()) else str(path)


def _type_name(kind: msgspec.inspect.Type) -> str:
    """Return the name of a type in error messages."""
    if isinstance(kind, msgspec.inspect.UnionType):
        words = dict.fromkeys(_type_name(item) for item in kind.types if not isinstance(item, msgspec.inspect.NoneType))
        if _TYPE_NAMES[FloatType] in words:
            words.pop(_TYPE_NAMES[IntType], None)
        first, last = list(words)[:-1], list(words)[-1]
        return f"{', '.join(first)} or {last}"
    kind = plain_type(kind)
    return _TYPE_NAMES[StrType if isinstance(kind, LiteralType) else type(kind)]


@dataclass(frozen=True, kw_only=True)
class _EarlierKeys:
    """Keys of the previous release that are still read."""

    untrained: Annotated[int, msgspec.Meta(ge=0)] = 0


_UNTRAINED = options_of(_EarlierKeys)[0]


def _describe_node(node: yaml.Node) -> str:
    """Describe a node in an error message, as YAML reads it."""
    if isinstance(node, yaml.MappingNode):
        return _TYPE_NAMES[DictType]
    if isinstance(node, yaml.SequenceNode):
        return _TYPE_NAMES[ListType]
    if not node.value:
        return "nothing" if node.tag.endswith(":null") else "an empty text"
    tag = node.tag.rpartition(":")[2]
    type_names = {
        "bool": "true or false",
        "null": "nothing",
        "int": "a number",
        "float": "a number",
        "timestamp": "a date",
    }
    return f"`{node.value}`, which YAML takes for {type_names.get(tag, tag)}" if tag != "str" else f"{node.value!r}"
