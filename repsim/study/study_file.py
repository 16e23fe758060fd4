"""Study files: what `repsim run` reads. docs/study-file.md explains every key, `EXAMPLE` shows them.

YAML is read as it is meant, not as it happens to be typed: a key that is there twice, ``no`` where a name is wanted, an
unknown key, each is an error that names its line.
"""

import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from repsim.errors import Function, InvalidInputError, Remedy, StoreError, UnknownNameError, reason

_LARGEST = 2**20
"""Bytes of a study file: more is another file, named by mistake."""
_DEEPEST = 5
_NAMED_DATA = {"torch", "hfds", "hfids", "tfds", "wds"}
"""Prefixes of data sets that timm opens by name: no paths."""
_WORDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "keys with values"}


def _key(text: str, default: Any = MISSING, **options: Any) -> Any:
    """A key of the file, and what it means; without a default it has to be there."""
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"text": text, **options})
    return field(default=default, metadata={"text": text, **options})


@dataclass(frozen=True, kw_only=True)
class Model:
    """One network."""

    name: str = _key("of timm, `torchvision/NAME`, or of the zoo")
    weights: str = _key("`pretrained`, `random`, or a .safetensors or .pth file", "pretrained", path=True)
    seed: int = _key("of random weights", 0, least=0)
    recalibrate: bool = _key("give batch norm of random weights the statistics of the pictures", default=False)
    store: str | None = _key("what it is called in results, and its store; none: the name, with what was chosen", None)
    weights_key: str | None = _key("of a file with several sets of weights: the key of the one that is taken", None)
    weights_prefix: str | None = _key("of a file: only names that begin so, without it", None)
    weights_match: Literal["names", "order"] = _key("of a file: tensors by their `names`, or in their `order`", "names")
    img_size: str | None = _key("pixels of the pictures: a number, or `HxW`", None, numbers="x")
    mean: str | None = _key("of the pixels, to normalise them: a number, or a list of three", None, numbers=",")
    std: str | None = _key("the same", None, numbers=",")
    interpolation: str | None = _key("with which pictures are resized: `bicubic`, `bilinear`, ...", None)
    crop_pct: str | None = _key("share of the resized picture that the crop takes", None, numbers=",")
    model_kwargs: tuple[str, ...] = _key("arguments of the function that builds the model", (), arguments=True)

    @property
    def choices(self) -> dict[str, Any]:
        """Keywords of `repsim.extractors.factory.make_extractor` beyond name, weights and seed."""
        keys = (
            "weights_key",
            "weights_prefix",
            "weights_match",
            "img_size",
            "mean",
            "std",
            "interpolation",
            "crop_pct",
        )
        return {**{key: getattr(self, key) for key in keys}, "model_kwargs": self.model_kwargs}


@dataclass(frozen=True, kw_only=True)
class Data:
    """The pictures that every network sees."""

    source: str = _key("a folder, a .tar, `digits`, or a timm data set", path=True)
    split: str | None = _key("part of it: a folder inside it (`.`: all), or `train`, `test`, ... of a data set", None)
    root: str | None = _key("where a timm data set lies", None, path=True)
    limit: int | None = _key("so many pictures, spread evenly", None, least=8)
    download: bool = _key("fetch a timm data set that is not there yet", default=False)
    skip_bad: bool = _key("leave out pictures that cannot be decoded", default=False)
    labels: str | None = _key("a CSV file: id or file name, and class", None, path=True)
    max_pixels: int | None = _key("refuse larger pictures; none: 178956970", None, least=1)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A whole study."""

    models: list[Model] = _key("the networks: names, or keys of their own (below)")
    data: Data = _key("the pictures: their source, or keys of its own (below)")
    layers: str = _key("`blocks`, `stages`, `all`, or globs over module names", "blocks")
    readout: str = _key("how a layer becomes one vector a picture: `mean`, `max`, `cls`, `grid:K`", "mean")
    metrics: list[str] = _key("measures, as in `repsim metrics`; none: cka, mutual_knn, nuclear, svcca", [])
    families: dict[str, list[str]] = _key("name: globs over models' names; others are of timm's module", {})
    untrained: int = _key("so many untrained networks of every architecture, as controls", 0, least=0)
    permutations: int = _key("of the samples, for chance", 1000, least=19)
    draws: int = _key("of the bootstrap, for joint intervals", 2000, least=1)
    seed: int = _key("of permutations, splits and draws", 0, least=0)
    device: str = _key("`auto`, or a torch device", "auto")
    memory: str | None = _key("take at most: `2GiB`, `500MB`", None)
    batch_size: int | None = _key("pictures a forward pass", None, least=1)
    workers: int | None = _key("processes that decode pictures", None, least=0)
    together: int = _key("networks in memory at once", 4, least=1)
    amp: bool = _key("half precision in the forward pass", default=False)
    dtype: Literal["float32", "float16"] = _key("stored as", "float32")
    out: str | None = _key("folder for everything; by default named like the file", None, path=True)
    figures: bool = _key("draw the figures", default=True)
    report: bool = _key("write the report page", default=True)

    def differences(self, other: "Protocol") -> list[str]:
        """Keys that another study has otherwise; where it is computed and what is drawn of it are no difference."""
        free = {"out", "figures", "report", "memory", "workers", "together"}
        return [
            each.name
            for each in fields(self)
            if each.name not in free and getattr(self, each.name) != getattr(other, each.name)
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
untrained: 1                     # of every architecture, as controls; take 3 in earnest
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
        tab = mark is not None and text[mark.index : mark.index + 1] == "\t"
        why = "a tab; YAML is indented with spaces" if tab else getattr(error, "problem", None) or reason(error)
        raise InvalidInputError(f"{path}{line}: this is no YAML: {why}") from None
    if node is None:
        raise InvalidInputError(
            f"{path} is empty", remedy=Remedy(Function("repsim.study.study_file.EXAMPLE"), " is a study file")
        )
    protocol: Protocol = _Reader(path).section(node, Protocol)
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


@dataclass(frozen=True)
class _Reader:
    """Makes values of YAML's nodes, which know their lines."""

    path: Path

    def where(self, node: yaml.Node) -> str:
        return f"{self.path}, line {node.start_mark.line + 1}"

    def section(self, node: yaml.Node, kind: type[Any], what: str = "a study file") -> Any:
        """A dataclass of its keys."""
        known: dict[str, Field[Any]] = {each.name: each for each in fields(kind)}
        hints = typing.get_type_hints(kind)
        values = {}
        for name, at, value in self.items(node, what):
            if name not in known:
                raise UnknownNameError("key", name, known, where=self.where(at))
            if value.tag == "tag:yaml.org,2002:null" and known[name].default is None:
                continue  # `limit:` with nothing after it is what it is by default
            values[name] = self.value(value, hints[name], name, known[name].metadata)
        for name, each in known.items():
            if name not in values and each.default is MISSING and each.default_factory is MISSING:
                raise InvalidInputError(f"{self.where(node)}: {what} needs the key {name}: {each.metadata['text']}")
        return kind(**values)

    def items(self, node: yaml.Node, what: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Keys, each once, with their nodes and those of their values."""
        if not isinstance(node, yaml.MappingNode):
            raise InvalidInputError(f"{self.where(node)}: {what} is {_WORDS[dict]}, not {_said(node)}")
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = self.value(key, str, f"a key of {what}", {})
            if name in seen:
                raise InvalidInputError(f"{self.where(key)}: {name} is there already, in line {seen[name]}")
            seen[name] = key.start_mark.line + 1
            yield name, key, value

    def value(self, node: yaml.Node, hint: Any, name: str, options: typing.Mapping[str, Any]) -> Any:
        """One value, of the type that is wanted."""
        if isinstance(hint, types.UnionType):  # text or nothing; nothing is dealt with
            hint = next(each for each in typing.get_args(hint) if each is not types.NoneType)
        kind = typing.get_origin(hint) or hint
        text = isinstance(node, yaml.ScalarNode) and node.tag.endswith(":str")
        if options.get("arguments") or (options.get("numbers") and not text):
            return self.values(node, name, options.get("numbers"))
        if kind in {Model, Data}:
            if isinstance(node, yaml.ScalarNode):  # the short form
                first = next(each for each in fields(kind))
                return kind(**{first.name: self.value(node, str, name, first.metadata)})
            return self.section(node, kind, f"each of {name}" if kind is Model else name)
        if kind is list:
            if not isinstance(node, yaml.SequenceNode):
                raise self.wrong(node, name, list)
            return [self.value(each, typing.get_args(hint)[0], name, options) for each in node.value]
        if kind is dict:
            inner = typing.get_args(hint)[1]
            return {key: self.value(each, inner, f"{name}: {key}", {}) for key, _, each in self.items(node, name)}
        if not isinstance(node, yaml.ScalarNode):
            raise self.wrong(node, name, str if kind is Literal else kind)
        return self.scalar(node, hint, name, options)

    def scalar(self, node: yaml.ScalarNode, hint: Any, name: str, options: typing.Mapping[str, Any]) -> Any:
        choices = typing.get_args(hint)
        kind = str if choices else hint
        tag = {str: "str", int: "int", bool: "bool"}[kind]
        if node.tag != f"tag:yaml.org,2002:{tag}":
            raise self.wrong(node, name, kind)
        if kind is str and not node.value.strip():
            raise InvalidInputError(f"{self.where(node)}: {name} is empty")
        if choices and node.value not in choices:
            raise UnknownNameError(f"value of {name}", node.value, choices, where=self.where(node))
        if kind is int:
            number = int(yaml.SafeLoader("").construct_yaml_int(node))
            if number < options.get("least", number):
                raise InvalidInputError(f"{self.where(node)}: {name} is at least {options['least']}, not {number}")
            return number
        if kind is bool:
            return node.value.lower() in {"true", "yes", "on"}
        return self.place(node.value) if options.get("path") else node.value

    def literal(self, node: yaml.Node) -> Any:
        """A number, a text, true, false, or a list of these."""
        if isinstance(node, yaml.SequenceNode):
            return [self.literal(each) for each in node.value]
        if not isinstance(node, yaml.ScalarNode) or node.tag.rpartition(":")[2] not in {
            "str", "int", "float", "bool", "null",
        }:  # fmt: skip
            raise InvalidInputError(
                f"{self.where(node)}: an argument is a number, a text, or a list, not {_said(node)}"
            )
        return yaml.SafeLoader("").construct_object(node)

    def values(self, node: yaml.Node, name: str, join: str | None) -> Any:
        """Numbers, or arguments, as the command line would have them."""
        if join is None:
            return tuple(f"{key}={self.literal(each)!r}" for key, _, each in self.items(node, name))
        values = self.literal(node)
        values = values if isinstance(values, list) else [values]
        if not values or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            raise InvalidInputError(f"{self.where(node)}: {name} is a number or a list of numbers, not {_said(node)}")
        return join.join(str(value) for value in values)

    def place(self, text: str) -> str:
        """A path as the file means it: relative to the file. Names of weights and data sets stay what they are."""
        path = self.path.parent / Path(text).expanduser()
        named = text in {"pretrained", "random", "digits"} or text.partition("/")[0].lower() in _NAMED_DATA
        return text if named and not (text not in {"pretrained", "random", "digits"} and path.exists()) else str(path)

    def wrong(self, node: yaml.Node, name: str, kind: Any) -> InvalidInputError:
        hint = ""
        if kind is str and isinstance(node, yaml.ScalarNode) and node.value:
            hint = f'; write "{node.value}" if that is its name'
        return InvalidInputError(f"{self.where(node)}: {name} is {_WORDS[kind]}, not {_said(node)}{hint}")


def _said(node: yaml.Node) -> str:
    """What YAML makes of it."""
    if isinstance(node, yaml.MappingNode):
        return _WORDS[dict]
    if isinstance(node, yaml.SequenceNode):
        return _WORDS[list]
    if not node.value:
        return "nothing" if node.tag.endswith(":null") else "an empty text"
    tag = node.tag.rpartition(":")[2]
    meant = {"bool": "true or false", "null": "nothing", "int": "a number", "float": "a number", "timestamp": "a date"}
    return f"`{node.value}`, which YAML takes for {meant.get(tag, tag)}" if tag != "str" else f"{node.value!r}"
