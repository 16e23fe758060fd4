"""Study files: what `repsim run` reads. docs/study-file.md explains every key, `EXAMPLE` shows them.

YAML is read as it is meant, not as it happens to be typed: a key that is there twice, ``no`` where a name is wanted, an
unknown key, each is an error that names its line. msgspec checks the values against the types of the options.
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

from repsim.errors import InvalidInputError, StoreError, UnknownNameError, reason
from repsim.extraction.options import Data, Model, Passes
from repsim.runtime.options import Option, Text, option, options_of, plain_type, type_of
from repsim.study.options import StatisticsOptions

_LARGEST = 2**20
"""Bytes of a study file: more is another file, named by mistake."""
_DEEPEST = 5
_NAMED_DATA = {"torch", "hfds", "hfids", "tfds", "wds"}
"""Prefixes of data sets that timm opens by name: no paths."""
_WORDS: dict[type[msgspec.inspect.Type], str] = {
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
"""Sections that may be written as a text alone, which is this key."""


@dataclass(frozen=True, kw_only=True)
class Protocol(Passes, StatisticsOptions):
    """A whole study."""

    models: Annotated[list[Model], option("The networks: names, or keys of their own.")]
    data: Annotated[Data, option("The pictures: their source, or keys of its own.")]
    out: Annotated[Text | None, option("Folder for everything.", unset="named like the file", path=True)] = None
    figures: Annotated[bool, option("Draw the figures.")] = True
    report: Annotated[bool, option("Write the report page.")] = True

    def differences(self, other: "Protocol") -> list[str]:
        """Keys that another study has otherwise; where it is computed and what is drawn of it are no difference."""
        free = {"out", "figures", "report", "memory", "workers", "together"}
        return [
            item.name
            for item in fields(self)
            if item.name not in free and getattr(self, item.name) != getattr(other, item.name)
        ]


EXAMPLE = """\
# A study of networks that come with repsim: it runs as it is, offline, in a minute.
models:
  - digits_resnet.seed0          # a name: pretrained weights
  - digits_resnet.seed1
  - digits_vit.seed0
  - name: digits_vit.seed1       # or keys of its own: weights, seed, recalibrate
    weights: pretrained
data:
  source: digits                 # a folder of pictures, a .tar, or a timm data set
  split: test
  limit: 200
layers: blocks
readout: mean
metrics: [cka, mutual_knn]
families:                        # of models whose names match; others are of timm's module
  resnet: ["digits_resnet*"]
  vit: ["digits_vit*"]
controls: untrained:1            # of every architecture, as controls; take 3 in earnest
permutations: 199                # take 1000 in earnest
seed: 0
"""


def read_protocol(path: Path) -> tuple[Protocol, str]:
    """Read a study file; gives what it says, with relative paths made relative to its folder, and its text.

    Raises
    ------
    StoreError
        There is no such file.
    InvalidInputError, UnknownNameError
        What is wrong, with the line.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is no study file: it is not text in UTF-8") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {reason(error)}") from None
    if len(raw) > _LARGEST:
        raise InvalidInputError(f"{path} is no study file: it has more than a megabyte")
    return parse_protocol(text, path), text


def parse_protocol(text: str, path: Path = Path("study.yaml")) -> Protocol:
    """Read the text of a study file that lies, or lay, at ``path``.

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
        tab = mark is not None and "\t" in str(error)
        why = "a tab; YAML is indented with spaces" if tab else getattr(error, "problem", None) or reason(error)
        raise InvalidInputError(f"{path}{line}: this is no YAML: {why}") from None
    if node is None:
        raise InvalidInputError(f"{path} is empty; `repsim run --example` prints a study file")
    protocol: Protocol = _Reader(path).section(node, Protocol, "a study file")
    if not protocol.models:
        raise InvalidInputError(f"{path}: models: name at least one")
    if twice := [model.name for k, model in enumerate(protocol.models) if model in protocol.models[:k]]:
        raise InvalidInputError(f"{path}: models: {twice[0]} is there twice; a study takes every network once")
    if "," in protocol.readout:
        raise InvalidInputError(
            f"{path}: readout: a study takes one readout, not {protocol.readout!r}; make one of each"
        )
    return protocol


def _check_events(text: str, path: Path) -> None:
    """Refuse what a study file has no use for before anything is made of it: a small file can name a huge one."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = event.start_mark
        where = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InvalidInputError(
                f"{where}: anchors and aliases (& and *) have no place in a study file; quote a glob"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > _DEEPEST or documents > 1:
            raise InvalidInputError(f"{where}: {'nested too deeply' if depth > _DEEPEST else 'a second document'}")


def schema() -> dict[str, Any]:
    """Make the JSON schema of study files, with which editors complete and check what is typed.

    >>> schema()["$defs"]["Protocol"]["properties"]["permutations"]["minimum"]
    19
    """
    made = msgspec.json.schema(Protocol)
    for section in made["$defs"].values():
        section["additionalProperties"] = False
    keys = made["$defs"]["Protocol"]["properties"]
    short = {"type": "string", "pattern": r"\S"}
    keys["models"]["items"] = {"anyOf": [short, keys["models"]["items"]]}
    keys["data"] = {"description": keys["data"]["description"], "anyOf": [short, {"$ref": "#/$defs/Data"}]}
    keys["untrained"] = {"description": "controls: untrained:N, as it was written before.", "type": "integer",
                         "minimum": 0, "deprecated": True}  # fmt: skip
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Study file of repsim run", **made}


@dataclass(frozen=True)
class _Reader:
    """Makes values of YAML's nodes, which know their lines."""

    path: Path

    def where(self, node: yaml.Node) -> str:
        return f"{self.path}, line {node.start_mark.line + 1}"

    def section(self, node: yaml.Node, kind: type[Any], what: str) -> Any:
        """A dataclass of its keys."""
        keys = {key.name: key for key in options_of(kind)}
        values: dict[str, Any] = {}
        for name, at, value in self.items(node, what):
            if name == "untrained" and kind is Protocol:  # the spelling of the release before
                count = self.value(value, _UNTRAINED)
                values |= {"controls": f"untrained:{count}"} if count else {}
                continue
            if name not in keys:
                raise UnknownNameError("key", name, keys, hint=f"({self.where(at)})")
            if value.tag == "tag:yaml.org,2002:null" and keys[name].default is None:
                continue  # `limit:` with nothing after it is what it is by default
            values[name] = self.value(value, keys[name])
        for key in keys.values():
            if key.required and key.name not in values:
                raise InvalidInputError(f"{self.where(node)}: {what} needs the key {key.name}: {key.text}")
        return kind(**values)

    def items(self, node: yaml.Node, what: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Keys, each once, with their nodes and those of their values."""
        if not isinstance(node, yaml.MappingNode):
            raise InvalidInputError(f"{self.where(node)}: {what} is {_WORDS[DictType]}, not {_said(node)}")
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = self.convert(key, Text, f"a key of {what}")
            if name in seen:
                raise InvalidInputError(f"{self.where(key)}: {name} is there already, in line {seen[name]}")
            seen[name] = key.start_mark.line + 1
            yield name, key, value

    def value(self, node: yaml.Node, key: Option) -> Any:
        """The value of a key."""
        kind = key.type
        if isinstance(kind, DataclassType):
            return self.part(node, kind.cls, key.name)
        if isinstance(kind, ListType) and isinstance(kind.item_type, DataclassType):
            parts = node.value if isinstance(node, yaml.SequenceNode) else self.convert(node, list, key.name)
            return [self.part(part, kind.item_type.cls, key.name) for part in parts]
        if isinstance(kind, DictType):
            inner = typing.get_args(key.annotation)[1]
            return {
                name: self.convert(value, inner, f"{key.name}: {name}") for name, _, value in self.items(node, key.name)
            }
        value = self.convert(node, key.hint, key.name, key.extra.get("written"))
        return self.place(value) if key.extra.get("path") and isinstance(value, str) else value

    def part(self, node: yaml.Node, kind: type[Any], name: str) -> Any:
        """A section of the file, or its short form."""
        if isinstance(node, yaml.ScalarNode):
            short = next(key for key in options_of(kind) if key.name == _SHORT_FORMS[kind])
            text = self.convert(node, short.hint, name)
            return kind(**{short.name: self.place(text) if short.extra["path"] else text})
        return self.section(node, kind, f"each of {name}" if kind is Model else name)

    def convert(self, node: yaml.Node, hint: Any, name: str, written: str | None = None) -> Any:
        """A value of this type, checked by msgspec."""
        value = self.plain(node)
        try:
            return msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            kind = type_of(hint)
            for index in re.findall(r"\[(\d+)\]", str(error).rpartition(" - at ")[2]):  # the item that is wrong
                if isinstance(kind, ListType) and isinstance(node, yaml.SequenceNode):
                    node, kind = node.value[int(index)], plain_type(kind.item_type)
            raise self.wrong(node, kind, name, written) from None

    def wrong(self, node: yaml.Node, kind: msgspec.inspect.Type, name: str, written: str | None) -> Exception:
        """Say what a value is meant to be, and what YAML makes of it."""
        value, where = self.plain(node), self.where(node)
        if isinstance(kind, LiteralType) and isinstance(value, str):
            return UnknownNameError(f"value of {name}", value, [str(item) for item in kind.values], hint=f"({where})")
        if isinstance(kind, IntType) and type(value) is int:
            return InvalidInputError(f"{where}: {name} is at least {kind.ge}, not {value}")
        if isinstance(kind, StrType) and isinstance(value, str):
            return InvalidInputError(
                f"{where}: {name} is written as in {written}, not {value!r}" if written and value.strip()
                else f"{where}: {name} is empty"
            )  # fmt: skip
        hint = ""
        if isinstance(kind, StrType) and isinstance(node, yaml.ScalarNode) and node.value:
            hint = f'; write "{node.value}" if that is its name'
        return InvalidInputError(f"{where}: {name} is {_words(kind)}, not {_said(node)}{hint}")

    def plain(self, node: yaml.Node) -> Any:
        """What YAML makes of a node, for which no tag of its own counts."""
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return {name: self.plain(value) for name, _, value in self.items(node, "a value")}
        return yaml.SafeLoader("").construct_object(node) if node.tag.startswith("tag:yaml.org,2002:") else object()

    def place(self, text: str) -> str:
        """A path as the file means it: relative to the file. Names of weights and data sets stay what they are."""
        path = self.path.parent / Path(text).expanduser()
        named = text in {"pretrained", "random", "digits"} or text.partition("/")[0].lower() in _NAMED_DATA
        return text if named and not (text not in {"pretrained", "random", "digits"} and path.exists()) else str(path)


def _words(kind: msgspec.inspect.Type) -> str:
    """What a value of this type is called."""
    if isinstance(kind, msgspec.inspect.UnionType):
        words = dict.fromkeys(_words(item) for item in kind.types if not isinstance(item, msgspec.inspect.NoneType))
        if _WORDS[FloatType] in words:
            words.pop(_WORDS[IntType], None)
        first, last = list(words)[:-1], list(words)[-1]
        return f"{', '.join(first)} or {last}"
    kind = plain_type(kind)
    return _WORDS[StrType if isinstance(kind, LiteralType) else type(kind)]


@dataclass(frozen=True, kw_only=True)
class _Earlier:
    untrained: Annotated[int, msgspec.Meta(ge=0)] = 0


_UNTRAINED = options_of(_Earlier)[0]


def _said(node: yaml.Node) -> str:
    """What YAML makes of it."""
    if isinstance(node, yaml.MappingNode):
        return _WORDS[DictType]
    if isinstance(node, yaml.SequenceNode):
        return _WORDS[ListType]
    if not node.value:
        return "nothing" if node.tag.endswith(":null") else "an empty text"
    tag = node.tag.rpartition(":")[2]
    meant = {"bool": "true or false", "null": "nothing", "int": "a number", "float": "a number", "timestamp": "a date"}
    return f"`{node.value}`, which YAML takes for {meant.get(tag, tag)}" if tag != "str" else f"{node.value!r}"
